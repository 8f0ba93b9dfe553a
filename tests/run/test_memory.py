"""Memory that a worker frees: used again within a unit, given back after it."""

import os
import subprocess
import sys

import pytest

# What a Dask nanny gives its workers, and what a unit does: many chunks, each freed at once.
CODE = """
import resource, sys, contextlib
import numpy as np
from survey.run.memory import kept_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(300):
        np.ones(1 << 19, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
with kept_memory() if sys.argv[1] == "kept" else contextlib.nullcontext():
    sys.exit(0 if faults() > 10_000 else 3)
"""


def many_faults(how):
    done = subprocess.run(
        [sys.executable, "-c", CODE, how], env={**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}, check=False
    )
    assert done.returncode in (0, 3)
    return done.returncode == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator only")
def test_chunks_do_not_fault_their_pages_in_each_time():
    assert many_faults("as dask has it")
    assert not many_faults("kept")
