"""Registration: every frame's map and photometric scale, from the small results of looking at each alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from astropy.io import fits
from astropy.wcs import WCS

from survey.config import Config
from survey.io.catalogs import read_target_table
from survey.io.frames import FrameSource, parse_wcs
from survey.io.times import quiet
from survey.kernels.astrometry import field_from_positions, solve_field
from survey.kernels.frame_quality import photometric_scale
from survey.kernels.pixelmap import PixelMap, fit_pixel_map
from survey.kernels.registration import Match, RegistrationError, match_stars
from survey.kernels.stars import StarFlag
from survey.stages.frame_table import Registered, frame_table
from survey.stages.measure import SCALE_RADII, SCALE_WIDTHS, FrameMeasure

logger = logging.getLogger(__name__)

# A WCS is followed to this many pixels by the polynomial map that stands for it.
WCS_TOLERANCE = 2e-3


def scale_radius(psf_fwhm: Sequence[float]) -> int:
    """Index of the smallest aperture that holds nearly all of the stars' light in all frames."""
    widths = [fwhm for fwhm in psf_fwhm if np.isfinite(fwhm)]
    needed = SCALE_WIDTHS * float(np.median(widths)) if widths else 0.0
    return next((i for i, radius in enumerate(SCALE_RADII) if radius >= needed), len(SCALE_RADII) - 1)


def choose_reference(measures: list[FrameMeasure], name: str) -> int:
    """Index of the frame that defines the sky grid.

    ``auto`` takes, of the frames with round stars, good seeing and many stars, the one nearest to the
    middle of the series, where a drifting field overlaps most.

    Raises
    ------
    ValueError
        If a named frame is not among them.
    """
    if name != "auto":
        for k, m in enumerate(measures):
            if name in (m.name, m.header.source.path, Path(m.header.source.path).name):
                return k
        raise ValueError(f"[registration] reference = {name!r}: no such frame among the {len(measures)} read")
    fwhm = np.array([m.psf_fwhm for m in measures])
    count = np.array([int(m.stars.clean.sum()) for m in measures])
    elongation = np.array([m.elongation for m in measures])
    with quiet(RuntimeWarning):
        good = (
            (fwhm <= np.nanmedian(fwhm) * 1.05)
            & (elongation <= np.nanmedian(elongation) * 1.1)
            & (count >= 0.8 * np.median(count))
        )
    if not good.any():
        return int(np.argmax(count))
    candidates = np.flatnonzero(good)
    return int(candidates[np.argmin(np.abs(candidates - len(measures) / 2))])


def wcs_map(wcs: WCS, reference: WCS, shape: tuple[int, int]) -> PixelMap:
    """Polynomial map that follows reference WCS -> sky -> frame WCS, of the lowest sufficient degree."""
    y, x = np.meshgrid(np.linspace(0, shape[0] - 1, 13), np.linspace(0, shape[1] - 1, 13), indexing="ij")
    xd, yd = wcs.world_to_pixel(reference.pixel_to_world(x.ravel(), y.ravel()))
    for order in (1, 2, 3):
        found = fit_pixel_map(x.ravel(), y.ravel(), xd, yd, order)
        fx, fy = found.evaluate(x.ravel(), y.ravel())
        if max(np.abs(fx - xd).max(), np.abs(fy - yd).max()) < WCS_TOLERANCE:
            break
    return found


def _by_stars(m: FrameMeasure, ref: FrameMeasure, config: Config, initial: PixelMap | None) -> Match:
    settings = config.registration
    return match_stars(
        m.stars,
        ref.stars,
        initial=initial,
        max_rotation=settings.max_rotation,
        min_matches=settings.min_stars,
        order=settings.order,
    )


def _residual(m: FrameMeasure, ref: FrameMeasure, match: Match, pixel_map: PixelMap) -> float:
    """Median distance of matched stars from where a map that did not see them puts them."""
    x, y = pixel_map.evaluate(ref.stars.x[match.reference_index], ref.stars.y[match.reference_index])
    return float(np.median(np.hypot(m.stars.x[match.index] - x, m.stars.y[match.index] - y)))


def register_frame(m: FrameMeasure, ref: FrameMeasure, config: Config, radius: int = 0) -> Registered:
    """Map, residual and photometric scale (from the aperture of index ``radius``) of one frame.

    Raises
    ------
    RegistrationError
        If neither a WCS nor enough stars place the frame.
    """
    mode = config.registration.mode
    if mode == "auto":
        mode = "wcs" if m.header.wcs_text is not None and ref.header.wcs_text is not None else "stars"
    if mode == "wcs" and (m.header.wcs_text is None or ref.header.wcs_text is None):
        raise RegistrationError("has no WCS; set [registration] mode = 'stars'")
    if m is ref:
        pixel_map, rms, n = PixelMap.translation(0.0, 0.0), 0.0, int(m.stars.clean.sum())
        return Registered(m, pixel_map, rms, n, 1.0, 0.0)
    match: Match | None = None
    if mode == "stars":
        match = _by_stars(m, ref, config, None)
        pixel_map, rms = match.pixel_map, match.held_out_median
    else:
        if mode == "wcs":
            assert m.header.wcs_text is not None
            assert ref.header.wcs_text is not None
            pixel_map = wcs_map(
                parse_wcs(m.header.wcs_text), parse_wcs(ref.header.wcs_text), ref.header.shape
            )
        else:
            pixel_map = PixelMap.translation(0.0, 0.0)
        rms = np.nan
        try:
            match = _by_stars(m, ref, config, pixel_map)
            rms = _residual(m, ref, match, pixel_map)
        except RegistrationError as error:
            logger.info("%s: residual not measured: %s", m.name, error)
    scale, scale_error = 1.0, np.nan
    if config.calibrate.scale == "stars" and match is not None:
        scale, scale_error = _scale(m, ref, match, radius)
    return Registered(m, pixel_map, rms, match.n_matched if match else 0, scale, scale_error)


def _scale(m: FrameMeasure, ref: FrameMeasure, match: Match, radius: int) -> tuple[float, float]:
    i, j = match.index, match.reference_index
    good = ((m.stars.flags[i] | ref.stars.flags[j]) & StarFlag.SATURATED) == 0
    i, j = i[good], j[good]
    return photometric_scale(
        m.scale_flux[radius][i],
        ref.scale_flux[radius][j],
        m.scale_error[radius][i],
        ref.scale_error[radius][j],
    )


def combine(
    measures: list[FrameMeasure], config: Config, reference: FrameMeasure | None = None
) -> tuple[xr.Dataset, FrameMeasure, list[tuple[FrameSource, str]]]:
    """Register all frames to one and build the table of frames.

    Parameters
    ----------
    measures : list of FrameMeasure
        In order of time.
    reference : FrameMeasure, optional
        The frame that defines the grid; chosen here if missing.

    Returns
    -------
    frames : Dataset
        The group ``frames`` of the store.
    reference : FrameMeasure
    rejected : list of (FrameSource, reason)
        Frames that could not be placed.
    """
    ref = (
        measures[choose_reference(measures, config.registration.reference)]
        if reference is None
        else reference
    )
    done: list[Registered] = []
    rejected = []
    # From the reference frame alone, so that later nights are measured in the same aperture.
    radius = scale_radius([ref.psf_fwhm])
    for m in measures:
        try:
            done.append(register_frame(m, ref, config, radius))
        except RegistrationError as error:
            rejected.append((m.header.source, f"{m.name}: {error}"))
    return frame_table(done), ref, rejected


def catalog_wcs(reference: FrameMeasure, config: Config) -> str | None:
    """WCS header text of a frame without one, from the table of bright stars the user gives.

    Rows with pixel positions of the reference frame fix the solution directly; without them the table's
    stars are looked for among the frame's brightest.

    Raises
    ------
    RegistrationError
        If the table's stars are not found.
    ValueError
        If the pixel scale is missing.
    """
    settings = config.registration
    if settings.catalog is None:
        return None
    if settings.pixel_scale is None:
        raise ValueError("[registration] catalog needs pixel_scale (arcsec a pixel) beside it")
    rows = read_target_table(settings.catalog)
    known = [row for row in rows if "x" in row and "ra" in row]
    if known:
        ra, dec, x, y = (np.array([row[name] for row in known]) for name in ("ra", "dec", "x", "y"))
        solution = field_from_positions(
            ra, dec, x, y, scale=settings.pixel_scale, rotation=settings.rotation, parity=settings.parity or 1
        )
    else:
        ra, dec = (np.array([row[name] for row in rows]) for name in ("ra", "dec"))
        solution = solve_field(
            reference.stars,
            ra,
            dec,
            center_ra=float(np.mean(ra)),
            center_dec=float(np.mean(dec)),
            scale=settings.pixel_scale,
            parity=settings.parity,
        )
    return str(fits.Header(solution.header()).tostring())
