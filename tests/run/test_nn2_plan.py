"""NN2 before any pixel: which pairs, which objects together, which scales."""

import numpy as np
import pyarrow as pa
import pytest
from numpy.testing import assert_allclose

from survey.config import Config, ConfigError, make_config
from survey.kernels.nn2 import solve_nn2
from survey.run.nn2 import AllPairs, spread
from survey.stages import nn2, nn2_pairs
from survey.stages.nn2 import matrices
from survey.stages.nn2_pairs import NO_OBJECT
from survey.stages.nn2_plan import Group, epoch_pairs, object_groups, pair_blocks, pair_units
from survey.stages.nn2_scales import SHARES, star_counts
from survey.stages.nn2_scales import combine as combine_scales
from survey.stages.protocol import Unit


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
    _, sigma = matrices([pa.table(objects)], ["a"], np.arange(2), np.ones(2), 2.0)
    assert_allclose(sigma[0, 0, 1], np.hypot(1.0, 2.0))


def test_matrices__hold_the_pairs_of_their_objects_from_all_parts():
    def part(names, template, image):
        n = len(names)
        return pa.table(
            {
                "object_id": names,
                "template": pa.array([template] * n, pa.int32()),
                "image": pa.array([image] * n, pa.int32()),
                "flux": [float(k + 1) for k in range(n)],
                "error": [0.5] * n,
                "level": [np.nan] * n,
            }
        )

    parts = (part(["b", NO_OBJECT, "a"], 4, 9), part(["c", "b"], 9, 7))
    difference, error = matrices(parts, ["a", "b"], np.array([4, 7, 9]), np.array([1.0, 2.0, 4.0]))
    want = np.full((2, 3, 3), np.nan)
    want[0, 0, 2], want[1, 0, 2], want[1, 2, 1] = 3 / 4, 1 / 4, 2 / 2
    assert_allclose(difference, want)
    assert_allclose(error[1, 2, 1], 0.25)
    assert np.isnan(matrices([], ["a"], np.arange(2), np.ones(2))[0]).all()


def test_gauge__baseline_frames_have_no_flux_on_average():
    group = object_groups([{"object_id": "a", "y": 5.0, "x": 5.0}], 96, 32)[0]
    flux = np.array([3.0, 4.0, 9.0, 2.0])
    time = np.array([50.0, 10.0, 20.0, 30.0, 40.0])  # the first frame is not used
    data = nn2.Matrices(
        group, np.arange(1, 5), (flux - flux[:, None])[None], np.ones((1, 4, 4)), time, np.zeros(5, int), []
    )
    config = make_config({"nn2": {"gauge": "baseline", "baseline": [5, 25]}})
    assert_allclose(nn2.solve(data, config).flux[0], flux - 3.5, atol=1e-12)
    with pytest.raises(ValueError, match=r"no usable frame between these times; frames are from MJD 10.0000"):
        nn2.solve(data, make_config({"nn2": {"gauge": "baseline", "baseline": [45, 60]}}))


def test_units__hold_so_many_objects_that_their_pairs_fit_into_memory(monkeypatch):
    monkeypatch.setattr(nn2, "MOST_PAIRS", 3 * 16**2 + 5)
    objects = [{"object_id": f"o{k}", "y": 5.0, "x": 5.0 + 100 * (k == 7)} for k in range(8)]
    groups, epochs = object_groups(objects, 96, 32), np.arange(16)
    units = nn2.units(groups, epochs)
    assert [[o["object_id"] for o in u.items[0].objects] for u in units] == [
        ["o0", "o1", "o2"], ["o3", "o4", "o5"], ["o6"], ["o7"],
    ]  # fmt: skip
    assert len({u.name for u in units}) == 4
    assert max(nn2.memory(u, None, Config()) for u in units) <= nn2.PAIR_BYTES * nn2.MOST_PAIRS
    assert len(nn2.units(groups, np.arange(100))) == 8  # one object is not divided


def test_spread__takes_some_of_many_evenly():
    names = [f"{k:03d}" for k in range(250)]
    chosen = spread(names, 100)
    assert len(set(chosen)) == 100
    assert (chosen[0], chosen[-1]) == ("000", "249")
    assert spread(names[:100], 100) == names[:100]


def test_sums__are_of_so_many_groups_that_their_pairs_fit_into_memory(monkeypatch):
    groups = [Group(f"g{k:03d}", 0, 0, 161, ()) for k in range(200)]
    done = [(Unit(f"{g.name}-{part}", items=(g, None)), "key") for g in groups for part in range(3)]
    asked = []
    work = AllPairs.__new__(AllPairs)
    work.epochs = np.arange(400)
    work._gather = lambda stage, keyed: asked.append({unit.name[:4] for unit, _ in keyed}) or ([], 0.0)
    for n in (50, 400):
        work.n_pairs = n * (n - 1) // 2
        work._scales(done)
    assert [len(names) for names in asked] == [100, 500_000 // (400 * 399 // 2)] == [100, 6]


def test_memory_of_positions__is_that_of_their_pairs_and_of_all_differences():
    (group,) = object_groups([{"y": 5.0, "x": 5.0}], 96, 32)
    for n in (3, 6, 24, 90):
        pairs = nn2_pairs.position_pairs(np.arange(n))
        assert len(np.unique(pairs)) == min(n, 24)
        of_pairs = nn2_pairs.memory(Unit("", items=(group, pairs)), None, Config())
        assert of_pairs == group.size**2 * (17 * min(n, 24) + 800)
        found = nn2_pairs.positions_memory(Unit("", items=(group, np.arange(n))), None, Config())
        assert found - of_pairs == 25 * group.size**2 * len(pairs)


def test_settings__are_checked():
    with pytest.raises(ConfigError, match="at least 2 partners"):
        make_config({"nn2": {"pairs": 1}})
    with pytest.raises(ConfigError, match="odd number of pixels"):
        make_config({"nn2": {"kernel": 8}})
    with pytest.raises(ConfigError, match="needs baseline"):
        make_config({"nn2": {"gauge": "baseline"}})
