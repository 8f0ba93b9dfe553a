"""Bad samples of predictors, filled from the pixels around them with an error of their own.

A predictor that lost a few epochs to cosmic rays still predicts all of them. What stands in the gap must be
an estimate of what the pixel would have shown, not its median: where the pointing moves, a star's pixel is
hundreds of errors from its median, and so would be the prediction.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Index = NDArray[np.int64]

# A pixel that is bad in a larger part of the epochs in which its neighbours are good predicts nobody.
MAX_BAD = 0.05
# Pixels around a gap that fill it: two on every side, and one where there are too few epochs for that.
FILL_REACH = 2
_LEAST_NEIGHBOURS = 5
# Epochs a fit needs beyond two for each coefficient.
_SPARE_EPOCHS = 10
# Share of the signal's variance that keeps the normal matrix regular.
_RIDGE = 1e-9
# Samples of neighbours that are looked at together.
_TOGETHER = 2_000_000


def fill(
    values: Array, noise: NDArray[np.float32], bad: Mask, shape: tuple[int, int], may: Mask,
    train: Index, epoch_error: Array,
) -> tuple[Mask, Mask]:  # fmt: skip
    """Fill gaps of the pixels that may predict, in ``values`` and ``noise``.

    Each pixel is fitted to its neighbours in the training epochs in which all of them are good; a gap is
    filled from the neighbours that are good in it. What a pixel becomes depends on no pixel further away
    than `FILL_REACH`.

    Parameters
    ----------
    values, noise : arrays (pixels, time)
        Normalised series and errors, 0 where bad. Changed in place.
    bad : bool array (pixels, time)
    shape : tuple of int
        (y, x) of the tile.
    may : bool array (pixels,)
        Pixels that may predict.
    train : int array
        Epochs to train on.
    epoch_error : array (time,)
        Relative error of an epoch.

    Returns
    -------
    usable : bool array (pixels,)
        Of those that may, the pixels that are good often enough.
    available : bool array (pixels, time)
        Samples that are good or were filled.
    """
    good = ~bad
    available, usable = good.copy(), may.copy()
    trained = np.zeros(bad.shape[1], bool)
    trained[train] = True
    samples = _Samples(values, noise, good, available, trained, epoch_error)
    touched = np.nonzero(may & bad.any(1))[0]
    step = max(1, _TOGETHER // (((2 * FILL_REACH + 1) ** 2) * bad.shape[1]))
    for first in range(0, len(touched), step):
        pixels = touched[first : first + step]
        index, inside = _around(pixels, shape, FILL_REACH)
        seen = (good[index] & inside[:, :, None]).sum(1) >= np.minimum(_LEAST_NEIGHBOURS, inside.sum(1))[
            :, None
        ]
        alone = bad[pixels] & seen
        lost = (alone & trained).sum(1) > MAX_BAD * len(train)
        lost |= (good[pixels] & trained).sum(1) < 0.5 * len(train)
        usable[pixels[lost]] = False
        todo = ~lost & alone.any(1)
        pixels, alone = pixels[todo], alone[todo]
        # from two pixels around, or from one where the epochs are few
        for reach in range(FILL_REACH, 0, -1):
            if len(pixels):
                done = _fill_some(pixels, alone, _around(pixels, shape, reach), samples)
                pixels, alone = pixels[~done], alone[~done]
    return usable, available


class _Samples(NamedTuple):
    """Of all pixels (pixels, time): what is filled, was good, is there; epochs that train; their errors."""

    values: Array
    noise: NDArray[np.float32]
    good: Mask
    available: Mask
    trained: Mask
    epoch_error: Array


def _around(pixels: Index, shape: tuple[int, int], reach: int) -> tuple[Index, Mask]:
    """The pixels of the square around each, without it, and which of them exist, (pixels, square)."""
    y, x = np.divmod(pixels, shape[1])
    dy, dx = (d.ravel() for d in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    other = (dy != 0) | (dx != 0)
    rows, columns = y[:, None] + dy[other], x[:, None] + dx[other]
    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    return np.where(inside, rows * shape[1] + columns, 0), inside


def _fill_some(pixels: Index, alone: Mask, around: tuple[Index, Mask], samples: _Samples) -> Mask:
    """Fill what can be of pixels' gaps, ``alone`` (pixels, time); returns which pixels had a fit."""
    index, inside = around
    s = samples
    near = s.good[index] & inside[:, :, None]
    own = s.good[pixels] & s.trained
    kept = inside & ((near & own[:, None]).sum(2) >= (1 - MAX_BAD) * own.sum(1)[:, None])
    complete = own & (near | ~kept[:, :, None]).all(1)
    count, rows = kept.sum(1), complete.sum(1)
    done = (count > 0) & (rows >= 2 * count + _SPARE_EPOCHS)
    index, near, kept = index[done], near[done], kept[done]
    if not len(index):
        return done
    one = complete[done] / s.epoch_error
    z = s.values[np.column_stack([index, pixels[done]])]
    z *= one[:, None]
    length = (one**2).sum(1)[:, None]
    mean = (z @ one[:, :, None])[..., 0] / length
    gram = z @ z.transpose(0, 2, 1) - length[:, :, None] * mean[:, :, None] * mean[:, None]
    which, epochs = np.nonzero(alone[done])
    use = near[which, :, epochs] & kept[which]
    enough = use.sum(1) >= np.minimum(_LEAST_NEIGHBOURS, count[done][which])
    which, epochs, use = which[enough], epochs[enough], use[enough]
    a, variance = _regress(gram, which, use, rows[done])
    at, moved = pixels[done][which], s.values[index[which], epochs[:, None]] - mean[which, :-1]
    s.values[at, epochs] = mean[which, -1] + (a * moved).sum(1)
    s.noise[at, epochs] = np.sqrt(variance) * s.epoch_error[epochs]
    s.available[at, epochs] = True
    return done


def _regress(gram: Array, which: Index, use: Mask, rows: Index) -> tuple[Array, Array]:
    """Coefficients on some of the neighbours, and the variance of what they leave of the last pixel.

    Parameters
    ----------
    gram : array (pixels, square + 1, square + 1)
    which : int array (gaps,)
        The pixel of each gap.
    use : bool array (gaps, square)
        The neighbours that are there.
    rows : int array (pixels,)
        Epochs in the sums.
    """
    # gaps of a pixel with the same neighbours share a solution
    bits = use @ (1 << np.arange(use.shape[1]))
    _, first, again = np.unique(np.stack([which, bits]), axis=1, return_index=True, return_inverse=True)
    which, use = which[first], use[first]
    square = gram[which, :-1, :-1] * (use[:, :, None] & use[:, None])
    side = gram[which, :-1, -1] * use
    diagonal = np.arange(use.shape[1])
    count = use.sum(1)
    normal = square.copy()
    share = _RIDGE * square[:, diagonal, diagonal].sum(1) / count
    normal[:, diagonal, diagonal] += np.where(use, share[:, None], 1.0)
    a = np.asarray(np.linalg.solve(normal, side[..., None])[..., 0], np.float64)
    left = gram[which, -1, -1] - 2 * (a * side).sum(1) + (a * (square @ a[..., None])[..., 0]).sum(1)
    variance = np.maximum(left, 0.0) / (rows[which] - count - 1)
    return a[again.ravel()], variance[again.ravel()]
