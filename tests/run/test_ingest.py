"""Two ingests of one field: no frame is lost, and who comes late is told so."""

import numpy as np
import pytest

from survey.config import Config
from survey.io.ledger import FieldBusyError
from survey.io.store import Field, holds_frames
from survey.run import ingest as module
from survey.run.api import append_frames, run
from survey.run.engine import Engine
from survey.run.executor import InlineExecutor, connect
from survey.run.grids import place_grid
from survey.run.ingest import IngestError, ingest
from survey.run.pipeline import Pipeline
from survey.run.progress import Silent, StoppedError
from survey.run.upkeep import unlock
from survey.run.verify import verify
from survey.simulate import simulate_field
from survey.stages import place
from survey.stages.calibrated import REFINED, calibrated_frames, read_calibrated
from tests.run.conftest import small_config


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    simulate_field(folder, size=96, frames=8, seed=4, events=0, variables=0)
    return sorted(folder.glob("*.fits"))


def take_in(path, files):
    config = small_config()
    with connect(config.cluster, "synchronous") as executor:
        return ingest(path, files, config, executor).added


@pytest.mark.parametrize("there", [0, 4])
def test_an_ingest_that_another_overtook_writes_nothing_and_says_so(few, tmp_path, monkeypatch, there):
    path = tmp_path / "field"
    if there:
        take_in(path, few[:there])
    register = module.register.combine

    def overtaken(*args):
        monkeypatch.setattr(module.register, "combine", register)
        assert take_in(path, few[4:6]) == 2
        return register(*args)

    monkeypatch.setattr(module.register, "combine", overtaken)
    with pytest.raises(FieldBusyError, match=rf"from {there} to {there + 2} frames .* run it again"):
        take_in(path, few[6:])
    assert Field.open(path).frames().sizes["time"] == there + 2
    assert take_in(path, few[6:]) == 2
    frames = Field.open(path).frames()["frame_id"].values.tolist()
    assert len(set(frames)) == there + 4


@pytest.mark.parametrize("there", [0, 2])
def test_an_ingest_that_lost_its_lease_after_its_last_block_writes_no_table(few, tmp_path, there):
    path, stolen = tmp_path / "field", []

    class Thief(Silent):
        def advance(self, stage, report, failed=False):
            if stage == "ingest":
                unlock(path, force=True)
                stolen.append(stage)

    if there:
        take_in(path, few[:there])
    with pytest.raises(StoppedError, match="no longer holds images"):
        ingest(path, few[there : there + 2], small_config(), InlineExecutor(), progress=Thief())
    assert stolen == ["ingest"]
    assert holds_frames(path) == bool(there)
    assert not there or Field.open(path).frames().sizes["time"] == there
    assert take_in(path, few[there : there + 2]) == 2


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("table", "moment"),
    [
        pytest.param("stars", "before", marks=SLOW),
        ("stars", "after"),
        pytest.param("frames", "before", marks=SLOW),
        ("frames", "after"),
    ],
)
def test_an_ingest_killed_at_any_of_its_tables_is_taken_up(few, tmp_path, monkeypatch, table, moment):
    path, write = tmp_path / "field", Field.write_table

    def killed(self, name, content):
        if name != table or moment == "after":
            write(self, name, content)
        if name == table:
            raise KeyboardInterrupt

    monkeypatch.setattr(Field, "write_table", killed)
    with pytest.raises(KeyboardInterrupt):
        take_in(path, few[:2])
    monkeypatch.undo()
    there = 2 if (table, moment) == ("frames", "after") else 0
    assert take_in(path, few[:2]) == 2 - there
    assert take_in(path, few[2:3]) == 1
    frames = Field.open(path).frames()["frame_id"].values.tolist()
    assert len(set(frames)) == len(frames) == 3


def test_the_same_frames_again_are_there_already_also_when_strict(few, tmp_path):
    take_in(tmp_path / "field", few[:4])
    again = ingest(tmp_path / "field", few[:6], small_config(), InlineExecutor(), strict=True)
    assert (again.added, again.rejected) == (2, [])
    assert [text for text in again.warnings if "already" in text] == ["4 frames are in the field already"]
    again = ingest(tmp_path / "field", few[:6], small_config(), InlineExecutor(), strict=True)
    assert (again.added, again.rejected) == (0, [])


def test_another_grid_is_placed_under_the_lease_of_the_images(few, tmp_path):
    take_in(tmp_path / "field", few)
    field = Field.open(tmp_path / "field")
    before = set(field.ledger("place").records)
    engine = Engine(field, small_config(), InlineExecutor(), holder=("difference/cpm", "mine"))
    with field.lease("images", "an ingest"):
        with pytest.raises(FieldBusyError, match="an ingest"):
            place_grid(engine, "detector")
        assert set(field.ledger("place").records) == before
        assert not field.has("images/detector")
    place_grid(engine, "detector")
    made = set(field.ledger("place").records) - before
    assert len(engine.reports) == len(made) > 0
    with field.lease("images", "an ingest"):
        place_grid(engine, "detector")
    assert engine.skipped == len(made)


def test_a_run_that_fails_while_it_takes_frames_in_leaves_its_record(few, tmp_path):
    path, bad = tmp_path / "field", tmp_path / "bad.fits"
    take_in(path, few[:4])
    bad.write_bytes(few[5].read_bytes()[:5000])
    with pytest.raises(IngestError, match=r"--strict.*bad"):
        run(path, small_config(), frames=[few[4], bad], strict=True, client="synchronous")
    (record,) = Field.open(path).runs()
    assert record["status"] == "failed"
    assert "bad.fits" in record["failures"][0]["reason"]
    assert record["stages"]["measure"]["units"] == 1, "what it did until then"
    assert record["inputs"] == 0


def test_no_frames_come_in_while_a_run_computes(few, tmp_path):
    """Its workers read the table of frames unit by unit; nor does a run begin while frames come in."""
    path = tmp_path / "field"
    take_in(path, few[:6])
    config = small_config()
    config.reference.n_basis = 1
    config.psf.fwhm = 1.5

    class Enough(Exception):
        pass

    class Nosy(Silent):
        def start(self, stage, total, done):
            with pytest.raises(FieldBusyError, match=r"is writing images"):
                take_in(path, few[6:])
            raise Enough(stage)

    with pytest.raises(Enough, match="refine 1"):
        run(path, config, client="synchronous", progress=Nosy())
    assert Field.open(path).frames().sizes["time"] == 6
    with Field.open(path).lease("images", "an ingest"), pytest.raises(FieldBusyError, match="an ingest"):
        run(path, config, client="synchronous")


def test_a_first_ingest_killed_at_its_last_table_goes_on_with_other_workers(few, tmp_path, monkeypatch):
    path, write = tmp_path / "field", Field.write_table

    def killed(self, name, table):
        if name == "frames":
            raise KeyboardInterrupt
        write(self, name, table)

    with monkeypatch.context() as patch:
        patch.setattr(Field, "write_table", killed)
        with pytest.raises(KeyboardInterrupt):
            take_in(path, few[:4])
    reports = []
    config = small_config()
    config.cluster.workers, config.detect.false_alarms = 1, 0.5
    ingest(path, few[:4], config, InlineExecutor(), reports=reports)
    assert [r for r in reports if r.stage == "place"] == [], "what was placed is not placed again"
    assert Field.open(path).attrs["config"]["detect"]["false_alarms"] == 0.5
    assert take_in(path, few[4:5]) == 1, "and more can be added"


@pytest.mark.parametrize("turned", [0.0, 0.5])
def test_a_block_too_wide_for_its_budget_is_placed_in_columns(few, tmp_path, monkeypatch, turned):
    """To the same bits, whether the maps are shifts or turn the frames."""
    if turned:
        simulate_field(tmp_path / "frames", size=96, frames=3, seed=4, events=0, variables=0, rotation=turned)
        few = sorted((tmp_path / "frames").glob("*.fits"))
    paths = [tmp_path / name for name in ("whole", "parts")]
    take_in(paths[0], few[:3])
    monkeypatch.setattr(place, "BLOCK_SHARE", 1e-9)
    take_in(paths[1], few[:3])
    fields = [Field.open(path) for path in paths]
    assert [len(field.ledger("place").records) for field in fields] == [1, 4]
    for name in ("flux", "error", "mask", "dq"):
        whole, parts = (np.asarray(field.array("images/sky", name)[...]).tobytes() for field in fields)
        assert whole == parts
    assert verify(paths[1]).problems == []


def test_blocks_stay_within_the_budget_whatever_the_field(tmp_path):
    """What deploy/SCALING.md tells a season to set."""
    for time_block in (32, 128, 512):
        rows, columns = place.block_shape(4088, 64, time_block, Config())
        assert rows % 64 == 0
        assert place.block_memory(time_block, rows, columns) < Config().grid.memory * 2**30
    assert place.block_shape(4088, 64, 32, Config())[1] == 4088
    assert place.block_shape(4088, 64, 512, Config())[1] < 4088


def test_what_no_worker_can_hold_is_refused_with_its_number(few, tmp_path, monkeypatch):
    monkeypatch.setattr(InlineExecutor, "worker_memory", 20 << 20)
    with pytest.raises(IngestError, match=r"would take 2\d MiB, and the smallest worker holds 20: give"):
        take_in(tmp_path / "field", few[:2])


def test_frames_that_come_while_a_run_works_are_refused_until_it_has_ended(few, tmp_path, monkeypatch):
    path, told = tmp_path / "field", []

    def meanwhile(pipeline):
        for call in (
            lambda: append_frames(path, few[2:3], small_config(), client="synchronous"),
            lambda: run(path, small_config(), frames=few[2:3], client="synchronous"),
        ):
            with pytest.raises(FieldBusyError, match=f"run {pipeline.engine.holder[1]} .* is writing images"):
                call()
            told.append(Field.open(path).frames().sizes["time"])
        return []

    monkeypatch.setattr(Pipeline, "run", meanwhile)
    run(path, small_config(), frames=few[:2], client="synchronous")
    assert told == [2, 2]
    assert take_in(path, few[2:3]) == 1


def test_units_of_a_run_see_the_frames_that_it_is_for_though_others_came_in(few, tmp_path):
    path = tmp_path / "field"
    take_in(path, few[:3])
    field = Field.open(path)
    window = (slice(0, 8), slice(0, 8))
    before = field.frames()
    before["scale"] = before["scale"] * 1.5
    field.write_table("registration", before[list(REFINED)].reset_coords(drop=True))
    refined = read_calibrated(field, window).flux
    take_in(path, few[3:4])
    assert calibrated_frames(field)["frame_id"].values.tolist() == before["frame_id"].values.tolist()
    assert read_calibrated(field, window).flux.tobytes() == refined.tobytes()


def test_the_reference_that_another_method_wants_is_written_under_its_own_lease(few, tmp_path, monkeypatch):
    path, seen = tmp_path / "field", []
    take_in(path, few[:2])
    config = small_config().model_copy(update={"method": "sfft"})
    field = Field.open(path)
    with field.lease("images", "mine") as images:
        engine = Engine(field, config, InlineExecutor(), holder=("difference/sfft", "mine"), leases=[images])

        def prepare(pipeline):
            seen.append(pipeline.engine)
            raise IngestError("seen")

        monkeypatch.setattr(Pipeline, "prepare", prepare)
        with pytest.raises(IngestError, match="seen"):
            Pipeline(engine)._prepare_base()
    assert seen[0].holder == ("difference/oversampled", "mine")
    assert seen[0].leases == [images]
