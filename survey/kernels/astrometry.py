"""Sky coordinates for frames without a WCS: the field's bright stars matched to a small table."""

from __future__ import annotations

from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from survey.kernels.frame_quality import RegistrationError
from survey.kernels.stars import StarList
from survey.kernels.tangent import FieldSolution, field_from_positions, fit_affine, tangent_plane

__all__ = ["FieldSolution", "field_from_positions", "solve_field", "tangent_plane"]

Array = NDArray[np.float64]

_MAX_HYPOTHESES = 200_000
_CHANCE = 1e-2


def solve_field(
    stars: StarList,
    ra: ArrayLike,
    dec: ArrayLike,
    *,
    center_ra: float,
    center_dec: float,
    scale: float,
    scale_tolerance: float = 0.02,
    tolerance: float = 2.0,
    min_matches: int = 4,
    max_stars: int = 60,
    parity: int | None = None,
    center_pixel: tuple[float, float] | None = None,
    max_offset: float = 20.0,
) -> FieldSolution:
    """Match the brightest stars of a frame to a small table of sky positions.

    Every pair of table stars is laid onto every pair of bright stars with the right separation; the
    similarity that brings most table stars onto stars wins. Orientation and pointing are free.

    Parameters
    ----------
    stars : StarList
    ra, dec : array (n,)
        Table positions, degrees; a handful of the field's brightest stars.
    center_ra, center_dec : float
        Rough middle of the field in degrees (a degree or two is near enough).
    scale : float
        Arcseconds per pixel.
    scale_tolerance : float
        Relative.
    tolerance : float
        Largest distance of a table star from its star, pixels.
    min_matches : int
        At least 4: two fix the similarity, two must confirm it.
    max_stars : int
        So many of the brightest stars are considered.
    parity : {1, -1}, optional
        1 where north is up and east left (as on a chart) up to a rotation, -1 for a mirrored frame;
        None tries both.
    center_pixel : tuple of float, optional
        Pixel (x, y) that the telescope meant to point at `center_ra`, `center_dec`; solutions that put
        them further apart than `max_offset` arcminutes are not considered.

    Raises
    ------
    RegistrationError
        If no orientation brings enough table stars onto stars, or chance would do as well.
    """
    table = np.stack(tangent_plane(ra, dec, center_ra, center_dec), axis=1) * 3600 / scale
    table = table[np.all(np.isfinite(table), axis=1)] if len(table) else table.reshape(0, 2)
    order = np.argsort(-stars.flux, kind="stable")[:max_stars]
    found = np.column_stack([stars.x, stars.y])[order]
    if len(table) < min_matches or len(found) < min_matches:
        raise RegistrationError(
            f"{len(table)} table positions and {len(found)} stars; at least {min_matches} of each needed"
        )
    tree = cKDTree(found)
    aim = None if center_pixel is None else (*center_pixel, max_offset * 60 / scale)
    best: list[tuple[int, float, Array]] = []
    tried = 0
    for sign in (1, -1) if parity is None else (parity,):
        # On a chart east is left: the tangent plane's xi runs against x.
        plane = table * [-sign, 1.0]
        count, spread, similarity, n = _best_similarity(plane, found, tree, scale_tolerance, tolerance, aim)
        similarity[:, 0] *= -sign
        best.append((count, spread, similarity))
        tried += n
    count, _, affine = min(best, key=lambda b: (-b[0], b[1]))
    if count < min_matches:
        raise RegistrationError(
            f"no orientation brings {min_matches} of the {len(table)} table positions onto bright stars "
            f"(best {count}); check scale ({scale} arcsec/px), table and centre"
        )
    solution = _solution(affine, table, found, order, tree, tolerance, (center_ra, center_dec), scale)
    chance = _chance(solution, len(table), found, tried)
    if chance > _CHANCE:
        raise RegistrationError(
            f"{solution.n_matched} of {len(table)} table positions match to {solution.rms:.1f} px, which "
            f"chance alone does in {min(chance, 1):.2g} of all cases; give more positions, or the pointing"
        )
    return solution


def _chance(solution: FieldSolution, n_table: int, found: Array, tried: int) -> float:
    """Expected number of unrelated solutions as good as this among those tried."""
    radius = max(2 * solution.rms, 0.3)
    density = len(found) / max(float(np.ptp(found[:, 0]) * np.ptp(found[:, 1])), 1.0)
    free = 3 if solution.n_matched >= 6 else 2
    confirming = solution.n_matched - free
    return float(tried * comb(n_table - free, confirming) * (density * np.pi * radius**2) ** confirming)


def _best_similarity(
    plane: Array,
    found: Array,
    tree: cKDTree,
    scale_tolerance: float,
    tolerance: float,
    aim: tuple[float, float, float] | None,
) -> tuple[int, float, Array, int]:
    """Most table stars matched by a rotation, scale and shift; (count, rms, affine (2, 3), tried)."""
    z, w = plane[:, 0] + 1j * plane[:, 1], found[:, 0] + 1j * found[:, 1]
    i, j = np.nonzero(~np.eye(len(w), dtype=bool))
    separation = w[j] - w[i]
    length = np.abs(separation)
    best: tuple[int, float, Array] = (0, np.inf, np.zeros((2, 3)))
    pairs = sorted(((a, b) for a in range(len(z)) for b in range(a)), key=lambda p: -abs(z[p[0]] - z[p[1]]))
    tried = 0
    for a, b in pairs:
        base = z[b] - z[a]
        if abs(base) < 20 or tried > _MAX_HYPOTHESES:
            break
        fits = np.flatnonzero(np.abs(length / abs(base) - 1) < scale_tolerance)
        turn = separation[fits] / base
        shift = w[i[fits]] - turn * z[a]
        if aim is not None:
            near = np.abs(shift - complex(*aim[:2])) < aim[2]
            fits, turn, shift = fits[near], turn[near], shift[near]
        if len(fits) == 0:
            continue
        tried += len(fits)
        placed = turn[:, None] * z + shift[:, None]
        distance, _ = tree.query(np.stack([placed.real, placed.imag], axis=-1))
        # A hypothesis from two centroids extrapolates their errors: look a little wider here.
        hits = distance < 1.5 * tolerance
        count = hits.sum(axis=1)
        spread = np.sqrt((np.where(hits, distance, 0) ** 2).sum(axis=1) / np.maximum(count, 1))
        k = int(np.lexsort((spread, -count))[0])
        if (-count[k], spread[k]) < (-best[0], best[1]):
            t, s = turn[k], shift[k]
            affine = np.array([[t.real, -t.imag, s.real], [t.imag, t.real, s.imag]])
            best = (int(count[k]), float(spread[k]), affine)
    return (*best, tried)


def _solution(
    affine: Array,
    table: Array,
    found: Array,
    order: NDArray[np.intp],
    tree: cKDTree,
    tolerance: float,
    crval: tuple[float, float],
    scale: float,
) -> FieldSolution:
    rows, nearest = np.zeros(0, np.intp), np.zeros(0, np.intp)
    for _ in range(5):
        placed = table @ affine[:, :2].T + affine[:, 2]
        distance, close = tree.query(placed, distance_upper_bound=1.5 * tolerance)
        rows = np.flatnonzero(np.isfinite(distance))
        nearest = close[rows]
        affine = fit_affine(table[rows], found[nearest], affine)
    residual = found[nearest] - (table[rows] @ affine[:, :2].T + affine[:, 2])
    cd = np.linalg.inv(affine[:, :2]) * scale / 3600
    return FieldSolution(
        crval=crval,
        crpix=(float(affine[0, 2]), float(affine[1, 2])),
        cd=cd,
        n_matched=len(rows),
        rms=float(np.sqrt(np.mean((residual**2).sum(axis=1)))),
        index=order[nearest],
        table_index=rows,
    )
