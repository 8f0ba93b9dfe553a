"""Kernels of frames from the sums of tiles: what waits at the client, and frames that have none."""

from types import SimpleNamespace

import numpy as np
import pytest

from survey.config import Config
from survey.kernels._sfft_fit import KernelModel
from survey.kernels._sfft_sums import Sums
from survey.run import subtraction
from survey.run.blocks import Block, blocks_of
from survey.run.differences import RunError
from survey.run.engine import Engine
from survey.stages import matching
from survey.stages.kernel_model import kernel_order
from survey.stages.protocol import Unit

MODEL = KernelModel((3, 3), 0, 0, 0, (96, 96))


def sums_of(seed, missed=0.0, light=3.0):
    """Sums of a tile of which bright stars are missed by a part of their flux, of a flux scale."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(10, 500))
    image = light * rows[4] + rng.normal(size=500)
    bright = np.array([[1e4 * missed, 1.0, 1e4]] * 9)
    return Sums(rows @ rows.T, rows @ image, 500, 0, bright)


def differences_of(pipeline):
    found = subtraction.SubtractionDifferences.__new__(subtraction.SubtractionDifferences)
    found.pipeline, found.stage, found.units = pipeline, SimpleNamespace(name="sfft"), []
    return found


def pipeline_of(partials):
    """One without a reference."""
    return SimpleNamespace(field=None, config=Config(), base=None, partials=partials)


@pytest.fixture
def plain_model(monkeypatch):
    monkeypatch.setattr(matching, "bytes_of_sums", lambda field, config: 800)
    monkeypatch.setattr(subtraction, "model_of", lambda field, config: MODEL)


def block_of(count):
    return Block((0, 2), [Unit(str(i), items=(0, 2)) for i in range(count)])


def test_sums_of_a_few_tiles_at_a_time_give_the_same_bits(plain_model, monkeypatch):
    gathered = []

    def partials(stage, keyed):
        gathered.append(len(keyed))
        return {unit.name: [sums_of(2 * int(unit.name) + k) for k in range(2)] for unit, _ in keyed}

    found = differences_of(pipeline_of(partials))
    kernels = []
    for room in (800 * 2 * 3, 800 * 2 * 7, 1):
        monkeypatch.setattr(subtraction, "_BYTES", room)
        fits = found._fitted([block_of(7)])
        kernels.append([kernel.coefficients.tobytes() for kernel in fits[0, 2].kernels])
    assert gathered == [3, 3, 1] * 3 + [7] * 3 + [1] * 21
    assert kernels[0] == kernels[1] == kernels[2]


@pytest.mark.parametrize("fails_in", [1, 2, 3])
def test_kernels_know_nothing_of_a_tile_that_fails_in_any_pass(plain_model, fails_in):
    calls = []

    def partials(stage, keyed, *, without=("3",), fails_in=fails_in):
        calls.append(len(keyed))
        there = [u.name for u, _ in keyed if len(calls) < fails_in or u.name not in without]
        return {name: [sums_of(2 * int(name) + k) for k in range(2)] for name in there}

    def all_of(stage, keyed):
        return {unit.name: [sums_of(2 * int(unit.name) + k) for k in range(2)] for unit, _ in keyed}

    block, whole = block_of(5), block_of(5)
    fits = differences_of(pipeline_of(partials))._fitted([block])
    assert block.without == ["3"]
    # in a later pass: all again without it
    assert calls == [5] * fails_in + [4] * (2 if fails_in == 1 else 3)
    whole.units.pop(3)
    expected = differences_of(pipeline_of(all_of))._fitted([whole])
    for kernel, other in zip(fits[0, 2].kernels, expected[0, 2].kernels, strict=True):
        assert kernel.coefficients.tobytes() == other.coefficients.tobytes()


def test_a_frame_whose_bright_stars_are_missed_or_not_there_has_no_kernel():
    config = Config()
    fits = matching.FrameFits(MODEL, 4, config)
    for _ in range(config.subtraction.passes):
        fits.add([sums_of(0, 0.1), sums_of(1, 0.9), sums_of(2, light=0), sums_of(3, light=-3)])
        fits.step()
    good, lost, starless, negative = fits.kernels
    assert good.coefficients is not None
    assert "the template's light is not in the image" in starless.failed
    assert "flux scale -" in negative.failed
    assert good.failed is None
    assert good.model_error == pytest.approx(0.15, abs=0.01)
    assert "misses bright stars by" in lost.failed


def test_frames_without_a_kernel_are_told_and_a_run_of_none_but_such_ends():
    engine, told = Engine(None, Config(), None), []
    engine.progress = SimpleNamespace(message=told.append)
    frames = SimpleNamespace(sizes={"time": 3})
    found = differences_of(SimpleNamespace(engine=engine, frames=frames))
    rows = [[1, "9 good pixels are too few"]]
    engine.payloads = lambda stage, units: [{"failed": rows}, {"failed": rows}, {"failed": []}]
    found._tell_failed()
    found._tell_failed()
    (warning,) = engine.warnings
    assert warning.startswith("sfft: 1 of 3 frames have no kernel and are masked; frame 1: 9 good pixels")
    assert told == [warning]
    rows += [[0, "none good"], [2, "none good"]]
    with pytest.raises(RunError, match="3 of 3 frames have no kernel and are masked; frame 0: none good"):
        found._tell_failed()


def test_a_kernel_hardly_changes_over_a_few_pixels():
    orders = [kernel_order(shape, Config()) for shape in ((39, 500), (64, 64), (80, 90), (4096, 4096))]
    assert orders == [0, 1, 2, 2]
    assert kernel_order((39, 39), Config(subtraction={"kernel_order": 3})) == 3


def test_what_stands_is_hashed_once_for_all_tiles_until_it_changes(monkeypatch):
    """A survey's light curves ask for it once for each of a tile's neighbours."""
    pipeline = pipeline_of(None)
    pipeline.reference_key = lambda: "reference"
    found = differences_of(pipeline)
    found.units = [Unit(f"{k}-{a}", None, (a, a + 2)) for a in (0, 2) for k in range(20)]
    found.blocks, found._standing = blocks_of(found.units), {}
    found.added = SimpleNamespace(start=2, count=4)
    hashed = []

    def key(unit):
        hashed.append(unit.name)
        return f"{unit.name} {pipeline.reference_key()} {found.blocks[unit.items[:2]].without}"

    monkeypatch.setattr(found, "_unit_key", key)
    whole, earlier = ({found.stands(u, [], before=b) for u in found.units} for b in (False, True))
    assert len(hashed) == 40 + 20
    assert len(whole | earlier) == 2
    found.blocks[2, 4].without.append("3-2")
    assert found.stands(found.units[0], []) not in whole
    assert found.stands(found.units[0], [], before=True) == found.stands(found.units[1], [], before=True)
    pipeline.reference_key = lambda: "without an event"
    assert found.stands(found.units[0], [], before=True) not in earlier
    found.added.start = 0
    assert found.stands(found.units[0], [], before=True) is None
