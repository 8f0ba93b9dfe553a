"""Images of others as a template: fetched, projected, their bad stars masked, brought to the field's flux."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray

from survey.io.catalogs import CatalogError, read_target_table
from survey.io.frames import parse_wcs
from survey.io.sky_images import SkyImage, read_sky_image
from survey.io.sky_positions import sky_to_pixels
from survey.io.store import Field
from survey.kernels.background import measure_background
from survey.kernels.frame_quality import RegistrationError
from survey.stages.template_flux import OtherSkyError, compare
from survey.templates import hips, legacy, ps1
from survey.templates.fetch import Archive
from survey.templates.footprint import Footprint
from survey.templates.project import Mosaic, TemplateError, project
from survey.templates.stars import mask_stars, saturation_level, unreliable_stars

# A template whose stars lie this far from the field's, in pixels, has another sky.
FARTHEST = 1.5


@dataclass(frozen=True)
class Survey:
    """How a survey's images are asked for.

    Parameters
    ----------
    band : str, optional
        By default the field's.
    server : str, optional
        Address of a mirror.
    archive : Archive, optional
        Where files are kept and how often is asked.
    asinh : bool, optional
        Whether a HiPS is on Pan-STARRS' asinh scale; by default where its name says so.
    catalog : path, optional
        Table of stars with ra, dec and magnitudes: those without one, and those brighter than `saturation`,
        are masked.
    magnitude : str
        Its column.
    saturation : float, optional
        Magnitude at which the survey saturates.
    mask_radius : float
        Pixels around a star that cannot be trusted.
    """

    band: str | None = None
    server: str | None = None
    archive: Archive | None = None
    asinh: bool | None = None
    catalog: str | Path | None = None
    magnitude: str = "mag"
    saturation: float | None = None
    mask_radius: float = 5.0


@dataclass
class Calibrated:
    """A template in the field's flux unit; arrays (y, x)."""

    flux: NDArray[np.float32]
    error: NDArray[np.float32]
    mask: NDArray[np.bool_]


def make_mosaic(
    target: Field, source: str, asked: Survey, attrs: dict[str, Any], warnings: list[str]
) -> Calibrated:
    """Images of a source on the field's grid, sky subtracted, in the field's flux unit.

    What is learnt of them is added to `attrs` and `warnings`.

    Raises
    ------
    TemplateError, ArchiveError, FrameError, CatalogError
        If there is nothing there, or not of this sky.
    """
    mosaic = _mosaic(target, source, asked)
    mask, first = mosaic.mask, mosaic.images[0]
    level = measure_background(mosaic.flux, mask).level
    flux, error = mosaic.flux - np.float32(level), mosaic.error
    attrs |= {
        "images": [image.name for image in mosaic.images],
        "cards": [image.notes for image in mosaic.images],
        "source_units": first.units,
        "source_zero_point": first.zero_point,
        "background": float(level),
        "coverage": mosaic.coverage,
    }
    if asked.catalog is not None:
        mask = _mask_catalog(target, mask, asked, attrs)
    scale, mask = _scale_to_field(target, flux, error, mask, asked, attrs, warnings)
    return Calibrated(flux / scale, error / scale, mask)


def _mask_catalog(
    target: Field, mask: NDArray[np.bool_], asked: Survey, attrs: dict[str, Any]
) -> NDArray[np.bool_]:
    """Mask the stars of a catalogue that the survey could not measure or that saturate it."""
    assert asked.catalog is not None
    rows = read_target_table(asked.catalog)
    if asked.magnitude not in rows[0]:
        raise CatalogError(
            f"{Path(asked.catalog).name}: no column {asked.magnitude!r}; it has "
            f"{', '.join(sorted(rows[0]))}: name the magnitude's by --magnitude"
        )
    numbers = [row[asked.magnitude] for row in rows]
    magnitude = np.array([v if isinstance(v, int | float) else np.nan for v in numbers], float)
    bad = np.flatnonzero(unreliable_stars(magnitude, asked.saturation))
    table = {
        name: np.array([rows[i].get(name, np.nan) for i in bad], float) for name in ("ra", "dec", "x", "y")
    }
    sky, x, y = np.isfinite(table["ra"]), table["x"], table["y"]
    x[sky], y[sky] = sky_to_pixels(grid_of(target), table["ra"][sky], table["dec"][sky])
    here = np.isfinite(x) & np.isfinite(y)  # lists of a wide sky hold stars that do not project
    x, y = x[here], y[here]
    attrs["catalog"] = {"file": str(asked.catalog), "masked": len(x), "saturation": asked.saturation}
    return mask_stars(mask, x, y, asked.mask_radius)


def grid_of(target: Field) -> WCS:
    """WCS of a field's grid.

    Raises
    ------
    TemplateError
        If it has none.
    """
    text = target.attrs.get("wcs")
    if not text:
        raise TemplateError(
            f"{target.path}: has no WCS, so only its own frames (--from stack) can make a template. Name the "
            "field's brightest stars when it is made: [registration] catalog = 'stars.csv' (columns ra, dec, "
            "and x, y where known) with pixel_scale = … (arcsec)"
        )
    return parse_wcs(text)


def _mosaic(target: Field, source: str, asked: Survey) -> Mosaic:
    """Images of a source on the field's grid."""
    wcs = grid_of(target)
    footprint, archive = Footprint(wcs, target.shape), asked.archive or Archive()
    kind, _, rest = source.partition(":")
    if kind in ("ps1", "ls") and not rest:
        module = ps1 if kind == "ps1" else legacy
        band = asked.band or _band_of(target)
        found: Iterable[SkyImage] = module.images(footprint, band, archive, asked.server or module.BASE)
    elif kind == "hips" and rest:
        server = asked.server or hips.BASE
        found = hips.images(footprint, rest, archive, server, asinh=asked.asinh)
    elif Path(source).is_file():
        found = [read_sky_image(source)]
    else:
        raise TemplateError(
            f"--from {source}: no such file; known: stack, ps1, ls, hips:<id>, or a FITS image with a WCS"
        )
    return project(found, wcs, target.shape)


def _band_of(target: Field) -> str:
    """The field's band as surveys name theirs, where its name begins with one letter of theirs."""
    words = str(target.attrs.get("band") or "").replace("_", " ").split()
    for word in words:
        letter = word.lower().removeprefix("sdss").strip(".'\u2032")
        if letter in ("u", "g", "r", "i", "z", "y"):
            return letter
    raise TemplateError(
        f"the field's band is {' '.join(words) or 'unknown'!r}, which is no survey's; "
        "give --band g, r, i, z or y"
    )


def _scale_to_field(
    target: Field,
    flux: NDArray[np.float32],
    error: NDArray[np.float32],
    mask: NDArray[np.bool_],
    asked: Survey,
    attrs: dict[str, Any],
    warnings: list[str],
) -> tuple[np.float32, NDArray[np.bool_]]:
    """Template flux per reference flux, and the mask with saturated stars.

    From stars in common, else from zero points, else 1 with a warning.
    """
    try:
        found = compare(target, flux, error, mask)
    except OtherSkyError as problem:
        raise TemplateError(
            f"the template's stars are not the field's, wherever it is shifted by: its WCS is wrong, or it "
            f"shows another sky ({problem})"
        ) from None
    except RegistrationError as problem:
        own, zero_point = target.attrs.get("zero_point"), attrs["source_zero_point"]
        if zero_point is not None and own is not None and np.isfinite([zero_point, own]).all():
            attrs |= {"scale": 10 ** (0.4 * (zero_point - own)), "scale_from": "zero points"}
        else:
            attrs |= {"scale": 1.0, "scale_from": "nothing", "units": attrs["source_units"] or "unknown"}
        warnings.append(f"the field's stars were not found in the template ({problem}): check its WCS")
        return np.float32(attrs["scale"]), mask
    distance = float(np.hypot(*found.offset))
    if distance > FARTHEST:
        raise TemplateError(
            f"the template's stars lie {distance:.1f} px from the field's (x {found.offset[0]:+.1f}, "
            f"y {found.offset[1]:+.1f}; {found.matched} stars): one of the two WCS is wrong"
        )
    if distance > 0.5:
        warnings.append(
            f"the template's stars lie {distance:.2f} px from the field's; the kernel has to shift it"
        )
    attrs |= {
        "scale": found.scale,
        "scale_error": found.scale_error,
        "scale_from": f"{found.matched} stars",
        "offset": list(found.offset),
        "psf_fwhm": found.psf_fwhm,
    }
    saturation = saturation_level(found.flux, found.ratio)
    if saturation is not None:
        bright = found.flux >= saturation
        attrs["saturated"] = {"flux": saturation, "stars": int(bright.sum())}
        mask = mask_stars(mask, found.x[bright], found.y[bright], asked.mask_radius)
    return np.float32(found.scale), mask
