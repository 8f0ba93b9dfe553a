"""NN2 on whole simulated fields: rotated frames, and the paper's sixteen observations."""

import logging

import numpy as np
import pytest

from survey.config import Config
from survey.io.store import Field
from survey.kernels.nn2_templates import compare_templates
from survey.run.nn2 import nn2_light_curves, run_nn2
from survey.simulate.nn2 import PAPER_RATIO
from survey.stages.nn2_cutouts import pair_grid
from tests.run.nn2_fields import FEW, followed, made

LOG = logging.getLogger(__name__)


@pytest.mark.slow
def test_rotated_frames__follow_the_truth(tmp_path):
    """Frames turned by up to two degrees: pairs live on the images' own pixels."""
    path, objects, truth, _ = made(tmp_path, size=144, n_stars=40, observations=FEW, seed=3, rotation=2.0)
    assert pair_grid(Field.open(path)) == "detector"
    assert run_nn2(path, Config(), objects=objects, client="synchronous").ok
    slope, sigma, pull, _, _ = followed(path, truth)
    LOG.info("rotated: slope %.3f +- %.3f, pull width %.2f", slope, sigma, pull)
    assert abs(slope - 1) < 0.1
    assert pull < 1.6


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_sixteen_observations__nn2_beats_every_template_as_in_the_paper(tmp_path):
    """75 supernovae in their hosts, in three fields of the paper's seeing and zero points."""
    found = [
        matrices_of(*made(tmp_path / str(seed), size=200, n_stars=60, spacing=36, seed=seed)[:3])
        for seed in range(3)
    ]
    table = compare_templates(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
    nn2, off = np.nanmedian(table.nn2_rms), table.ratio - PAPER_RATIO
    ratio = nn2 / np.nanmedian(table.template_rms)
    LOG.info("NN2 %.1f, ratio to pooled templates %.3f, to each %s", nn2, ratio, table.ratio.round(3))
    assert ratio < 0.95
    # Object by object: medians taken apart do not tell templates from NN2 here. Half of the paper's are less
    # than 4.5 % above NN2's and one is below it, where 75 objects fix their ratio to 7 to 10 %.
    assert np.all(table.ratio < 1)
    # 75 objects fix a ratio to 0.02 to 0.04; measured: 0.025 off in the median. Two are off by more:
    # the clouded one (0.45 for 0.63) and that in the poorest seeing (0.97 for 0.84).
    assert np.median(np.abs(off)) < 0.04
    assert np.abs(np.delete(off, [3, 10])).max() < 0.1


def matrices_of(path, objects, truth):
    """Run NN2; its fluxes, the pairs' differences and errors, and the true fluxes."""
    assert run_nn2(path, Config(), objects=objects, client="synchronous").ok
    rows = nn2_light_curves(path)
    difference, sigma = np.full((2, len(rows), 16, 16), np.nan)
    for k, row in enumerate(rows):
        difference[k, row["pair_template"], row["pair_image"]] = row["pair_flux"]
        sigma[k, row["pair_template"], row["pair_image"]] = row["pair_error"]
    return np.array([r["flux"] for r in rows]), difference, sigma, truth
