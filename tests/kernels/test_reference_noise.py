"""Differences against their errors, in so many draws of the noise that 0.005 sigma would show."""

import numpy as np
import pytest
from crowded_cubes import crowded_cube, observe

from survey.kernels.reference import difference_images

CORE = (slice(None), slice(3, -3), slice(3, -3))
MEAN, SCATTER = 0.005, 0.02
# A million samples in stars, which scatter's mean by 0.001.
DRAWS = 32


def chosen_samples(field):
    """Samples (time, y, x) of the inner pixels by name: all, the brightest tenth of pixels, bins of phase."""
    brightness = field.truth.mean(axis=0)
    phases = [p if p.ndim == 3 else p[:, None, None] for p in (field.phase_y, field.phase_x)]
    chosen = {"all": np.True_, "stars": brightness > np.quantile(brightness[CORE[1:]], 0.9)}
    for low, high in ((0.0, 0.25), (0.25, 0.35), (0.35, 0.45), (0.45, np.inf)):
        distance = np.maximum(*np.abs(np.broadcast_arrays(*phases)))
        chosen[f"phase {low} from the centre"] = (distance >= low) & (distance < high)
    for axis, phase in zip("yx", phases, strict=True):
        for low in (-0.5, -0.3, -0.1, 0.1, 0.3):
            chosen[f"phase {axis} from {low}"] = (phase >= low) & (phase < low + 0.2)
    return {name: np.broadcast_to(samples, field.truth.shape)[CORE] for name, samples in chosen.items()}


@pytest.mark.slow
@pytest.mark.parametrize("rotation", [0.0, 0.3])
@pytest.mark.parametrize("n_basis", [5, 6])
def test_unit_scatter_and_no_mean(rotation, n_basis, record_property):
    field = crowded_cube(64, 96, seed=1, rotation=rotation)
    chosen = chosen_samples(field)
    sums = dict.fromkeys(chosen, 0.0)
    for seed in range(DRAWS):
        noise = np.random.default_rng(100 + seed)
        cube = observe(field.truth, field.phase_y, field.phase_x, noise)
        difference = difference_images(*cube.data, n_basis=n_basis)
        pull = (difference.flux / difference.error)[CORE]
        for name, samples in chosen.items():
            of_these = pull[samples]
            sums[name] += np.array([of_these.size, of_these.sum(), of_these @ of_these])
    wrong = {}
    for name, (number, total, squares) in sums.items():
        mean, scatter = total / number, np.sqrt(squares / number)
        record_property(name, f"mean {mean:+.4f} +- {number**-0.5:.4f}, scatter / error {scatter:.4f}")
        assert number**-0.5 <= MEAN / 4, f"{name}: too few samples to tell"
        if not (abs(mean) < MEAN and abs(scatter - 1) < SCATTER):
            wrong[name] = mean, scatter
    assert not wrong
