"""What every stage may know of a difference method; how one is run is in `survey.run.methods`."""

from __future__ import annotations

from dataclasses import dataclass

from survey.config import Config
from survey.stages.calibrated import Grid


@dataclass(frozen=True)
class Method:
    """A way to make ``difference/<name>``.

    Parameters
    ----------
    name : str
        As in ``method = "…"`` and in the names of groups and files.
    words : str
        For a person: what it does.
    linear_reference : bool
        Whether its differences are leave-one-out residuals of the per-pixel reference, so that a search
        fits reference and event together.
    """

    name: str
    words: str
    linear_reference: bool = False

    def grid(self, config: Config) -> Grid:
        """The grid its differences live on; a run has settled "auto" for its field (`survey.run.settle`)."""
        if self.name != "cpm":
            return "sky"
        return "detector" if config.cpm.grid == "auto" else config.cpm.grid

    def subtracts_reference(self, config: Config) -> bool:
        """Whether its differences are from the oversampled reference, and no other template."""
        own = self.name == "oversampled" or config.subtraction.template == "reference"
        return self.linear_reference and own

    def n_basis(self, config: Config) -> int:
        """Polynomials an axis that a search has to fit along with an event; 0: none."""
        return config.reference.n_basis if self.subtracts_reference(config) else 0

    def holds_out(self, config: Config) -> bool:
        """Whether no sample has a share in what is subtracted from it, so that ``leverage`` is zero."""
        return self.name == "cpm" and config.cpm.residuals == "held-out"


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("oversampled", "a Legendre reference over the sub-pixel phases", linear_reference=True),
        Method("cpm", "every pixel predicted from pixels too far away to share its stars"),
        Method("sfft", "a template matched by a polynomial kernel", linear_reference=True),
        Method("zogy", "the proper difference from a template, by both PSFs", linear_reference=True),
        Method("hotpants", "a template matched by the external program", linear_reference=True),
    )
}


class MethodError(ValueError):
    """A name that no difference method has."""


def known_method(name: str) -> str:
    """The name itself, which becomes part of paths in the field.

    Raises
    ------
    MethodError
        If no method has it.
    """
    if name not in METHODS:
        raise MethodError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    return name


# Methods that subtract the template which ``[subtraction]`` names.
TEMPLATE_METHODS = frozenset({"sfft", "zogy", "hotpants"})


def method_of(config: Config) -> Method:
    """The method that the settings name."""
    return METHODS[config.method]
