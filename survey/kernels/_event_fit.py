"""Linear fits of events on the cutout around a candidate, with the noise the reference really leaves."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from survey.kernels._event_model import shifted_designs
from survey.kernels._psf_pass import PSFModel

Array = NDArray[np.float64]


class Rows(NamedTuple):
    """Samples at one offset, to which the stamp's pixels are fitted.

    Attributes
    ----------
    pixels : int array (p,)
        Those of the stamp's pixels that have a neighbour there, of P.
    epochs : int array (k,)
    at : tuple of int arrays (k, 1), (p,), (p,)
        The samples in the cutout.
    design : array (k, c) or (p, k, c)
        One for all pixels where they share their phases.
    """

    pixels: NDArray[np.intp]
    epochs: NDArray[np.intp]
    at: tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]
    design: Array


class EventStamp:
    """Samples around a place of a difference cube, ready for linear filters (see `_event_model`).

    The cutout holds the stamp of ``size`` pixels and one pixel around it, whose samples are rows of the
    stamp's references.

    Parameters
    ----------
    flux, error, mask : array (time, y, x)
        Leave-one-out difference, its error, bad samples.
    phase_y, phase_x : array (time,) or (time, y, x)
    y, x : int
        Centre of the stamp.
    size : int
        Odd side of the stamp.
    leverage : array (time, y, x), optional
        As in `survey.kernels.reference.Difference`; else it is taken from the cutout's own fit.
    fit_mask : bool array (time, y, x), optional
        Good samples out of the fit.
    n_basis, extension
        Of the reference; ``n_basis=0``: none.
    """

    def __init__(
        self,
        flux: NDArray[np.floating],
        error: NDArray[np.floating],
        mask: NDArray[np.bool_],
        phase_y: Array,
        phase_x: Array,
        y: int,
        x: int,
        size: int,
        *,
        leverage: NDArray[np.floating] | None = None,
        fit_mask: NDArray[np.bool_] | None = None,
        n_basis: int = 5,
        extension: float = 1.2,
    ) -> None:
        _, ny, nx = flux.shape
        reach = size // 2 + 1
        rows = slice(max(y - reach, 0), min(y + reach + 1, ny))
        columns = slice(max(x - reach, 0), min(x + reach + 1, nx))
        cut = (slice(None), rows, columns)
        self.dy = np.arange(rows.start, rows.stop) - y
        self.dx = np.arange(columns.start, columns.stop) - x
        self.inside = (np.abs(self.dy) < reach)[:, None] & (np.abs(self.dx) < reach)
        self.complete = bool(self.inside.sum() == size**2)
        self.n_basis, self.extension = n_basis, extension
        self.flux, self.error = np.asarray(flux[cut], float), np.asarray(error[cut], float)
        good = ~mask[cut] & np.isfinite(self.flux) & np.isfinite(self.error) & (self.error > 0)
        self.good = good
        self.weight = np.where(good, 1 / np.where(good, self.error, 1.0) ** 2, 0.0)
        self.flux = np.where(good, self.flux, 0.0)
        self.fitted = good if fit_mask is None else good & ~fit_mask[cut]
        py, px = (np.asarray(p, float) for p in (phase_y, phase_x))
        self.phase_y = py[cut] if py.ndim == 3 else py
        self.phase_x = px[cut] if px.ndim == 3 else px
        self.leverage = self._leverage(None if leverage is None else np.asarray(leverage[cut], float))

    def psf(self, model: PSFModel, offset_y: float = 0.0, offset_x: float = 0.0) -> Array:
        """PSF (time, y, x) of a star at the centre plus an offset; zero outside the stamp."""
        shape = self.flux.shape
        field = self.phase_y.ndim == 3
        py, px = (p if field else p[:, None, None] for p in (self.phase_y, self.phase_x))
        d_y = np.broadcast_to(offset_y - self.dy[:, None] - py, shape)
        d_x = np.broadcast_to(offset_x - self.dx - px, shape)
        values = np.asarray(model.evaluate(d_y.ravel(), d_x.ravel(), 1), float)
        return values.reshape(shape) * self.inside

    def apply(self, templates: Array) -> tuple[Array, Array]:
        """Matched filters of templates s (n, time, y, x): their sums (n,) and data weights u (as s)."""
        sums = np.einsum("akyx,kyx,kyx->a", templates, self.weight, self.flux)
        taken = np.where(self.fitted, 1 - self.leverage, 1.0)
        n = templates * (self.weight / taken)
        if self.n_basis == 0:
            return sums, n
        y, x = self._places
        coefficients = (n[:, :, y, x].transpose(2, 0, 1) @ self._rows[0].design) @ self._inverses
        u = n.copy()
        for rows in self._rows:
            part = coefficients[rows.pixels] @ np.swapaxes(rows.design, -1, -2)
            part *= self._fit_weight[rows.at].T[:, None]
            u[:, *rows.at] -= part.transpose(1, 2, 0)
        return sums, u

    def solve(self, templates: Array) -> tuple[Array, Array]:
        """Amplitudes (n,) of all templates together and their covariance (n, n)."""
        sums, u = self.apply(templates)
        response = np.einsum("akyx,bkyx->ab", u, templates)
        inverse = np.linalg.pinv(response)
        return inverse @ sums, inverse @ self.covariance(u) @ inverse.T

    def covariance(self, u: Array) -> Array:
        """Covariance (n, n) of the filters' sums."""
        return np.einsum("akyx,kyx,bkyx->ab", u, self.variance, u)

    def pixels(self, template: Array) -> tuple[Array, Array, Array]:
        """Filters of one template (time, y, x) in each of the stamp's pixels alone.

        Returns
        -------
        sums, covariance, response : arrays (n,), (n, n), (n,)
            The response is to the whole template.
        """
        if self.n_basis == 0:
            return self._pixels_apart(template)
        y, x = self._places
        every, own = np.arange(len(y)), template[:, y, x]
        n = own * (self.weight / np.where(self.fitted, 1 - self.leverage, 1.0))[:, y, x]
        u = np.zeros((len(y), *template.shape))
        u[every, :, y, x] = n.T
        coefficients = (n.T[:, None] @ self._rows[0].design) @ self._inverses
        for rows in self._rows:
            part = (coefficients[rows.pixels] @ np.swapaxes(rows.design, -1, -2))[:, 0].T
            u[rows.pixels, *rows.at] -= part * self._fit_weight[rows.at]
        sums = (own * (self.weight * self.flux)[:, y, x]).sum(0)
        # so many filters are a matrix: its product is twenty times as fast as a sum over three factors
        flat = u.reshape(len(u), -1)
        return sums, (flat * self.variance.ravel()) @ flat.T, flat @ template.ravel()

    def _pixels_apart(self, template: Array) -> tuple[Array, Array, Array]:
        """`pixels` where no reference ties one pixel's samples to another's."""
        at = (slice(None), self.inside)
        s, weight = template[at], self.weight[at]
        u = s * weight / np.where(self.fitted[at], 1 - self.leverage[at], 1.0)
        sums, noise = (s * weight * self.flux[at]).sum(0), (u * self.variance[at] * u).sum(0)
        return sums, np.diag(noise), (u * s).sum(0)

    @cached_property
    def variance(self) -> Array:
        """The samples' own variance, without the reference's; zero where bad."""
        h = self.leverage
        share = np.where(h >= 0, 1 - h, 1 / (1 - np.minimum(h, 0)))
        return np.where(self.good, self.error**2 * share, 0.0)

    @cached_property
    def _fit_weight(self) -> Array:
        v = self.variance
        return np.where(self.fitted, 1 / np.where(v > 0, v, 1.0), 0.0)

    @cached_property
    def _designs(self) -> list[tuple[tuple[int, int], Array]]:
        if self.n_basis == 0:
            return []
        return shifted_designs(self.phase_y, self.phase_x, self.n_basis, self.extension)

    @cached_property
    def _places(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows and columns of the stamp's pixels in the cutout."""
        y, x = np.nonzero(self.inside)
        return y, x

    @cached_property
    def _rows(self) -> list[Rows]:
        """Samples that the stamp's pixels are fitted to, their own first."""
        found = []
        y, x = self._places
        ny, nx = self.inside.shape
        for (o_y, o_x), design in self._designs:
            # A neighbour q serves pixel p = q - offset with its phase seen from p.
            pixels = np.flatnonzero((y + o_y >= 0) & (y + o_y < ny) & (x + o_x >= 0) & (x + o_x < nx))
            q_y, q_x = y[pixels] + o_y, x[pixels] + o_x
            seen = design if design.ndim == 2 else design[:, q_y, q_x].transpose(1, 0, 2)
            epochs = np.flatnonzero(seen.any(-1) if seen.ndim == 2 else seen.any((0, 2)))
            if (o_y, o_x) == (0, 0):
                epochs = np.arange(len(design))
            if len(epochs) and len(pixels):
                found.append(Rows(pixels, epochs, (epochs[:, None], q_y, q_x), seen[..., epochs, :]))
        return found

    @cached_property
    def _inverses(self) -> Array:
        """Inverse normal matrix of every pixel of the stamp's reference, (P, c, c)."""
        return self._solve_references(self._fit_weight)

    def _solve_references(self, weight: Array) -> Array:
        c = self.n_basis**2
        normal = np.zeros((len(self._places[0]), c, c))
        for rows in self._rows:
            weighted = weight[rows.at].T[:, :, None] * rows.design
            normal[rows.pixels] += np.swapaxes(weighted, -1, -2) @ rows.design
        scale = np.maximum(np.trace(normal, axis1=1, axis2=2) / c, np.finfo(float).tiny)[:, None, None]
        return np.asarray(np.linalg.pinv(normal / scale, rcond=1e-9, hermitian=True) / scale, float)

    def _leverage(self, given: Array | None) -> Array:
        if given is not None:
            return np.where(self.good, np.clip(np.nan_to_num(given), None, 1 - 1e-9), 0.0)
        leverage = np.zeros(self.flux.shape)
        # 1/error**2 = w (1 - h): two rounds settle w and h to a percent of h.
        for _ in range(2):
            weight = np.where(self.fitted, self.weight / (1 - leverage), 0.0)
            if self.n_basis:
                inverses, (y, x), b = self._solve_references(weight), self._places, self._rows[0].design
                h = ((b @ inverses) * b).sum(-1).T
                leverage[:, y, x] = np.clip(weight[:, y, x] * h, 0, 0.9)
        return leverage


def as_phases(phase_y: ArrayLike | None, phase_x: ArrayLike | None, n_time: int) -> tuple[Array, Array]:
    """Phases as float arrays; zeros where none are given."""
    py = np.zeros(n_time) if phase_y is None else np.asarray(phase_y, float)
    px = np.zeros(n_time) if phase_x is None else np.asarray(phase_x, float)
    return py, px
