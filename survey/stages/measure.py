"""One frame looked at alone: its stars, sky, PSF width and the fluxes that its scale is taken from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from survey.config import Config
from survey.io.frames import FrameError, FrameHeader, read_frame
from survey.kernels.aperture import aperture_flux
from survey.kernels.background import measure_background
from survey.kernels.pattern import Pattern
from survey.kernels.stars import StarList, find_stars, psf_width

# Apertures for the photometric scale in pixels, the sky ring beyond them, and how many FWHM one must hold.
SCALE_RADII = (4.0, 6.0, 9.0, 13.0)
RING = (3.0, 9.0)
SCALE_WIDTHS = 1.6
# With a WCS, the stars of this many pixels a side in the frame's middle give scale, sky and PSF width.
MEASURED_EDGE = 384


@dataclass
class FrameMeasure:
    """What is known of one frame after it has been looked at alone.

    ``scale_flux`` and ``scale_error`` (radii, stars) are what the photometric scale is taken from.
    """

    header: FrameHeader
    stars: StarList
    scale_flux: NDArray[np.float64]
    scale_error: NDArray[np.float64]
    background: NDArray[np.float64]
    background_rms: float
    psf_fwhm: float
    elongation: float

    @property
    def name(self) -> str:
        """The frame's name in messages."""
        return self.header.frame_id


def measure_frame(header: FrameHeader, config: Config, pattern: Pattern | None = None) -> FrameMeasure:
    """Read a frame, less the detector's pattern, and measure its stars, sky and PSF width.

    Raises
    ------
    FrameError
        If the file cannot be read, or holds no good pixel.
    """
    surface = config.calibrate.background == "surface"
    rows, columns = measured_window(header, config)
    frame = read_frame(header, config.input, None if surface else rows, pattern)
    cut = (slice(*rows) if surface else slice(None), slice(*columns))
    flux = np.ascontiguousarray(frame.flux[cut])
    error = np.ascontiguousarray(frame.error[cut])
    mask = np.ascontiguousarray(frame.mask[cut])
    if mask.all():
        what = "masked" if np.isfinite(flux).any() else "NaN"
        raise FrameError(header.source.path, f"every pixel is {what}", "leave the frame out")
    try:
        if surface:
            sky = measure_background(frame.flux, frame.mask, order=2)
        else:
            sky = measure_background(flux, mask)
    except ValueError as reason:
        raise FrameError(header.source.path, f"no sky level can be measured: {reason}") from None
    found = find_stars(
        flux,
        error,
        mask,
        threshold=config.registration.threshold,
        max_stars=config.registration.max_stars,
        saturation=header.saturation,
    )
    fwhm = psf_width(found)[0] if found.clean.sum() >= 3 else np.nan
    scale_flux, scale_error = _scale_fluxes(flux, error, mask, found)
    stars = replace(found, x=found.x + columns[0], y=found.y + rows[0])
    clean = stars.select(stars.clean)
    background = (
        np.zeros_like(sky.coefficients) if config.calibrate.background == "none" else sky.coefficients
    )
    return FrameMeasure(
        header=header,
        stars=stars,
        scale_flux=scale_flux,
        scale_error=scale_error,
        background=background,
        background_rms=sky.rms,
        psf_fwhm=float(fwhm),
        elongation=float(np.median(clean.elongation)) if len(clean) else np.nan,
    )


def measured_window(header: FrameHeader, config: Config) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns in which stars are looked for: all, or the middle where the WCS does the rest."""
    by_wcs = config.registration.mode in ("auto", "wcs") and header.wcs_text is not None
    window = []
    for size in header.shape:
        edge = min(size, MEASURED_EDGE) if by_wcs else size
        window.append(((size - edge) // 2, (size - edge) // 2 + edge))
    return window[0], window[1]


def _scale_fluxes(
    flux: NDArray[np.float32], error: NDArray[np.float32], mask: NDArray[np.bool_], stars: StarList
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Aperture fluxes (radii, stars) and errors for the photometric scale.

    A star fitted in an undersampled, crowded frame carries an error that depends on its sub-pixel phase,
    the same for all stars of a frame, so that no number of stars averages it away, and a reference over
    phases would take it for a property of the PSF; and where the PSF changes, a fitted profile is wrong by
    percents. A wide aperture knows neither.
    """
    bad = mask | ~np.isfinite(flux) | ~np.isfinite(error)
    image = np.where(bad, 0.0, flux).astype(np.float64)
    sigma = np.where(bad, 1.0, error).astype(np.float64)
    sums = [
        aperture_flux(image, sigma, bad, stars.x, stars.y, radius, (radius + RING[0], radius + RING[1]))
        for radius in SCALE_RADII
    ]
    return np.array([flux for flux, _ in sums]), np.array([error for _, error in sums])
