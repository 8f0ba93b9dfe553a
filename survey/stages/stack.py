"""A template from the field's own frames: those of the best seeing, stacked tile by tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from survey.io.store import Field, FieldError
from survey.kernels.stack import MIN_SAMPLES, Stack, stack_frames, stack_halo
from survey.stages.calibrated import calibrated_frames, read_calibrated
from survey.stages.events import Event, event_mask
from survey.stages.oversampled import EVENT_RADIUS
from survey.tiles import Tile

# Of the frames that may be used, this share of the sharpest, and at least so many.
BEST_SHARE = 1 / 3
AT_LEAST = 10


@dataclass(frozen=True)
class Choice:
    """Which frames make a stack.

    Parameters
    ----------
    count : int, optional
        So many of the sharpest; by default a third, and at least ten.
    after, before : float, optional
        MJD: only frames taken after, or before.
    leave_out : sequence of str
        Names of frames to leave out.
    """

    count: int | None = None
    after: float | None = None
    before: float | None = None
    leave_out: tuple[str, ...] = ()


def choose_frames(frames: xr.Dataset, choice: Choice) -> NDArray[np.int64]:
    """Numbers of the frames to stack, in order of time of ingest.

    Raises
    ------
    FieldError
        If a frame to leave out is unknown, or fewer than three are left.
    """
    names = [str(name) for name in frames["frame_id"].values]
    if unknown := sorted(set(choice.leave_out) - set(names)):
        raise FieldError(f"no frame {unknown[0]!r} in the field, which holds {names[0]} … {names[-1]}")
    time, fwhm = frames["time"].values, frames["psf_fwhm"].values
    usable = np.isfinite(fwhm) & (frames["scale"].values > 0) & (frames["background_rms"].values > 0)
    usable &= frames["flags"].values == 0
    asked = ~np.isin(names, choice.leave_out)
    if choice.after is not None:
        asked &= time > choice.after
    if choice.before is not None:
        asked &= time < choice.before
    index = np.flatnonzero(usable & asked)
    if index.size < MIN_SAMPLES:
        raise FieldError(
            f"{index.size} frames to stack, and {MIN_SAMPLES} are needed: {int(asked.sum())} of {len(names)} "
            f"were asked for, of which {int((asked & ~usable).sum())} have quality flags or no measured PSF; "
            "widen --after, --before, or take a template from elsewhere"
        )
    count = choice.count or max(AT_LEAST, round(BEST_SHARE * index.size))
    return np.sort(index[np.argsort(fwhm[index], kind="stable")[:count]])


def stack_tile(field: Field, tile: Tile, chosen: NDArray[np.int64], events: Sequence[Event]) -> Stack:
    """Stack of a tile's core; samples of known events are left out.

    Parameters
    ----------
    chosen : int array
        Numbers of the frames.
    events : sequence of events
        Events of the field, as `survey.stages.events` knows them; variables have no baseline and stay.
    """
    halo = stack_halo()
    window = tile.window(halo, field.shape)
    frames = calibrated_frames(field)
    parts, step = [], field.time_block
    for start in range(0, frames.sizes["time"], step):
        stop = min(start + step, frames.sizes["time"])
        wanted = chosen[(chosen >= start) & (chosen < stop)] - start
        if wanted.size:
            data = read_calibrated(field, window, frames.isel(time=slice(0, stop)), start=start)
            parts.append(
                tuple(part[wanted] for part in (data.flux, data.error, data.mask, data.phase_y, data.phase_x))
            )
    size = parts[0][0].shape[1:]
    flux, error, mask, phase_y, phase_x = (
        np.concatenate([_full(part, size) for part in column]) for column in zip(*parts, strict=True)
    )
    of_events = [event for event in events if event["kind"] == "event"]
    mask |= event_mask(of_events, frames["time"].values[chosen], window, EVENT_RADIUS, ~mask, 1)
    stack = stack_frames(
        flux, error, mask, phase_y, phase_x,
        weight=(frames["scale"].values[chosen] / frames["background_rms"].values[chosen]) ** 2,
        psf_fwhm=frames["psf_fwhm"].values[chosen],
    )  # fmt: skip
    inner = tile.inner(halo)
    return Stack(
        flux=stack.flux[inner],
        error=stack.error[inner],
        mask=stack.mask[inner],
        n_used=stack.n_used[inner],
        spikes=stack.spikes[(slice(None), *inner)],
    )


def _full(part: NDArray[np.floating], size: tuple[int, ...]) -> NDArray[np.floating]:
    """Phases of a frame that is shifted as a whole, for every pixel: time blocks may differ."""
    return part if part.ndim == 3 else np.broadcast_to(part[:, None, None], (len(part), *size))
