"""The command `survey`: thin words over the public functions. Heavy imports wait until they are needed.

A group of commands is a module here that joins its commands to `survey.cli._group.main`; name it below.
"""

from survey.cli import (  # noqa: F401  (commands join main)
    cluster,
    export,
    pairs,
    results,
    running,
    service,
    simulated,
    stages,
    templates,
    upkeep,
)
from survey.cli._group import main

__all__ = ["main"]
