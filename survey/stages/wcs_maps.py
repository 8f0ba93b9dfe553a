"""Maps from a frame's WCS, and whether its stars and the reference's bear them out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from survey.config import Config
from survey.kernels.pixelmap import PixelMap, fit_pixel_map
from survey.kernels.registration import Match, RegistrationError, match_stars
from survey.kernels.stars import StarFlag, StarList
from survey.stages.measure import FrameMeasure, measured_window

# A WCS is followed to this many pixels by the polynomial map that stands for it.
WCS_TOLERANCE = 2e-3
# Stars this far (pixels, median) from where the WCS puts them speak against it.
MISPLACED = 1.0
# Of fewer stars than a match needs, this share beside a star of the other list bears the WCS out.
NEAR, SHARE = 2.0, 0.5


def wcs_map(wcs: WCS, reference: WCS, shape: tuple[int, int]) -> PixelMap:
    """Polynomial map that follows reference WCS -> sky -> frame WCS, of the lowest sufficient degree.

    Raises
    ------
    RegistrationError
        If the frame's projection does not reach the reference's sky.
    """
    y, x = np.meshgrid(np.linspace(0, shape[0] - 1, 13), np.linspace(0, shape[1] - 1, 13), indexing="ij")
    xd, yd = wcs.world_to_pixel(reference.pixel_to_world(x.ravel(), y.ravel()))
    if not np.isfinite([xd, yd]).all():
        raise RegistrationError("its WCS looks at another part of the sky than the reference frame's")
    for order in (1, 2, 3):
        found = fit_pixel_map(x.ravel(), y.ravel(), xd, yd, order)
        fx, fy = found.evaluate(x.ravel(), y.ravel())
        if max(np.abs(fx - xd).max(), np.abs(fy - yd).max()) < WCS_TOLERANCE:
            break
    return found


def check_overlap(pixel_map: PixelMap, grid: tuple[int, int], frame: tuple[int, int]) -> None:
    """See that a frame covers some of the grid.

    Raises
    ------
    RegistrationError
        If it does not.
    """
    y, x = np.meshgrid(*(np.linspace(0, n - 1, 65) for n in grid), indexing="ij")
    xd, yd = pixel_map.evaluate(x, y)
    if not _inside(xd, yd, (0, frame[0]), (0, frame[1])).any():
        cx, cy = pixel_map.evaluate((grid[1] - 1) / 2, (grid[0] - 1) / 2)
        offset = np.hypot(cx - (frame[1] - 1) / 2, cy - (frame[0] - 1) / 2)
        raise RegistrationError(f"lies {offset:.0f} px beside the reference frame and covers none of it")


def contradicted(m: FrameMeasure, ref: FrameMeasure, pixel_map: PixelMap, config: Config) -> bool:
    """Whether stars that did not match speak against a map: enough in both frames, few in one place."""
    ours, theirs = _usable(m.stars), _usable(ref.stars)
    xd, yd = pixel_map.evaluate(theirs.x, theirs.y)
    seen = _inside(xd, yd, *measured_window(m.header, config))
    x, y = pixel_map.inverse(ours.x, ours.y)
    common = _inside(x, y, *measured_window(ref.header, config))
    fewest = min(int(seen.sum()), int(common.sum()))
    if fewest < config.registration.min_stars:
        return False
    tree = cKDTree(np.column_stack([xd, yd])[seen])
    distance, _ = tree.query(np.column_stack([ours.x, ours.y])[common])
    return bool((distance < NEAR).sum() < SHARE * fewest)


def match_near(m: FrameMeasure, ref: FrameMeasure, pixel_map: PixelMap, config: Config) -> Match:
    """Match a frame whose WCS is wrong: by its stars, from where the WCS puts them to where they are.

    Raises
    ------
    RegistrationError
        If the stars do not match.
    """
    settings = config.registration
    x, y = pixel_map.evaluate(ref.stars.x, ref.stars.y)
    found = match_stars(
        m.stars,
        replace(ref.stars, x=x, y=y),
        max_rotation=settings.max_rotation,
        min_matches=settings.min_stars,
    )
    # The distortion is the WCS's, what comes after it linear.
    step = found.pixel_map
    turn = step.coefficients[:, 1:] / step.scale
    coefficients = turn @ pixel_map.coefficients
    coefficients[:, 0] += step.coefficients[:, 0] - turn @ np.array(step.center)
    return replace(found, pixel_map=PixelMap(coefficients, pixel_map.center, pixel_map.scale))


def _usable(stars: StarList) -> StarList:
    return stars.select((stars.flags & (StarFlag.SATURATED | StarFlag.SHARP | StarFlag.POOR_FIT)) == 0)


def _inside(
    x: NDArray[np.float64], y: NDArray[np.float64], rows: tuple[int, int], columns: tuple[int, int]
) -> NDArray[np.bool_]:
    """Positions on pixels of these rows and columns."""
    return (y >= rows[0] - 0.5) & (y < rows[1] - 0.5) & (x >= columns[0] - 0.5) & (x < columns[1] - 0.5)
