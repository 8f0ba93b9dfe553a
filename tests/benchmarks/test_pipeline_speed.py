"""The whole run on 1024 x 1024 pixels and 192 epochs: wall time, memory, scaling.

Generator: ``simulate_field(size=1024, frames=192, seed=11, events=40, variables=10)``, 0.63 stars a pixel at
FWHM 1.1 px, one phase a frame. Targets (issue 2, point 11): 3 minutes and 2 GiB a worker on two cores, two
workers 1.8 times as fast as one on the compute-bound stages.
"""

import json
import time

import pytest

from survey.config import Config
from survey.run.api import run
from survey.simulate import simulate_field

pytestmark = pytest.mark.benchmark

SIZE, FRAMES = 1024, 192


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    simulate_field(folder, size=SIZE, frames=FRAMES, seed=11, events=40, variables=10, threads=2)
    return folder


def timed_run(frames, path, workers):
    config = Config()
    config.cluster.workers = workers
    started = time.perf_counter()
    summary = run(path, config, frames=[frames])
    seconds = time.perf_counter() - started
    assert summary.ok, summary.failures
    units = [
        json.loads(line) for line in (path / "runs" / summary.run_id / "units.jsonl").read_text().splitlines()
    ]
    return seconds, summary, units


def test_whole_run(frames, tmp_path):
    seconds, summary, units = timed_run(frames, tmp_path / "two", 2)
    compute = {}
    for unit in units:
        compute[unit["stage"]] = compute.get(unit["stage"], 0.0) + unit["seconds"]["compute"]
    peak = max(unit["peak_memory"] for unit in units) / 2**30
    print(f"\nwhole run, 2 workers: {seconds:.0f} s, peak {peak:.2f} GiB a worker, {summary.events} events")
    for stage, total in compute.items():
        print(f"  {stage}: {total:.1f} core-seconds of compute")
    assert seconds <= 180
    assert peak <= 2.0


def test_two_workers_against_one(frames, tmp_path):
    one, _, alone = timed_run(frames, tmp_path / "one", 1)
    two, _, shared = timed_run(frames, tmp_path / "two", 2)
    print(f"\none worker {one:.0f} s, two workers {two:.0f} s: {one / two:.2f} times as fast")
    for stage in ("refine", "oversampled", "detect"):
        a, b = (
            sum(u["seconds"]["compute"] for u in units if u["stage"] == stage) for units in (alone, shared)
        )
        print(f"  {stage}: compute {a:.1f} s alone, {b:.1f} s beside another: {2 * a / b:.2f} times as fast")
