"""The oversampled reference written down plainly: what the fast kernels must equal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from survey.kernels.legendre import design_matrix

BAD, USED, HELD, CLIPPED = 0, 1, 2, 3
NEIGHBOURS = [(0, 0)] + [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]


def gather_rows(flux, error, state, phase_y, phase_x, pixels, extension):
    """All samples that may enter the pixels' fits; arrays (pixels, 9 * time), own samples first."""
    n_time, ny, nx = flux.shape
    y0, x0 = np.divmod(pixels, nx)
    rows: list[list[np.ndarray]] = [[], [], [], [], []]
    for oy, ox in NEIGHBOURS:
        y, x = y0 + oy, x0 + ox
        inside = (y >= 0) & (y < ny) & (x >= 0) & (x < nx)
        y, x = np.clip(y, 0, ny - 1), np.clip(x, 0, nx - 1)
        if phase_y.ndim == 1:
            v = np.broadcast_to(phase_y + oy, (len(pixels), n_time))
            u = np.broadcast_to(phase_x + ox, (len(pixels), n_time))
        else:
            v, u = phase_y[:, y, x].T + oy, phase_x[:, y, x].T + ox
        limit = extension / 2 + 1e-9
        good = inside[:, None] & (np.abs(v) <= limit) & (np.abs(u) <= limit)
        s = np.where(good, state[:, y, x].T, BAD)
        ok = s != BAD
        values = (flux[:, y, x].T, error[:, y, x].T.astype(float) ** 2, v, u)
        for store, a in zip(rows, values, strict=False):
            store.append(np.where(ok, a, 0.0))
        rows[4].append(s)
    return [np.concatenate(a, axis=1) for a in rows]


def noise_slopes(z, v, model, used):
    """How far v = error^2 follows the noise in z itself, above and below zero flux: (pixels, 2)."""
    terms = np.stack(
        [model, np.maximum(z, 0) - np.maximum(model, 0), np.minimum(z, 0) - np.minimum(model, 0)], axis=-1
    )
    n = np.maximum(used.sum(1), 1)[:, None]
    terms = np.where(used[..., None], terms - ((terms * used[..., None]).sum(1) / n)[:, None, :], 0.0)
    rhs = np.where(used, v - (v * used).sum(1, keepdims=True) / n, 0.0)
    normal = np.einsum("pma,pmb->pab", terms, terms)
    diagonal = np.einsum("paa->pa", normal)  # a view
    diagonal += 0.1 * np.finfo(float).eps ** 0.5 * diagonal + 1e-30
    # An arm shorter than a third of a sigma measures no slope.
    diagonal[:, 1:] += 0.1 * (v * used).sum(1, keepdims=True) / n
    return np.linalg.solve(normal, np.einsum("pma,pm->pa", terms, rhs)[..., None])[:, 1:, 0]


def model_variance(z, v, model, slopes, least):
    """Variance at the model's flux; `slopes` d error^2 / d flux above and below zero flux."""
    above, below = slopes
    s2 = v - above * (np.maximum(z, 0) - model) - below * np.minimum(z, 0)
    return np.maximum(s2, least[:, None])


def solve(design, z, w, ridge):
    """Weighted ridge fit; coefficients (pixels, n) and inverse normal matrix (pixels, n, n)."""
    normal = np.matmul(design.transpose(0, 2, 1) * w[:, None, :], design)
    n_rows = np.maximum((w > 0).sum(1), 1)
    penalty = ridge * w.sum(1) / n_rows
    index = np.arange(1, normal.shape[-1])
    normal[:, index, index] += penalty[:, None]
    normal[~(w > 0).any(1)] = np.eye(normal.shape[-1])
    inverse = np.linalg.inv(normal)
    rhs = np.matmul(design.transpose(0, 2, 1), (w * z)[..., None])
    return np.matmul(inverse, rhs)[..., 0], inverse


def clip_rows(s, t, clip, positive_only):
    """Rows kept or held out after one pass: the worst half first, so that one does not drag others along."""
    size = t if positive_only else np.abs(t)
    used, out = s == USED, s == CLIPPED
    worst = np.where(used, size, 0.0).max(1, keepdims=True)
    s = np.where(used & (size > np.maximum(clip, 0.5 * worst)), CLIPPED, s)
    return np.where(out & (size <= clip), USED, s)


def fit_pixels(rows, n_time, settings):
    """All passes on gathered rows: coefficients, and the own rows' difference, variance, leverage, state."""
    z, v, py, px, s = rows
    used = s == USED
    mean = (z * used).sum(1) / np.maximum(used.sum(1), 1)
    least = 0.25 * np.where(used, v, np.inf).min(1)
    least[~np.isfinite(least)] = 1.0
    slope = None if settings.slope is None else np.tile(settings.slope, len(NEIGHBOURS))[None, :]
    design = design_matrix(py, px, settings.n_basis, settings.extension)
    start, _ = solve(design, z - mean[:, None], used.astype(float), settings.ridge)
    model = np.matmul(design, start[..., None])[..., 0] + mean[:, None]
    active = np.arange(len(z))
    restless = np.zeros(len(z), bool)
    out: list[np.ndarray] = []
    for iteration in range(settings.iterations + 1):
        a = active
        fresh = one_pass(design[a], z[a], v[a], s[a], model[a], mean[a], slope, settings.ridge, least[a])
        if not out:
            out = list(fresh)
        for store, values in zip(out, fresh, strict=True):
            store[a] = values
        model[a] = fresh[1]
        if iteration == settings.iterations:
            break
        new = clip_rows(s[a], fresh[2] / np.sqrt(fresh[3]), settings.clip, settings.positive_only)
        changed = (new != s[a]).any(1)
        s[a] = new
        active = a[changed | restless[a]]
        restless[a] = changed
        if not len(active):
            break
    theta, _, difference, variance, leverage = out
    own = slice(0, n_time)
    return theta, difference[:, own], variance[:, own], leverage[:, own], s


def one_pass(design, z, v, s, model, mean, slope, ridge, least):
    """One weighted fit and the leave-one-out difference of every row."""
    used = s == USED
    slopes = (slope, slope) if slope is not None else noise_slopes(z, v, model, used).T[:, :, None]
    s2 = model_variance(z, v, model, slopes, least)
    w = np.where(used, 1.0 / s2, 0.0)
    theta, inverse = solve(design, z - mean[:, None], w, ridge)
    theta[:, 0] += mean
    model = np.matmul(design, theta[..., None])[..., 0]
    q = np.einsum("pmi,pij,pmj->pm", design, inverse, design, optimize=True)
    s2 = model_variance(z, v, model, slopes, least)
    h = np.clip(w * q, 0.0, 1.0 - 1e-9)
    r = z - model
    difference = np.where(used, r / (1 - h), r)
    variance = np.where(used, s2 / (1 - h), s2 + q)
    leverage = np.where(used, h, q / (s2 + q))
    return theta, model, difference, variance, leverage


@dataclass
class Settings:
    """What `fit_pixels` needs to know."""

    n_basis: int = 5
    extension: float = 1.2
    ridge: float = 1e-6
    iterations: int = 5
    clip: float = 4.0
    positive_only: bool = False
    slope: np.ndarray | None = None


def difference(flux, error, mask, phase_y, phase_x, *, fit_mask=None, min_images=None, **settings):
    """Leave-one-out flux, error, leverage, mask, fit_mask and the coefficients of a whole cube."""
    settings = Settings(**settings)
    n_time, ny, nx = flux.shape
    bad = mask | ~(np.isfinite(flux) & np.isfinite(error) & (error > 0))
    state = np.where(bad, BAD, USED)
    if fit_mask is not None:
        state[fit_mask & ~bad] = HELD
    rows = gather_rows(flux, error, state, phase_y, phase_x, np.arange(ny * nx), settings.extension)
    theta, d, variance, leverage, state = fit_pixels(rows, n_time, settings)
    d, variance, leverage = (a.T.reshape(flux.shape) for a in (d, variance, leverage))
    state = state[:, :n_time].T.reshape(flux.shape)
    least = settings.n_basis**2 if min_images is None else min_images
    bad = (state == BAD) | ((state == USED).sum(0) < least)
    d, error = np.where(bad, np.nan, d), np.where(bad, np.nan, np.sqrt(variance))
    return d, error, np.where(bad, 0, leverage), bad, state >= HELD, theta.reshape(ny, nx, -1)
