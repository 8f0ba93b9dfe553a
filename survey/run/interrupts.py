"""Preloaded by the workers of an embedded cluster: Ctrl-C is for the process that started them."""

from __future__ import annotations

import signal
from typing import Any


def dask_setup(worker: Any) -> None:
    """Let a terminal's interrupt, which reaches its whole process group, pass by this worker.

    The run's own process is interrupted, tells it, and ends its workers; one that was interrupted by itself
    would print a traceback over that.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
