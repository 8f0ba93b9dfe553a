"""Events as plain rows, and the samples they touch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from survey.config import IMAGES_PER_COEFFICIENT
from survey.tiles import Tile, Window

Event = dict[str, Any]

# An event's samples leave the fit out to this many temporal sigmas: a microlensing event's wings are wider
# than those of the Gaussian that found it.
TEMPORAL_REACH = 5.0
# What stays in the fit: this share of the epochs, and enough for the reference's coefficients.
MINIMUM_SHARE = 0.4


def touching(events: Sequence[Event], tile: Tile, radius: float) -> list[Event]:
    """Events with a baseline whose samples reach into a tile, in their own order."""
    return [
        event for event in events if event["kind"] == "event" and tile.touches(event["y"], event["x"], radius)
    ]


def event_epochs(event: Event, time: NDArray[np.float64], n_basis: int) -> NDArray[np.bool_]:
    """Epochs (time,) within an event's reach, never more than leave a baseline."""
    distance = np.abs(time - event["time"]) / max(event["sigma_days"], 1e-12)
    baseline = max(MINIMUM_SHARE * len(time), IMAGES_PER_COEFFICIENT * n_basis**2)
    allowed = max(int(len(time) - baseline), 0)
    nearest = np.argsort(distance, kind="stable")[:allowed]
    inside = np.zeros(len(time), bool)
    inside[nearest] = distance[nearest] <= TEMPORAL_REACH
    return inside


def event_mask(
    events: Sequence[Event], time: NDArray[np.float64], window: Window, radius: float, n_basis: int
) -> NDArray[np.bool_]:
    """Samples (time, y, x) of a window that belong to events: good data to keep out of the fit."""
    rows, columns = window
    y = np.arange(rows.start, rows.stop)[:, None]
    x = np.arange(columns.start, columns.stop)[None, :]
    mask = np.zeros((len(time), y.size, x.size), bool)
    for event in events:
        near = (y - event["y"]) ** 2 + (x - event["x"]) ** 2 <= radius**2
        if near.any():
            mask |= event_epochs(event, time, n_basis)[:, None, None] & near
    return mask
