"""What the demo must reach: events found, amplitudes unbiased, errors that match the scatter."""

import numpy as np
import pytest

from survey.config import Config
from survey.io.store import Field
from survey.report import compare_field
from survey.run.api import run
from survey.run.results import light_curve
from survey.simulate import simulate_field

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's field: 256 x 96, 12 events, 6 variables, cosmic rays, bad pixels."""
    folder = tmp_path_factory.mktemp("demo")
    simulate_field(folder / "frames", size=256, frames=96, seed=1)
    summary = run(folder / "field", Config(), frames=[folder / "frames"])
    assert summary.ok, summary.failures
    return folder / "field", folder / "frames" / "truth.ecsv"


def test_all_sources_are_found_and_nothing_else(demo):
    comparison = compare_field(demo[0], truth=demo[1])
    assert all(row["found"] for row in comparison["rows"] if row["snr_true"] > 10)
    assert len(comparison["false_alarms"]) <= 1


def test_fluxes_are_unbiased_to_two_percent(demo):
    comparison = compare_field(demo[0], truth=demo[1])
    rows = [r for r in comparison["rows"] if r["kind"] == "microlensing" and r.get("flux_ratio") is not None]
    ratio = np.array([r["flux_ratio"] for r in rows])
    error = np.array([r["flux_ratio_error"] for r in rows])
    weight = 1 / (error**2 + 0.01**2)
    mean, sigma = np.sum(weight * ratio) / weight.sum(), weight.sum() ** -0.5
    assert len(rows) >= 11
    assert sigma < 0.01
    assert abs(mean - 1) < 0.02


@pytest.mark.parametrize(("low", "high"), [(100, 1000), (1000, 10000)])
def test_constant_stars_scatter_as_their_errors_say(demo, low, high):
    field = Field.open(demo[0])
    truth = compare_field(demo[0], truth=demo[1])["rows"]
    stars = field.table("stars")
    clean = (stars["flags"].values == 0) & (stars["flux"].values > low) & (stars["flux"].values < high)
    places = np.column_stack([stars["y"].values, stars["x"].values])[clean]
    places = [p for p in places if min(np.hypot(p[0] - t["y"], p[1] - t["x"]) for t in truth) > 8][:40]
    chi2 = []
    for y, x in places:
        curve = light_curve(demo[0], x=float(x), y=float(y))
        good = np.isfinite(curve["flux"]) & ((curve["flags"] & 0b1011) == 0)
        if good.sum() >= 60:
            pull = np.asarray(curve["flux"][good] / curve["error"][good])
            chi2.append(np.var(pull))
    assert len(chi2) >= 10
    assert abs(np.mean(chi2) - 1) < 0.1
