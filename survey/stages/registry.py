"""Every stage there is, so that a worker or a command finds one by its name."""

from survey.stages import (
    candidates,
    cpm,
    detect,
    frame_psf,
    hotpants,
    nn2,
    nn2_carried,
    nn2_pairs,
    nn2_scales,
    oversampled,
    photometry,
    place,
    psf,
    refine,
    sfft,
    zogy,
)

__all__ = [
    "candidates",
    "cpm",
    "detect",
    "frame_psf",
    "hotpants",
    "nn2",
    "nn2_carried",
    "nn2_pairs",
    "nn2_scales",
    "oversampled",
    "photometry",
    "place",
    "psf",
    "refine",
    "sfft",
    "zogy",
]
