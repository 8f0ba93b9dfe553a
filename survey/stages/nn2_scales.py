"""One zero point for all pairs: the flux scales of epochs that the kernels' sums agree on.

A kernel's sum is the flux of its image over that of its template. Stars' apertures miss light that depends on
the seeing, kernels do not: over all pairs the logarithms of the sums are differences of the epochs' scales,
and NN2 solves them as it solves fluxes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from survey.config import Config
from survey.io.files import read_parquet
from survey.io.store import Field
from survey.kernels.nn2 import solve_nn2
from survey.stages.nn2_pairs import FOLDER
from survey.stages.protocol import Stage, Unit

Array = NDArray[np.float64]
# A sum beyond this is no flux scale but a kernel that went wrong.
MOST = 2.0


def read(field: Field, unit: Unit, config: Config) -> tuple[NDArray[np.int64], dict[str, list[Any]]]:
    """Pairs of a part and their kernels' sums; the unit's items are the epochs and the part's name."""
    epochs, name = unit.items
    path = field.path / FOLDER / f"{config.method}.parts" / f"{name}.parquet"
    return np.asarray(epochs, np.int64), read_parquet(path).select(["template", "image", "scale"]).to_pydict()


def partial(data: tuple[NDArray[np.int64], dict[str, list[Any]]], config: Config) -> list[Any]:
    """Each pair once: template, image (numbers among the epochs) and logarithm of the sum."""
    epochs, rows = data
    seen = {
        (int(np.searchsorted(epochs, i)), int(np.searchsorted(epochs, j))): float(np.log(s))
        for i, j, s in zip(rows["template"], rows["image"], rows["scale"], strict=True)
        if s is not None and 1 / MOST < s < MOST
    }
    return [len(epochs), [[i, j, value] for (i, j), value in sorted(seen.items())]]


def combine(partials: list[Any], config: Config) -> list[float]:
    """Scale of each epoch against their geometric mean; 1 for one that no pair ties to the others."""
    if not partials:
        return []
    n = partials[0][0]
    sums: dict[tuple[int, int], list[float]] = {}
    for _, rows in partials:
        for i, j, value in rows:
            sums.setdefault((i, j), []).append(value)
    logs: Array = np.full((n, n), np.nan)
    for pair, values in sums.items():
        logs[pair] = np.median(values)
    if n < 2 or not np.isfinite(logs).any():
        return [1.0] * n
    found = solve_nn2(logs, np.ones((n, n))).flux
    return [float(s) for s in np.exp(np.nan_to_num(found, nan=0.0))]


STAGE = Stage(
    "nn2_scales", 1, lambda config: {"most": MOST}, lambda field, config: [], read, partial, combine
)
