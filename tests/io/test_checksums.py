"""Checksums of stored arrays: they add up over any parts, and nothing changes without them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from survey.io.checksums import CELL, MODULUS, cell_sums, cells_of

SHAPE = (150, 140)


def cube(dtype=np.float32, epochs=3):
    return np.random.default_rng(2).normal(scale=50, size=(epochs, *SHAPE)).astype(dtype)


def sums(values, region):
    return dict(zip(cells_of(region), cell_sums(values[region], SHAPE, region), strict=True))


@settings(deadline=None, max_examples=25)
@given(st.integers(1, SHAPE[0] - 1), st.integers(1, SHAPE[1] - 1), st.sampled_from(["f4", "?", "u4", "f8"]))
def test_parts_add_up_to_the_whole(y, x, dtype):
    values = cube(np.dtype(dtype))
    whole = sums(values, (slice(0, 3), slice(0, SHAPE[0]), slice(0, SHAPE[1])))
    total = dict.fromkeys(whole, 0)
    for t in ((0, 2), (2, 3)):
        for rows in ((0, y), (y, SHAPE[0])):
            for columns in ((0, x), (x, SHAPE[1])):
                for cell, value in sums(values, (slice(*t), slice(*rows), slice(*columns))).items():
                    total[cell] = (total[cell] + value) % MODULUS
    assert total == whole


def test_any_change_shows_and_only_in_its_cell():
    values = cube()
    region = (slice(0, 3), slice(0, SHAPE[0]), slice(0, SHAPE[1]))
    before = sums(values, region)
    rng = np.random.default_rng(3)
    for _ in range(20):
        t, y, x = (int(rng.integers(n)) for n in values.shape)
        changed = values.copy()
        changed[t, y, x] = np.nextafter(changed[t, y, x], np.float32(np.inf))
        after = sums(changed, region)
        assert {cell for cell in before if before[cell] != after[cell]} == {(y // CELL, x // CELL)}


def test_values_that_change_places_show():
    values = cube()
    region = (slice(0, 3), slice(0, 64), slice(0, 64))
    for a, b in (((0, 3, 4), (0, 4, 3)), ((0, 5, 5), (1, 5, 5)), ((0, 7, 8), (0, 7, 9))):
        changed = values.copy()
        changed[a], changed[b] = values[b], values[a]
        assert sums(changed, region) != sums(values, region)


def test_arrays_without_time_and_with_terms():
    values = np.random.default_rng(4).normal(size=(*SHAPE, 3, 2)).astype(np.float32)
    region = (slice(0, SHAPE[0]), slice(0, SHAPE[1]))
    whole = sums(values, region)
    parts = {**sums(values, (slice(0, 128), slice(0, 140))), **sums(values, (slice(128, 150), slice(0, 140)))}
    assert parts == whole
    assert len(whole) == 9


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_store_that_forgets_which_nan_it_was_is_no_damage(dtype):
    values = cube(np.dtype(dtype))
    values[:, :20] = np.nan
    region = (slice(0, 3), slice(0, SHAPE[0]), slice(0, SHAPE[1]))
    before = sums(values, region)
    other = values.copy()
    other.view(f"u{dtype[1]}")[:, :20] = np.iinfo(f"u{dtype[1]}").max
    assert np.isnan(other[:, :20]).all()
    assert sums(other, region) == before
    other[0, 0, 0] = np.inf
    assert sums(other, region) != before
