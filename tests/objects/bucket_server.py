"""A bucket of an S3 server that is started for these tests."""

import os
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

SECRET = "a-secret-of-the-tests-7391"
KEY_ID = "KEYIDOFTHETESTS5027"


class Request(NamedTuple):
    method: str
    path: str
    status: int
    size: int
    query: str

    @property
    def kind(self) -> str:
        return "LIST" if self.method == "GET" and "list-type" in self.query else self.method


class Bucket(NamedTuple):
    url: str
    endpoint: str
    log: Path

    def requests(self) -> list[Request]:
        """All requests so far."""
        rows = [line.split("\t") for line in self.log.read_text().splitlines()]
        return [Request(r[0], r[1], int(r[2]), int(r[3]), r[4]) for r in rows]

    def since(self, start: int) -> Counter:
        """Requests by kind since there were so many."""
        return Counter(request.kind for request in self.requests()[start:])


@pytest.fixture(scope="session")
def bucket(tmp_path_factory):
    """An empty bucket, and the environment that opens it."""
    pytest.importorskip("obstore", reason="needs the extra `objects`")
    pytest.importorskip("moto", reason="needs moto[server], of the extra `dev`")
    folder = tmp_path_factory.mktemp("s3")
    log, port = folder / "requests.tsv", folder / "port"
    log.touch()
    server = Path(__file__).with_name("server.py")
    with (
        (folder / "server.log").open("w") as printed,
        subprocess.Popen([sys.executable, server, log, port], stdout=printed, stderr=printed) as process,
    ):
        deadline = time.monotonic() + 120
        while not (port.exists() and port.read_text()):
            assert process.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline, "the S3 server did not start"
            time.sleep(0.05)
        endpoint = f"http://127.0.0.1:{port.read_text()}"
        settings = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }
        old = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/fields", method="PUT")).close()
        try:
            yield Bucket("s3://fields", endpoint, log)
        finally:
            for name, value in old.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            process.kill()
