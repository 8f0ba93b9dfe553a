"""Where differences hold more than noise: star cores of a model that does not follow every frame.

A search in units of the noise alone would take every bright star for an event where the PSF changes; one in
units of each pixel's own scatter would hide bright variables, whose scatter is what is looked for. So the
field says how far its model errs, as a share of a star's flux, and a pixel's own scatter is believed up to
that.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from survey.config import Config
from survey.io.store import INNER, Field
from survey.kernels.scatter import excess_scatter
from survey.stages.constant import read_searched
from survey.tiles import Tile, Window

# Signal to noise of one sample from which on errors of the model may exceed the noise.
BRIGHT = 20.0
# Share of the bright pixels that the model serves as well as this or better; the others may be variables.
SERVED = 0.9
# No model, flat field or PSF is better than this share of the flux.
LEAST = 0.005
# Fewer bright pixels than this say nothing of a field.
NEEDED = 100
# Places and epochs looked at.
PLACES, EPOCHS = 16, 256
# Epochs that say what a pixel's error is.
SAMPLED = 16


def reference_level(field: Field, window: Window) -> NDArray[np.float32] | None:
    """Mean flux of the reference's pixels; None where there is no reference."""
    if not field.has("reference", "coefficients"):
        return None
    return np.asarray(field.array("reference", "coefficients")[(*window, 0, 0)])


def model_scatter(
    level: NDArray[np.floating] | None,
    flux: NDArray[np.floating],
    error: NDArray[np.floating],
    mask: NDArray[np.bool_],
    share: float,
) -> NDArray[np.float32]:
    """Factor (y, x) >= 1 on the errors of bright pixels: their own scatter, as far as the model errs.

    Parameters
    ----------
    level : array (y, x) or None
        Flux of the reference.
    flux, error : array (time, y, x)
        Differences.
    mask : bool array (time, y, x)
    share : float
        Of `model_share`.
    """
    factor = np.ones(flux.shape[1:], np.float32)
    if level is None:
        return factor
    bright, snr = _bright(level, error)
    if bright.any():
        own = excess_scatter(flux, error, mask)[bright]
        factor[bright] = np.minimum(own, np.sqrt(1 + (share * snr[bright]) ** 2))
    return factor


def model_share(field: Field, frames: xr.Dataset, config: Config) -> float:
    """Error of the model as a share of a star's flux: `SERVED` of the bright pixels are within it.

    Taken from fixed places and epochs of the field, so that no tile's result depends on how the field is
    cut. Infinite where the field has too few bright pixels to say.
    """
    n = frames.sizes["time"]
    start = max((n - EPOCHS) // 2, 0)
    frames = frames.isel(time=slice(0, start + EPOCHS))
    shares = []
    for window in _places(field):
        level = reference_level(field, window)
        if level is None:
            return np.inf
        arrays = read_searched(field, window, frames, config, ("flux", "error", "mask"), start=start)
        bright, snr = _bright(level, arrays["error"])
        if bright.any():
            own = excess_scatter(arrays["flux"], arrays["error"], arrays["mask"])[bright]
            shares.append(np.sqrt(own**2 - 1) / snr[bright])
    if sum(map(len, shares)) < NEEDED:
        return np.inf
    return max(float(np.quantile(np.concatenate(shares), SERVED)), LEAST)


def _bright(
    level: NDArray[np.floating], error: NDArray[np.floating]
) -> tuple[NDArray[np.bool_], NDArray[np.floating]]:
    """Pixels whose model may err by more than the noise, and the signal to noise of one sample."""
    # A few epochs stand for all: a factor of two in brightness does not matter here. Masked ones are NaN.
    some = error[:: max(len(error) // SAMPLED, 1)]
    known = np.isfinite(some).any(axis=0)
    typical = np.nanmedian(np.where(known, some, 1.0), axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        snr = level / typical
    return known & (snr > BRIGHT) & np.isfinite(snr), snr


def _places(field: Field) -> list[Window]:
    """Windows of one inner chunk, spread over the field, whatever its tiles."""
    height, width = field.shape
    chunks = [
        Tile(0, y, min(y + INNER, height), x, min(x + INNER, width))
        for y in range(0, height, INNER)
        for x in range(0, width, INNER)
    ]
    chosen = np.unique(np.linspace(0, len(chunks) - 1, PLACES).round().astype(int))
    return [chunks[i].core for i in chosen]
