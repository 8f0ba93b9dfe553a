"""Events as plain rows, and the samples they touch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from survey.tiles import Tile, Window

Event = dict[str, Any]

# An event's samples leave the fit out to this many temporal sigmas: a Gaussian profile has fallen to
# 1 % there, a microlensing event to a few.
TEMPORAL_REACH = 3.0
# At least this share of a pixel's epochs stays in the fit, else there is no reference to subtract.
MINIMUM_BASELINE = 0.4


def touching(events: Sequence[Event], tile: Tile, radius: float) -> list[Event]:
    """Events with a baseline whose samples reach into a tile, in their own order."""
    return [
        event for event in events if event["kind"] == "event" and tile.touches(event["y"], event["x"], radius)
    ]


def event_epochs(event: Event, time: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Epochs (time,) within an event's reach, never more than leave a baseline."""
    distance = np.abs(time - event["time"]) / max(event["sigma_days"], 1e-12)
    allowed = int((1 - MINIMUM_BASELINE) * len(time))
    nearest = np.argsort(distance, kind="stable")[:allowed]
    inside = np.zeros(len(time), bool)
    inside[nearest] = distance[nearest] <= TEMPORAL_REACH
    return inside


def event_mask(
    events: Sequence[Event], time: NDArray[np.float64], window: Window, radius: float
) -> NDArray[np.bool_]:
    """Samples (time, y, x) of a window that belong to events: good data to keep out of the fit."""
    rows, columns = window
    y = np.arange(rows.start, rows.stop)[:, None]
    x = np.arange(columns.start, columns.stop)[None, :]
    mask = np.zeros((len(time), y.size, x.size), bool)
    for event in events:
        near = (y - event["y"]) ** 2 + (x - event["x"]) ** 2 <= radius**2
        if near.any():
            mask |= event_epochs(event, time)[:, None, None] & near
    return mask
