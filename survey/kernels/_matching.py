"""Star matching behind `survey.kernels.registration`: votes for an offset, then neighbours and fits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import gammainc

from survey.kernels.pixelmap import PixelMap, fit_pixel_map, n_terms
from survey.kernels.stars import StarFlag, StarList

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

_FLOOR = 0.01  # px; no centroid is better than this, whatever its formal error
_BRIGHTEST = 80  # stars that vote for the offset
_CANDIDATES = 12  # peaks of the vote that are tried
_LINEAR_TOLERANCE = 0.03  # an affine that stretches or shears more than this is a chance match


def log_chance(
    stars: StarList,
    reference: StarList,
    found: tuple[PixelMap, Indices, Indices],
    tolerance: float,
    max_rotation: float,
) -> float:
    """log10 of the probability that unrelated fields match this well at any offset and rotation tried."""
    pixel_map, i, j = found
    if len(i) <= 3:
        return 0.0
    xd, yd = pixel_map.evaluate(reference.x[j], reference.y[j])
    distance = np.hypot(xd - stars.x[i], yd - stars.y[i])
    # Chance pairs fill the whole disc of the tolerance, true ones its middle.
    radius = float(np.clip(2 * np.sqrt(np.mean(distance**2)), 0.05, tolerance))
    extent = np.array([max(np.ptp(reference.x), 1.0), max(np.ptp(reference.y), 1.0)])
    expected = len(stars) * len(reference) / extent.prod() * np.pi * radius**2
    offsets = 4 * extent.prod() / (np.pi * radius**2)
    rotations = 1 + 2 * np.radians(max_rotation) * extent.max() / radius
    # Three pairs fix an affine map and so say nothing.
    tail = float(gammainc(len(i) - 3, expected))
    return float(np.log10(offsets * rotations) + np.log10(max(tail, 1e-300)))


def vote(
    stars: StarList, reference: StarList, max_rotation: float, max_shift: float | None
) -> list[PixelMap]:
    """Offsets, for a grid of rotations, that bring most bright stars together; best first."""
    a, b = _brightest(stars), _brightest(reference)
    center = b.mean(axis=0)
    extent = max(float(np.ptp(b, axis=0).max()), 10.0)
    bin_size = max(extent / 200, 2.0)
    # Between two rotations of the grid a star at the edge moves by less than a bin.
    step = np.degrees(bin_size / extent)
    n_steps = int(np.ceil(max_rotation / step))
    angles = np.linspace(-max_rotation, max_rotation, 2 * n_steps + 1)
    low = a.min(axis=0) - b.max(axis=0) - extent / 2
    n_bins = np.ceil((a.max(axis=0) - b.min(axis=0) + extent / 2 - low) / bin_size).astype(int) + 2
    candidates: list[tuple[float, PixelMap]] = []
    for angle in np.radians(angles):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        turned = (b - center) @ turn.T + center
        shifts = (a[:, None] - turned[None]).reshape(-1, 2)
        cells = np.floor((shifts - low) / bin_size).astype(int)
        inside = ((cells >= 0) & (cells < n_bins)).all(axis=1)
        if max_shift is not None:
            inside &= np.hypot(*shifts.T) <= max_shift
        votes = np.zeros(n_bins)
        np.add.at(votes, tuple(cells[inside].T), 1.0)
        # A true offset may lie on the border of bins: count in windows of 2 x 2.
        votes[:-1] += votes[1:]
        votes[:, :-1] += votes[:, 1:]
        for k in np.argsort(-votes, axis=None, kind="stable")[:3]:
            i, j = np.unravel_index(k, votes.shape)
            window = ((cells - [i, j] >= 0) & (cells - [i, j] <= 1)).all(axis=1) & inside
            if not window.any():
                continue
            shift = np.median(shifts[window], axis=0)
            constant = shift + center - turn @ center
            coefficients = np.column_stack([constant, turn])
            candidates.append((float(votes[i, j]), PixelMap(coefficients)))
    candidates.sort(key=lambda c: -c[0])
    return [pixel_map for _, pixel_map in candidates[:_CANDIDATES]]


def _brightest(stars: StarList) -> Array:
    usable = (stars.flags & (StarFlag.SHARP | StarFlag.POOR_FIT)) == 0
    saturated = (stars.flags & StarFlag.SATURATED) > 0
    usable |= saturated
    order = np.argsort(np.where(usable, -stars.flux, np.inf), kind="stable")[:_BRIGHTEST]
    order = order[usable[order]]
    return np.column_stack([stars.x, stars.y])[order]


def refine(
    stars: StarList, reference: StarList, guess: PixelMap, tolerance: float, clip: float, order: int
) -> tuple[PixelMap, Indices, Indices] | None:
    """Nearest neighbours and fits in turn, from wide to narrow; None where it collapses."""
    unusable = StarFlag.SATURATED | StarFlag.SHARP | StarFlag.POOR_FIT
    used, ref_used = (np.flatnonzero((s.flags & unusable) == 0) for s in (stars, reference))
    if len(used) < 3 or len(ref_used) < 3:
        return None
    tree = cKDTree(np.column_stack([stars.x, stars.y])[used])
    pixel_map = guess
    i = j = np.zeros(0, np.intp)
    previous = np.zeros((0, 2), np.intp)
    for step in range(20):
        radius = max(tolerance * (4.0, 2.5, 1.5)[step], tolerance) if step < 3 else tolerance
        i, j = _pairs(tree, pixel_map, stars, reference, used, ref_used, radius)
        fit_order = _affordable(order if step >= 3 else min(order, 1), len(i))
        if fit_order < 0:
            return None
        pixel_map, keep = _clipped_fit(stars, reference, i, j, fit_order, clip)
        i, j = i[keep], j[keep]
        if step >= 3 and len(i) == len(previous) and np.array_equal(np.column_stack([i, j]), previous):
            break
        previous = np.column_stack([i, j])
    if fit_order >= 1 and not _plausible(pixel_map, reference):
        return None
    return pixel_map, i, j


def _affordable(order: int, n: int) -> int:
    """Highest degree, up to `order`, with twice as many stars as terms (for a line three suffice)."""
    while order > 1 and n < 2 * n_terms(order):
        order -= 1
    if order >= 1 and n < 3:
        order = 0
    return order if n else -1


def _pairs(
    tree: cKDTree,
    pixel_map: PixelMap,
    stars: StarList,
    reference: StarList,
    used: Indices,
    ref_used: Indices,
    radius: float,
) -> tuple[Indices, Indices]:
    """Mutual nearest neighbours within a radius: indices into the two lists."""
    xd, yd = pixel_map.evaluate(reference.x[ref_used], reference.y[ref_used])
    distance, nearest = tree.query(np.column_stack([xd, yd]), distance_upper_bound=radius)
    candidates = np.flatnonzero(np.isfinite(distance))
    order = candidates[np.argsort(distance[candidates], kind="stable")]
    _, first = np.unique(nearest[order], return_index=True)
    chosen = np.sort(order[first])
    return used[nearest[chosen]], ref_used[chosen]


def pair_weights(stars: StarList, reference: StarList, i: Indices, j: Indices) -> Array:
    return 1.0 / (stars.position_error[i] ** 2 + reference.position_error[j] ** 2 + _FLOOR**2)


def _clipped_fit(
    stars: StarList, reference: StarList, i: Indices, j: Indices, order: int, clip: float
) -> tuple[PixelMap, NDArray[np.bool_]]:
    weights = pair_weights(stars, reference, i, j)
    keep = np.ones(len(i), bool)
    for _ in range(8):
        pixel_map = fit_pixel_map(
            reference.x[j[keep]],
            reference.y[j[keep]],
            stars.x[i[keep]],
            stars.y[i[keep]],
            order,
            weights[keep],
        )
        xd, yd = pixel_map.evaluate(reference.x[j], reference.y[j])
        scaled = np.hypot(xd - stars.x[i], yd - stars.y[i]) * np.sqrt(weights)
        # The median of a Rayleigh distribution is 1.1774 sigma.
        sigma = max(float(np.median(scaled[keep])) / 1.1774, 1.0)
        new = scaled <= clip * sigma
        if np.array_equal(new, keep) or new.sum() < max(n_terms(order), 3):
            break
        keep = new
    return pixel_map, keep


def _plausible(pixel_map: PixelMap, reference: StarList) -> bool:
    """Whether the map's linear part is a rotation to within the tolerance."""
    jacobian = pixel_map.jacobian(float(reference.x.mean()), float(reference.y.mean()))
    return bool(np.all(np.abs(np.linalg.svd(jacobian, compute_uv=False) - 1) < _LINEAR_TOLERANCE))
