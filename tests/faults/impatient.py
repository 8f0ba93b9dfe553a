"""A scheduler that loads this gives a task up at its first dead worker: no test waits for four."""


def dask_setup(scheduler):
    """Called by the scheduler when it starts."""
    scheduler.allowed_failures = 0
