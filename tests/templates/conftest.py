"""The local archive server, and a client of it that does not wait."""

import pytest

from survey.templates.fetch import Archive
from tests.templates.server import serve


@pytest.fixture
def server(monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    with serve() as served:
        yield served


@pytest.fixture
def archive(tmp_path):
    """Fetches into a folder of the test; what it waited is in ``archive.waited``."""
    waited = []
    found = Archive(folder=tmp_path / "cache", timeout=10.0, sleep=waited.append)
    found.waited = waited
    return found
