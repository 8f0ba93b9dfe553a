"""Shared by all tests: calm clocks, and where the real observations are."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# One server for the whole session: a process keeps what it opened by its URL.
from tests.objects.bucket_server import bucket  # noqa: F401
from tests.small_field import finished, frames, others  # noqa: F401

# Two busy cores: a deadline in milliseconds would test the machine, not the code.
settings.register_profile("survey", deadline=None, max_examples=40, print_blob=True)
settings.load_profile("survey")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real observations; tests that need it skip where it is not."""
    folder = Path(os.environ.get("SURVEY_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real observations are not at {folder} (set SURVEY_TEST_DATA)")
    return folder
