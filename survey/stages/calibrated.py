"""The one way from stored counts to calibrated samples in the reference flux unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from survey.io.store import Field
from survey.kernels.pixelmap import PixelMap, displacement, n_terms, nearest_pixels, polynomial_terms
from survey.stages.protocol import Outlook
from survey.stages.template_records import template_looks
from survey.tiles import Window

# What refinement replaces in the table of frames.
REFINED = ("scale", "background", "map_center")

Cube = NDArray[np.float32]
Grid = Literal["sky", "detector"]


@dataclass
class CalibratedTile:
    """Samples of a window of the sky grid, ``(flux - background) / scale``.

    Parameters
    ----------
    flux, error : float32 arrays (time, y, x)
    mask : bool array (time, y, x)
        True = bad or not covered.
    phase_y, phase_x : float64 arrays (time,) or (time, y, x)
        Sub-pixel phase of every sample.
    time : float64 array (time,)
        MJD at mid-exposure.
    flags : int array (time,)
        Quality bits of the frames.
    gain : float64 array (time,)
        Electrons per reference flux unit; NaN where unknown.
    window : tuple of slice
        Where it lies on the sky grid.
    """

    flux: Cube
    error: Cube
    mask: NDArray[np.bool_]
    phase_y: NDArray[np.float64]
    phase_x: NDArray[np.float64]
    time: NDArray[np.float64]
    flags: NDArray[np.int64]
    gain: NDArray[np.float64]
    window: Window


def frame_map(frames: xr.Dataset, k: int) -> PixelMap:
    """The map reference pixel -> detector pixel of frame k."""
    return _pixel_map(*(column[k] for column in _map_columns(frames)))


def frame_maps(frames: xr.Dataset) -> list[PixelMap]:
    """`frame_map` of all frames: their columns are taken out of the table once, not once a frame."""
    return [_pixel_map(*row) for row in zip(*_map_columns(frames), strict=True)]


def _map_columns(frames: xr.Dataset) -> list[NDArray[np.float64]]:
    """Terms, centre and scale of all maps; where refined, the centre that frames were placed by, too."""
    names = ("map", "map_center", "map_scale", "placed_center")
    return [frames[name].values for name in names if name in frames]


def _pixel_map(
    terms: NDArray[np.float64],
    center: NDArray[np.float64],
    scale: float,
    placed: NDArray[np.float64] | None = None,
) -> PixelMap:
    at = None if placed is None else (float(placed[0]), float(placed[1]))
    return PixelMap(terms[:, np.isfinite(terms[0])], (float(center[0]), float(center[1])), float(scale), at)


def phases(
    frames: xr.Dataset, window: Window, shape: tuple[int, int], grid: Grid = "sky"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Phases of all frames in a window: (time,) where every map is a shift, else (time, y, x)."""
    rows, columns = ((s.start, s.stop) for s in window)
    if grid == "sky":
        found = [nearest_pixels(pixel_map, rows, columns, shape)[2:] for pixel_map in frame_maps(frames)]
    else:
        found = [displacement(pixel_map, rows, columns, shape) for pixel_map in frame_maps(frames)]
    if all(py.ndim == 0 for py, _ in found):
        return np.array([float(py) for py, _ in found]), np.array([float(px) for _, px in found])
    size = (rows[1] - rows[0], columns[1] - columns[0])
    return (
        np.stack([np.broadcast_to(py, size) for py, _ in found]),
        np.stack([np.broadcast_to(px, size) for _, px in found]),
    )


def _detector_positions(
    frames: xr.Dataset,
    k: int,
    rows: tuple[int, int],
    columns: tuple[int, int],
    shape: tuple[int, int],
    grid: Grid,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Detector rows and columns (y, x) that the samples of a window were taken at."""
    if grid == "sky":
        return nearest_pixels(frame_map(frames, k), rows, columns, shape)[:2]
    x, y = np.meshgrid(np.arange(*columns), np.arange(*rows))
    return y, x


def background_surface(
    coefficients: NDArray[np.float64], y: ArrayLike, x: ArrayLike, shape: tuple[int, int]
) -> NDArray[np.float64]:
    """Sky polynomial at detector positions; variables run from -1 to 1 over the detector."""
    used = coefficients[np.isfinite(coefficients)]
    order = next(order for order in range(9) if n_terms(order) >= len(used))
    x, y = np.asarray(x, float), np.asarray(y, float)
    u, v = 2 * x / max(shape[1] - 1, 1) - 1, 2 * y / max(shape[0] - 1, 1) - 1
    return np.tensordot(used, polynomial_terms(u, v, order), axes=1)


def calibrated_frames(field: Field) -> xr.Dataset:
    """The table of frames, with scale, sky and map as refined on the reference where that has been done.

    Frames that were added since are left out until they are refined as well: a unit of a run that began
    before them works on the frames that its run is for. Where offsets were refined, ``placed_center`` is
    the maps' centre as the frames were placed by it.
    """
    frames = field.frames()
    if field.has_table("registration"):
        refined = field.table("registration")
        epochs = min(refined.sizes["time"], frames.sizes["time"])
        frames = frames.isel(time=slice(0, epochs))
        if not np.array_equal(frames["map_center"].values, refined["map_center"].values[:epochs]):
            frames["placed_center"] = frames["map_center"].copy()
        for name in REFINED:
            frames[name] = (frames[name].dims, refined[name].values[:epochs])
    return frames


def differenced_frames(field: Field, method: str) -> xr.Dataset:
    """The calibrated frames that a method's differences hold: others may have come in since."""
    frames = calibrated_frames(field)
    group = f"difference/{method}"
    if field.has(group, "flux"):
        frames = frames.isel(time=slice(0, field.array(group, "flux").shape[0]))
    return frames


def read_calibrated(
    field: Field,
    window: Window,
    frames: xr.Dataset | None = None,
    grid: Grid = "sky",
    *,
    start: int = 0,
) -> CalibratedTile:
    """Read a window of ``images/<grid>`` and calibrate it.

    Parameters
    ----------
    field : Field
        The field.
    window : tuple of slice
        (y, x) slices of the grid.
    frames : Dataset, optional
        The table of frames, if it has been read already.
    grid : {'sky', 'detector'}
        Frames placed by nearest pixel, or as they were taken; there a phase holds all of a frame's shift.
    start : int
        First epoch to read.
    """
    frames = calibrated_frames(field) if frames is None else frames
    region = (slice(start, frames.sizes["time"]), *window)
    frames = frames.isel(time=slice(start, None))
    n = frames.sizes["time"]
    flux, error, mask = (
        np.asarray(field.array(f"images/{grid}", name)[region]) for name in ("flux", "error", "mask")
    )
    scale = frames["scale"].values.astype(np.float64)
    height, width = (int(size) for size in field.attrs["detector_shape"])
    background = frames["background"].values
    flat = np.isnan(background[:, 1:]).all()
    rows, columns = ((s.start, s.stop) for s in window)
    for k in range(n):
        if flat:
            level: NDArray[np.float64] | float = float(background[k, 0])
        else:
            jy, jx = _detector_positions(frames, k, rows, columns, field.shape, grid)
            level = background_surface(background[k], jy, jx, (height, width))
        # Frame by frame all of it stays in the processor's cache.
        flux[k] = (flux[k] - level) / scale[k]
        error[k] /= scale[k]
        mask[k] |= ~(np.isfinite(flux[k]) & np.isfinite(error[k]) & (error[k] > 0))
    phase_y, phase_x = phases(frames, window, field.shape, grid)
    return CalibratedTile(
        flux=flux,
        error=error,
        mask=mask,
        phase_y=phase_y,
        phase_x=phase_x,
        time=frames["time"].values,
        flags=frames["flags"].values,
        gain=frames["gain"].values * scale,
        window=window,
    )


def psf_widths(frames: xr.Dataset) -> tuple[float, float]:
    """FWHM of the sharp frames and of the broad ones (5 and 95 %), pixels; NaN where they are unknown."""
    fwhm = frames["psf_fwhm"].values
    fwhm = fwhm[np.isfinite(fwhm)]
    if len(fwhm) < 2:
        return np.nan, np.nan
    narrow, broad = np.quantile(fwhm, (0.05, 0.95))
    return float(narrow), float(broad)


def outlook(field: Field, template: str = "reference") -> Outlook:
    """What of a field's frames, and of a template, decides how much memory its tiles take."""
    frames = field.frames()
    epochs = frames.sizes["time"]
    shifts = all(pixel_map.is_translation(field.shape) for pixel_map in frame_maps(frames))
    looks = template_looks(field, template)
    return Outlook(epochs, own_phases=not shifts, psf_widths=psf_widths(frames), template=looks)
