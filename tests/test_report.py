"""The report: complete, half-finished and empty fields; the comparison with a truth."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
from astropy.table import Table
from astropy.wcs import WCS

from survey.io.files import write_json, write_parquet
from survey.io.store import Field, FieldError
from survey.report import compare_field, compare_with_truth, field_truth, write_report
from survey.report.data import load
from survey.report.methods import Entry, matched
from survey.report.residuals import STAR, accumulate

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


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    rng = np.random.default_rng(1)
    field = empty_field(tmp_path_factory.mktemp("report") / "bulge")
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
    path = write_report(field.path)
    return field, path.read_text()


class Outline(HTMLParser):
    """Identifiers, links, sources and whether the tags close in their order."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self):
        super().__init__()
        self.ids, self.links, self.sources, self.open, self.images = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if "id" in given:
            self.ids.append(given["id"])
        for name in ("href", "xlink:href"):
            if name in given:
                (self.links if tag != "image" else self.sources).append(given[name])
        if "src" in given:
            self.sources.append(given["src"])
        if tag in ("img", "svg"):
            self.images.append(given.get("alt") or given.get("aria-label"))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def outline(text):
    parser = Outline()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser


def test_page_is_well_formed_and_asks_for_nothing_outside(full):
    parsed = outline(full[1])
    assert len(parsed.ids) == len(set(parsed.ids))
    assert all(source.startswith("data:image/png;base64,") for source in parsed.sources)
    assert {link[1:] for link in parsed.links if link.startswith("#")} <= set(parsed.ids)
    assert all(link.startswith("#") for link in parsed.links)
    assert not re.search(r"url\((?!#)|@import|<script|<link", full[1])


def test_pictures_have_alternative_texts(full):
    images = outline(full[1]).images
    assert len(images) > 15
    assert all(images)


def test_figures_take_the_colours_of_the_page(full):
    assert "#0102" not in full[1]
    assert "DejaVu" not in full[1]
    assert "prefers-color-scheme:dark" in full[1]


@pytest.mark.parametrize("anchor", ["pictures", "events", "truth", "target", "noise", "frames", "runs"])
def test_full_report_has_every_section(full, anchor):
    assert f'<section id="{anchor}"' in full[1]


def test_methods_stand_side_by_side_where_there_are_two(full, tmp_path):
    assert '<section id="methods"' not in full[1]
    copy = tmp_path / "two"
    shutil.copytree(full[0].path, copy)
    field = Field.open(copy)
    for name in ("difference", "events", "lightcurves"):
        folder = copy / "cube.zarr" / name if name == "difference" else copy / name
        for old in folder.glob("oversampled*"):
            other = old.with_name(old.name.replace("oversampled", "sfft"))
            shutil.copytree(old, other) if old.is_dir() else shutil.copy(old, other)
    events = pq.read_table(field.events_path("sfft")).to_pylist()
    write_parquet(field.events_path("sfft"), pa.Table.from_pylist(events[:2]))
    text = write_report(copy).read_text()
    outline(text)
    part = text[text.index('<section id="methods"') :]
    assert "<b>oversampled</b>" in part
    assert "<b>sfft</b>" in part
    entries = [Entry(load(copy, name), None) for name in ("oversampled", "sfft")]
    shared = matched(entries)
    assert [sum(e is not None for e in row) for row in shared] == [2, 2, 1]
    assert shared[0][0]["object_id"] == shared[0][1]["object_id"]


def test_header_says_what_the_field_is(full):
    for words in ("<h1>bulge</h1>", "F146", "17:52:00", "1 flagged", "last run failed in 1 min 5 s"):
        assert words in full[1]


def test_bits_are_said_in_words(full):
    for words in ("trailed, hazy", "edge, single epoch", "moving, unlike PSF"):
        assert words in full[1]


def test_only_the_asked_number_of_events_has_pictures(full):
    assert 'id="event-2"' in full[1]
    assert 'id="event-3"' not in full[1]
    assert "event-0003" in full[1]


def test_failures_and_rejected_frames_are_listed_and_escaped(full):
    for words in ("tile-00003", "ValueError: a &lt; b", "bad.fits", "truncated"):
        assert words in full[1]


def test_residuals_are_a_unit_gaussian(full):
    found = accumulate(load(full[0].path, "oversampled"))
    assert abs(found.of().std - 1.0) < 0.02
    assert abs(found.of().mean) < 0.02
    assert found.pixels == 64 * 64
    assert found.histogram.sum() == found.of().n
    assert np.nanmax(np.abs(found.frame_std - 1)) < 0.06
    assert 0.04 < found.of(STAR).n / found.of().n < 0.06


def test_large_cube_is_sampled_by_a_fixed_draw(full):
    data = load(full[0].path, "oversampled")
    one, two = (accumulate(data, budget=EPOCHS * 32 * 32 * 2) for _ in range(2))
    assert one.pixels == 2 * 32 * 32
    assert one.of() == two.of()


def test_output_goes_where_it_is_asked(tmp_path):
    path = write_report(empty_field(tmp_path / "field").path, output=tmp_path / "page.html")
    assert path == tmp_path / "page.html"
    assert path.read_text().startswith("<!DOCTYPE html>")


def test_report_of_nothing_says_what_is_missing(tmp_path):
    field = empty_field(tmp_path / "empty", wcs=None)
    text = write_report(field.path).read_text()
    outline(text)
    for words in (
        "No frames have been ingested",
        "No reference yet",
        "not been searched",
        "No run",
        "no WCS",
    ):
        assert words in text


def test_report_of_ingested_frames_shows_a_frame(tmp_path):
    rng = np.random.default_rng(2)
    field = empty_field(tmp_path / "half")
    field.write_table("frames", frames_table(rng))
    write_images(field, rng)
    text = write_report(field.path).read_text()
    outline(text)
    assert "No difference of this frame yet" in text
    assert 'aria-label="Frame frame_00012"' in text


def test_report_of_prepared_but_unwritten_groups(tmp_path):
    rng = np.random.default_rng(3)
    field = empty_field(tmp_path / "prepared")
    field.write_table("frames", frames_table(rng))
    write_images(field, rng)
    sizes = {"time": EPOCHS, "y": 64, "x": 64, "ky": 5, "kx": 5}
    for group in ("difference/oversampled", "reference", "search/oversampled"):
        field.require_group(group, sizes)
    text = write_report(field.path).read_text()
    for words in (
        "No reference yet",
        "No difference of this frame",
        "not been searched",
        "No differences yet",
    ):
        assert words in text


def test_report_of_a_field_without_events(tmp_path):
    rng = np.random.default_rng(4)
    field = empty_field(tmp_path / "quiet")
    field.write_table("frames", frames_table(rng))
    write_images(field, rng)
    write_products(field, rng)
    empty = pa.table({"object_id": pa.array([], pa.string()), "snr": pa.array([], pa.float64())})
    write_parquet(field.events_path("oversampled"), empty)
    text = write_report(field.path).read_text()
    assert "found no event above its threshold" in text
    assert "No event in it" in text


def test_no_field_is_an_error(tmp_path):
    with pytest.raises(FieldError, match="not a field"):
        write_report(tmp_path)


# -- truth ------------------------------------------------------------------------------------------


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


def test_comparison_finds_by_place_and_time():
    found = compare_with_truth(*truth_case())
    first, second, third = found["rows"]
    assert (first["found"], first["object_id"], first["duplicates"]) == (True, "a", 1)
    assert first["position_error"] == pytest.approx(0.5)
    assert first["amplitude_ratio"] == pytest.approx(10 / 11.8)
    assert not second["found"]
    assert (third["found"], third["object_id"]) == (True, "d")
    assert [row["object_id"] for row in found["false_alarms"]] == ["c"]
    assert found["summary"]["events_found"] == 1
    assert found["summary"]["false_alarms"] == 1
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_comparison_counts_completeness_by_true_snr():
    table = compare_with_truth(*truth_case())["completeness"]
    assert [(row["low"], row["true"], row["found"]) for row in table] == [(0.0, 1, 0), (20.0, 1, 1)]


def test_flux_ratio_recovers_a_scaled_light_curve():
    from survey.report.truth import excess

    events, truth = truth_case()
    time = np.linspace(0, 10, 50)
    curve = {"object_id": "a", "time": time, "flux": 0.9 * excess(truth[0], time) - 0.3, "error": np.ones(50)}
    row = compare_with_truth(events, truth, light_curves=[curve])["rows"][0]
    assert row["flux_ratio"] == pytest.approx(0.9)
    assert row["flux_ratio_error"] > 0


def test_comparison_takes_tables_and_columns():
    events, truth = truth_case()
    columns = {name: np.array([row[name] for row in events]) for name in events[0]}
    assert compare_with_truth(pa.Table.from_pylist(events), truth) == compare_with_truth(columns, truth)


def test_comparison_of_nothing():
    found = compare_with_truth([], [])
    assert found["rows"] == []
    assert found["summary"]["events_found"] == 0


def test_truth_is_placed_by_the_map_of_its_frame(tmp_path):
    field = empty_field(tmp_path / "field")
    frames = frames_table(np.random.default_rng(5), path=str(tmp_path))
    field.write_table("frames", frames)
    Table({"id": [0], "kind": ["sinusoid"], "x": [20.0], "y": [25.0]}).write(tmp_path / "truth.ecsv")
    row = field_truth(field)[0]
    offset = frames["map"].values[0, :, 0] - 31.5
    assert row["x"] == pytest.approx(20.0 - offset[0])
    assert row["y"] == pytest.approx(25.0 - offset[1])


def test_truth_is_placed_by_the_sky_where_its_frame_is_missing(tmp_path):
    field = empty_field(tmp_path / "field")
    frames = frames_table(np.random.default_rng(5)).isel(time=slice(1, None))
    field.write_table("frames", frames)
    Table({"id": [0], "kind": ["sinusoid"], "x": [0.0], "y": [0.0], "ra": [268.0], "dec": [-29.2]}).write(
        tmp_path / "truth.ecsv"
    )
    row = field_truth(field, tmp_path / "truth.ecsv")[0]
    assert (row["x"], row["y"]) == pytest.approx((31.0, 31.0))


def test_field_is_compared_on_its_own_grid(full, tmp_path):
    field = full[0]
    offset = field.frames()["map"].values[0, :, 0] - 31.5
    row = {"id": 0, "kind": "sinusoid", "x": EVENT["x"] + offset[0], "y": EVENT["y"] + offset[1], "snr": 20.0}
    Table([row]).write(tmp_path / "truth.ecsv")
    found = compare_field(field.path, truth=tmp_path / "truth.ecsv")
    assert found["rows"][0]["object_id"] == "event-0001"
    assert found["summary"]["median_offset_x"] == pytest.approx(0, abs=1e-9)
    assert compare_field(field.path) is None
