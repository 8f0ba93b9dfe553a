"""One small simulated field, run once for all test processes; other tests compare with it."""

import fcntl
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from astropy.table import Table

from survey.config import Config
from survey.io.store import Field
from survey.run.api import run
from survey.simulate import simulate_field
from survey.stages.methods import METHODS


class Truth(NamedTuple):
    """What was simulated: the rows of ``truth.ecsv``."""

    truth: Table


class Finished(NamedTuple):
    """``summary`` is what the record of the run says."""

    path: Path
    frames: Path
    truth: Truth
    summary: SimpleNamespace


def small_config() -> Config:
    """Four tiles of 48 pixels; everything else as a user gets it."""
    return Config(grid={"tile": 48}, psf={"size": 11})


def shared(tmp_path_factory, name, make) -> Path:
    """A folder that one of the test processes makes, while others that need it wait; then it stays so."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / f"shared-{name}"
    with (base / f"shared-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            # What is left where making it failed in another process.
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            (folder / "made").touch()
    return folder


def _simulate(folder):
    simulate_field(
        folder / "frames", size=96, frames=72, seed=4, events=3, variables=1, event_snr=(25, 60),
        event_duration=(2, 6),
    )  # fmt: skip


@pytest.fixture(scope="session")
def frames(tmp_path_factory):
    """A crowded field of 96 x 96 pixels, 72 epochs, three events, one variable."""
    folder = shared(tmp_path_factory, "frames", _simulate) / "frames"
    return folder, Truth(Table.read(folder / "truth.ecsv"))


@pytest.fixture(scope="session")
def finished(frames, tmp_path_factory):
    """The field after a run without any cluster: this process's own copy."""
    folder, truth = frames

    def make(place):
        summary = run(place / "field", small_config(), frames=[folder], client="synchronous")
        assert summary.ok, summary.failures

    path = tmp_path_factory.mktemp("finished") / "field"
    shutil.copytree(shared(tmp_path_factory, "finished", make) / "field", path)
    (record,) = Field.open(path).runs()
    return Finished(path, folder, truth, SimpleNamespace(**record))


# HOTPANTS is another program, see tests/run/test_pairwise.py.
OTHERS = sorted(set(METHODS) - {"oversampled", "hotpants"})


def method_config(method) -> Config:
    """As a user gets it, but for cpm's numbers: it takes a sixth of the time so."""
    config = small_config()
    config.method = method
    config.cpm.n_predictors, config.cpm.block, config.cpm.exclusion, config.cpm.reach = 60, 16, 7, 9
    return config


@pytest.fixture(scope="session")
def others(finished, tmp_path_factory):
    """The finished field after runs of the other methods, this process's own copy; what the records say."""

    def make(place):
        shutil.copytree(finished.path, place / "field")
        for method in OTHERS:
            run(place / "field", method_config(method), client="synchronous")

    path = tmp_path_factory.mktemp("others") / "field"
    shutil.copytree(shared(tmp_path_factory, "others", make) / "field", path)
    records = {record["method"]: record for record in Field.open(path).runs()}
    return path, {method: SimpleNamespace(**records[method]) for method in OTHERS}
