"""Every stage there is, so that a worker or a command finds one by its name."""

from survey.stages import oversampled, photometry, place

__all__ = ["oversampled", "photometry", "place"]
