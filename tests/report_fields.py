"""Small fields written by hand, complete and half-finished, with a truth."""

import json

import numpy as np
import pyarrow as pa
import xarray as xr
from astropy.wcs import WCS

from survey.io.files import write_json, write_parquet
from survey.io.store import Field
from survey.report import compare_with_truth

SHAPE = (64, 64)
EPOCHS = 24
START = 61500.0
CADENCE = 0.02
EVENT = {"y": 30.3, "x": 40.6, "time": START + 12 * CADENCE, "sigma_days": 0.05}


def wcs_text():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crpix, wcs.wcs.crval, wcs.wcs.cdelt = [32.0, 32.0], [268.0, -29.2], [-3e-5, 3e-5]
    return wcs.to_header_string()


def frames_table(rng, path="/data"):
    flags = np.zeros(EPOCHS, np.int64)
    flags[3] = 1 | 2
    centre = np.column_stack([31.5 + rng.uniform(-2, 2, EPOCHS), 31.5 + rng.uniform(-2, 2, EPOCHS)])
    offset = centre - 31.5
    maps = np.zeros((EPOCHS, 2, 3))
    maps[:, :, 0] = 31.5 + offset
    maps[:, 0, 1] = maps[:, 1, 2] = 31.5
    columns = {
        "frame_id": np.array([f"frame_{k:05d}" for k in range(EPOCHS)]),
        "path": np.array([f"{path}/frame_{k:05d}.fits" for k in range(EPOCHS)]),
        "map_scale": np.full(EPOCHS, 31.5),
        "scale": rng.normal(1, 0.01, EPOCHS),
        "psf_fwhm": rng.normal(1.2, 0.02, EPOCHS),
        "elongation": rng.normal(1.1, 0.02, EPOCHS),
        "registration_rms": np.full(EPOCHS, 0.02),
        "n_matched": np.full(EPOCHS, 40),
        "n_stars": np.full(EPOCHS, 50),
        "flags": flags,
        "gain": np.full(EPOCHS, 2.0),
    }
    table = xr.Dataset({name: ("time", values) for name, values in columns.items()})
    table["map"] = (("time", "axis", "term"), maps)
    table["map_center"] = (("time", "axis"), np.full((EPOCHS, 2), 31.5))
    table["background"] = (("time", "background_term"), rng.normal(4, 0.1, (EPOCHS, 1)))
    return table.assign_coords(time=START + CADENCE * np.arange(EPOCHS))


def empty_field(path, **attrs):
    known = {
        "tile_size": 32,
        "time_block": 8,
        "units": "electron / s",
        "detector_shape": [64, 64],
        "band": "F146",
        "detector": "SIM01",
        "reference_frame": "frame_00012",
        "config": {"reference": {"extension": 1.2}, "report": {"events": 2}},
        "wcs": wcs_text(),
    }
    return Field.create(path, SHAPE, {**known, **attrs})


def write_images(field, rng):
    sizes = {"time": EPOCHS, "y": 64, "x": 64}
    field.require_group("images/sky", sizes)
    flux = rng.normal(4, 1, (EPOCHS, *SHAPE)).astype(np.float32)
    flux[:, ::9, ::7] += 200
    mask = rng.random(flux.shape) < 0.01
    arrays = {"flux": flux, "error": np.ones_like(flux), "mask": mask, "dq": mask}
    field.write("images/sky", arrays, (slice(0, EPOCHS), slice(0, 64), slice(0, 64)))


def write_products(field, rng):
    sizes = {"time": EPOCHS, "y": 64, "x": 64, "ky": 5, "kx": 5}
    for group in ("difference/oversampled", "reference", "search/oversampled"):
        field.require_group(group, sizes)
    everywhere = (slice(0, EPOCHS), slice(0, 64), slice(0, 64))
    flux = rng.normal(0, 2, (EPOCHS, *SHAPE)).astype(np.float32)
    flux[10:15, 30, 41] += 30
    arrays = {
        "flux": flux,
        "error": np.full_like(flux, 2),
        "mask": rng.random(flux.shape) < 0.01,
        "fit_mask": rng.random(flux.shape) < 0.002,
        "leverage": np.full_like(flux, 0.2),
    }
    field.write("difference/oversampled", arrays, everywhere)
    coefficients = rng.normal(0, 0.1, (*SHAPE, 5, 5)).astype(np.float32)
    coefficients[..., 0, 0] += rng.gamma(0.5, 20, SHAPE)
    coefficients[20:23, 20:23] = 0
    n = np.full(SHAPE, EPOCHS)
    field.write("reference", {"coefficients": coefficients, "n_used": n, "chi2": n}, everywhere)
    search = {
        "significance": rng.normal(0, 1, SHAPE),
        "scale_index": np.ones(SHAPE),
        "time_index": np.full(SHAPE, 12),
    }
    search["significance"][30, 41] = 15
    field.write("search/oversampled", search, everywhere)


def write_events(field, rng, count=3):
    rows, curves = [], []
    time = START + CADENCE * np.arange(EPOCHS)
    for i in range(count):
        event = {
            "object_id": f"event-{i + 1:04d}",
            "kind": "event",
            **EVENT,
            "ra": 268.0,
            "dec": -29.2,
            "sigma_images": 2.5,
            "snr": 15.0 - 4 * i if i < 2 else -6.0,
            "amplitude": 30.0,
            "amplitude_error": 2.0,
            "psf_likeness": 0.9,
            "n_epochs": 6,
            "flags": [0, 5, 24][i],
        }
        event["x"] = EVENT["x"] + 10 * i - 38 * (i == 2)
        rows.append(event)
        profile = 30 * np.exp(-0.5 * ((time - event["time"]) / event["sigma_days"]) ** 2)
        curves.append(
            {
                "object_id": event["object_id"],
                "kind": "event",
                "y": event["y"],
                "x": event["x"],
                "position_error": 0.02,
                "reference_flux": 12.0,
                "reference_flux_error": 0.5,
                "time": time,
                "flux": profile + rng.normal(0, 2, EPOCHS),
                "error": np.full(EPOCHS, 2.0),
                "flags": (np.abs(time - event["time"]) < 0.1) * 4 + (np.arange(EPOCHS) == 3) * 8,
            }
        )
    write_parquet(field.events_path("oversampled"), pa.Table.from_pylist(rows))
    write_parquet(field.light_curves_path("oversampled"), pa.Table.from_pylist(curves))
    return rows


def write_run(field):
    stage = {"units": 4, "read": 0.4, "compute": 8.0, "write": 0.2, "memory": 3e8}
    run = {
        "run_id": "20260101T000000-abcdef",
        "status": "failed",
        "started": "2026-01-01T00:00:00Z",
        "seconds": 65.0,
        "inputs": 24,
        "computed": 4,
        "events": 3,
        "failures": [{"stage": "detect", "unit": "tile-00003", "reason": "ValueError: a < b"}],
        "stages": {"oversampled": stage},
        "rejected": [["/data/bad.fits", "truncated"]],
        "versions": {"survey": "0.1.0"},
    }
    write_json(field.path / "runs" / run["run_id"] / "run.json", run)
    unit = {"stage": "oversampled", "step": "apply", "unit": "tile-00000", "seconds": {"compute": 2.0}}
    (field.path / "runs" / run["run_id"] / "units.jsonl").write_text(json.dumps(unit) + "\n")


def truth_case():
    truth = [
        {"id": 0, "kind": "microlensing", "x": 40.0, "y": 30.0, "t0": 5.0, "tE": 2.0, "u0": 0.5, "flux": 10.0,
         "duration": 1.0, "snr": 30.0, "peak_difference_flux": 11.8},
        {"id": 1, "kind": "microlensing", "x": 10.0, "y": 10.0, "t0": 5.0, "tE": 1.0, "u0": 0.5, "flux": 1.0,
         "duration": 1.0, "snr": 5.0, "peak_difference_flux": 1.0},
        {"id": 2, "kind": "sinusoid", "x": 50.0, "y": 50.0, "t0": 0.0, "duration": np.nan, "snr": 80.0,
         "peak_difference_flux": 3.0},
    ]  # fmt: skip
    events = [
        {
            "object_id": "a",
            "x": 40.3,
            "y": 30.4,
            "time": 5.1,
            "sigma_days": 0.5,
            "snr": 29.0,
            "amplitude": 10.0,
        },
        {
            "object_id": "b",
            "x": 40.1,
            "y": 30.0,
            "time": 5.9,
            "sigma_days": 0.5,
            "snr": 7.0,
            "amplitude": 1.0,
        },
        {
            "object_id": "c",
            "x": 10.0,
            "y": 10.0,
            "time": 15.0,
            "sigma_days": 0.5,
            "snr": 8.0,
            "amplitude": 1.0,
        },
        {
            "object_id": "d",
            "x": 50.0,
            "y": 51.0,
            "time": 15.0,
            "sigma_days": 0.5,
            "snr": -9.0,
            "amplitude": -1.0,
        },
    ]
    return events, truth


def full_field(path):
    """A field with everything that a run leaves."""
    rng = np.random.default_rng(1)
    field = empty_field(path)
    field.write_table("frames", frames_table(rng))
    write_images(field, rng)
    write_products(field, rng)
    write_events(field, rng)
    write_run(field)
    time = (START + CADENCE * np.arange(EPOCHS)).tolist()
    write_json(
        field.relative_path("oversampled"),
        {
            "time": time,
            "flux": rng.normal(1, 0.01, EPOCHS).tolist(),
            "error": [0.01] * EPOCHS,
            "aperture_flux": rng.normal(1, 0.02, EPOCHS).tolist(),
            "aperture_error": [0.02] * EPOCHS,
            "scatter": 0.0098,
        },
    )
    write_json(field.path / "truth_comparison.json", compare_with_truth(*truth_case()))
    return field
