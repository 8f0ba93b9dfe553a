"""A worker that loads this kills itself once at each moment that a file of the folder $DYING asks for.

``measure``: when it is to look at a frame; ``reference``: when it has written some arrays of a reference
and others not yet.
"""

import os
import signal
from contextlib import suppress
from pathlib import Path


def die(moment):
    """Die if nobody else has died of this yet."""
    with suppress(FileNotFoundError):
        (Path(os.environ["DYING"]) / moment).unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def dask_setup(worker):
    """Called by the worker when it starts."""
    from survey.io.store import Field
    from survey.stages import measure

    look, write = measure.measure_frame, Field.write

    def dying_look(*args):
        die("measure")
        return look(*args)

    def dying_write(self, group, arrays, region):
        if group == "reference":
            names = sorted(arrays)
            write(self, group, {name: arrays[name] for name in names[:3]}, region)
            die("reference")
        return write(self, group, arrays, region)

    dying_look.__module__, dying_look.__qualname__ = look.__module__, look.__qualname__
    measure.measure_frame, Field.write = dying_look, dying_write
