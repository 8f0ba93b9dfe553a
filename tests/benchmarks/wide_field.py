"""Fields as large as a benchmark wants, made in seconds: noise, with the frames of a small simulation."""

from pathlib import Path

import numpy as np

from survey.config import Config
from survey.io.store import Field
from survey.run.api import run
from survey.simulate import simulate_field
from survey.stages import place

SEED_FRAMES = 72


def seed_field(folder):
    """A small finished field, whose frames and PSF the large ones borrow."""
    folder = Path(folder)
    simulate_field(folder / "frames", size=96, frames=SEED_FRAMES, seed=4, events=3)
    config = Config(grid={"tile": 48}, psf={"size": 11})
    assert run(folder / "field", config, frames=[folder / "frames"], client="synchronous").ok
    return Field.open(folder / "field")


def wide_field(path, seed, shape, tile, epochs, *, filled=None):
    """A field of pure noise with as many epochs as wanted.

    The window ``filled`` (y, x slices) holds noise, the rest is not covered; all of it where none is given.
    Blocks are recorded as placed, so that a run takes the images for what they are.
    """
    attrs = {**seed.attrs, "tile_size": tile, "shape": list(shape), "detector_shape": list(shape)}
    attrs["config"] = Config(grid={"tile": tile}).model_dump(mode="json")
    for name in ("schema_version", "shape"):
        attrs.pop(name)
    field = Field.create(path, shape, attrs)
    frames = seed.frames()
    frames = frames.isel(time=np.arange(epochs) % frames.sizes["time"])
    frames["time"] = ("time", 61000.0 + np.arange(epochs) * 0.0104)
    frames["frame_id"] = ("time", np.array([f"frame-{k:06d}" for k in range(epochs)], object))
    field.write_table("frames", frames)
    field.write_table("psf", seed.table("psf"))
    sizes = {"time": epochs, "y": shape[0], "x": shape[1], "ky": 6, "kx": 6, "my": 11, "mx": 11}
    for group in ("images/sky", "reference", "difference/oversampled", "search/oversampled"):
        field.require_group(group, sizes)
    rng = np.random.default_rng(1)
    window = filled or (slice(0, shape[0]), slice(0, shape[1]))
    rows, columns = (part.stop - part.start for part in window)
    level, rms = frames["background"].values[:, 0], frames["background_rms"].values
    ledger = field.ledger("place")
    for first in range(0, epochs, field.time_block):
        k = slice(first, min(first + field.time_block, epochs))
        size = (k.stop - k.start, rows, columns)
        noise = rng.standard_normal(size, dtype=np.float32) * rms[k, None, None] + level[k, None, None]
        arrays = {
            "flux": noise,
            "error": np.broadcast_to(rms[k, None, None].astype(np.float32), size),
            "mask": np.zeros(size, bool),
            "dq": np.zeros(size, np.uint32),
        }
        field.write("images/sky", arrays, (k, *window))
        ledger.record(f"{place.prefix('sky')}epochs-{k.start:06d}-{k.stop:06d}-rows-00000", "noise")
    ledger.flush()
    return field
