"""A reference that a method does not subtract takes in later epochs many at once."""

import shutil

import numpy as np
import pytest

from survey.io.store import Field
from survey.run.api import append_frames
from survey.run.differences import RunError
from survey.run.engine import Engine
from survey.run.executor import InlineExecutor
from survey.run.nn2 import run_nn2
from survey.run.pipeline import Pipeline
from tests.run.conftest import FIRST
from tests.run.test_cpm_nights import ALL, cube, new_frames, settings


def test_the_reference_that_is_not_subtracted_takes_in_many_epochs_at_once(nights, tmp_path, monkeypatch):
    """Twelve more than sixty may be lacking; with less patience none."""
    base, _, _ = nights
    path = tmp_path / "field"
    shutil.copytree(base / "early", path)
    config = settings(path)
    append_frames(path, new_frames(base), config, client="synchronous")

    def made(config):
        pipeline = Pipeline(Engine(Field.open(path), config, InlineExecutor()))
        pipeline.prepare()
        assert not pipeline.engine.failures
        return {
            (record.payload["epochs"], *record.payload.get("appended", ()))
            for record in Field.open(path).ledger("oversampled.oversampled").records.values()
        }

    assert made(config) == {(FIRST,)}
    version = cube(path, "coefficients", "reference")
    assert made(config) == {(FIRST,)}
    monkeypatch.setattr("survey.run.pipeline.LAG", 0.1)
    assert made(config) == {(ALL, FIRST)}
    assert not np.array_equal(cube(path, "coefficients", "reference"), version)


def test_a_tile_without_a_reference_gets_one_and_the_others_may_lag(nights, tmp_path):
    """Nothing is added to these meanwhile, which might fail."""
    base, _, _ = nights
    path = tmp_path / "field"
    shutil.copytree(base / "early", path)
    config = settings(path)
    append_frames(path, new_frames(base), config, client="synchronous")
    Pipeline(Engine(Field.open(path), config, InlineExecutor())).prepare()
    field = Field.open(path)
    lost, *others = (tile.name for tile in field.tiles)
    field.ledger("oversampled.oversampled").invalidate([lost])
    Pipeline(Engine(Field.open(path), config, InlineExecutor())).prepare()
    records = Field.open(path).ledger("oversampled.oversampled").records
    assert {name: record.payload["epochs"] for name, record in records.items()} == {
        lost: ALL, **dict.fromkeys(others, FIRST)
    }  # fmt: skip
    config.nn2.subtract = "carried"
    with pytest.raises(RunError, match="lacks later frames"):
        run_nn2(path, config, objects=[{"object_id": "a", "kind": "event", "y": 40.0, "x": 50.0}],
                client="synchronous")  # fmt: skip
