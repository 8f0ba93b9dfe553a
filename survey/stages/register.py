"""Registration and calibration of frames: stars, map, scale, sky and quality of each.

``measure`` looks at one frame alone and may run anywhere; ``combine`` sees the small results of all.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

from survey.config import Config
from survey.io.catalogs import read_target_table
from survey.io.frames import FrameError, FrameHeader, FrameSource, parse_wcs, read_frame
from survey.io.times import quiet
from survey.kernels.aperture import aperture_flux
from survey.kernels.astrometry import field_from_positions, solve_field
from survey.kernels.background import measure_background
from survey.kernels.frame_quality import flag_frames, photometric_scale
from survey.kernels.pixelmap import PixelMap, fit_pixel_map, n_terms
from survey.kernels.registration import Match, RegistrationError, match_stars
from survey.kernels.stars import StarFlag, StarList, find_stars, psf_width

logger = logging.getLogger(__name__)

# A WCS is followed to this many pixels by the polynomial map that stands for it.
WCS_TOLERANCE = 2e-3
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


@dataclass
class Registered:
    """A frame brought onto the reference frame's grid."""

    measure: FrameMeasure
    pixel_map: PixelMap
    rms: float
    n_matched: int
    scale: float
    scale_error: float


def measure_frame(header: FrameHeader, config: Config) -> FrameMeasure:
    """Read a frame and measure its stars, sky and PSF width.

    Raises
    ------
    FrameError
        If the file cannot be read, or holds no good pixel.
    """
    surface = config.calibrate.background == "surface"
    rows, columns = _measured_window(header, config)
    frame = read_frame(header, config.input, rows=None if surface else rows)
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


def _measured_window(header: FrameHeader, config: Config) -> tuple[tuple[int, int], tuple[int, int]]:
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


def _scale_radius(psf_fwhm: Sequence[float]) -> int:
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
    radius = _scale_radius([ref.psf_fwhm])
    for m in measures:
        try:
            done.append(register_frame(m, ref, config, radius))
        except RegistrationError as error:
            rejected.append((m.header.source, f"{m.name}: {error}"))
    return _table(done), ref, rejected


def _table(done: list[Registered]) -> xr.Dataset:
    n = len(done)
    terms = max((r.pixel_map.coefficients.shape[1] for r in done), default=n_terms(1))
    maps = np.full((n, 2, terms), np.nan)
    sky = np.full((n, max((len(r.measure.background) for r in done), default=1)), np.nan)
    for k, r in enumerate(done):
        maps[k, :, : r.pixel_map.coefficients.shape[1]] = r.pixel_map.coefficients
        sky[k, : len(r.measure.background)] = r.measure.background
    column = {
        "frame_id": np.array([r.measure.name for r in done], object),
        "header": np.array([_header_json(r.measure.header) for r in done], object),
        "path": np.array([r.measure.header.source.path for r in done], object),
        "detector": np.array([r.measure.header.detector for r in done], object),
        "gain": np.array([r.measure.header.gain or np.nan for r in done]),
        "zero_point": np.array([_or_nan(r.measure.header.zero_point) for r in done]),
        "exposure": np.array([r.measure.header.exposure for r in done]),
        "map_scale": np.array([r.pixel_map.scale for r in done]),
        "registration_rms": np.array([r.rms for r in done]),
        "n_matched": np.array([r.n_matched for r in done], np.int64),
        "n_stars": np.array([int(r.measure.stars.clean.sum()) for r in done], np.int64),
        "scale": np.array([r.scale for r in done]),
        "scale_error": np.array([r.scale_error for r in done]),
        "background_rms": np.array([r.measure.background_rms for r in done]),
        "psf_fwhm": np.array([r.measure.psf_fwhm for r in done]),
        "elongation": np.array([r.measure.elongation for r in done]),
    }
    frames = xr.Dataset({name: ("time", values) for name, values in column.items()})
    frames["map"] = (("time", "axis", "term"), maps)
    frames["map_center"] = (("time", "axis"), np.array([r.pixel_map.center for r in done]).reshape(n, 2))
    frames["background"] = (("time", "background_term"), sky)
    frames = frames.assign_coords(time=("time", np.array([r.measure.header.time for r in done])))
    frames["time"].attrs = {
        "units": "d",
        "long_name": "MJD at mid-exposure",
        "scale": done[0].measure.header.time_scale if done else "utc",
    }
    return flag_table(frames)


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


def flag_table(frames: xr.Dataset) -> xr.Dataset:
    """Set the quality flags of every frame, relative to all frames."""
    flags = flag_frames(
        psf_fwhm=frames["psf_fwhm"].values,
        elongation=frames["elongation"].values,
        scale=frames["scale"].values,
        background=frames["background"].values[:, 0],
        n_stars=frames["n_stars"].values,
        residual=frames["registration_rms"].values,
    )
    frames["flags"] = ("time", np.asarray(flags, np.int64))
    return frames


def _header_json(header: FrameHeader) -> str:
    source = {"path": header.source.path, "index": header.source.index}
    return json.dumps({**asdict(header), "source": source}, default=str)


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


def stored_headers(frames: xr.Dataset) -> list[FrameHeader]:
    """Headers of the frames a field holds."""
    found = []
    for text in frames["header"].values:
        values = json.loads(str(text))
        values["source"] = FrameSource(**values["source"])
        for name in ("shape", "origin", "warnings"):
            values[name] = tuple(values[name])
        found.append(FrameHeader(**values))
    return found


def star_table(reference: FrameMeasure) -> xr.Dataset:
    """The reference frame's stars and what else later nights need of it."""
    columns: dict[str, Any] = {f.name: ("star", getattr(reference.stars, f.name)) for f in fields(StarList)}
    columns["scale_flux"] = (("radius", "star"), reference.scale_flux)
    columns["scale_error"] = (("radius", "star"), reference.scale_error)
    table = xr.Dataset(columns)
    table.attrs = {
        "header": _header_json(reference.header),
        "background": [float(b) for b in reference.background],
        "background_rms": reference.background_rms,
        "psf_fwhm": reference.psf_fwhm,
        "elongation": reference.elongation,
    }
    return table


def stored_reference(table: xr.Dataset) -> FrameMeasure:
    """The reference frame's measure from `star_table`."""
    values = json.loads(table.attrs["header"])
    header = stored_headers(xr.Dataset({"header": ("time", np.array([json.dumps(values)], object))}))[0]
    return FrameMeasure(
        header=header,
        stars=StarList(**{f.name: table[f.name].values for f in fields(StarList)}),
        scale_flux=table["scale_flux"].values,
        scale_error=table["scale_error"].values,
        background=np.array(table.attrs["background"], float),
        background_rms=float(table.attrs["background_rms"]),
        psf_fwhm=float(table.attrs["psf_fwhm"]),
        elongation=float(table.attrs["elongation"]),
    )
