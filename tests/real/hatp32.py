"""The night of HAT-P-32: its settings, its frames as a field, and its transit in a light curve."""

import shutil
from pathlib import Path

import numpy as np

from survey.config import load_config
from survey.run.api import create_field
from tests.small_field import shared

# Mid-transit by the published ephemeris (JD 2455867.4027 + 1042 x 2.1500082 d, less the light time), MJD,
# and half of first to fourth contact.
MID_TRANSIT, HALF = 58107.2088, 0.0615
INGRESS, EGRESS = MID_TRANSIT - HALF, MID_TRANSIT + HALF
MARGIN = 0.012


def night_settings(real_data, every=1):
    """Settings of the example file for every n-th frame."""
    config = load_config(Path(__file__).with_name("hatp32.toml"))
    config.input.frames = sorted(str(p) for p in (real_data / "hatp32").glob("*.fits.fz"))[::every]
    return config


def ingested_night(real_data, tmp_path_factory):
    """The settings and a field of all frames, ingested once for all tests: the caller's own copy."""
    config = night_settings(real_data)

    def make(place):
        assert not create_field(place / "field", config.input.frames, config).rejected

    path = tmp_path_factory.mktemp("night") / "field"
    shutil.copytree(shared(tmp_path_factory, "hatp32", make) / "field", path)
    return config, path


def transit(curve, name):
    """Depth, and scatter out of transit about a line, of one column."""
    time, flux = curve["time"], curve[name]
    good = np.isfinite(flux) & (curve["flags"].astype(int) & 0b1001 == 0)
    outside = good & ((time < INGRESS - MARGIN) | (time > EGRESS + MARGIN))
    inside = good & (time > INGRESS + MARGIN) & (time < EGRESS - MARGIN)
    line = np.polyfit(time[outside], flux[outside], 1)
    flat = flux / np.polyval(line, time)
    return 1 - np.median(flat[inside]), 1.4826 * np.median(np.abs(flat[outside] - 1))
