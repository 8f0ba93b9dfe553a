"""The command `survey`: thin words over the public functions. Heavy imports wait until they are needed.

A group of commands is a module here that joins its commands to `survey.cli._group.main`; name it below.
"""

from survey.cli import cluster, results, running, simulated, stages, upkeep  # noqa: F401  (commands join main)
from survey.cli._group import main

__all__ = ["main"]
