"""Light curves from all pairs of epochs (Barris et al. 2005): the pairs' fluxes solved, object by object.

`frame_psf` measures each frame's PSF, `nn2_positions` fits the objects' places, `nn2_pairs` subtracts and
measures; this stage reads what they left and solves it. Its first pass pools chi2/dof over all objects: the
share of the pairs' variance that the subtraction makes, which divides the errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from survey.config import Config
from survey.io.files import read_parquet
from survey.io.store import Field
from survey.kernels.nn2 import NN2Solution, solve_nn2
from survey.stages import nn2_pairs
from survey.stages.calibrated import calibrated_frames
from survey.stages.light_curve_tables import light_curve_table
from survey.stages.nn2_plan import Group
from survey.stages.object_stamp import FLAG_FRAME, FLAG_NO_DATA
from survey.stages.protocol import Outlook, Output, Stage, Unit

Array = NDArray[np.float64]
FOLDER = "lightcurves/nn2"
# Bytes for every object and two of its epochs, and objects times epochs squared that a unit holds at most.
PAIR_BYTES = 100
MOST_PAIRS = 2_000_000


@dataclass
class Matrices:
    """Differences of a group's objects (objects, N, N) between the epochs used, and the frames' table."""

    group: Group
    epochs: NDArray[np.int64]
    difference: Array
    error: Array
    time: Array
    flags: NDArray[np.int64]
    frame_id: list[str]


def read(field: Field, unit: Unit, config: Config) -> Matrices:
    """The parts that the group's pair units wrote, on one zero point.

    The unit's items are the group, the epochs, the names of the parts, and what `nn2_scales` combined: the
    epochs' flux scales, and the share of constant light that errors go up by.
    """
    group, epochs, names, scales, share = unit.items
    frames = calibrated_frames(field)
    folder = field.path / nn2_pairs.FOLDER / f"{config.method}.parts"
    ids = [item.get("measured_as", item["object_id"]) for item in group.objects]
    epochs = np.asarray(epochs, np.int64)
    tables = (read_parquet(folder / f"{name}.parquet") for name in names)
    difference, error = matrices(tables, ids, epochs, np.asarray(scales, float), share)
    return Matrices(
        group,
        epochs,
        difference,
        error,
        frames["time"].values,
        frames["flags"].values,
        [str(name) for name in frames["frame_id"].values],
    )


def matrices(
    tables: Iterable[pa.Table],
    ids: list[str],
    epochs: NDArray[np.int64],
    scales: Array,
    share: float = 0.0,
) -> tuple[Array, Array]:
    """Pairs of parts as difference and error (objects, N, N), [template, image]; NaN where there is no pair.

    A difference is in the units of its image; ``scales`` (N,) are those units. ``share`` of the steady light
    under the object adds to its error.
    """
    difference, error = np.full((2, len(ids), len(epochs), len(epochs)), np.nan)
    for rows in tables:
        number = pc.fill_null(pc.index_in(rows["object_id"], pa.array(ids, pa.string())), -1).to_numpy()
        mine = number >= 0
        template, image = (np.searchsorted(epochs, rows[v].to_numpy()[mine]) for v in ("template", "image"))
        flux, sigma, level = (rows[v].to_numpy()[mine] for v in ("flux", "error", "level"))
        sigma = np.hypot(sigma, share * np.nan_to_num(level))
        difference[number[mine], template, image] = flux / scales[image]
        error[number[mine], template, image] = sigma / scales[image]
    return difference, error


def units(groups: Sequence[Group], epochs: NDArray[np.int64]) -> list[Unit]:
    """Objects of a group, so many together as fit into memory; the unit's items are they and the epochs."""
    found = []
    most = max(1, MOST_PAIRS // len(epochs) ** 2)
    for group in groups:
        for start in range(0, len(group.objects), most):
            part = replace(group, objects=group.objects[start : start + most])
            found.append(Unit(f"{group.name}-{start:06d}", items=(part, epochs)))
    return found


def solve(data: Matrices, config: Config) -> NN2Solution:
    """NN2 in the gauge of the settings."""
    baseline = None
    if config.nn2.gauge == "baseline":
        assert config.nn2.baseline is not None
        first, last = config.nn2.baseline
        time = data.time[data.epochs]
        baseline = (time >= first) & (time <= last)
        if not baseline.any():
            raise ValueError(
                f"[nn2] baseline = {config.nn2.baseline}: no usable frame between these times; "
                f"frames are from MJD {time.min():.4f} to {time.max():.4f}"
            )
    return solve_nn2(data.difference, data.error, gauge=config.nn2.gauge, baseline=baseline)


def partial(data: Matrices, config: Config) -> tuple[float, int]:
    """Sums of chi2 and dof of the group's objects."""
    solution = solve(data, config)
    used = solution.dof > 0
    return float(solution.chi2[used].sum()), int(solution.dof[used].sum())


def combine(partials: list[tuple[float, int]], config: Config) -> float | None:
    """Pooled chi2/dof; None where no pair is left over."""
    chi2, dof = (sum(part[k] for part in partials) for k in range(2))
    return chi2 / dof if dof else None


def apply(data: Matrices, state: float | None, config: Config) -> Output:
    """Light curves of the group's objects, with the pairs that made them."""
    solution = solve(data, config)
    error = solution.partitioned_error(state)
    rows = [light_curve(data, solution, error, k) for k in range(len(data.group.objects))]
    payload = {
        "objects": len(rows),
        "pairs": {
            row["object_id"]: {"chi2": row["chi2"], "dof": row["dof"], "connected": row["connected"]}
            for row in rows
        },
    }
    return Output(tables={FOLDER: table(rows)}, payload=payload)


def light_curve(data: Matrices, solution: NN2Solution, error: Array, k: int) -> dict[str, Any]:
    """One object's row: all frames of the field, NaN where one was not used or not tied to the others."""
    item, n = data.group.objects[k], len(data.time)
    columns = {}
    for name, values in (
        ("flux", solution.flux),
        ("error", error),
        ("external_error", solution.external_error),
        ("internal_error", solution.internal_error),
    ):
        columns[name] = np.full(n, np.inf if name == "error" else np.nan)
        columns[name][data.epochs] = values[k]
    good = np.isfinite(columns["flux"]) & np.isfinite(columns["error"])
    columns["error"][~good] = np.inf
    flags = np.where(good, 0, FLAG_NO_DATA) | np.where(data.flags != 0, FLAG_FRAME, 0)
    template, image = np.nonzero(np.isfinite(data.difference[k]))
    count = np.bincount(np.concatenate([data.epochs[template], data.epochs[image]]), minlength=n)
    return {
        "object_id": item["object_id"],
        "kind": item["kind"],
        "y": float(item["y"]),
        "x": float(item["x"]),
        "position_error": float(item.get("position_error", np.nan)),
        "reference_flux": np.nan,
        "reference_flux_error": np.nan,
        "time": data.time,
        "flags": flags.astype(np.int32),
        **columns,
        "frame_id": data.frame_id,
        "n_pairs": count.astype(np.int32),
        "pair_template": data.epochs[template].astype(np.int32),
        "pair_image": data.epochs[image].astype(np.int32),
        "pair_flux": data.difference[k][template, image],
        "pair_error": data.error[k][template, image],
        "chi2": float(solution.chi2[k]),
        "dof": int(solution.dof[k]),
        "connected": bool(solution.connected[k]),
    }


def table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows of `light_curve` as a table: the columns of all light curves, and those of NN2."""
    found = light_curve_table(rows)
    for name, kind in (
        ("external_error", pa.list_(pa.float64())),
        ("internal_error", pa.list_(pa.float64())),
        ("frame_id", pa.list_(pa.string())),
        ("n_pairs", pa.list_(pa.int32())),
        ("pair_template", pa.list_(pa.int32())),
        ("pair_image", pa.list_(pa.int32())),
        ("pair_flux", pa.list_(pa.float64())),
        ("pair_error", pa.list_(pa.float64())),
        ("chi2", pa.float64()),
        ("dof", pa.int64()),
        ("connected", pa.bool_()),
    ):
        found = found.append_column(name, pa.array([row[name] for row in rows], kind))
    return found


def settings(config: Config) -> dict[str, Any]:
    """The gauge; what the pairs depend on is in their keys."""
    return config.nn2.model_dump(include={"gauge", "baseline"})


def memory(unit: Unit, outlook: Outlook, config: Config) -> float:
    """Bytes of the objects' matrices and their solution, and of their pairs as rows (measured: 50 to 90)."""
    group, epochs, *_ = unit.items
    return float(PAIR_BYTES * len(group.objects) * len(epochs) ** 2)


STAGE = Stage("nn2", 3, settings, lambda field, config: [], read, partial, combine, apply, memory=memory)
