"""Every stage there is, so that a worker or a command finds one by its name."""

from survey.stages import candidates, detect, oversampled, photometry, place, psf, refine

__all__ = ["candidates", "detect", "oversampled", "photometry", "place", "psf", "refine"]
