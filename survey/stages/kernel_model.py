"""How large a kernel is, and how it may change over a field: as set, or from the widths of the PSFs."""

from __future__ import annotations

import numpy as np

from survey.config import Config
from survey.io.store import Field
from survey.kernels._sfft_fit import KernelModel
from survey.stages.calibrated import calibrated_frames, psf_widths
from survey.stages.template_records import template_looks

# Kernels beyond this are no seeing's.
_WIDEST = 15
# Edges of fields, in pixels, from which on a kernel may change linearly, and as a parabola: a PSF hardly does
# over less, and what the polynomials then follow at the edges is noise.
_ORDER_EDGES = (40, 80)


def kernel_size(field: Field, config: Config) -> int:
    """Edge of the kernel in pixels: as set, or from how much the PSFs of frames and template differ."""
    looks = template_looks(field, config.subtraction.template)
    return config.subtraction.kernel_size or kernel_edge(psf_widths(calibrated_frames(field)), *looks)


def kernel_edge(widths: tuple[float, float], template: float = np.nan, offset: float = np.nan) -> int:
    """Edge of the kernel that makes one PSF, by its FWHM, of another; 7 where nobody knows them.

    ``widths`` are the sharpest frames' and the broadest's; ``template`` is a template's that is not made of
    them, and ``offset`` how far its stars lie from theirs.
    """
    if not np.isfinite(widths).all():
        return 7
    known = [*widths, template] if np.isfinite(template) else [*widths]
    sigma = np.sqrt(max(known) ** 2 - min(known) ** 2) / 2.355
    half = min(max(1, int(np.ceil(3 * sigma))), _WIDEST // 2)
    # any kernel reaches a third of a pixel further
    moved = max(0, int(np.ceil(offset - 1 / 3))) if np.isfinite(offset) else 0
    return 2 * (half + moved) + 1


def kernel_order(shape: tuple[int, int], config: Config) -> int:
    """Degree of the kernel over a field of a shape: as set, or 2, but less over very few pixels."""
    wanted = config.subtraction.kernel_order
    return sum(min(shape) >= edge for edge in _ORDER_EDGES) if wanted is None else wanted


def model_of(field: Field, config: Config) -> KernelModel:
    """The kernel's model over the whole grid."""
    s = config.subtraction
    size = kernel_size(field, config)
    return KernelModel(
        (size, size), kernel_order(field.shape, config), s.flux_order, s.background_order, field.shape
    )
