"""Registration: every frame's map and photometric scale, from the small results of looking at each alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from astropy.io import fits

from survey.config import Config
from survey.io.catalogs import read_target_table
from survey.io.frames import FrameSource, parse_wcs
from survey.io.times import quiet
from survey.kernels.astrometry import field_from_positions, solve_field
from survey.kernels.frame_quality import photometric_scale
from survey.kernels.pixelmap import PixelMap
from survey.kernels.registration import Match, RegistrationError, match_stars, pair_weights
from survey.kernels.stars import StarFlag
from survey.stages.frame_table import Registered, Residual, frame_table
from survey.stages.measure import SCALE_RADII, SCALE_WIDTHS, FrameMeasure
from survey.stages.wcs_maps import MISPLACED, check_overlap, contradicted, match_near, wcs_map

logger = logging.getLogger(__name__)

# Frames that are tried for the reference, where most others contradict the WCS of the one before.
REFERENCES = 3


class Registration(NamedTuple):
    """Frames on one grid.

    Parameters
    ----------
    frames : Dataset
        The group ``frames`` of the store.
    reference : FrameMeasure
    rejected : list of (FrameSource, reason)
        Frames that could not be placed.
    warnings : list of str
    """

    frames: xr.Dataset
    reference: FrameMeasure
    rejected: list[tuple[FrameSource, str]]
    warnings: list[str]


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


def _residual(m: FrameMeasure, ref: FrameMeasure, match: Match, pixel_map: PixelMap) -> Residual:
    """Distance of matched stars from where a map that did not see them puts them."""
    x, y = pixel_map.evaluate(ref.stars.x[match.reference_index], ref.stars.y[match.reference_index])
    square = (m.stars.x[match.index] - x) ** 2 + (m.stars.y[match.index] - y) ** 2
    weights = pair_weights(m.stars, ref.stars, match.index, match.reference_index)
    return Residual(float(np.sqrt(np.average(square, weights=weights))), float(np.sqrt(np.median(square))))


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
        n = int(m.stars.clean.sum())
        return Registered(m, PixelMap.translation(0.0, 0.0), Residual(0.0, 0.0), n, 1.0, 0.0)
    placed = _placed_by_wcs(m, ref, config) if mode == "wcs" else _placed(m, ref, config, mode)
    check_overlap(placed.pixel_map, ref.header.shape, m.header.shape)
    match = placed.match
    scale, scale_error = 1.0, np.nan
    if config.calibrate.scale == "stars" and match is not None:
        scale, scale_error = _scale(m, ref, match, radius)
    n = match.n_matched if match else 0
    return Registered(m, placed.pixel_map, placed.residual, n, scale, scale_error, placed.off_wcs)


class _Placed(NamedTuple):
    """A map, the stars that bear it out or were matched for it, and how far from its WCS a frame lies."""

    pixel_map: PixelMap
    match: Match | None
    residual: Residual
    off_wcs: float = 0.0


def _held_out(match: Match) -> Residual:
    return Residual(match.held_out_rms, match.held_out_median)


def _placed(m: FrameMeasure, ref: FrameMeasure, config: Config, mode: str) -> _Placed:
    """By its stars, or as it is."""
    if mode == "stars":
        match = _by_stars(m, ref, config, None)
        return _Placed(match.pixel_map, match, _held_out(match))
    return _checked(m, ref, config, PixelMap.translation(0.0, 0.0))


def _checked(m: FrameMeasure, ref: FrameMeasure, config: Config, pixel_map: PixelMap) -> _Placed:
    """A map that is given, with what the stars say of it."""
    try:
        match = _by_stars(m, ref, config, pixel_map)
    except RegistrationError as error:
        logger.info("%s: residual not measured: %s", m.name, error)
        return _Placed(pixel_map, None, Residual(np.nan, np.nan))
    return _Placed(pixel_map, match, _residual(m, ref, match, pixel_map))


def _placed_by_wcs(m: FrameMeasure, ref: FrameMeasure, config: Config) -> _Placed:
    """By the WCS, unless the stars speak against it: then by the stars."""
    assert m.header.wcs_text is not None
    assert ref.header.wcs_text is not None
    pixel_map = wcs_map(parse_wcs(m.header.wcs_text), parse_wcs(ref.header.wcs_text), ref.header.shape)
    check_overlap(pixel_map, ref.header.shape, m.header.shape)
    placed = _checked(m, ref, config, pixel_map)
    if placed.match is None:
        wrong = contradicted(m, ref, pixel_map, config)
    else:
        wrong = placed.residual.median > MISPLACED
    if not wrong:
        return placed
    complaint = "its stars are not where its WCS puts them"
    if config.registration.mode == "wcs":
        raise RegistrationError(f"{complaint}; set [registration] mode = 'auto' or 'stars' to match them")
    try:
        match = match_near(m, ref, pixel_map, config)
    except RegistrationError as error:
        raise RegistrationError(f"{complaint}, and they do not match the reference's: {error}") from None
    off = _residual(m, ref, match, pixel_map).median
    return _Placed(match.pixel_map, match, _held_out(match), off)


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
) -> Registration:
    """Register all frames to one and build the table of frames.

    Parameters
    ----------
    measures : list of FrameMeasure
        In order of time.
    reference : FrameMeasure, optional
        The frame that defines the grid; chosen here if missing.
    """
    left = measures
    tries: list[tuple[int, int, list[Registered], list[tuple[FrameSource, str]], FrameMeasure]] = []
    while not tries or (left and len(tries) < REFERENCES):
        ref = reference or left[choose_reference(left, config.registration.reference)]
        done, rejected = _register(measures, ref, config)
        against = len(rejected) + sum(r.off_wcs > 0 for r in done)
        tries.append((against, len(tries), done, rejected, ref))
        given = reference is not None or config.registration.reference != "auto"
        # Where most frames contradict one, the one is wrong.
        if given or 2 * against < len(measures) or len(measures) < 3:
            break
        left = [m for m in left if m is not ref]
    _, _, done, rejected, ref = min(tries, key=lambda attempt: attempt[:2])
    return Registration(frame_table(done), ref, rejected, _warnings(done, ref, config))


def _register(
    measures: list[FrameMeasure], ref: FrameMeasure, config: Config
) -> tuple[list[Registered], list[tuple[FrameSource, str]]]:
    done: list[Registered] = []
    rejected = []
    # From the reference frame alone, so that later nights are measured in the same aperture.
    radius = scale_radius([ref.psf_fwhm])
    for m in measures:
        try:
            done.append(register_frame(m, ref, config, radius))
        except RegistrationError as error:
            rejected.append((m.header.source, f"{m.name}: {error}"))
    return done, rejected


def _warnings(done: list[Registered], ref: FrameMeasure, config: Config) -> list[str]:
    """Frames that are not where their WCS says, and those that no star bears out."""
    warnings = []
    off = [r for r in done if r.off_wcs > 0]
    if off:
        worst = max(off, key=lambda r: r.off_wcs)
        warnings.append(
            f"{len(off)} of {len(done)} frames are not where their WCS puts them and were matched by their "
            f"stars: {worst.measure.name} by {worst.off_wcs:.1f} px"
        )
    blind = [r for r in done if r.n_matched == 0 and r.measure is not ref]
    if blind and config.calibrate.scale == "stars":
        warnings.append(
            f"{len(blind)} of {len(done)} frames have too few stars to be matched (the first is "
            f"{blind[0].measure.name}): their registration is not checked, their photometric scale is taken "
            "as 1"
        )
    return warnings


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
