"""Difference imaging and event search for image time series, from a laptop to a Dask cluster.

Frames go in, a cube stands in the middle, differences, events and light curves come out:

>>> import survey
>>> summary = survey.run("field", frames=["night/*.fits"])  # doctest: +SKIP
>>> survey.list_events("field")  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from survey.config import Config as Config
    from survey.config import load_config as load_config
    from survey.io.store import open_field as open_field
    from survey.run.api import append_frames as append_frames
    from survey.run.api import create_field as create_field
    from survey.run.api import run as run
    from survey.run.cubes import create_field_from_cube as create_field_from_cube
    from survey.run.export import export as export
    from survey.run.results import light_curve as light_curve
    from survey.run.results import list_events as list_events
    from survey.run.template import make_template as make_template
    from survey.simulate import simulate_field as simulate_field

__version__ = version("survey")

# Loaded when first asked for: the cube and the cluster take a second to import, the name of a command none.
_HOMES = {
    "Config": "survey.config",
    "load_config": "survey.config",
    "open_field": "survey.io.store",
    "append_frames": "survey.run.api",
    "create_field": "survey.run.api",
    "create_field_from_cube": "survey.run.cubes",
    "export": "survey.run.export",
    "light_curve": "survey.run.results",
    "list_events": "survey.run.results",
    "make_template": "survey.run.template",
    "simulate_field": "survey.simulate",
}

__all__ = [
    "Config",
    "append_frames",
    "create_field",
    "create_field_from_cube",
    "export",
    "light_curve",
    "list_events",
    "load_config",
    "make_template",
    "open_field",
    "run",
    "simulate_field",
]


def __getattr__(name: str) -> Any:
    if name == "run":  # a callable package: see there
        return import_module("survey.run")
    if name not in _HOMES:
        raise AttributeError(f"module 'survey' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
