"""Light curves relative to comparison stars: photometry of differences beside plain apertures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from survey.config import Config
from survey.io.store import Field
from survey.kernels.aperture import EnsembleLightCurve, aperture_flux, ensemble_light_curve
from survey.stages.calibrated import differenced_frames, read_calibrated
from survey.stages.difference_psf import DifferencePSF
from survey.stages.photometry import Window3, measure, read_window, with_template_noise
from survey.tiles import Window

# Candidates for the ensemble, brightest first, and how far from the target they must be.
MAX_COMPARISONS = 60
MIN_DISTANCE = 12.0
# Brightness of a comparison star in units of the target's, where so many are left.
BRIGHTNESS = (0.1, 10.0)
ENOUGH = 10
# S/N of a reference flux in whose units a light curve can be.
KNOWN = 5.0
# Aperture radius and sky ring in units of the PSF's FWHM; the ring is three pixels wide at least.
APERTURE = 1.7
# Relative scatter of the PSF's width over the frames up to which it counts as one.
STEADY = 0.03
RING = (3.0, 5.0)


class RelativeError(ValueError):
    """A position has no relative light curve; the message says why."""


@dataclass
class RelativeLightCurve:
    """A target's flux in units of its reference flux, corrected by comparison stars.

    Parameters
    ----------
    difference, aperture : EnsembleLightCurve
        Relative to the star's median (``difference.normalisation / reference_flux`` makes them units of the
        reference flux); from photometry of the differences plus the reference flux (PSF-fitted, but summed in
        an aperture where the PSF changes and no kernel follows it), and from apertures on the same calibrated
        frames, both with the same candidates for comparison.
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


@dataclass(frozen=True)
class _Night:
    """What all stars of a field have in common."""

    field: Field
    psf: DifferencePSF
    config: Config
    frames: xr.Dataset
    fwhm: NDArray[np.float64]

    @classmethod
    def of(cls, field: Field, psf: DifferencePSF, config: Config) -> _Night:
        frames = differenced_frames(field, config.method)
        widths = frames["psf_fwhm"].values
        return cls(field, psf, config, frames, np.where(widths > 0, widths, np.nanmedian(widths)))

    @property
    def aperture(self) -> _Aperture:
        return _Aperture.of(float(np.median(self.fwhm)))

    @property
    def steady(self) -> bool:
        """Whether one PSF is that of all frames."""
        return bool(np.std(self.fwhm) <= STEADY * np.median(self.fwhm))


@dataclass
class _Curve:
    """Fluxes and errors (time,) of a star, by the differences and in plain apertures."""

    difference: tuple[NDArray[np.float64], NDArray[np.float64]]
    aperture: tuple[NDArray[np.float64], NDArray[np.float64]]
    found: dict[str, Any]


def _curve(night: _Night, item: dict[str, Any]) -> _Curve:
    """Light curves of a star from one window around it.

    Where the PSF changes from frame to frame, a difference holds light moved about within the star. A matched
    one is fitted by kernel * PSF with the PSF's shape in doubt; where one PSF has to do for all frames, it is
    summed in an aperture.
    """
    config, psf, aperture = night.config, night.psf, night.aperture
    half = max(config.photometry.size // 2 + 2, aperture.half)
    window = _cut(night.field, item["y"], item["x"], half)
    images = read_calibrated(night.field, window, night.frames)
    data = read_window(night.field, window, config, (), night.frames, images)
    fitted = night.steady or psf.kernels is not None
    found = measure(data, psf, item, config, None if night.steady or not fitted else night.fwhm)
    place = (found["y"] - window[0].start, found["x"] - window[1].start)
    phases = (images.phase_y, images.phase_x)
    if fitted:
        difference = found["flux"] + found["reference_flux"], found["error"]
    else:
        difference = _difference_aperture(night, data, found, place)
    plain = aperture.measure(images.flux, images.error, images.mask, *phases, place)
    return _Curve(difference, plain, found)


def _difference_aperture(
    night: _Night, data: Window3, found: dict[str, Any], place: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Aperture sum of the differences plus that of the reference.

    A matched template was scaled by its kernel's sum, which is taken out again.
    """
    aperture, psf = night.aperture, night.psf
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


def _ensemble(pairs: list[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> EnsembleLightCurve:
    """The first star's curve by stars of about its brightness, by all where those are few."""
    flux, error = (np.column_stack(part) for part in zip(*pairs, strict=True))
    with np.errstate(all="ignore"):
        level = np.array([np.median(f[np.isfinite(f)]) if np.isfinite(f).any() else np.nan for f in flux.T])
        alike = (level[1:] >= BRIGHTNESS[0] * level[0]) & (level[1:] <= BRIGHTNESS[1] * level[0])
    brightness = BRIGHTNESS if alike.sum() >= ENOUGH else None
    return ensemble_light_curve(flux, error, target=0, brightness=brightness)


def relative_light_curve(
    field: Field, psf: DifferencePSF, item: dict[str, Any], config: Config
) -> RelativeLightCurve:
    """Ensemble-corrected light curve of one position.

    Raises
    ------
    RelativeError
        If too few comparison stars are left, or the reference has no flux at the position.
    """
    night = _Night.of(field, psf, config)
    curves = [_curve(night, item)]
    target = curves[0].found
    flux, error = float(target["reference_flux"]), float(target["reference_flux_error"])
    if not flux > KNOWN * error:
        raise RelativeError(
            f"the reference has no flux here to be the unit ({flux:.3g} ± {error:.2g}); "
            "take the light curve that is not relative"
        )
    stars = comparison_stars(field, item["y"], item["x"])
    curves += [_curve(night, {"y": y, "x": x, "refine": False}) for y, x in stars]
    try:
        difference = _ensemble([c.difference for c in curves])
        aperture = _ensemble([c.aperture for c in curves])
    except ValueError as problem:
        raise RelativeError(
            f"{len(stars)} clean stars lie farther than {MIN_DISTANCE:g} px from it ({problem}); "
            "take the light curve that is not relative"
        ) from None
    places = np.array([(c.found["y"], c.found["x"]) for c in curves[1:]])
    return RelativeLightCurve(
        target["time"], difference, aperture, target["reference_flux"], target["flags"], places
    )
