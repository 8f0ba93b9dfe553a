"""What the machine must allow for some of the faults."""

import os
import subprocess

import pytest


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MB, 21 of them taken by ``ballast``."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let the tests mount a small file system (needs root)")
    (folder / "ballast").write_bytes(os.urandom(21 * 2**20))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
