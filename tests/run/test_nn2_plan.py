"""NN2 before any pixel: which pairs, which objects together, which scales."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from survey.config import Config, ConfigError, make_config
from survey.kernels.nn2 import solve_nn2
from survey.stages.nn2 import matrices
from survey.stages.nn2_pairs import NO_OBJECT
from survey.stages.nn2_plan import epoch_pairs, object_groups, pair_blocks, pair_units
from survey.stages.nn2_scales import SHARES, star_counts
from survey.stages.nn2_scales import combine as combine_scales


def test_epoch_pairs__are_all_or_connected():
    assert len(epoch_pairs(np.arange(5, 21), "all")) == 120
    for n in (2, 3, 7, 50):
        for partners in (2, 3, 4, 9):
            pairs = epoch_pairs(np.arange(n) * 3, partners, seed=n)
            assert np.all(pairs[:, 0] < pairs[:, 1])
            assert len(np.unique(pairs, axis=0)) == len(pairs) <= n * partners / 2 + 1
            d = np.full((n, n), np.nan)
            d[pairs[:, 0] // 3, pairs[:, 1] // 3] = 0.0
            assert solve_nn2(d, np.ones((n, n))).connected
    assert epoch_pairs(np.array([4]), "all").shape == (0, 2)
    with pytest.raises(ValueError, match="at least 2 partners"):
        epoch_pairs(np.arange(9), 1)


def test_pair_blocks__hold_every_pair_once():
    pairs = epoch_pairs(np.arange(40), "all")
    blocks = dict(pair_blocks(pairs, 16))
    assert len(blocks) == 6
    assert sorted(map(tuple, np.concatenate(list(blocks.values())))) == sorted(map(tuple, pairs))
    assert all(len(np.unique(found)) <= 32 for found in blocks.values())


def test_pair_units__name_the_subtraction():
    groups = object_groups([{"y": 10.0, "x": 200.0}], 96, 32)
    pairs = epoch_pairs(np.arange(20), "all")
    first, second = ({u.name for u in pair_units(groups, pairs, 16, how)} for how in ("sfft", "carried"))
    assert len(first) == len(second) == 3
    assert not first & second


def test_object_groups__do_not_depend_on_the_other_objects():
    objects = [{"y": 10.0, "x": 200.0}, {"y": 95.4, "x": 0.0}, {"y": 95.6, "x": 0.0}]
    groups = {g.name: g for g in object_groups(objects, 96, 32)}
    assert [len(g.objects) for g in groups.values()] == [1, 1, 1]
    assert object_groups(objects[:1], 96, 32)[0] == groups["cell-0000-0002"]
    assert groups["cell-0000-0002"].size == 161


def test_scales__are_solved_from_the_kernels_sums():
    logs, none = np.log([1.0, 0.9, 1.2, 1.05]), [0] * (len(SHARES) + 1)
    rows = [[i, j, logs[j] - logs[i]] for i in range(4) for j in range(i)]
    scales, share = combine_scales([[4, rows, none], [4, rows[:3], none]], Config())
    assert_allclose(np.array(scales) / scales[0], np.exp(logs), rtol=1e-12)
    assert share == 0
    assert combine_scales([[3, [], none]], Config()) == ([1.0] * 3, 0.0)
    assert combine_scales([], Config()) == ([], 0.0)


@pytest.mark.parametrize("share", [0.0, 0.01])
def test_scales__stars_say_what_share_of_the_flux_is_an_error(share):
    rng = np.random.default_rng(4)
    n = 2000
    error, level = np.full(n, 3.0), rng.uniform(100, 3000, n)
    rows = {
        "object_id": [NO_OBJECT] * n + ["a"] * 500,
        "flux": [*(rng.normal(size=n) * np.hypot(error, share * level)), *[1e3] * 500],
        "error": [*error, *[1.0] * 500],
        "level": [*level, *[1.0] * 500],
    }
    _, found = combine_scales([[3, [], star_counts(rows)]], Config())
    assert abs(found - share) < 0.1 * share + 1e-3
    objects = {**rows, "template": [0] * len(rows["flux"]), "image": [1] * len(rows["flux"])}
    _, sigma = matrices(objects, ["a"], np.arange(2), np.ones(2), 2.0)
    assert_allclose(sigma[0, 0, 1], np.hypot(1.0, 2.0))


def test_settings__are_checked():
    with pytest.raises(ConfigError, match="at least 2 partners"):
        make_config({"nn2": {"pairs": 1}})
    with pytest.raises(ConfigError, match="odd number of pixels"):
        make_config({"nn2": {"kernel": 8}})
    with pytest.raises(ConfigError, match="needs baseline"):
        make_config({"nn2": {"gauge": "baseline"}})
