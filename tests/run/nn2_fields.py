"""Simulated fields for NN2 with their true fluxes, and how light curves follow these."""

import numpy as np

from survey.io.store import Field
from survey.run.api import create_field
from survey.run.nn2 import nn2_light_curves
from survey.run.targets import sky_to_pixel
from survey.simulate.nn2 import ZERO_POINT
from survey.simulate.nn2_images import simulate_nn2_images

# The last is the clouded observation, the one before it that in bad seeing.
FEW = (0, 4, 7, 12, 10, 3)


def made(folder, **options):
    folder.mkdir(exist_ok=True)
    sim = simulate_nn2_images(folder, **options)
    path = folder / "field"
    create_field(path, sim.paths, client="synchronous")
    field = Field.open(path)
    places = [sky_to_pixel(field, ra, dec) for ra, dec in zip(sim.ra, sim.dec, strict=True)]
    objects = [
        {"object_id": f"sn-{k:03d}", "kind": "event", "y": y, "x": x, "refine": False}
        for k, (x, y) in enumerate(places)
    ]
    # Fluxes are in the unit of the reference frame, whose scale is 1.
    frames, order = field.frames(), np.argsort(sim.time)
    reference = order[np.argmin(np.abs(frames["scale"].values - 1))]
    zero_point = ZERO_POINT[list(options.get("observations", range(16)))]
    unit = 10 ** (0.4 * (zero_point[reference] - zero_point[0]))
    return path, objects, unit * sim.flux[:, order], sim


def followed(path, truth):
    """Slope of measured against true fluxes and its error, width of pulls, true and measured signal."""
    rows = nn2_light_curves(path)
    flux, error = (np.array([r[name] for r in rows]) for name in ("flux", "error"))
    weight = 1 / error**2
    a, b = (v - np.average(v, axis=1, weights=weight)[:, None] for v in (truth, flux))
    slope = np.sum(weight * a * b) / np.sum(weight * a * a)
    off, signal = (np.sqrt(np.average(v**2, weights=weight)) for v in (b - a, b))
    return slope, 1 / np.sqrt(np.sum(weight * a * a)), np.sqrt(np.mean((b - a) ** 2 * weight)), off, signal
