"""Which windows are read for objects: whatever they are, each object's surroundings are in its own."""

import numpy as np
import pytest

from survey.stages.differences import object_windows

TILE, HALF = (slice(0, 267), slice(245, 523)), 9


@pytest.mark.parametrize(
    ("places", "windows"),
    [
        ([(100.2, 300.4)], 1),
        ([(100, 300), (30, 480), (200, 420)], 3),
        # many in one chunk are read at once, and all where they are everywhere
        ([(80 + i, 330 + 2 * i) for i in range(20)], 1),
        ([(y, x) for y in range(5, 260, 9) for x in range(250, 520, 9)], 1),
    ],
)
def test_each_object_has_its_surroundings(places, windows):
    found = object_windows(TILE, places, HALF)
    assert len(found) == windows
    assert sorted(i for _, served in found for i in served) == list(range(len(places)))
    for window, served in found:
        for i in served:
            for part, limit, at in zip(window, TILE, np.rint(places[i]), strict=True):
                assert limit.start <= part.start <= max(at - HALF, limit.start)
                assert min(at + HALF + 1, limit.stop) <= part.stop <= limit.stop


def test_a_few_chunks_are_read_rather_than_all():
    """Fifteen objects in three chunks of the tile's thirty."""
    places = [(20 + i, at + i) for at in (270, 340, 470) for i in range(5)]
    found = object_windows(TILE, places, HALF)
    assert len(found) == 3
    assert sum((w[0].stop - w[0].start) * (w[1].stop - w[1].start) for w, _ in found) < 267 * 278 / 20
