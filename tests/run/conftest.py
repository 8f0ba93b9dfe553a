"""One small simulated field, run once in this thread; other tests compare with it."""

import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from survey.config import Config
from survey.io.store import Field
from survey.run.api import run
from survey.run.record import RunSummary
from survey.simulate import SimulatedField, simulate_field

FAKE = Path(__file__).parents[1] / "fake_hotpants.py"


class Finished(NamedTuple):
    path: Path
    frames: Path
    truth: SimulatedField
    summary: RunSummary


def small_config() -> Config:
    """Four tiles of 48 pixels; everything else as a user gets it."""
    return Config(grid={"tile": 48}, psf={"size": 11})


@pytest.fixture(scope="session")
def frames(tmp_path_factory):
    """A crowded field of 96 x 96 pixels, 72 epochs, three events, one variable."""
    folder = tmp_path_factory.mktemp("frames")
    truth = simulate_field(
        folder, size=96, frames=72, seed=4, events=3, variables=1, event_snr=(25, 60), event_duration=(2, 6)
    )
    return folder, truth


@pytest.fixture(scope="session")
def finished(frames, tmp_path_factory):
    """The field after a run without any cluster."""
    folder, truth = frames
    path = tmp_path_factory.mktemp("finished") / "field"
    summary = run(path, small_config(), frames=[folder], client="synchronous")
    assert summary.ok, summary.failures
    return Finished(path, folder, truth, summary)


# Frames of the first nights of `nights`.
FIRST = 60


def night_config(frames: Path):
    """The same reference frame and number of polynomials whatever the number of frames."""
    config = small_config()
    config.reference.n_basis = 5
    config.registration.reference = sorted(frames.glob("*.fits*"))[5].name.split(".")[0]
    return config


@pytest.fixture(scope="session")
def nights(frames, tmp_path_factory):
    """A field of 60 frames, the same with 12 more, and the field of all 72 at once."""
    folder, truth = frames
    files = sorted(folder.glob("*.fits*"))
    base = tmp_path_factory.mktemp("nights")
    config = night_config(folder)
    early = run(base / "early", config, frames=files[:FIRST], client="synchronous")
    shutil.copytree(base / "early", base / "later")
    later = run(base / "later", config, frames=files[FIRST:], client="synchronous")
    whole = run(base / "whole", config, frames=files, client="synchronous")
    assert early.ok
    assert later.ok, later.failures
    assert whole.ok
    return base, later, whole, truth


@pytest.fixture
def hotpants(tmp_path, monkeypatch):
    """A program that stands in for HOTPANTS; called with how it behaves."""
    script = tmp_path / "hotpants"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("HOTPANTS", str(script))
    return lambda how: monkeypatch.setenv("FAKE_HOTPANTS", how)


GROUPS = ("images/sky", "reference", "difference/oversampled", "search/oversampled")


def assert_same_bits(first: Path, second: Path, groups=GROUPS) -> None:
    """Every array of two fields, and their events and light curves, equal bit for bit."""
    a, b = Field.open(first), Field.open(second)
    for group in groups:
        for name in sorted(a.root[group].array_keys()):
            x, y = np.asarray(a.array(group, name)[...]), np.asarray(b.array(group, name)[...])
            assert x.tobytes() == y.tobytes(), f"{group}/{name} differs"
    for left, right in (
        (a.events_path("oversampled"), b.events_path("oversampled")),
        (a.light_curves_path("oversampled"), b.light_curves_path("oversampled")),
    ):
        assert left.read_bytes() == right.read_bytes(), f"{left} differs"
