"""Found events against the known truth of a simulated field."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from survey.io.files import read_parquet
from survey.io.locations import Location
from survey.io.store import Field
from survey.report.sources import Row, as_rows, field_truth

RADIUS = 2.0
# An event is seen over this many of its time scales, a truth over this many of its durations (full width
# at half maximum), on either side.
EVENT_REACH, TRUTH_REACH = 2.0, 1.0
# Lower edges of the bins of true S/N in which completeness is counted.
SNR_BINS = (0.0, 6.0, 8.0, 12.0, 20.0, 50.0)


def compare_with_truth(
    events: Any,
    truth: Any,
    *,
    light_curves: Any = None,
    radius: float = RADIUS,
) -> Row:
    """Match a list of events with the true sources of a simulated field.

    A source is found by the strongest event within `radius` pixels whose time overlaps its own; a periodic
    source has no time of its own, and a moving body is where it is at the event's. Further events of a found
    source are its duplicates; events of no source are false alarms.

    Parameters
    ----------
    events : table, dict of columns or list of dict
        Columns object_id, x, y, time, sigma_days, snr, amplitude, as in ``events/<method>.parquet``.
    truth : table, dict of columns or list of dict
        As the simulator's ``truth.ecsv``, with x and y on the field's grid: see `field_truth`.
    light_curves : table or list of dict, optional
        Columns object_id, time, flux, error. With them a found microlensing event gets ``flux_ratio``: the
        true light curve's least-squares factor in the measured one.
    radius : float
        Pixels.

    Returns
    -------
    dict
        ``rows`` (one a source: id, kind, x, y, time, duration, snr_true, amplitude_true, found, duplicates,
        and for a found one object_id, snr, position_error, offset_x, offset_y, time_error, amplitude,
        amplitude_ratio, peak_flux, peak_ratio, peak_ratio_error, flux_ratio, flux_ratio_error),
        ``false_alarms`` (rows of events), ``completeness``
        (per bin of true S/N: low, high, true, found; microlensing only), ``summary`` (counts and median
        offsets). Plain data, ready for JSON.

    Examples
    --------
    >>> truth = [{"id": 0, "kind": "microlensing", "x": 10.0, "y": 20.0, "t0": 5.0, "duration": 1.0,
    ...           "snr": 30.0, "peak_difference_flux": 8.0}]
    >>> events = [{"object_id": "a", "x": 10.3, "y": 20.4, "time": 5.2, "sigma_days": 0.5, "snr": 29.0,
    ...            "amplitude": 7.6}]
    >>> row = compare_with_truth(events, truth)["rows"][0]
    >>> row["found"], round(row["position_error"], 2), round(row["amplitude_ratio"], 2)
    (True, 0.5, 0.95)
    """
    found = sorted(as_rows(events), key=lambda row: -abs(_value(row, "snr", 0.0)))
    sources = as_rows(truth)
    curves = {row["object_id"]: row for row in as_rows(light_curves)} if light_curves is not None else {}
    owner = _owners(found, sources, radius)
    rows = [_compare(source, [e for e, o in zip(found, owner, strict=True) if o == i], curves)
            for i, source in enumerate(sources)]  # fmt: skip
    alarms = [_plain(event) for event, o in zip(found, owner, strict=True) if o < 0]
    events_of = [row for row in rows if row["kind"] == "microlensing"]
    return {
        "rows": rows,
        "false_alarms": alarms,
        "completeness": _completeness(events_of),
        "summary": {
            "events_true": len(events_of),
            "events_found": sum(row["found"] for row in events_of),
            "others_true": len(rows) - len(events_of),
            "others_found": sum(row["found"] for row in rows) - sum(row["found"] for row in events_of),
            "events_listed": len(found),
            "duplicates": sum(max(row["duplicates"], 0) for row in rows),
            "false_alarms": len(alarms),
            "median_offset_x": _median(rows, "offset_x"),
            "median_offset_y": _median(rows, "offset_y"),
            **_mean_flux_ratio(rows),
            "radius": radius,
        },
    }


def compare_field(
    path: str | Location, method: str = "oversampled", truth: str | Path | None = None
) -> Row | None:
    """Compare a field's events with the truth on the field's own grid.

    Parameters
    ----------
    path : path
        The field.
    method : str
        Difference method.
    truth : path, optional
        Table of the truth; by default ``truth.ecsv`` beside the frames.

    Returns
    -------
    dict or None
        As `compare_with_truth`; None where the field was not searched or no truth is known.
    """
    field = Field.open(path)
    sources = field_truth(field, truth)
    events, curves = field.events_path(method), field.light_curves_path(method)
    if not sources or not events.exists():
        return None
    measured = read_parquet(curves) if curves.exists() else None
    return compare_with_truth(read_parquet(events), sources, light_curves=measured)


def _owners(events: list[Row], sources: list[Row], radius: float) -> list[int]:
    """For each event the index of the source it belongs to, -1 for none."""
    owner = []
    for event in events:
        near = [
            (float(np.hypot(event["x"] - x, event["y"] - y)), i)
            for i, (s, (x, y)) in enumerate((s, place_at(s, event["time"])) for s in sources)
            if overlaps(event, s)
        ]
        distance, i = min(near, default=(np.inf, -1))
        owner.append(i if distance <= radius else -1)
    return owner


def place_at(source: Row, time: float) -> tuple[float, float]:
    """(x, y) of a source at a time; a moving body's is that of ``t0`` and its velocity in pixels a day."""
    x, y = _value(source, "x", np.nan), _value(source, "y", np.nan)
    if str(source.get("kind")) != "moving":
        return x, y
    away = time - _value(source, "t0", np.nan)
    return x + away * _value(source, "vx", np.nan), y + away * _value(source, "vy", np.nan)


def overlaps(event: Row, source: Row) -> bool:
    """Whether an event happens while a source is known to change."""
    if str(source.get("kind")) != "microlensing":
        return True
    t0, duration = _value(source, "t0", np.nan), _value(source, "duration", 0.0)
    if not np.isfinite(t0):
        return True
    reach = EVENT_REACH * _value(event, "sigma_days", 0.0) + TRUTH_REACH * duration
    return abs(_value(event, "time", np.nan) - t0) <= reach


def _compare(source: Row, events: list[Row], curves: Mapping[str, Row]) -> Row:
    true_amplitude = _value(source, "peak_difference_flux", np.nan)
    row: Row = {
        "id": source.get("id"),
        "kind": str(source.get("kind", "")),
        "x": _value(source, "x", np.nan),
        "y": _value(source, "y", np.nan),
        "time": _value(source, "t0", np.nan),
        "duration": _value(source, "duration", np.nan),
        "snr_true": _value(source, "snr", np.nan),
        "amplitude_true": true_amplitude,
        "found": bool(events),
        "duplicates": max(len(events) - 1, 0),
    }
    if not events:
        return _plain(row)
    best = events[0]
    x, y = place_at(source, best["time"])
    row |= {
        "object_id": best.get("object_id"),
        "snr": _value(best, "snr", np.nan),
        "position_error": float(np.hypot(best["x"] - x, best["y"] - y)),
        "offset_x": best["x"] - x,
        "offset_y": best["y"] - y,
        "amplitude": _value(best, "amplitude", np.nan),
        "peak_flux": _value(best, "peak_flux", np.nan),
    }
    if row["kind"] == "microlensing":
        row["time_error"] = _value(best, "time", np.nan) - row["time"]
        row["amplitude_ratio"] = row["amplitude"] / true_amplitude if true_amplitude else np.nan
        if all(source.get(name) is not None for name in ("u0", "tE", "flux", "t0")):
            # At the maximum itself, which may lie between two frames.
            highest = float(excess(source, source["t0"]))
            row["peak_ratio"] = row["peak_flux"] / highest
            row["peak_ratio_error"] = _value(best, "peak_flux_error", np.nan) / highest
        curve = curves.get(str(best.get("object_id")))
        if curve is not None:
            row["flux_ratio"], row["flux_ratio_error"] = flux_ratio(curve, source)
    return _plain(row)


def flux_ratio(curve: Row, source: Row) -> tuple[float, float]:
    """Factor of the true light curve in a measured one, and its error; a constant is fitted along."""
    time, flux, error = (np.asarray(curve[name], float) for name in ("time", "flux", "error"))
    model = excess(source, time)
    good = np.isfinite(flux) & (error > 0) & np.isfinite(model)
    if good.sum() < 3:
        return np.nan, np.nan
    design = np.column_stack([model[good], np.ones(good.sum())]) / error[good, None]
    normal = design.T @ design
    if np.linalg.matrix_rank(normal) < 2:
        return np.nan, np.nan
    covariance = np.linalg.inv(normal)
    answer = covariance @ design.T @ (flux[good] / error[good])
    return float(answer[0]), float(np.sqrt(covariance[0, 0]))


def excess(source: Row, time: ArrayLike) -> NDArray[np.float64]:
    """True flux change of a microlensing source; point lens (Paczynski 1986, ApJ 304, 1, eq. 5)."""
    tau = (np.asarray(time, float) - source["t0"]) / source["tE"]
    u2 = source["u0"] ** 2 + tau**2
    return np.asarray(source["flux"] * ((u2 + 2) / np.sqrt(u2 * (u2 + 4)) - 1))


def _median(rows: list[Row], name: str) -> float | None:
    known = [row[name] for row in rows if row.get(name) is not None]
    return float(np.median(known)) if known else None


def _mean_flux_ratio(rows: list[Row]) -> Row:
    """Weighted mean of measured over true flux, its error and the chi2 per degree of freedom about it."""
    pairs = [(r["flux_ratio"], r["flux_ratio_error"]) for r in rows if r.get("flux_ratio") is not None]
    if len(pairs) < 2:
        return {}
    ratio, error = np.array(pairs).T
    weight = 1 / error**2
    mean = float((weight * ratio).sum() / weight.sum())
    chi2 = float((weight * (ratio - mean) ** 2).sum() / (len(pairs) - 1))
    return {"flux_ratio": mean, "flux_ratio_error": float(weight.sum() ** -0.5), "flux_ratio_chi2": chi2}


def _completeness(rows: list[Row]) -> list[Row]:
    table = []
    for low, high in zip(SNR_BINS, (*SNR_BINS[1:], np.inf), strict=True):
        inside = [row for row in rows if row["snr_true"] is not None and low <= row["snr_true"] < high]
        if inside:
            found = sum(row["found"] for row in inside)
            end = None if np.isinf(high) else high
            table.append({"low": low, "high": end, "true": len(inside), "found": found})
    return table


def _value(row: Mapping[str, Any], name: str, default: float) -> float:
    value = row.get(name)
    return default if value is None else float(value)


def _plain(row: Row) -> Row:
    """A row that JSON can hold: no arrays, no NaN."""
    plain = {}
    for name, value in row.items():
        item = value.item() if isinstance(value, np.generic) else value
        plain[name] = None if isinstance(item, float) and not np.isfinite(item) else item
    return plain
