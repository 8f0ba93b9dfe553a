"""Fetching: kept, retried, resumed; errors that say what failed and what to do."""

import http.client
import socket
import ssl
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

import pytest

from survey.templates.fetch import Archive, ArchiveError, NotInArchiveError, default_folder

CONTENT = bytes(range(256)) * 4000  # a megabyte in several reads


def test_a_file_is_fetched_once(server, archive):
    server.files["/a.fits"] = CONTENT
    first = archive.fetch(f"{server.url}/a.fits")
    second = archive.fetch(f"{server.url}/a.fits")
    assert first == second
    assert first.read_bytes() == CONTENT
    assert len(server.requests) == 1
    assert "Authorization" not in server.requests[0][1]
    left = {file.name for file in first.parent.iterdir()}
    assert left == {first.name, f".{first.name}.lock"}


def test_addresses_are_kept_apart_by_their_whole_text(server, archive):
    server.files["/cut"] = lambda query: (200, query["x"].encode())
    paths = [archive.fetch(f"{server.url}/cut?x={x}") for x in (1, 2)]
    assert [path.read_text() for path in paths] == ["1", "2"]


def test_a_broken_connection_is_resumed(server, archive):
    server.files["/a.fits"], server.trouble["/a.fits"] = CONTENT, ["cut 300000", "cut 100000"]
    assert archive.fetch(f"{server.url}/a.fits").read_bytes() == CONTENT
    ranges = [headers.get("Range") for headers in server.asked("/a.fits")]
    assert ranges == [None, "bytes=300000-", "bytes=400000-"]
    assert archive.waited == [1.0, 2.0]


def test_an_answer_in_chunks_that_breaks_off_is_not_kept_as_whole(server, archive):
    server.files["/a.fits"], server.trouble["/a.fits"] = CONTENT, ["chunks cut 300000", "chunks cut 0"]
    assert archive.fetch(f"{server.url}/a.fits").read_bytes() == CONTENT
    ranges = [headers.get("Range") for headers in server.asked("/a.fits")]
    assert ranges == [None, "bytes=300000-", "bytes=300000-"]
    server.files["/b.fits"], server.trouble["/b.fits"] = CONTENT, ["chunks cut 1000"] * 5
    with pytest.raises(ArchiveError, match="connection broke after 5000 bytes"):
        archive.fetch(f"{server.url}/b.fits")
    assert not archive.path_of(f"{server.url}/b.fits").exists()


def test_what_another_process_began_is_gone_on_with(server, archive):
    server.files["/a.fits"], server.trouble["/a.fits"] = CONTENT, ["cut 300000"]
    archive.attempts = 1
    with pytest.raises(ArchiveError, match="broke after 300000 bytes"):
        archive.fetch(f"{server.url}/a.fits")
    again = Archive(folder=archive.folder)
    assert again.fetch(f"{server.url}/a.fits").read_bytes() == CONTENT
    assert server.asked("/a.fits")[1]["Range"] == "bytes=300000-"


def test_a_file_that_changed_meanwhile_is_fetched_anew(server, archive):
    server.files["/a.fits"], server.trouble["/a.fits"] = CONTENT, ["cut 300000"]

    def change(seconds):
        server.files["/a.fits"], server.etag = CONTENT[::-1], '"two"'

    archive.sleep = change
    assert archive.fetch(f"{server.url}/a.fits").read_bytes() == CONTENT[::-1]


def test_a_server_without_validators_is_asked_for_all_again(server, archive):
    server.etag = None
    server.files["/a.fits"], server.trouble["/a.fits"] = CONTENT, ["cut 300000"]
    assert archive.fetch(f"{server.url}/a.fits").read_bytes() == CONTENT
    assert [headers.get("Range") for headers in server.asked("/a.fits")] == [None, None]


def test_passing_errors_are_waited_out(server, archive):
    server.files["/a"] = b"now"
    server.trouble["/a"] = [503, (429, {"Retry-After": "7"}, b""), 500]
    assert archive.fetch(f"{server.url}/a").read_bytes() == b"now"
    assert archive.waited == [1.0, 7.0, 4.0]


def test_a_date_to_retry_after_is_understood(server, archive):
    server.files["/a"] = b"now"
    server.trouble["/a"] = [(503, {"Retry-After": formatdate(time.time() + 40, usegmt=True)}, b"")]
    archive.fetch(f"{server.url}/a")
    assert 30 < archive.waited[0] <= 40


def test_an_archive_that_stays_down_is_an_error(server, archive):
    server.files["/a"], server.trouble["/a"] = b"", [503] * 9
    with pytest.raises(ArchiveError, match=r"HTTP 503 .*\(5 attempts\).*try again later"):
        archive.fetch(f"{server.url}/a")
    assert archive.waited == [1.0, 2.0, 4.0, 8.0]


def test_what_is_not_there_is_not_asked_for_again(server, archive):
    with pytest.raises(NotInArchiveError, match="HTTP 404"):
        archive.fetch(f"{server.url}/gone.fits")
    assert len(server.requests) == 1


def test_a_refusal_says_the_server_s_reason(server, archive):
    body = b'{"title": "Bad Request", "description": "HiPS nonsense is not known"}'
    server.trouble["/a"] = [(400, {}, body)]
    with pytest.raises(ArchiveError, match=r"HTTP 400 .*HiPS nonsense is not known"):
        archive.fetch(f"{server.url}/a")


def test_a_page_that_says_sorry_is_not_kept(server, archive):
    server.files["/a.fits"] = b"<html>maintenance</html>"
    with pytest.raises(ArchiveError, match=r"sent something else than asked for: .*maintenance"):
        archive.fetch(f"{server.url}/a.fits", starts=(b"SIMPLE",))
    server.files["/a.fits"] = b"SIMPLE  = T"
    assert archive.fetch(f"{server.url}/a.fits", starts=(b"SIMPLE",)).read_bytes() == b"SIMPLE  = T"


def test_a_connection_whose_encryption_breaks_is_resumed(server, archive, monkeypatch):
    """Once an answer has begun, such failures are not wrapped by urllib."""
    read, reads = http.client.HTTPResponse.read, []

    def breaking(self, amount=None):
        reads.append(amount)
        if len(reads) == 2:
            raise ssl.SSLError("decryption failed or bad record mac")
        return read(self, amount)

    monkeypatch.setattr(http.client.HTTPResponse, "read", breaking)
    server.files["/a.fits"] = CONTENT
    assert archive.fetch(f"{server.url}/a.fits").read_bytes() == CONTENT
    assert archive.waited == [1.0]
    assert server.asked("/a.fits")[1]["Range"] == f"bytes={1 << 18}-"


def test_an_error_whose_page_breaks_off_is_that_error(server, archive, monkeypatch):
    server.files["/a"], server.trouble["/a"] = b"now", [503]

    def breaking(self, amount=None):
        raise http.client.IncompleteRead(b"")

    with monkeypatch.context() as patch:
        patch.setattr(urllib.error.HTTPError, "read", breaking, raising=False)
        assert archive.fetch(f"{server.url}/a").read_bytes() == b"now"
    assert archive.waited == [1.0]


def test_without_a_network_the_message_says_so(archive):
    with socket.socket() as free:  # a port that nobody listens on
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ArchiveError, match=r"cannot be reached: .*Is there a network"):
        archive.fetch(f"http://127.0.0.1:{port}/a")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/a", "nonsense"])
def test_only_http_is_fetched(archive, url):
    with pytest.raises(ArchiveError, match="not an http address"):
        archive.fetch(url)


def test_many_at_once_make_one_request(server, archive):
    server.files["/a.fits"] = CONTENT
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(archive.fetch, [f"{server.url}/a.fits"] * 8))
    assert len(set(paths)) == 1
    assert len(server.requests) == 1


def test_the_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("SURVEY_CACHE", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.delenv("SURVEY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert default_folder() == tmp_path / "x" / "survey"
