"""Least-squares fits of pixel-integrated Gaussian stars: the loop behind `survey.kernels.stars`."""

from __future__ import annotations

import numpy as np
from numba import njit

from survey.kernels._inner import inner

# Three-point Gauss-Legendre nodes and weights on a pixel: for a FWHM of 1.1 px the integral over the
# pixel is right to 2e-4 of the peak, with 9 exponentials a pixel and any orientation of the ellipse.
_NODES = np.array([-0.5 * np.sqrt(0.6), 0.0, 0.5 * np.sqrt(0.6)])
_WEIGHTS = np.array([5.0, 8.0, 5.0]) / 18.0

N_PARAMETERS = 7  # x, y, flux, sky, then the inverse covariance qxx, qyy, qxy
_Q_MIN, _Q_MAX = 1.0 / 8.0**2, 1.0 / 0.12**2


@inner()
def _pixel(dx, dy, qxx, qyy, qxy, out):
    """Unit-flux elliptical Gaussian integrated over a pixel, and its derivatives by x, y and the shape."""
    out[:] = 0.0
    det = qxx * qyy - qxy * qxy
    norm = np.sqrt(det) / (2.0 * np.pi)
    for i in range(3):
        v = dy + _NODES[i]
        for j in range(3):
            u = dx + _NODES[j]
            g = _WEIGHTS[i] * _WEIGHTS[j] * norm
            g *= np.exp(-0.5 * (qxx * u * u + qyy * v * v) - qxy * u * v)
            out[0] += g
            out[1] += g * (qxx * u + qxy * v)
            out[2] += g * (qyy * v + qxy * u)
            out[3] += g * (0.5 * qyy / det - 0.5 * u * u)
            out[4] += g * (0.5 * qxx / det - 0.5 * v * v)
            out[5] += g * (-qxy / det - u * v)


@njit(cache=True, nogil=True)
def _normal_equations(image, variance, p, cx, cy, radius, n_free, normal, gradient):
    """Fill the normal matrix and the gradient at parameters p; returns (chi2, number of pixels)."""
    normal[:] = 0.0
    gradient[:] = 0.0
    row = np.empty(N_PARAMETERS)
    g = np.empty(6)
    chi2 = 0.0
    n = 0
    for y in range(max(cy - radius, 0), min(cy + radius + 1, image.shape[0])):
        for x in range(max(cx - radius, 0), min(cx + radius + 1, image.shape[1])):
            if (y - cy) ** 2 + (x - cx) ** 2 > (radius + 0.5) ** 2 or not variance[y, x] < np.inf:
                continue
            _pixel(x - p[0], y - p[1], p[4], p[5], p[6], g)
            row[0] = p[2] * g[1]
            row[1] = p[2] * g[2]
            row[2] = g[0]
            row[3] = 1.0
            row[4] = p[2] * g[3]
            row[5] = p[2] * g[4]
            row[6] = p[2] * g[5]
            r = image[y, x] - p[2] * g[0] - p[3]
            w = 1.0 / variance[y, x]
            chi2 += w * r * r
            n += 1
            for a in range(n_free):
                gradient[a] += w * r * row[a]
                for b in range(a + 1):
                    normal[a, b] += w * row[a] * row[b]
    for a in range(n_free):
        for b in range(a):
            normal[b, a] = normal[a, b]
    return chi2, n


@inner()
def _bounded(p):
    """Keep the ellipse positive definite and its axes between 0.12 and 8 px."""
    p[4] = min(max(p[4], _Q_MIN), _Q_MAX)
    p[5] = min(max(p[5], _Q_MIN), _Q_MAX)
    limit = 0.95 * np.sqrt(p[4] * p[5])
    p[6] = min(max(p[6], -limit), limit)


@inner()
def _fit_one(image, variance, p, cx, cy, radius, n_free, iterations, covariance):
    """Levenberg-Marquardt from p (changed in place); returns (chi2, dof, converged)."""
    normal = np.zeros((n_free, n_free))
    gradient = np.zeros(n_free)
    trial_normal = np.zeros((n_free, n_free))
    trial_gradient = np.zeros(n_free)
    damping = 1e-3
    chi2, n = _normal_equations(image, variance, p, cx, cy, radius, n_free, normal, gradient)
    converged = False
    if n <= n_free:
        return chi2, n - n_free, converged
    trial = p.copy()
    for _ in range(iterations):
        damped = normal.copy()
        for a in range(n_free):
            damped[a, a] = normal[a, a] * (1.0 + damping) + 1e-300
        step = np.linalg.solve(damped, gradient)
        if abs(step[0]) < 1e-4 and abs(step[1]) < 1e-4 and damping < 1.0:
            converged = True
            break
        trial[:] = p
        for a in range(n_free):
            trial[a] += step[a]
        _bounded(trial)
        if not (abs(trial[0] - cx) < radius and abs(trial[1] - cy) < radius):
            damping *= 10.0
            continue
        new, _n = _normal_equations(
            image, variance, trial, cx, cy, radius, n_free, trial_normal, trial_gradient
        )
        if new <= chi2 * (1.0 + 1e-12):
            p[:] = trial
            normal[:] = trial_normal
            gradient[:] = trial_gradient
            chi2 = new
            damping = max(damping * 0.2, 1e-9)
        else:
            damping *= 10.0
            if damping > 1e8:
                break
    for a in range(n_free):
        normal[a, a] *= 1.0 + 1e-12
    covariance[:n_free, :n_free] = np.linalg.inv(normal)
    return chi2, n - n_free, converged


@njit(cache=True, nogil=True)
def fit_stars(image, variance, parameters, radius, free_shape, iterations):
    """Fit every star alone on its stamp.

    Parameters
    ----------
    image, variance : float64 arrays (y, x)
        Infinite variance leaves a pixel out.
    parameters : float64 array (n, 7)
        First guesses x, y, flux, sky, qxx, qyy, qxy; not changed.
    radius : int
        Stamp radius in pixels.
    free_shape : bool
        Fit the inverse covariance too.
    iterations : int
        At most this many steps.

    Returns
    -------
    fitted : array (n, 7)
    variances : array (n, 7)
        Diagonal of the covariance; NaN where the fit failed.
    chi2_dof : array (n,)
    converged : bool array (n,)
    """
    n_free = 7 if free_shape else 4
    fitted = parameters.copy()
    variances = np.full(parameters.shape, np.nan)
    chi2_dof = np.full(len(parameters), np.nan)
    converged = np.zeros(len(parameters), dtype=np.bool_)
    covariance = np.zeros((N_PARAMETERS, N_PARAMETERS))
    for k in range(len(parameters)):
        p = fitted[k]
        cx, cy = int(np.rint(p[0])), int(np.rint(p[1]))
        covariance[:] = np.nan
        chi2, dof, good = _fit_one(image, variance, p, cx, cy, radius, n_free, iterations, covariance)
        if dof > 0:
            chi2_dof[k] = chi2 / dof
            for a in range(n_free):
                variances[k, a] = covariance[a, a]
        converged[k] = good
    return fitted, variances, chi2_dof, converged


@njit(cache=True, nogil=True)
def add_stars(image, parameters, radius, sign):
    """Add (sign 1) or take away (sign -1) the stars' light, in place, on discs of the given radius."""
    g = np.empty(6)
    for k in range(len(parameters)):
        p = parameters[k]
        cx, cy = int(np.rint(p[0])), int(np.rint(p[1]))
        for y in range(max(cy - radius, 0), min(cy + radius + 1, image.shape[0])):
            for x in range(max(cx - radius, 0), min(cx + radius + 1, image.shape[1])):
                _pixel(x - p[0], y - p[1], p[4], p[5], p[6], g)
                image[y, x] += sign * p[2] * g[0]


@njit(cache=True, nogil=True)
def fit_among_neighbours(image, variance, parameters, radius, render_radius, iterations):
    """Refit position, flux and sky of every star with its neighbours' light taken away.

    `parameters` in a fixed order, so the result does not depend on threads; each star is taken out of
    a residual image, fitted with its shape held, and put back with its new parameters.
    """
    residual = image.copy()
    add_stars(residual, parameters, render_radius, -1.0)
    fitted = parameters.copy()
    variances = np.full(parameters.shape, np.nan)
    chi2_dof = np.full(len(parameters), np.nan)
    converged = np.zeros(len(parameters), dtype=np.bool_)
    for k in range(len(parameters)):
        add_stars(residual, fitted[k : k + 1], render_radius, 1.0)
        new, var, chi2, good = fit_stars(residual, variance, fitted[k : k + 1], radius, False, iterations)
        if good[0] and new[0, 2] > 0:
            fitted[k] = new[0]
            variances[k] = var[0]
            converged[k] = True
        chi2_dof[k] = chi2[0]
        add_stars(residual, fitted[k : k + 1], render_radius, -1.0)
    return fitted, variances, chi2_dof, converged
