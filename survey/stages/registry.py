"""Every stage there is, so that a worker or a command finds one by its name."""

from survey.stages import candidates, cpm, detect, nn2, oversampled, photometry, place, psf, refine, sfft

__all__ = [
    "candidates",
    "cpm",
    "detect",
    "nn2",
    "oversampled",
    "photometry",
    "place",
    "psf",
    "refine",
    "sfft",
]
