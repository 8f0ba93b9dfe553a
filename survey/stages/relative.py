"""Light curves relative to comparison stars: photometry of differences beside plain apertures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from survey.config import Config
from survey.io.store import Field
from survey.kernels.aperture import EnsembleLightCurve, aperture_flux, ensemble_light_curve
from survey.stages.calibrated import read_calibrated
from survey.stages.difference_psf import DifferencePSF
from survey.stages.photometry import measure, read_window, with_template_noise
from survey.tiles import Window

# Candidates for the ensemble, brightest first, and how far from the target they must be.
MAX_COMPARISONS = 60
MIN_DISTANCE = 12.0
# Brightness of a comparison star in units of the target's.
BRIGHTNESS = (0.1, 10.0)
# Aperture radius and sky ring in units of the PSF's FWHM; the ring is three pixels wide at least.
APERTURE = 1.7
# Relative scatter of the PSF's width over the frames from on which differences are summed, not fitted.
STEADY = 0.03
RING = (3.0, 5.0)


@dataclass
class RelativeLightCurve:
    """A target's flux in units of its reference flux, corrected by comparison stars.

    Parameters
    ----------
    difference, aperture : EnsembleLightCurve
        From photometry of the differences plus the reference flux (PSF-fitted, or summed in an aperture
        where the PSF changes), and from apertures on the same calibrated frames, both with the same
        candidates for comparison.
    reference_flux : float
        Of the target.
    flags : int array (time,)
        As in `survey.stages.photometry`.
    """

    time: NDArray[np.float64]
    difference: EnsembleLightCurve
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
    field: Field, psf: DifferencePSF, item: dict[str, Any], config: Config
) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[str, Any]]:
    """PSF flux of differences plus reference flux, and its error."""
    half = config.photometry.size // 2 + 2
    found = measure(read_window(field, _cut(field, item["y"], item["x"], half), config), psf, item, config)
    return found["flux"] + found["reference_flux"], found["error"], found


@dataclass
class _Aperture:
    """Radius and sky ring in pixels."""

    radius: float
    ring: tuple[float, float]

    @classmethod
    def of(cls, fwhm: float) -> _Aperture:
        return cls(APERTURE * fwhm, (RING[0] * fwhm, max(RING[1] * fwhm, RING[0] * fwhm + 3)))

    @property
    def half(self) -> int:
        """Half the edge of a window that holds it."""
        return int(np.ceil(self.ring[1])) + 2

    def measure(
        self,
        flux: NDArray[Any],
        error: NDArray[Any],
        mask: NDArray[np.bool_],
        phase_y: NDArray[np.float64],
        phase_x: NDArray[np.float64],
        place: tuple[float, float],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sums (time,) at the star's true place in every placed frame."""
        row, column = place
        sums, errors = np.full(len(flux), np.nan), np.full(len(flux), np.nan)
        for k in range(len(flux)):
            if mask[k].all():
                continue
            py, px = phase_y[k], phase_x[k]
            if np.ndim(py):
                inside = (
                    min(max(round(row), 0), py.shape[0] - 1),
                    min(max(round(column), 0), py.shape[1] - 1),
                )
                py, px = py[inside], px[inside]
            image = np.where(mask[k], 0.0, flux[k]).astype(np.float64)
            sigma = np.where(mask[k], 1.0, error[k]).astype(np.float64)
            f, e = aperture_flux(image, sigma, mask[k], [column - px], [row - py], self.radius, self.ring)
            sums[k], errors[k] = f[0], e[0]
        return sums, errors


def _aperture(
    field: Field, y: float, x: float, fwhm: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Aperture flux in every calibrated frame."""
    aperture = _Aperture.of(fwhm)
    window = _cut(field, y, x, aperture.half)
    data = read_calibrated(field, window)
    place = (y - window[0].start, x - window[1].start)
    return aperture.measure(data.flux, data.error, data.mask, data.phase_y, data.phase_x, place)


def _difference_aperture(
    field: Field, psf: DifferencePSF, found: dict[str, Any], config: Config, fwhm: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Aperture sum of the differences plus that of the reference.

    Where the PSF changes from frame to frame, a difference holds light moved from the core to the wings:
    a PSF fit takes it for flux, a wide aperture does not. A matched template was scaled by its kernel's sum,
    which is taken out again.
    """
    aperture = _Aperture.of(fwhm)
    window = _cut(field, found["y"], found["x"], aperture.half)
    data = read_window(field, window, config)
    place = (found["y"] - window[0].start, found["x"] - window[1].start)
    noise = with_template_noise(data, psf, (found["y"], found["x"]), np.s_[:, :, :])
    flux, error = aperture.measure(
        data.arrays["flux"], noise, data.arrays["mask"], data.phase_y, data.phase_x, place
    )
    assert data.template is not None
    zero = np.zeros(1)
    image, bad = data.template.flux[None], data.template.bad[None]
    reference, _ = aperture.measure(np.where(bad, 0.0, image), np.ones_like(image), bad, zero, zero, place)
    found["reference_flux"] = float(reference[0])
    kernels = psf.kernel_at(found["y"], found["x"])
    scale = 1.0 if kernels is None else kernels.sum(axis=(1, 2))
    return flux / scale + reference[0], error / scale


def relative_light_curve(
    field: Field, psf: DifferencePSF, item: dict[str, Any], config: Config
) -> RelativeLightCurve:
    """Ensemble-corrected light curve of one position.

    Raises
    ------
    ValueError
        If too few comparison stars are left.
    """
    fwhm = float(np.nanmedian(field.frames()["psf_fwhm"].values))
    stars = comparison_stars(field, item["y"], item["x"])
    items = [item, *({"y": y, "x": x, "refine": False} for y, x in stars)]
    curves = [_total_flux(field, psf, it, config) for it in items]
    if np.nanstd(field.frames()["psf_fwhm"].values) > STEADY * fwhm:
        curves = [(*_difference_aperture(field, psf, c[2], config, fwhm), c[2]) for c in curves]
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
