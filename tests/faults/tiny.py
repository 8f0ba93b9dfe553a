"""A stage whose units take no time, and misbehave when told to; workers load it with `--preload`.

Every sample is a function of its place alone, so that an undisturbed field is known without a run. Every
execution leaves a line beside the field, so that a test can count them.
"""

import os
import signal
import time
from pathlib import Path

import numpy as np

from survey.config import Config
from survey.io.store import Field
from survey.run.engine import Engine
from survey.run.progress import Silent
from survey.run.worker import function_key
from survey.stages.protocol import Output, Stage, Unit

GROUP = "difference/tiny"
EPOCHS = 4


def samples(tile):
    """(time, y, x) values that depend on the sample's place only."""
    k, y, x = np.meshgrid(
        np.arange(EPOCHS), np.arange(tile.y0, tile.y1), np.arange(tile.x0, tile.x1), indexing="ij"
    )
    return np.sin(1e3 * k + 1.7 * y + 0.31 * x).astype(np.float32)


def read(field, unit, config):
    settings = dict(unit.items)
    if "quiet" not in settings:
        with (field.path / "executions" / unit.name).open("a") as stream:
            stream.write(f"{os.getpid()}\n")
    time.sleep(settings.get("sleep", 0))
    if settings.get("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    if "fail" in settings:
        raise ValueError(settings["fail"])
    megabytes = settings.get("eat", 0) * (unit.tile.y1 - unit.tile.y0) / field.tile_size if unit.tile else 0
    if megabytes > settings.get("limit", np.inf):
        raise MemoryError(f"{megabytes:.0f} MB")
    # Touched page by page, as slowly as real work does, so that a nanny sees it grow.
    hoard = []
    for _ in range(int(megabytes // 16)):
        hoard.append(np.ones(2 * 2**20))
        time.sleep(0.02)
    time.sleep(0.5 if hoard else 0)
    return unit.tile


def apply(tile, state, config):
    if tile is None:
        return Output(payload={"rows": 0})
    flux = samples(tile)
    arrays = {"flux": flux, "error": np.abs(flux) + 1, "mask": flux > 0.9}
    return Output({GROUP: arrays}, (slice(0, EPOCHS), *tile.core), payload={"rows": tile.y1 - tile.y0})


def merge(payloads):
    return {"rows": sum(payload["rows"] for payload in payloads)}


STAGE = Stage(
    "tiny",
    1,
    lambda config: {},
    lambda f, c: [Unit(t.name, t) for t in f.tiles],
    read,
    partial=lambda tile, config: samples(tile),
    apply=apply,
    merge=merge,
)


def make_field(path, tiles=4, edge=32):
    """A field of ``tiles`` x ``tiles`` tiles with nothing in it."""
    shape = (tiles * edge, tiles * edge)
    attrs = {"tile_size": edge, "time_block": EPOCHS, "units": "count", "config": {}}
    field = Field.create(path, shape, attrs)
    field.require_group(GROUP, {"time": EPOCHS, "y": shape[0], "x": shape[1]})
    (field.path / "executions").mkdir()
    return field


def keyed(field, **settings):
    """Units with their keys; ``settings`` go to all, or to one: ``tile_3={...}``."""
    own = {name: value for name, value in settings.items() if isinstance(value, dict)}
    common = {name: value for name, value in settings.items() if name not in own}
    units = [
        Unit(t.name, t, tuple({**common, **own.get(f"tile_{t.index}", {})}.items())) for t in field.tiles
    ]
    return [(unit, function_key(unit.name)) for unit in units]


def run_tiny(path, executor, progress=None, **settings):
    """Run the stage on all tiles under the field's lease; returns the engine."""
    field = Field.open(path)
    engine = Engine(field, Config(), executor, progress or Silent(), (GROUP, "tiny"))
    with field.lease(GROUP, "tiny"):
        engine.submit("tiny", keyed(field, **settings))
        engine.collect()
    engine.finish()
    return engine


def executions(path):
    """Unit -> how often it was begun."""
    return {file.name: len(file.read_text().splitlines()) for file in (Path(path) / "executions").iterdir()}


def recorded(path):
    """Names of the units in the ledger."""
    return set(Field.open(path).ledger("oversampled.tiny").records)


def assert_undisturbed(path):
    """Every sample is what an undisturbed run writes, and every tile is recorded."""
    field = Field.open(path)
    for tile in field.tiles:
        flux = samples(tile)
        for name, expected in (("flux", flux), ("error", np.abs(flux) + 1), ("mask", flux > 0.9)):
            found = np.asarray(field.array(GROUP, name)[(slice(None), *tile.core)])
            assert found.tobytes() == expected.tobytes(), f"{name} of {tile.name} differs"
    assert recorded(path) == {tile.name for tile in field.tiles}
