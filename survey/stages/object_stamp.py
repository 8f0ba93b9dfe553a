"""Differences around one object, and what its light is fitted to there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from survey.config import Config
from survey.kernels._psf_flux import as_phases
from survey.kernels.psf import EffectivePSF, fit_psf_flux, refine_position
from survey.kernels.psf_shape import fit_flux_and_shape

# Bits of a light curve's flags.
FLAG_NO_DATA = 1
FLAG_BAD_PIXEL = 2
FLAG_KEPT_OUT_OF_FIT = 4
FLAG_FRAME = 8
# Of a bright star's light, what kernels leave in each term of its shape: sampling and seeing are never
# matched better (measured by the comparison stars of HAT-P-32, whose scatter is least at 0.06 to 0.1).
SHAPE_ERROR = 0.1
# Share of its stamp's highest pixel from which on a bad one casts doubt on a star's flux.
CORE_SHARE = 0.1

Place = tuple[float, float]


@dataclass(frozen=True)
class ObjectStamp:
    """Samples (time, y, x) around an object; fewer near the image's edge, as what lies outside is not seen.

    ``cut`` is where they lie in the window they come from, ``origin`` their first pixel on the field. Phases
    are (time,) or (time, y, x).
    """

    cut: tuple[slice, slice, slice]
    origin: Place
    flux: NDArray[Any]
    error: NDArray[Any]
    mask: NDArray[np.bool_]
    fit_mask: NDArray[np.bool_]
    phase_y: NDArray[np.float64]
    phase_x: NDArray[np.float64]

    def find(
        self, psf: EffectivePSF, place: Place, light_curve: NDArray[np.float64] | None, config: Config
    ) -> tuple[float, float, float]:
        """Position refined from a first guess, and its error; the guess and NaN where there is none."""
        fit = refine_position(
            self.flux,
            self.error,
            self.mask,
            psf,
            self.phase_y,
            self.phase_x,
            place,
            origin=self.origin,
            light_curve=light_curve,
            background=config.photometry.background,
        )
        if not fit.converged:
            return *place, np.nan
        return float(fit.y), float(fit.x), float(np.sqrt(np.trace(fit.covariance) / 2))

    def total_weight(self, known: dict[str, Any] | None) -> NDArray[np.float64]:
        """Inverse variance (y, x) of all epochs together, added up in their order, after those ``known``."""
        shape = self.error.shape[1:]
        total = np.zeros(shape) if known is None else np.array(known["weight"]).reshape(shape)
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = 1.0 / np.asarray(self.error, float) ** 2
        for share in np.where(np.isnan(shares), 0.0, shares):
            total = total + share
        return total

    def fluxes(
        self,
        model: NDArray[np.float64],
        place: Place,
        config: Config,
        fwhm: NDArray[np.float64] | None,
        reference_flux: float,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Flux and error of all epochs, by the PSF ``model`` (time, y, x); with its shape given ``fwhm``."""
        if fwhm is None or not np.isfinite(reference_flux):
            return fit_psf_flux(
                self.flux, self.error, self.mask, model, background=config.photometry.background
            )
        return fit_flux_and_shape(
            self.flux,
            self.error,
            self.mask,
            model,
            *self._offsets(place),
            fwhm=fwhm,
            amplitude=SHAPE_ERROR * abs(reference_flux),
        )

    def flags(
        self, model: NDArray[np.float64], values: NDArray[np.float64], frame_flags: NDArray[np.int64]
    ) -> NDArray[np.int32]:
        """Bits of every epoch's fitted flux."""
        core = model >= CORE_SHARE * model.max(axis=(1, 2), keepdims=True)
        flags = np.where(np.isfinite(values), 0, FLAG_NO_DATA)
        flags |= np.where((self.mask & core).any(axis=(1, 2)), FLAG_BAD_PIXEL, 0)
        flags |= np.where((self.fit_mask & core).any(axis=(1, 2)), FLAG_KEPT_OUT_OF_FIT, 0)
        flags |= np.where(frame_flags != 0, FLAG_FRAME, 0)
        return flags.astype(np.int32)

    def _offsets(self, place: Place) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Places (time, y, x) of the samples, counted from the object."""
        shape = self.flux.shape
        rows, columns = np.indices(shape[1:])
        phase_y, phase_x = as_phases(self.phase_y, self.phase_x)
        y = rows + self.origin[0] + phase_y - place[0]
        x = columns + self.origin[1] + phase_x - place[1]
        return np.broadcast_to(y, shape), np.broadcast_to(x, shape)
