import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from survey.tiles import choose_tile_size, tile_bytes, tile_grid


@given(st.integers(1, 200), st.integers(1, 200), st.integers(4, 128), st.integers(0, 12))
def test_tiles_partition_and_windows_hold_their_cores(height, width, size, halo):
    image = np.arange(height * width).reshape(height, width)
    seen = np.zeros_like(image)
    for i, tile in enumerate(tile_grid((height, width), size)):
        assert tile.index == i
        seen[tile.core] += 1
        window = image[tile.window(halo, (height, width))]
        np.testing.assert_array_equal(window[tile.inner(halo)], image[tile.core])
    assert (seen == 1).all()


def test_every_pixel_belongs_to_one_tile():
    tiles = tile_grid((100, 70), 32)
    for y, x in [(0, 0), (31.4, 31.6), (31.6, 31.4), (99.4, 69.4), (-0.4, -0.4)]:
        assert sum(tile.contains(y, x) for tile in tiles) == 1


def test_touches_reaches_over_the_edge():
    tile = tile_grid((64, 64), 32)[0]
    assert tile.touches(34.0, 10.0, 4.0)
    assert not tile.touches(40.0, 10.0, 4.0)


def test_tile_size_is_bounded_by_memory_and_keeps_workers_busy():
    assert choose_tile_size((256, 256), 96, 2**31) == 128
    large = choose_tile_size((4096, 4096), 192, 1.5 * 2**30)
    assert large == 256
    assert tile_bytes(choose_tile_size((4096, 4096), 7000, 2**30), 7000) <= 2**30


def test_tile_grid_refuses_nonsense():
    with pytest.raises(ValueError, match="tile size 0"):
        tile_grid((10, 10), 0)
