"""Tangent-plane (TAN) solutions of frames: sky to pixel and back, from known pairs of positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class FieldSolution:
    """Tangent-plane (TAN) solution of a frame.

    Parameters
    ----------
    crval : tuple of float
        Right ascension and declination of the tangent point, degrees.
    crpix : tuple of float
        Its pixel (x, y), counted from 0 (FITS counts from 1: `header` adds it).
    cd : array (2, 2)
        Degrees per pixel, rows xi (east) and eta (north), columns x and y.
    n_matched : int
        Table stars that were found.
    rms : float
        2-D rms of their residuals, pixels.
    index, table_index : int arrays (n_matched,)
        Matched stars in the star list and in the table.
    """

    crval: tuple[float, float]
    crpix: tuple[float, float]
    cd: Array
    n_matched: int
    rms: float
    index: NDArray[np.intp]
    table_index: NDArray[np.intp]

    @property
    def scale(self) -> float:
        """Arcseconds per pixel."""
        return float(3600 * np.sqrt(abs(np.linalg.det(self.cd))))

    def sky_to_pixel(self, ra: ArrayLike, dec: ArrayLike) -> tuple[Array, Array]:
        """Pixel (x, y), counted from 0, of positions in degrees."""
        plane = np.stack(tangent_plane(ra, dec, *self.crval))
        x, y = np.tensordot(np.linalg.inv(self.cd), plane, axes=1)
        return x + self.crpix[0], y + self.crpix[1]

    def pixel_to_sky(self, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
        """Right ascension and declination in degrees of pixels counted from 0."""
        offset = np.stack([np.asarray(x, float) - self.crpix[0], np.asarray(y, float) - self.crpix[1]])
        xi, eta = np.radians(np.tensordot(self.cd, offset, axes=1))
        ra0, dec0 = np.radians(self.crval)
        down = np.cos(dec0) - eta * np.sin(dec0)
        ra = ra0 + np.arctan2(xi, down)
        dec = np.arctan2(np.sin(dec0) + eta * np.cos(dec0), np.hypot(xi, down))
        return np.degrees(ra) % 360.0, np.degrees(dec)

    def header(self) -> dict[str, float | str]:
        """FITS keywords of the solution."""
        return {
            "CTYPE1": "RA---TAN",
            "CTYPE2": "DEC--TAN",
            "CUNIT1": "deg",
            "CUNIT2": "deg",
            "CRVAL1": self.crval[0],
            "CRVAL2": self.crval[1],
            "CRPIX1": self.crpix[0] + 1,
            "CRPIX2": self.crpix[1] + 1,
            "CD1_1": float(self.cd[0, 0]),
            "CD1_2": float(self.cd[0, 1]),
            "CD2_1": float(self.cd[1, 0]),
            "CD2_2": float(self.cd[1, 1]),
        }


def tangent_plane(ra: ArrayLike, dec: ArrayLike, ra0: float, dec0: float) -> tuple[Array, Array]:
    """Gnomonic coordinates (xi east, eta north) in degrees about a tangent point.

    Raises
    ------
    ValueError
        For positions 90 degrees or more away.

    Examples
    --------
    >>> xi, eta = tangent_plane([10.0], [21.0], 10.0, 20.0)
    >>> xi.round(6), eta.round(4)
    (array([0.]), array([1.0001]))
    """
    a, d = np.radians(np.asarray(ra, float) - ra0), np.radians(np.asarray(dec, float))
    d0 = np.radians(dec0)
    cosine = np.sin(d0) * np.sin(d) + np.cos(d0) * np.cos(d) * np.cos(a)
    if np.any(cosine <= 0):
        raise ValueError("positions 90 degrees or more from the tangent point")
    xi = np.cos(d) * np.sin(a) / cosine
    eta = (np.cos(d0) * np.sin(d) - np.sin(d0) * np.cos(d) * np.cos(a)) / cosine
    return np.degrees(xi), np.degrees(eta)


def field_from_positions(
    ra: ArrayLike,
    dec: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    *,
    scale: float,
    rotation: float = 0.0,
    parity: int = 1,
) -> FieldSolution:
    """Tangent-plane solution through stars whose sky and pixel positions are both known.

    One star anchors the field: scale, rotation and parity are then taken as given, so that the sky
    positions of other stars are only as good as those. Two fix scale and rotation as well, three or
    more everything.

    Parameters
    ----------
    ra, dec : array (n,)
        Degrees.
    x, y : array (n,)
        Pixels, counted from 0.
    scale : float
        Arcseconds per pixel.
    rotation : float
        Degrees from the y axis to north, counter-clockwise.
    parity : {1, -1}
        1 where east is left of north, -1 for a mirrored frame.

    Raises
    ------
    ValueError
        Without any pair, or for three or more on one line.

    Examples
    --------
    >>> field = field_from_positions([31.0427], [46.6878], [293.83], [346.25], scale=5.21)
    >>> x, y = field.sky_to_pixel(31.0427, 46.6878)
    >>> float(x.round(3)), float(y.round(3))
    (293.83, 346.25)
    """
    ra, dec, x, y = (np.atleast_1d(np.asarray(a, float)) for a in (ra, dec, x, y))
    if len(ra) == 0 or not len(ra) == len(dec) == len(x) == len(y):
        raise ValueError(f"{len(ra)} sky and {len(x)} pixel positions; at least one pair is needed")
    crval = (float(ra[0]), float(dec[0]))
    table = np.stack(tangent_plane(ra, dec, *crval), axis=1) * 3600 / scale
    found = np.stack([x, y], axis=1)
    a = np.radians(rotation)
    turn = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) @ np.diag([-float(parity), 1.0])
    affine = np.column_stack([turn, found[0]])
    if len(ra) > 1:
        affine = fit_affine(table, found, affine, least=3)
    if abs(np.linalg.det(affine[:, :2])) < 1e-6:
        raise ValueError(f"{len(ra)} positions on one line do not fix the field; give others, or one alone")
    residual = found - (table @ affine[:, :2].T + affine[:, 2])
    return FieldSolution(
        crval=crval,
        crpix=(float(affine[0, 2]), float(affine[1, 2])),
        cd=np.linalg.inv(affine[:, :2]) * scale / 3600,
        n_matched=len(ra),
        rms=float(np.sqrt(np.mean((residual**2).sum(axis=1)))),
        index=np.arange(len(ra)),
        table_index=np.arange(len(ra)),
    )


def fit_affine(table: Array, found: Array, affine: Array, least: int = 6) -> Array:
    """Affine map (2, 3) from `least` stars on, else a similarity of the same parity as `affine`."""
    if len(table) >= least:
        design = np.column_stack([table, np.ones(len(table))])
        return np.asarray(np.linalg.lstsq(design, found, rcond=None)[0].T)
    sign = np.sign(np.linalg.det(affine[:, :2]))
    z, w = table[:, 0] + 1j * sign * table[:, 1], found[:, 0] + 1j * found[:, 1]
    turn, shift = np.linalg.lstsq(np.column_stack([z, np.ones(len(z))]), w, rcond=None)[0]
    return np.array([[turn.real, -sign * turn.imag, shift.real], [turn.imag, sign * turn.real, shift.imag]])
