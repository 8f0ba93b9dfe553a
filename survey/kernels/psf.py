"""Effective PSFs and PSF photometry: the public names.

A sample of the cube is the effective (pixel-integrated) PSF at the distance of the pixel's centre from the
star (Anderson & King 2000, PASP 112, 1360), so an undersampled, dithered field is sampled from one smooth
function. `_epsf` holds that function, `_epsf_build` makes it from the field's own stars, `_psf_flux` and
`_psf_position` fit it.
"""

from ._epsf import EffectivePSF, from_oversampled, gaussian_epsf
from ._psf_flux import Magnitudes, fit_psf_flux, psf_magnitudes, stamp_psf
from ._psf_position import Motion, PositionFit, measure_motion, refine_position

__all__ = [
    "EffectivePSF",
    "Magnitudes",
    "Motion",
    "PositionFit",
    "fit_psf_flux",
    "from_oversampled",
    "gaussian_epsf",
    "measure_motion",
    "psf_magnitudes",
    "refine_position",
    "stamp_psf",
]
