"""What is no event says why, through the stages: at the edge, by a saturated star, of one epoch, moving."""

import shutil

import numpy as np
import pytest

from survey.io.frames import DQ_SATURATED
from survey.io.store import Field
from survey.kernels.candidates import EventFlag
from survey.kernels.peaks import PEAK_DTYPE
from survey.run.results import list_events
from survey.stages import candidates, detect, psf
from survey.stages.protocol import Unit
from tests.run.conftest import small_config

EPOCHS, EDGE = 72, 96


@pytest.fixture(scope="module")
def config():
    return small_config()


@pytest.fixture(scope="module")
def field(finished):
    return Field.open(finished.path)


@pytest.fixture(scope="module")
def differences(field):
    group = "difference/oversampled"
    return {n: np.asarray(field.array(group, n)[...]) for n in ("flux", "error", "mask")}


def measured(field, config, *, time, y, x, snr=20.0, temporal_sigma=2.0):
    """What the stage says of a peak that the search might have found."""
    peak = np.zeros(1, PEAK_DTYPE)[0]
    for name, value in {"time": time, "y": y, "x": x, "snr": snr, "temporal_sigma": temporal_sigma}.items():
        peak[name] = value
    tile = next(t for t in field.tiles if t.contains(y, x))
    state = detect.prepare(field, psf.load(field), config)
    unit = Unit(tile.name, tile, (peak.item(),))
    (row,) = candidates.apply(candidates.read(field, unit, config), state, config).payload["rows"]
    return row


def quiet_place(differences, wanted):
    """(time, y, x) of the sample that `wanted` (time, y, x) likes best, off the edges and never masked."""
    inside = np.zeros((EDGE, EDGE), bool)
    inside[8:-8, 8:-8] = True
    inside &= ~differences["mask"].any(axis=0)
    k, y, x = np.unravel_index(np.argmax(np.where(inside, wanted, -np.inf)), wanted.shape)
    assert inside[y, x]
    return int(k), int(y), int(x)


def test_a_cosmic_ray_is_a_single_epoch_and_no_event(field, config, differences):
    pull = np.nan_to_num(differences["flux"] / differences["error"])
    alone = np.full(pull.shape, -np.inf)
    calm = (np.abs(pull[:-2]) < 3) & (np.abs(pull[2:]) < 3)
    alone[1:-1] = np.where(calm, pull[1:-1], -np.inf)
    k, y, x = quiet_place(differences, alone)
    assert pull[k, y, x] > 30, "the simulation leaves a fifth of its cosmic rays without a flag"
    row = measured(field, config, time=k, y=y, x=x)
    assert row["flags"] & EventFlag.SINGLE_EPOCH
    assert abs(row["snr"]) > 5
    assert not candidates.is_event(row, 5.0, config)
    for event in list_events(field.path):
        assert np.hypot(event["x"] - x, event["y"] - y) > 1.5
        assert not int(event["flags"]) & EventFlag.SINGLE_EPOCH


def test_a_peak_at_the_rim_is_at_the_edge(field, config):
    assert measured(field, config, time=20, y=1, x=50)["flags"] & EventFlag.EDGE
    assert not measured(field, config, time=20, y=40, x=50)["flags"] & EventFlag.EDGE


def test_a_peak_beside_a_saturated_star_says_so(field, config):
    dq = np.asarray(field.array("images/sky", "dq")[...])
    saturated = ((dq & np.uint32(DQ_SATURATED)) != 0).sum(axis=0)
    inside = np.zeros(saturated.shape, bool)
    inside[12:-12, 12:-12] = True
    y, x = np.unravel_index(np.argmax(np.where(inside, saturated, 0)), saturated.shape)
    assert saturated[y, x] > EPOCHS / 2
    assert measured(field, config, time=30, y=int(y) + 3, x=int(x))["flags"] & EventFlag.SATURATED_NEIGHBOUR
    near = [
        saturated[max(j - 12, 0) : j + 13, max(i - 12, 0) : i + 13].any()
        for j in range(EDGE)
        for i in range(EDGE)
    ]
    free = np.argwhere(inside & ~np.reshape(near, (EDGE, EDGE)))
    j, i = (int(v) for v in free[0])
    assert not measured(field, config, time=30, y=j, x=i)["flags"] & EventFlag.SATURATED_NEIGHBOUR


@pytest.mark.parametrize("speed", [0.0, 0.12])
def test_what_drifts_is_moving(finished, config, differences, tmp_path, speed):
    shutil.copytree(finished.path, tmp_path / "field")
    field = Field.open(tmp_path / "field")
    _, y, x = quiet_place(differences, -np.abs(differences["flux"]) - 30 * differences["error"])
    flux = differences["flux"].copy()
    frames = candidates.calibrated_frames(field)
    rows, columns = slice(y - 6, y + 7), slice(x - 6, x + 7)
    phase_y, phase_x = candidates.phases(frames, (rows, columns), field.shape)
    model = psf.load(field)
    strength = 60 * float(np.median(differences["error"][:, y, x]))
    for k in range(EPOCHS):
        at_y, at_x = y, x + speed * (k - 30)
        d_y = at_y - np.arange(rows.start, rows.stop) - phase_y[k]
        d_x = at_x - np.arange(columns.start, columns.stop) - phase_x[k]
        star = np.asarray(model.evaluate(*(a.ravel() for a in np.meshgrid(d_y, d_x, indexing="ij")), 1))
        flux[k, rows, columns] += strength * np.exp(-0.5 * ((k - 30) / 4) ** 2) * star.reshape(13, 13)
    field.array("difference/oversampled", "flux")[:] = flux
    row = measured(field, config, time=30, y=y, x=x, temporal_sigma=4.0)
    assert row["snr"] > 30
    assert bool(row["flags"] & EventFlag.MOVING) == (speed > 0)
    if speed:
        assert row["drift"] > 4 * row["drift_error"]


def test_min_epochs_says_what_an_event_is(field, config):
    row = {"snr": 9.0, "amplitude": 1.0, "flags": int(EventFlag.SINGLE_EPOCH), "n_epochs": 1}
    assert not candidates.is_event(row, 5.0, config)
    patient = config.model_copy(deep=True)
    patient.detect.min_epochs = 1
    assert candidates.is_event(row, 5.0, patient)
    assert not candidates.is_event({**row, "flags": int(EventFlag.UNLIKE_PSF)}, 5.0, patient)
    records = field.ledger("oversampled.candidates").records.values()
    rows = [row for record in records for row in record.payload["rows"]]
    counts = []
    for patient.detect.min_epochs in (2, 5, 72):
        counts.append(sum(candidates.is_event(row, 5.0, patient) for row in rows))
    assert counts[0] >= counts[1] > counts[2] == 0
