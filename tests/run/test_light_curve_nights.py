"""Light curves to which later epochs are added: the old points stay, and are those of a whole measurement."""

import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from survey.config import Config
from survey.io.locations import remove
from survey.io.store import Field
from survey.run.api import run
from survey.run.light_curves import LightCurves
from survey.simulate import simulate_field
from survey.stages import photometry
from survey.stages.light_curve_tables import WEIGHT
from survey.stages.protocol import Unit
from survey.tiles import Tile


def measured_with(monkeypatch):
    """How many epochs of each object were known when it was measured."""
    found, measure = [], photometry.measure

    def spy(data, psf, item, config, fwhm=None, known=None):
        found.append(0 if known is None else len(known["time"]))
        return measure(data, psf, item, config, fwhm, known)

    monkeypatch.setattr(photometry, "measure", spy)
    return found


EARLY, FRAMES = 4, 6


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """Four frames with two targets, and then two more."""
    folder = tmp_path_factory.mktemp("light-curve-nights")
    simulate_field(
        folder / "frames", size=64, frames=FRAMES, seed=2, events=0, variables=0, density=0.05,
        psf_fwhm=2.2, saturation=None, bad_pixels=0, cosmic_rays=0,
    )  # fmt: skip
    (folder / "targets.csv").write_text("name,x,y\na,20,30\nb,41,12\n")
    config = Config(grid={"tile": 64}, reference={"n_basis": 1}, psf={"fwhm": 2.2}, detect={"threshold": 1e6})
    config.photometry.targets = str(folder / "targets.csv")
    config.registration.reference = "frame_00001"
    files = sorted((folder / "frames").glob("*.fits*"))
    for part in (files[:EARLY], files[EARLY:]):
        summary = run(folder / "field", config, frames=part, client="synchronous")
        assert summary.ok, summary.failures
        shutil.copytree(folder / "field", folder / f"field-{len(part)}")
    return folder, config


def test_added_points_and_old_ones_are_those_of_a_whole_measurement(field, tmp_path, monkeypatch):
    folder, config = field
    path = tmp_path / "field"
    shutil.copytree(folder / "field", path)
    curves = path / "lightcurves" / "oversampled.parquet"
    later = curves.read_bytes()
    # as it was before the later epochs were measured
    for part in ("ledger/oversampled.photometry", "lightcurves/oversampled.parts"):
        shutil.rmtree(path / part)
        shutil.copytree(folder / f"field-{EARLY}" / part, path / part)
    found = measured_with(monkeypatch)
    assert run(path, config, client="synchronous").ok
    assert found == [EARLY, EARLY]
    assert curves.read_bytes() == later
    table = pq.read_table(curves)
    assert WEIGHT not in table.column_names
    assert {len(time) for time in table["time"].to_pylist()} == {FRAMES}
    found.clear()
    remove(path / "ledger" / "oversampled.photometry")
    assert run(path, config, client="synchronous").ok
    assert found == [0, 0]
    assert curves.read_bytes() == later


def test_a_table_that_was_written_anew_is_not_added_to(field):
    """As when a worker dies after it has written: the unit is run once more."""
    folder, config = field
    known = photometry.Known(EARLY, (1, 0))
    for name, expected in (("field", (0, [None, None])), (f"field-{EARLY}", None)):
        target = Field.open(folder / name)
        found = photometry._known_rows(target, Unit("tile-00000", target.tiles[0]), config, known)
        if expected is None:
            assert found[0] == EARLY
            assert [row["object_id"] for row in found[1]] == ["b", "a"]
        else:
            assert found == expected


def test_an_event_is_over_after_some_sigma():
    time = np.array([10.0, 17.9, 18.1, 2.1, 1.9])
    profile = photometry.event_profile(EVENT, time)
    assert (profile > 0).tolist() == [True, True, False, True, False]
    assert photometry.is_settled(EVENT, 18.1, Config())
    assert not photometry.is_settled(EVENT, 17.9, Config())
    assert not photometry.is_settled({"y": 1.0, "x": 1.0}, 17.9, Config())
    assert photometry.is_settled({"y": 1.0, "x": 1.0, "refine": False}, 17.9, Config())


EVENT = {"y": 5.0, "x": 5.0, "kind": "event", "time": 10.0, "sigma_days": 2.0}
TARGET = {"y": 9.0, "x": 5.0, "kind": "target", "refine": False}


@pytest.mark.parametrize(
    ("items", "first", "changes", "known"),
    [
        ((EVENT, TARGET), 19.0, {}, (0, 1)),
        ((TARGET, EVENT), 19.0, {}, (1, 0)),
        ((EVENT, TARGET), 17.0, {}, (None, 1)),
        (({**EVENT, "time": 10.1}, TARGET), 19.0, {}, (None, 1)),
        ((EVENT,), 17.0, {}, None),
        ((EVENT, TARGET), 19.0, {"stands": "other"}, None),
        ((EVENT, TARGET), 19.0, {"stands": None}, None),
        ((EVENT, TARGET), 19.0, {"starts": []}, None),
        ((EVENT, TARGET), 19.0, {"starts": [2, 3]}, None),
    ],
)
def test_what_is_known(items, first, changes, known):
    """Of an event that is over and a target, where the differences of before stand."""
    state = {"stands": "key", "starts": [2], **changes}
    pipeline = SimpleNamespace(
        config=Config(),
        around=lambda unit, halo: [unit],
        touched={"tile": []},
        psf_key=lambda: "psf",
        frames={"time": SimpleNamespace(values=np.array([0.0, 1.0, first, first + 1]))},
        differences=SimpleNamespace(
            stands=lambda unit, events, before=False: state["stands"] if before else "key",
            additions=lambda: state["starts"],
        ),
        engine=SimpleNamespace(ledger=lambda stage: SimpleNamespace(records={})),
    )
    curves = LightCurves(pipeline)
    unit = Unit("tile", Tile(0, 0, 48, 0, 48), items)
    assert curves.with_known(unit) is unit
    rows = [photometry.item_identity(item) for item in (EVENT, TARGET)]
    payload = {"of": curves.identity(unit), "epochs": 2, "rows": rows}
    curves.records["tile"] = SimpleNamespace(payload=payload)
    found = curves.with_known(unit)
    expected = items if known is None else (*items, photometry.Known(2, known))
    assert found.items == expected
