"""Seconds a star of PSF photometry with position refinement, 192 epochs, one core, float64.

Dazzle's own code takes 1.4-8.9 s a star (METHODS 1); the order asks for at most 10 ms.
"""

import time

import numpy as np
import pytest

from survey.kernels.psf import fit_psf_flux, gaussian_epsf, refine_position, stamp_psf

EPOCHS, STARS, SIZE = 192, 100, 9


@pytest.mark.benchmark
@pytest.mark.parametrize("per_pixel", [False, True], ids=["one phase a frame", "phase a pixel"])
@pytest.mark.parametrize("signal_to_noise", [20, 300])
def test_photometry_takes_10_ms_a_star(signal_to_noise, per_pixel, record_property):
    rng = np.random.default_rng(7)
    psf = gaussian_epsf(1.1, oversampling=10)
    phases = rng.uniform(-0.5, 0.5, (2, EPOCHS))
    if per_pixel:
        phases = np.broadcast_to(phases[:, :, None, None], (2, EPOCHS, SIZE, SIZE)).copy()
    truth = rng.uniform(3.6, 4.4, (STARS, 2))
    shape = np.exp(-0.5 * ((np.arange(EPOCHS) - 90) / 20) ** 2)
    models = [shape[:, None, None] * stamp_psf(psf, *phases, *t, (SIZE, SIZE)) for t in truth]
    stamps = [signal_to_noise * m / np.sqrt(np.sum(m**2)) + rng.standard_normal(m.shape) for m in models]
    errors, mask = np.ones(models[0].shape), np.zeros(models[0].shape, bool)

    def photometry(data):
        fit = refine_position(data, errors, mask, psf, *phases, (4.0, 4.0))
        return fit_psf_flux(data, errors, mask, stamp_psf(psf, *phases, fit.y, fit.x, (SIZE, SIZE)))

    photometry(stamps[0])
    start = time.perf_counter()
    for data in stamps:
        photometry(data)
    milliseconds = 1e3 * (time.perf_counter() - start) / STARS
    record_property("milliseconds_a_star", round(milliseconds, 2))
    print(f"\n{milliseconds:.2f} ms a star (S/N {signal_to_noise}, {SIZE}x{SIZE} px)")
    assert milliseconds <= 10
