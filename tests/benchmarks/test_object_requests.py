"""Requests and bytes of what runs do to shards in a bucket, with inner chunks and without; a whole run's."""

from collections import Counter

import numpy as np
import pytest

from survey.io import store
from survey.io.store import Field
from survey.run.api import run
from tests.small_field import small_config

pytestmark = pytest.mark.benchmark
EPOCHS, EDGE, TILE = 64, 512, 256
CORE = (slice(256, 512), slice(256, 512))
READS = {
    "a tile": (slice(None), *CORE),
    "a tile and one pixel around": (slice(None), slice(255, 512), slice(255, 512)),
    "a tile and 16 pixels around": (slice(None), slice(240, 512), slice(240, 512)),
    "15 x 15 pixels, all epochs": (slice(None), slice(300, 315), slice(310, 325)),
    "one epoch": (slice(40, 41), slice(None), slice(None)),
}


@pytest.mark.parametrize("inner", [64, 256])
def test_requests_of_shards(bucket, inner, monkeypatch):
    monkeypatch.setattr(store, "INNER", inner)
    attrs = {"tile_size": TILE, "time_block": 32, "units": "count"}
    field = Field.create(f"{bucket.url}/requests-{inner}", (EDGE, EDGE), attrs)
    field.require_group("images/sky", {"time": EPOCHS, "y": EDGE, "x": EDGE})
    rng = np.random.default_rng(1)
    start = len(bucket.requests())
    for tile in field.tiles:
        flux = rng.normal(100, 10, (EPOCHS, TILE, TILE)).astype("f4")
        field.write("images/sky", {"flux": flux}, (slice(0, EPOCHS), *tile.core))
    sent = [r for r in bucket.requests()[start:] if "/c/" in r.path]
    puts = [r.size for r in sent if r.method == "PUT"]
    assert len(puts) == 8, "one request a shard"
    print(f"\ninner {inner}: {len(sent)} requests, {len(puts)} shards of {np.mean(puts) / 1e6:.2f} MB")
    array = field.array("images/sky", "flux")
    for name, region in READS.items():
        start = len(bucket.requests())
        found = array[region]
        rows = [r for r in bucket.requests()[start:] if "/c/" in r.path]
        moved = sum(r.size for r in rows) / 1e6
        wanted = found.size * 4 / 1e6
        print(f"{name:30} {len(rows):4d} requests {moved:7.2f} MB moved, {wanted:7.2f} MB wanted")
        assert rows


def test_requests_of_a_run(bucket, frames):
    """From frames to light curves; then once more, with nothing to do."""
    url = f"{bucket.url}/whole-run"
    for label in ("run", "again, nothing to do"):
        start = len(bucket.requests())
        summary = run(url, small_config(), frames=[frames[0]], client="synchronous")
        assert summary.ok, summary.failures
        sent = bucket.requests()[start:]
        print(f"\n{label}: {len(sent)} requests, {dict(Counter(r.kind for r in sent))}")
        print(f"GET by what they ask for: {dict(Counter(_asked(r) for r in sent if r.kind == 'GET'))}")
        units = {name: stage["units"] for name, stage in summary.stages.items()}
        print(f"units: {units}, {sum(units.values())} in all")


def _asked(request):
    """What a GET is for."""
    if "/c/" in request.path:
        return "chunks, none there yet" if request.status == 404 else "chunks and indices of shards"
    if request.path.endswith("zarr.json"):
        return "metadata"
    return next((name for name in ("ledger", "leases", "runs") if f"/{name}/" in request.path), "tables")
