"""The group that every command joins, and how it shows errors."""

from __future__ import annotations

import atexit
import sys
from contextlib import suppress
from typing import Any

import click

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Failed(click.ClickException):
    """Something that a person can mend: shown without a traceback."""


def _await_zarr() -> None:
    """Wait for Zarr's thread to leave what was interrupted.

    Its own farewell gives it a fifth of a second and prints a traceback then. Called before that one, as what
    is registered later is called earlier.
    """
    with suppress(ImportError, AttributeError, IndexError, RuntimeError):
        from zarr.core import sync

        loop, thread = sync.loop[0], sync.iothread[0]
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(timeout=30)


class _Group(click.Group):
    """Shows expected errors as one line, and interruptions as what they are."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.exceptions.Abort):
            raise
        except KeyboardInterrupt:
            atexit.register(_await_zarr)
            click.echo("\ninterrupted; what was done is kept: run the same command again to resume", err=True)
            sys.exit(130)
        except (ValueError, RuntimeError, OSError) as error:
            if ctx.params.get("traceback"):
                raise
            raise Failed(f"{error}") from None


@click.group(name="survey", cls=_Group, context_settings=CONTEXT)
@click.option("--traceback", is_flag=True, help="Show Python tracebacks of errors.")
@click.version_option(package_name="survey")
def main(traceback: bool) -> None:
    """Difference imaging and event search for image time series.

    \b
    survey demo                          a simulated field through everything
    survey run night/*.fits -o field     frames in; differences, events and light curves out
    survey events field                  what was found
    survey report field                  the page to look at
    """
