"""Effective PSFs and PSF photometry: the public names.

A sample of the cube is the effective (pixel-integrated) PSF at the distance of the pixel's centre from the
star (Anderson & King 2000, PASP 112, 1360), so an undersampled, dithered field is sampled from one smooth
function. `_epsf` holds that function, `_epsf_build` makes it from the field's own stars, `_psf_flux` and
`_psf_position` fit it.
"""

from survey.kernels._epsf import EffectivePSF, from_oversampled, gaussian_epsf
from survey.kernels._epsf_build import EPSFFit, build_epsf, fit_epsf
from survey.kernels._epsf_reference import build_epsf_from_reference, reference_stamps, select_psf_stars
from survey.kernels._psf_flux import Magnitudes, fit_psf_flux, psf_magnitudes, stamp_psf
from survey.kernels._psf_position import Motion, PositionFit, measure_motion, refine_position

__all__ = [
    "EPSFFit",
    "EffectivePSF",
    "Magnitudes",
    "Motion",
    "PositionFit",
    "build_epsf",
    "build_epsf_from_reference",
    "fit_epsf",
    "fit_psf_flux",
    "from_oversampled",
    "gaussian_epsf",
    "measure_motion",
    "psf_magnitudes",
    "reference_stamps",
    "refine_position",
    "select_psf_stars",
    "stamp_psf",
]
