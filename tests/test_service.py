"""The service: what it answers, and that no request leads out of the folder that it serves."""

import json
import shutil
import socket
import threading
import urllib.error
import urllib.request
from http.client import HTTPConnection

import pytest

from survey.service.paths import OutsideError, field_in, place_in
from survey.service.server import Service


@pytest.fixture(scope="module")
def server(finished, tmp_path_factory):
    """A folder with two fields, one of them in a folder of its own; beside it one that nobody may see."""
    folder = tmp_path_factory.mktemp("service")
    root = folder / "fields"
    shutil.copytree(finished.path, root / "bulge")
    (root / "season").mkdir()
    (root / "season" / "one").symlink_to(root / "bulge")
    (folder / "secret").symlink_to(finished.path)
    (root / "way-out").symlink_to(folder / "secret")
    (root / "bulge" / "report.html").write_text("<p>a report</p>")
    with Service(root) as service:
        thread = threading.Thread(target=service.serve_forever, daemon=True)
        thread.start()
        yield service
        service.shutdown()
        thread.join()


def ask(server, path, method="GET", **headers):
    """Status and body of a request; the path goes out as it is, with all its dots."""
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    status, body = answer.status, answer.read().decode()
    connection.close()
    return status, body


def test_it_says_what_there_is_and_what_was_found(server, finished):
    assert json.loads(ask(server, "/fields")[1]) == {"fields": ["bulge", "season/one"]}
    status, body = ask(server, "/fields/bulge/status")
    assert status == 200
    assert json.loads(body)["runs"][-1]["state"] == "done"
    assert ask(server, "/fields/season/one/status")[0] == 200
    events = ask(server, "/fields/bulge/events")[1].splitlines()
    assert len(events) == finished.summary.events + 1
    curve = ask(server, "/fields/bulge/lightcurve?event=E00001")[1].splitlines()
    assert len(curve) == 73
    assert ask(server, "/fields/bulge/report.html") == (200, "<p>a report</p>")
    assert ask(server, "/fields/nobody/status")[0] == 404
    assert ask(server, "/fields/bulge/events?method=sfft")[0] == 409
    assert ask(server, "/fields/bulge/nonsense")[0] == 404


@pytest.mark.parametrize("method", ["../../../private/pay", "{root}/../private/pay", "", "..", "nonsense"])
def test_no_method_leads_out_of_the_folder(server, method):
    private = server.root.parent / "private"
    private.mkdir(exist_ok=True)
    shutil.copy(server.root / "bulge" / "events" / "oversampled.parquet", private / "pay.parquet")
    # an empty value is none given, as everywhere in requests
    query = urllib.request.quote(method.format(root=server.root)) or "%20"
    for what in ("events", "status", "lightcurve"):
        status, body = ask(server, f"/fields/bulge/{what}?x=1&y=1&method={query}")
        assert status == 409, body
        assert "method" in body


NAMES = [
    "..", ".", "", "../secret", "bulge/../../secret", "bulge/..", "/etc", "//etc/passwd", "~root", "way-out",
    "bulge/./cube.zarr", "..\\secret", "s3://bucket/field", "file:///etc", "bulge\0", "...", "bulge/ /x",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_no_name_leads_out_of_the_folder(server, name):
    with pytest.raises((OutsideError, FileNotFoundError)):
        field_in(server.root, name)
    # As a client writes it that tidies nothing up; encoded; with the slashes encoded, too.
    plain = urllib.request.quote(name, safe="/.~\\:")
    for path in (plain, urllib.request.quote(name), urllib.request.quote(name, safe="").replace(".", "%2e")):
        for end in ("status", "report.html"):
            status, body = ask(server, f"/fields/{path}/{end}")
            assert status in (400, 404), (path, body)
            assert "tiles" not in body


def test_links_are_followed_before_they_are_judged(server, tmp_path):
    assert place_in(server.root, "season/one") == server.root.resolve() / "bulge"
    with pytest.raises(OutsideError, match="outside the folder"):
        place_in(server.root, "way-out")
    report = server.root / "bulge" / "report.html"
    kept = report.read_text()
    (tmp_path / "private").write_text("secret")
    report.unlink()
    report.symlink_to(tmp_path / "private")
    try:
        assert ask(server, "/fields/bulge/report.html")[0] == 400
    finally:
        report.unlink()
        report.write_text(kept)


def test_changes_need_the_token_and_pages_of_others_get_nothing(server, monkeypatch):
    submitted = []
    monkeypatch.setattr(
        "survey.service.server.submit", lambda field, config: submitted.append(field) or "run-1"
    )
    known = {"Authorization": f"Bearer {server.token}"}
    assert ask(server, "/fields/bulge/run", "POST")[0] == 401
    assert ask(server, "/fields/bulge/run", "POST", Authorization="Bearer guess")[0] == 401
    assert ask(server, "/fields/bulge/run", "GET", **known)[0] == 404
    assert ask(server, "/fields/way-out/run", "POST", **known)[0] == 400
    assert submitted == []
    assert json.loads(ask(server, "/fields/bulge/run", "POST", **known)[1]) == {"run_id": "run-1"}
    assert submitted == [server.root.resolve() / "bulge"]
    assert ask(server, "/fields/bulge/cancel", "POST", **known)[0] == 409
    assert ask(server, "/fields", Host="evil.example:80")[0] == 403


def test_it_listens_on_loopback_only(tmp_path):
    with pytest.raises(ValueError, match="loopback only"):
        Service(tmp_path, "0.0.0.0")
    with pytest.raises(ValueError, match="no folder"):
        Service(tmp_path / "none")


def test_it_listens_on_the_other_loopback_too(tmp_path):
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"this machine has no ::1: {error}")
    with Service(tmp_path, "::1") as service:
        thread = threading.Thread(target=service.serve_forever, daemon=True)
        thread.start()
        with urllib.request.urlopen(f"{service.url}/fields", timeout=30) as answer:
            assert json.load(answer) == {"fields": []}
        service.shutdown()
        thread.join()
