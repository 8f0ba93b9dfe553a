"""The table of frames, and what of the reference frame later nights need: made, flagged, read back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from survey.io.frames import FrameHeader, FrameSource, Part
from survey.io.pixel_units import split_unit
from survey.kernels.frame_quality import FrameFlag, flag_frames
from survey.kernels.pixelmap import PixelMap, n_terms
from survey.kernels.stars import StarList
from survey.stages.measure import FrameMeasure

# Frames of one exposure time that say what is usual among them.
ENSEMBLE = 5


class Residual(NamedTuple):
    """2-D distance of matched stars from where a map that did not see them puts them, detector pixels.

    ``rms`` is weighted by the stars' own accuracy, ``median`` is not.
    """

    rms: float
    median: float


@dataclass
class Registered:
    """A frame brought onto the reference frame's grid.

    ``off_wcs`` is how far from its WCS (pixels) its stars placed it, 0 where nothing speaks against that.
    """

    measure: FrameMeasure
    pixel_map: PixelMap
    residual: Residual
    n_matched: int
    scale: float
    scale_error: float
    off_wcs: float = 0.0


def frame_table(done: list[Registered]) -> xr.Dataset:
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
        "registration_rms": np.array([r.residual.rms for r in done]),
        "registration_median": np.array([r.residual.median for r in done]),
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
    """Set the quality flags of every frame, relative to all frames of about its exposure time.

    A short exposure among long ones has a small scale, a dark sky and few stars, and is none the worse.
    """
    frames = _with_median(frames)
    exposure, scale = frames["exposure"].values, frames["scale"].values
    known = (np.isfinite(exposure) & (exposure > 0)).all()
    relative = exposure / np.median(exposure) if known else np.ones(len(exposure))
    if not _is_rate(frames):
        scale = scale / relative
    flags = _flags(frames, scale)
    groups = np.digitize(relative, _exposure_steps(relative))
    for group in np.unique(groups):
        alike = groups == group
        if alike.all():
            break
        if alike.sum() >= ENSEMBLE:
            common = flags[alike] & FrameFlag.HAZY
            flags[alike] = _flags(frames.isel(time=alike), scale[alike]) | common
        else:
            flags[alike] &= ~(FrameFlag.BRIGHT_SKY | FrameFlag.FEW_STARS)
    frames["flags"] = ("time", np.asarray(flags, np.int64))
    return frames


def _with_median(frames: xr.Dataset) -> xr.Dataset:
    """Fields of earlier versions have the median in the place of the rms."""
    if "registration_median" in frames:
        return frames
    return frames.assign(registration_median=frames["registration_rms"])


def _flags(frames: xr.Dataset, scale: NDArray[np.float64]) -> NDArray[np.int32]:
    return flag_frames(
        psf_fwhm=frames["psf_fwhm"].values,
        elongation=frames["elongation"].values,
        scale=scale,
        background=frames["background"].values[:, 0],
        n_stars=frames["n_stars"].values,
        residual=frames["registration_median"].values,
        n_matched=frames["n_matched"].values,
    )


def _exposure_steps(exposure: NDArray[np.float64]) -> NDArray[np.float64]:
    """Between exposure times that differ by more than a tenth."""
    steps = np.unique(exposure)
    return np.asarray(np.sqrt(steps[1:] * steps[:-1])[steps[1:] > 1.1 * steps[:-1]])


def _is_rate(frames: xr.Dataset) -> bool:
    """Whether the frames' pixels are already divided by the exposure time."""
    header = json.loads(str(frames["header"].values[0])) if frames.sizes["time"] else {}
    return split_unit(header.get("units") or "").is_rate


def _header_json(header: FrameHeader) -> str:
    source = {"path": header.source.path, "index": header.source.index}
    return json.dumps({**asdict(header), "source": source}, default=str)


def joined_tables(old: xr.Dataset, new: xr.Dataset) -> xr.Dataset:
    """Both tables, old frames first and as they were; new ones are flagged by comparison with all."""
    flags = old["flags"].values.copy()
    old = _with_median(old)
    for name, dim in (("map", "term"), ("background", "background_term")):
        size = max(old.sizes[dim], new.sizes[dim])
        old = _padded(old, name, dim, size)
        new = _padded(new, name, dim, size)
    joined = xr.concat(
        [old, new], dim="time", data_vars="minimal", coords="minimal", compat="override", join="override"
    )
    joined = flag_table(joined)
    joined["flags"].values[: len(flags)] = flags
    return joined


def _padded(table: xr.Dataset, name: str, dim: str, size: int) -> xr.Dataset:
    if table.sizes[dim] == size:
        return table
    values = table[name].values
    missing = np.full((*values.shape[:-1], size - values.shape[-1]), np.nan)
    dims = table[name].dims
    return table.drop_vars(name).assign({name: (dims, np.concatenate([values, missing], axis=-1))})


def stored_headers(frames: xr.Dataset) -> list[FrameHeader]:
    """Headers of the frames a field holds."""
    found = []
    for text in frames["header"].values:
        values = json.loads(str(text))
        values["source"] = FrameSource(**values["source"])
        for name in ("shape", "origin", "warnings"):
            values[name] = tuple(values[name])
        values["parts"] = tuple(
            Part(path, frame, tuple(origin), tuple(shape))
            for path, frame, origin, shape in values.get("parts", ())
        )
        found.append(FrameHeader(**values))
    return found


def stretches(frames: xr.Dataset) -> NDArray[np.int64]:
    """Number of the campaign or sector that each frame belongs to, in order of appearance; else 0."""
    names = [str(json.loads(str(text))["cards"].get("STRETCH", "")) for text in frames["header"].values]
    order = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([order[name] for name in names], np.int64)


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
