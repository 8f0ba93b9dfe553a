"""One zero point for all pairs: the flux scales of epochs that the kernels' sums agree on.

A kernel's sum is the flux of its image over that of its template. Stars' apertures miss light that depends on
the seeing, kernels do not: over all pairs the logarithms of the sums are differences of the epochs' scales,
and NN2 solves them as it solves fluxes.

And one number for what no kernel takes away: the share of a star's flux by which the differences err beyond
their noise, from the stars that the pairs were measured on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from survey.config import Config
from survey.io.files import read_parquet
from survey.io.store import Field
from survey.kernels.nn2 import solve_nn2
from survey.stages.nn2_pairs import FOLDER, NO_OBJECT
from survey.stages.protocol import Stage, Unit

Array = NDArray[np.float64]
# A sum beyond this is no flux scale but a kernel that went wrong.
MOST = 2.0
# Shares of a star's flux that are tried, how many stars (in all differences together) it takes, and the
# median of a squared normal deviate.
SHARES = np.concatenate([[0.0], np.geomspace(1e-4, 0.2, 60)])
FEWEST = 30
MEDIAN_OF_CHI2 = 0.4549364


def read(field: Field, unit: Unit, config: Config) -> tuple[NDArray[np.int64], dict[str, list[Any]]]:
    """Pairs of a part, their kernels' sums and stars; the unit's items are the epochs and the part's name."""
    epochs, name = unit.items
    path = field.path / FOLDER / f"{config.method}.parts" / f"{name}.parquet"
    columns = ["object_id", "template", "image", "scale", "flux", "error", "level"]
    return np.asarray(epochs, np.int64), read_parquet(path).select(columns).to_pydict()


def partial(data: tuple[NDArray[np.int64], dict[str, list[Any]]], config: Config) -> list[Any]:
    """Each pair once: template, image (numbers among the epochs), logarithm of the sum; counts of stars."""
    epochs, rows = data
    seen = {
        (int(np.searchsorted(epochs, i)), int(np.searchsorted(epochs, j))): float(np.log(s))
        for i, j, s in zip(rows["template"], rows["image"], rows["scale"], strict=True)
        if s is not None and 1 / MOST < s < MOST
    }
    return [len(epochs), [[i, j, value] for (i, j), value in sorted(seen.items())], star_counts(rows)]


def star_counts(rows: dict[str, list[Any]]) -> list[int]:
    """For every one of `SHARES`, how many stars are nearer to zero than half of them should be; then all."""
    star = np.array([name == NO_OBJECT for name in rows["object_id"]], bool)
    flux, error, level = (np.array(rows[name], float)[star] for name in ("flux", "error", "level"))
    good = np.isfinite(flux) & np.isfinite(error) & np.isfinite(level)
    expected = error**2 + (SHARES[:, None] * level) ** 2
    inside = (flux**2 < MEDIAN_OF_CHI2 * expected) & good
    return [*(int(n) for n in inside.sum(1)), int(good.sum())]


def combine(partials: list[Any], config: Config) -> tuple[list[float], float]:
    """Scale of each epoch against their geometric mean, 1 for one that no pair ties to the others; and the
    share of the flux that makes half of all stars as near to zero as they should be.
    """
    if not partials:
        return [], 0.0
    n = partials[0][0]
    sums: dict[tuple[int, int], list[float]] = {}
    for _, rows, _ in partials:
        for i, j, value in rows:
            sums.setdefault((i, j), []).append(value)
    *inside, stars = np.sum([counts for _, _, counts in partials], axis=0).tolist()
    enough = np.flatnonzero(2 * np.array(inside) >= stars)
    share = float(SHARES[enough[0]] if len(enough) else SHARES[-1]) if stars >= FEWEST else 0.0
    logs: Array = np.full((n, n), np.nan)
    for pair, values in sums.items():
        logs[pair] = np.median(values)
    if n < 2 or not np.isfinite(logs).any():
        return [1.0] * n, share
    found = solve_nn2(logs, np.ones((n, n))).flux
    return [float(s) for s in np.exp(np.nan_to_num(found, nan=0.0))], share


STAGE = Stage(
    "nn2_scales", 2, lambda config: {"most": MOST}, lambda field, config: [], read, partial, combine
)
