"""The forecast of a run against what the run took."""

import shutil

import pytest
from astropy.io import fits

from survey.io.store import Field
from survey.run.plan import plan
from tests.run.conftest import small_config


def bytes_in(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.fixture(scope="module")
def forecast(finished, tmp_path_factory):
    """Of the run that made the field, before there was one."""
    return plan(tmp_path_factory.mktemp("plan") / "new", small_config(), [finished.frames])


def test_disk_is_what_the_run_took(finished, forecast):
    assert forecast.disk == pytest.approx(bytes_in(finished.path / "cube.zarr"), rel=0.25)
    assert dict(forecast.rows())["disk"] == f"{forecast.disk / 2**30:.2f} GiB"


def test_units_are_those_of_the_run(finished, forecast):
    assert forecast.units == {"ingest": (3, 0), "oversampled": (4, 0), "detect": (4, 0)}
    assert finished.summary.stages["detect"]["units"] == 4
    there = plan(finished.path, small_config(), [finished.frames])
    assert there.units == {"ingest": (0, 0), "oversampled": (0, 4), "detect": (0, 4)}
    assert there.disk == 0


@pytest.mark.parametrize(
    ("table", "setting", "expected"),
    [
        ("reference", {"clip": 5.0}, {"oversampled": (4, 0), "detect": (4, 0)}),
        ("detect", {"temporal_sigma": [3.0]}, {"oversampled": (0, 4), "detect": (4, 0)}),
        ("report", {"events": 3}, {"oversampled": (0, 4), "detect": (0, 4)}),
    ],
)
def test_what_other_settings_made_is_not_there(finished, table, setting, expected):
    config = small_config().model_copy(
        update={table: getattr(small_config(), table).model_copy(update=setting)}
    )
    found = plan(finished.path, config).units
    assert {stage: found[stage] for stage in expected} == expected


def test_what_fewer_frames_made_is_not_there(finished, tmp_path):
    shutil.copytree(finished.path, tmp_path / "field")
    frames = Field.open(tmp_path / "field").frames()
    Field.open(tmp_path / "field").write_table("frames", frames.isel(time=slice(0, 70)))
    assert plan(tmp_path / "field", small_config()).units["oversampled"] == (4, 0)


def test_new_frames_of_a_field_are_planned(finished, tmp_path):
    for k, file in enumerate(sorted(finished.frames.glob("*.fits"))[:3]):
        with fits.open(file) as hdus:
            for hdu in hdus[:2]:
                hdu.header["MJD-OBS"] += 10 + 0.01 * k
            hdus.writeto(tmp_path / file.name)
    forecast = plan(finished.path, small_config(), [tmp_path])
    assert forecast.frames == 72 + 3
    assert forecast.units["ingest"] == (1, 0)
    assert forecast.units["oversampled"] == (4, 0)
    alone = plan(tmp_path / "new", small_config(), [tmp_path])
    assert alone.seconds < forecast.seconds


def test_time_is_shared_by_the_workers_and_says_what_is_not_in_it(finished, tmp_path):
    config = small_config()
    few = sorted(finished.frames.glob("*.fits"))[:2]

    def forecast(workers):
        config.cluster.workers = workers
        return plan(tmp_path / "new", config, few)

    one, two, four = (forecast(workers) for workers in (1, 2, 4))
    # Starting the workers is not shared.
    assert one.seconds - two.seconds == pytest.approx(2 * (two.seconds - four.seconds))
    rows = dict(four.rows())
    assert rows["time"] == f"about {four.seconds:.0f} s on 4 workers, from frames to the search"
    for words in ("compiled", "events", "report"):
        assert words in rows["not in it"]
