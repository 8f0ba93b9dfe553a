"""Where on the sky a field lies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Footprint:
    """A field's grid on the sky.

    Parameters
    ----------
    wcs : WCS
    shape : tuple of int
        (y, x).

    Attributes
    ----------
    ra, dec : float
        Its middle, degrees, ICRS.
    radius : float
        Of the circle around it, degrees.
    """

    wcs: WCS
    shape: tuple[int, int]

    def _sky(self, x: ArrayLike, y: ArrayLike) -> SkyCoord:
        return SkyCoord(self.wcs.pixel_to_world(x, y)).icrs

    @property
    def middle(self) -> SkyCoord:
        """Its middle."""
        return self._sky((self.shape[1] - 1) / 2, (self.shape[0] - 1) / 2)

    @property
    def ra(self) -> float:
        """Degrees."""
        return float(self.middle.ra.deg)

    @property
    def dec(self) -> float:
        """Degrees."""
        return float(self.middle.dec.deg)

    @property
    def radius(self) -> float:
        """Degrees from the middle to the farthest corner."""
        x, y = np.array([0, 1, 0, 1]) * (self.shape[1] - 1), np.array([0, 0, 1, 1]) * (self.shape[0] - 1)
        return float(self._sky(x, y).separation(self.middle).deg.max())

    def positions(self, step: float) -> list[tuple[float, float]]:
        """Positions (ra, dec) on the field no farther apart than a step in degrees, middle first."""
        n = max(2, int(np.ceil(2 * self.radius / step)) + 1)
        y, x = np.meshgrid(*(np.linspace(0, size - 1, n) for size in self.shape), indexing="ij")
        middle = [(size - 1) / 2 for size in self.shape]
        sky = self._sky(np.append(x.ravel(), middle[1]), np.append(y.ravel(), middle[0]))
        order = np.argsort(sky.separation(self.middle).deg, kind="stable")
        return [(float(sky.ra.deg[i]), float(sky.dec.deg[i])) for i in order]
