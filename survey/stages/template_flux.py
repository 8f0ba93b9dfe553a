"""A template in the field's flux unit: the field's stars looked for in it, their place and flux compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from survey.io.store import Field
from survey.kernels.aperture import aperture_flux
from survey.kernels.frame_quality import RegistrationError, photometric_scale
from survey.kernels.pixelmap import PixelMap
from survey.kernels.registration import Match, match_stars
from survey.kernels.stars import StarFlag, StarList, find_stars, psf_width
from survey.stages.frame_table import stored_reference
from survey.stages.measure import RING, SCALE_RADII
from survey.stages.register import scale_radius

# So many stars in both, none of them in common: another sky.
_ENOUGH = 10


class OtherSkyError(RegistrationError):
    """Both have stars in plenty, and no shift brings them together."""


@dataclass(frozen=True)
class Comparison:
    """A template beside the field's reference frame.

    Attributes
    ----------
    scale, scale_error : float
        Template flux per reference flux.
    offset : tuple of float
        Median (x, y) of its stars from where the field has them, pixels.
    scatter : float
        Median distance about that, pixels.
    matched : int
        Stars in common.
    psf_fwhm : float
        Of the template on the field's grid, pixels.
    x, y, flux, ratio : array (n,)
        Stars compared: where the field has them, their flux there, and the template's in the field's unit
        over that.
    """

    scale: float
    scale_error: float
    offset: tuple[float, float]
    scatter: float
    matched: int
    psf_fwhm: float
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    flux: NDArray[np.float64]
    ratio: NDArray[np.float64]


def compare(
    field: Field, flux: NDArray[np.float32], error: NDArray[np.float32], mask: NDArray[np.bool_]
) -> Comparison:
    """Find the field's stars in a template on its grid.

    Raises
    ------
    OtherSkyError
        If both have many and no shift brings them together.
    RegistrationError
        If too few are found.
    """
    reference = stored_reference(field.table("stars"))
    found = find_stars(flux, error, mask)
    width = psf_width(found)[0] if found.clean.sum() >= 3 else np.nan
    match = _match(found, reference.stars)
    i, j = match.index, match.reference_index
    dx, dy = found.x[i] - reference.stars.x[j], found.y[i] - reference.stars.y[j]
    offset = float(np.median(dx)), float(np.median(dy))
    scatter = float(np.median(np.hypot(dx - offset[0], dy - offset[1])))
    good = ((found.flags[i] | reference.stars.flags[j]) & StarFlag.SATURATED) == 0
    i, j = i[good], j[good]
    radius = scale_radius([np.nanmax([reference.psf_fwhm, width])])
    sums = _fluxes(flux, error, mask, found.x[i], found.y[i], SCALE_RADII[radius])
    of_frame = reference.scale_flux[radius][j], reference.scale_error[radius][j]
    bright = np.isfinite(sums[0]) & (sums[0] > 5 * sums[1]) & (of_frame[0] > 5 * of_frame[1])
    if bright.sum() < 3:
        raise RegistrationError(f"{int(bright.sum())} stars in common are bright enough to compare fluxes")
    scale, scale_error = photometric_scale(
        sums[0][bright], of_frame[0][bright], sums[1][bright], of_frame[1][bright]
    )
    true = of_frame[0][bright]
    return Comparison(
        scale, scale_error, offset, scatter, len(match.index), float(width),
        x=reference.stars.x[j][bright], y=reference.stars.y[j][bright],
        flux=true, ratio=sums[0][bright] / (scale * true),
    )  # fmt: skip


def _match(found: StarList, stars: StarList) -> Match:
    """Stars where they should be, or else wherever a shift brings many together."""
    try:
        return match_stars(found, stars, initial=PixelMap.translation(0.0, 0.0), order=0, min_matches=3)
    except RegistrationError as problem:
        try:
            return match_stars(found, stars, order=0, max_rotation=0.0)
        except RegistrationError:
            kind = OtherSkyError if min(len(found), len(stars)) >= _ENOUGH else RegistrationError
            raise kind(*problem.args) from None


def _fluxes(
    flux: NDArray[np.float32],
    error: NDArray[np.float32],
    mask: NDArray[np.bool_],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    radius: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Aperture fluxes as the photometric scale of a frame is taken from."""
    image = np.where(mask, 0.0, flux).astype(float)
    sigma = np.where(mask, 1.0, error).astype(float)
    return aperture_flux(image, sigma, mask, x, y, radius, (radius + RING[0], radius + RING[1]))
