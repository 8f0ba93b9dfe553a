"""Any HiPS survey, as the service hips2fits puts it on a grid."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import urlencode

import numpy as np
from astropy.wcs import WCS
from numpy.typing import ArrayLike, NDArray

from survey.io.sky_images import SkyImage, kept_cards, open_image, sky_noise
from survey.templates.fetch import Archive, discarded_if_damaged
from survey.templates.footprint import Footprint
from survey.templates.project import TemplateError

BASE = "https://alasky.cds.unistra.fr/hips-image-services/hips2fits"
# The service draws no larger images.
MOST_PIXELS = 50_000_000
# Pixels beyond the field's edge that are asked for, so that its rim can be averaged too.
MARGIN = 3
# Values that Pan-STARRS' asinh scale never has.
_HIGHEST = 30.0


def images(
    footprint: Footprint,
    hips: str,
    archive: Archive,
    base: str = BASE,
    *,
    upscale: int = 2,
    asinh: bool | None = None,
) -> Iterator[SkyImage]:
    """The survey on the field's grid, in finer pixels: the service takes the nearest values.

    Parameters
    ----------
    hips : str
        Identifier, as ``CDS/P/DES-DR2/r``.
    upscale : int
        Pixels asked for along the edge of one of the field's; less where the image would be too large.
    asinh : bool, optional
        Whether values are on Pan-STARRS' asinh scale; by default where the name and the values say so.

    Raises
    ------
    TemplateError
        If the field has too many pixels, or the survey none there.
    ArchiveError
        If the service fails or does not know the survey; what it said is in the message.
    """
    ny, nx = (size + 2 * MARGIN for size in footprint.shape)
    if footprint.wcs.sip is not None:
        upscale = 1
    while upscale > 1 and ny * nx * upscale**2 > MOST_PIXELS:
        upscale -= 1
    if ny * nx > MOST_PIXELS:
        raise TemplateError(f"hips2fits draws up to {MOST_PIXELS} pixels, and the field has {ny * nx}")
    ny, nx = ny * upscale, nx * upscale
    wcs = finer(footprint.wcs, upscale)
    cards = {**wcs.to_header(relax=True), "NAXIS1": nx, "NAXIS2": ny}
    query = {"hips": hips, "width": nx, "height": ny, "format": "fits", "wcs": json.dumps(cards)}
    path = archive.fetch(f"{base}?{urlencode(query)}", starts=(b"SIMPLE",))
    with discarded_if_damaged(path):
        values, header = open_image(path)
    if values.shape != (ny, nx):
        raise TemplateError(f"hips2fits sent {values.shape} pixels for {hips}; delete {path}, and try again")
    scaled = asinh if asinh is not None else on_asinh_scale(hips, values)
    flux = np.asarray(linear_flux(values) if scaled else values, np.float32)
    bad = ~np.isfinite(flux)
    if bad.all() or np.ptp(flux[~bad]) == 0:
        raise TemplateError(f"HiPS {hips} holds nothing at RA {footprint.ra:.4f}, Dec {footprint.dec:.4f}")
    # pixels that hold one value of the survey's do not average its noise
    alike = min(repeats(values), float(upscale**2))
    error = sky_noise(flux, bad, None) * np.float32(np.sqrt(alike))
    yield SkyImage(flux, error, bad, wcs, "unknown", None, hips, kept_cards(header) | {"asinh": bool(scaled)})


def on_asinh_scale(hips: str, values: ArrayLike) -> bool:
    """Whether a HiPS is on Pan-STARRS' asinh scale: all of that survey but g, whose values are fluxes.

    The survey's maps are being replaced: values that would be a flux of 10^12 are no magnitudes.
    """
    name = hips.lower().replace("-", "")
    if "panstarrs" not in name or name.endswith("/g"):
        return False
    return not np.nanmax(np.abs(values), initial=0.0) > _HIGHEST


def repeats(values: ArrayLike) -> float:
    """How many pixels hold one value, where the nearest was taken: by neighbours that are equal."""
    values, area = np.asarray(values), 1.0
    for axis in (0, 1):
        steps = np.diff(values, axis=axis)
        steps = steps[np.isfinite(steps)]
        if steps.any():
            area *= steps.size / np.count_nonzero(steps)
    return area


def linear_flux(values: ArrayLike) -> NDArray[np.float64]:
    """Flux of Pan-STARRS' asinh scale where its softening is one: exp(a) - exp(-a), a = 0.4 ln(10) value."""
    with np.errstate(over="ignore"):
        return 2 * np.sinh(0.4 * np.log(10) * np.asarray(values, float))


def finer(wcs: WCS, factor: int) -> WCS:
    """The same sky, and a margin around it, in pixels a factor smaller along each edge.

    Raises
    ------
    TemplateError
        If the field's WCS has distortions: its polynomials run over its own pixels.
    """
    if factor > 1 and wcs.sip is not None:
        raise TemplateError("the field's WCS is distorted, and cannot be asked for in finer pixels")
    found = wcs.deepcopy()
    found.wcs.crpix = (np.asarray(wcs.wcs.crpix) + MARGIN - 0.5) * factor + 0.5
    if found.wcs.has_cd():
        found.wcs.cd = found.wcs.cd / factor
    else:
        found.wcs.cdelt = np.asarray(found.wcs.cdelt) / factor
    found.wcs.set()
    return found
