"""Events as plain rows, and the samples they touch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from survey.tiles import Tile, Window

Event = dict[str, Any]

# An event's samples leave the fit out to this many temporal sigmas: a microlensing event's wings are wider
# than those of the Gaussian that found it.
TEMPORAL_REACH = 5.0
# What stays in a pixel's fit: this share of its usable samples, and enough for the reference's coefficients.
MINIMUM_SHARE = 0.4


def touching(events: Sequence[Event], tile: Tile, radius: float) -> list[Event]:
    """Events with a baseline whose samples reach into a tile, in their own order."""
    return [
        event for event in events if event["kind"] == "event" and tile.touches(event["y"], event["x"], radius)
    ]


def event_epochs(
    event: Event, time: NDArray[np.float64], usable: NDArray[np.bool_], least: NDArray[np.floating]
) -> NDArray[np.bool_]:
    """Epochs within an event's reach, nearest first and in no pixel more than leave a baseline.

    Parameters
    ----------
    usable : bool array (time, n)
        Samples of pixels that could enter a fit.
    least : array (n,)
        Samples that have to stay in each pixel's fit.

    Returns
    -------
    bool array (time, n)
    """
    distance = np.abs(time - event["time"]) / max(event["sigma_days"], 1e-12)
    order = np.argsort(distance, kind="stable")
    order = order[distance[order] <= TEMPORAL_REACH]
    left = usable.sum(axis=0) - np.cumsum(usable[order], axis=0)
    inside = np.zeros(usable.shape, bool)
    inside[order] = left >= least
    return inside


def event_mask(
    events: Sequence[Event],
    time: NDArray[np.float64],
    window: Window,
    radius: float,
    usable: NDArray[np.bool_],
    needed: int,
) -> NDArray[np.bool_]:
    """Samples (time, y, x) of a window that belong to events: good data to keep out of the fit.

    Parameters
    ----------
    radius : float
        Pixels around an event.
    usable : bool array (time, y, x)
        Samples of the window that could enter the fit.
    needed : int
        Images a pixel's fit needs: a pixel without its reference would show nothing of the event at all.
    """
    rows, columns = window
    y = np.arange(rows.start, rows.stop)[:, None]
    x = np.arange(columns.start, columns.stop)[None, :]
    mask = np.zeros((len(time), y.size, x.size), bool)
    least = np.maximum(MINIMUM_SHARE * usable.sum(axis=0), needed)
    for event in events:
        near = (y - event["y"]) ** 2 + (x - event["x"]) ** 2 <= radius**2
        if near.any():
            mask[:, near] |= event_epochs(event, time, (usable & ~mask)[:, near], least[near])
    return mask
