"""What ledgers say was written: patched cells take the place of theirs, whatever the pieces before."""

import numpy as np

from survey.io.checksums import cell_sums, cells_of
from survey.run.written import patch_written, written_entry

SHAPE = (128, 192)
RNG = np.random.default_rng(5)


def entry(values, region):
    return written_entry("difference/m", region, {"flux": cell_sums(values[region], SHAPE, region)})


def test_row_blocks_and_nights_become_one_with_the_patched_cells():
    values = RNG.normal(size=(5, *SHAPE)).astype("f4")
    regions = [(slice(*t), slice(*y), slice(64, 192)) for t in ((0, 3), (3, 5)) for y in ((0, 50), (50, 128))]
    before = [entry(values, region) for region in regions]
    other = {"group": "reference", "region": [[0, 128], [64, 192]], "sums": {"chi2": [1, 2, 3, 4]}}
    window = (slice(0, 5), slice(70, 80), slice(100, 110))
    values[window] = 7
    box = (slice(0, 5), slice(64, 128), slice(64, 128))
    cells = dict(zip(cells_of(box), cell_sums(values[box], SHAPE, box), strict=True))
    kept, joined = patch_written([*before, other], [("difference/m", {"flux": cells})])
    assert kept == other
    assert joined == entry(values, (slice(0, 5), slice(0, 128), slice(64, 192)))


def test_without_the_checksums_of_the_rest_there_are_none():
    old = {"group": "difference/m", "region": [[0, 5], [0, 128], [0, 64]], "crc32": {"flux": 3}}
    assert patch_written([old], [("difference/m", {"flux": {(0, 0): 1}})]) == []


def test_an_array_that_only_windows_hold_gets_no_checksums():
    values = RNG.normal(size=(2, *SHAPE)).astype("f4")
    whole = (slice(0, 2), slice(0, 64), slice(0, 64))
    new = {"flux": {(0, 0): 5}, "normal": {(0, 0): 6}}
    (joined,) = patch_written([entry(values, whole)], [("difference/m", new)])
    assert joined["sums"] == {"flux": [5]}
