"""Light curves relative to comparison stars: PSF photometry of differences beside plain apertures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from survey.config import Config
from survey.io.store import Field
from survey.kernels.aperture import EnsembleLightCurve, aperture_flux, ensemble_light_curve
from survey.kernels.psf import EffectivePSF
from survey.stages.calibrated import read_calibrated
from survey.stages.photometry import measure, read_window
from survey.tiles import Window

# Candidates for the ensemble, brightest first, and how far from the target they must be.
MAX_COMPARISONS = 60
MIN_DISTANCE = 12.0
# Brightness of a comparison star in units of the target's.
BRIGHTNESS = (0.1, 10.0)
# Aperture radius and sky ring in units of the PSF's FWHM; the ring is three pixels wide at least.
APERTURE = 1.7
RING = (3.0, 5.0)


@dataclass
class RelativeLightCurve:
    """A target's flux in units of its reference flux, corrected by comparison stars.

    Parameters
    ----------
    psf, aperture : EnsembleLightCurve
        From PSF photometry of the differences plus the reference flux, and from apertures on the same
        calibrated frames, both with the same candidates for comparison.
    reference_flux : float
        Of the target.
    flags : int array (time,)
        As in `survey.stages.photometry`.
    """

    time: NDArray[np.float64]
    psf: EnsembleLightCurve
    aperture: EnsembleLightCurve
    reference_flux: float
    flags: NDArray[np.int32]
    comparisons: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))


def comparison_stars(field: Field, y: float, x: float) -> NDArray[np.float64]:
    """Positions (n, 2) as (y, x) of clean stars of the reference frame, brightest first."""
    stars = field.table("stars")
    clean = stars["flags"].values == 0
    sy, sx = stars["y"].values[clean], stars["x"].values[clean]
    order = np.argsort(-stars["flux"].values[clean], kind="stable")
    positions = np.column_stack([sy, sx])[order]
    far = np.hypot(positions[:, 0] - y, positions[:, 1] - x) >= MIN_DISTANCE
    return positions[far][:MAX_COMPARISONS]


def _cut(field: Field, y: float, x: float, half: int) -> Window:
    height, width = field.shape
    cy, cx = round(y), round(x)
    return (
        slice(max(cy - half, 0), min(cy + half + 1, height)),
        slice(max(cx - half, 0), min(cx + half + 1, width)),
    )


def _total_flux(
    field: Field, psf: EffectivePSF, item: dict[str, Any], config: Config
) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[str, Any]]:
    """PSF flux of differences plus reference flux, and its error."""
    half = config.photometry.size // 2 + 2
    found = measure(
        read_window(field, _cut(field, item["y"], item["x"], half), config, ()), psf, item, config
    )
    return found["flux"] + found["reference_flux"], found["error"], found


def _aperture(
    field: Field, y: float, x: float, fwhm: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Aperture flux of every calibrated frame at the star's true place in it."""
    radius = APERTURE * fwhm
    ring = (RING[0] * fwhm, max(RING[1] * fwhm, RING[0] * fwhm + 3))
    window = _cut(field, y, x, int(np.ceil(ring[1])) + 2)
    data = read_calibrated(field, window)
    row, column = y - window[0].start, x - window[1].start
    flux, error = np.full(len(data.time), np.nan), np.full(len(data.time), np.nan)
    for k in range(len(data.time)):
        if data.mask[k].all():
            continue
        py, px = data.phase_y[k], data.phase_x[k]
        if np.ndim(py):
            inside = (min(max(round(row), 0), py.shape[0] - 1), min(max(round(column), 0), py.shape[1] - 1))
            py, px = py[inside], px[inside]
        image = np.where(data.mask[k], 0.0, data.flux[k]).astype(np.float64)
        sigma = np.where(data.mask[k], 1.0, data.error[k]).astype(np.float64)
        f, e = aperture_flux(image, sigma, data.mask[k], [column - px], [row - py], radius, ring)
        flux[k], error[k] = f[0], e[0]
    return flux, error


def relative_light_curve(
    field: Field, psf: EffectivePSF, item: dict[str, Any], config: Config
) -> RelativeLightCurve:
    """Ensemble-corrected light curve of one position.

    Raises
    ------
    ValueError
        If too few comparison stars are left.
    """
    fwhm = float(np.nanmedian(field.frames()["psf_fwhm"].values))
    stars = comparison_stars(field, item["y"], item["x"])
    items = [item, *({"y": y, "x": x, "refine": True} for y, x in stars)]
    curves = [_total_flux(field, psf, it, config) for it in items]
    target = curves[0][2]
    places = [(c[2]["y"], c[2]["x"]) for c in curves]
    apertures = [_aperture(field, y, x, fwhm) for y, x in places]
    options: dict[str, Any] = {"target": 0, "brightness": BRIGHTNESS}
    by_psf = ensemble_light_curve(
        np.column_stack([c[0] for c in curves]), np.column_stack([c[1] for c in curves]), **options
    )
    by_aperture = ensemble_light_curve(
        np.column_stack([a[0] for a in apertures]), np.column_stack([a[1] for a in apertures]), **options
    )
    return RelativeLightCurve(
        target["time"], by_psf, by_aperture, target["reference_flux"], target["flags"], np.array(places[1:])
    )
