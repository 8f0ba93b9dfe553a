"""What tests of runs share: how fields are compared, what stands in for HOTPANTS."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from survey.io.store import Field
from survey.run.api import run
from tests.small_field import shared
from tests.small_field import small_config as small_config

FAKE = Path(__file__).parents[1] / "fake_hotpants.py"


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
    """A field of 60 frames, the same with 12 more, and the field of all 72 at once.

    This process's own copies, and what the record says of the run of the 12.
    """
    folder, truth = frames
    files = sorted(folder.glob("*.fits*"))
    config = night_config(folder)

    def make(place):
        early = run(place / "early", config, frames=files[:FIRST], client="synchronous")
        assert early.ok, early.failures
        shutil.copytree(place / "early", place / "later")
        later = run(place / "later", config, frames=files[FIRST:], client="synchronous")
        assert later.ok, later.failures
        whole = run(place / "whole", config, frames=files, client="synchronous")
        assert whole.ok, whole.failures

    base = tmp_path_factory.mktemp("nights")
    shutil.copytree(shared(tmp_path_factory, "nights", make), base, dirs_exist_ok=True)
    *_, record = Field.open(base / "later").runs()
    return base, SimpleNamespace(**record), truth


@pytest.fixture
def hotpants(tmp_path, monkeypatch):
    """A program that stands in for HOTPANTS; called with how it behaves."""
    script = tmp_path / "hotpants"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("HOTPANTS", str(script))
    return lambda how: monkeypatch.setenv("FAKE_HOTPANTS", how)


GROUPS = ("images/sky", "reference", "difference/oversampled", "search/oversampled")


def assert_same_bits(first: Path, second: Path, groups=GROUPS, method="oversampled") -> None:
    """Every array of two fields, and a method's events and light curves, equal bit for bit."""
    a, b = Field.open(first), Field.open(second)
    for group in groups:
        for name in sorted(a.root[group].array_keys()):
            x, y = np.asarray(a.array(group, name)[...]), np.asarray(b.array(group, name)[...])
            assert x.tobytes() == y.tobytes(), f"{group}/{name} differs"
    for left, right in (
        (a.events_path(method), b.events_path(method)),
        (a.light_curves_path(method), b.light_curves_path(method)),
    ):
        assert left.read_bytes() == right.read_bytes(), f"{left} differs"
