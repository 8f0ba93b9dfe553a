"""Plans a run, runs its units on Dask, records them: the only part of `survey` that imports distributed.

``survey.run`` is both this package and the function a person calls: ``survey.run("field")`` is
`survey.run.api.run`, whose documentation says what it takes.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    """Importing a package binds its name in the parent, so the function of that name must be the package."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from survey.run.api import run

        return run(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
