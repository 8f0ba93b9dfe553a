"""The user's targets on the field's grid."""

from __future__ import annotations

from typing import Any

import numpy as np

from survey.config import Config
from survey.io.catalogs import read_target_table
from survey.io.frames import parse_wcs
from survey.io.sky_positions import pixels_to_sky, sky_to_pixels
from survey.io.store import Field


class TargetError(ValueError):
    """A target that cannot be placed on the field."""


def read_targets(field: Field, config: Config) -> list[dict[str, Any]]:
    """Targets of ``[photometry] targets`` as objects with pixel positions.

    Raises
    ------
    TargetError
        If positions on the sky are given and the field has no WCS.
    """
    if config.photometry.targets is None:
        return []
    table = read_target_table(config.photometry.targets)
    objects = []
    for i, row in enumerate(table):
        if "x" in row and "y" in row:
            x, y = float(row["x"]), float(row["y"])
        else:
            x, y = sky_to_pixel(field, float(row["ra"]), float(row["dec"]))
        name = str(row.get("name", f"target-{i + 1:04d}"))
        if not (-0.5 <= x < field.shape[1] - 0.5 and -0.5 <= y < field.shape[0] - 0.5):
            raise TargetError(
                f"target {name}: pixel ({x:.1f}, {y:.1f}) lies outside the field {field.shape[::-1]}"
            )
        objects.append({"object_id": name, "kind": "target", "x": x, "y": y, "refine": False})
    return objects


def sky_to_pixel(field: Field, ra: float, dec: float) -> tuple[float, float]:
    """Pixel (x, y) of a position on the sky in degrees.

    Raises
    ------
    TargetError
        If the field has no WCS or the position is far from it.
    """
    text = field.attrs.get("wcs")
    if not text:
        raise TargetError(
            f"{field.path}: has no WCS, so a position on the sky means nothing here; give --x and --y, "
            "or name the field's brightest stars: [registration] catalog = 'stars.csv'"
        )
    x, y = (float(v[0]) for v in sky_to_pixels(parse_wcs(text), ra, dec))
    if not (np.isfinite(x) and np.isfinite(y)):
        raise TargetError(f"RA {ra}, Dec {dec} cannot be projected on the field")
    return x, y


def pixel_to_sky(field: Field, x: Any, y: Any) -> tuple[Any, Any]:
    """RA and Dec in degrees of pixel positions; NaN without a WCS."""
    text = field.attrs.get("wcs")
    x, y = np.atleast_1d(np.asarray(x, float)), np.atleast_1d(np.asarray(y, float))
    if not text or not x.size:
        return np.full(x.shape, np.nan), np.full(x.shape, np.nan)
    return pixels_to_sky(parse_wcs(text), x, y)
