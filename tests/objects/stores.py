"""Stores of other kinds: a real S3 server, Azure's emulator, and what a field asks of Google's.

Ceph and Azurite are no packages of the project: their tests are slow, and say what is missing where they are
skipped. All listen on loopback, keep their objects in memory, and are ended by their process ids.
"""

import base64
import hashlib
import hmac
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from contextlib import ExitStack, contextmanager
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.faults.harness import wait_for
from tests.objects.bucket_server import KEY_ID, SECRET

LOG = logging.getLogger(__name__)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def new_name():
    """Of a bucket: a process keeps what it opened by its URL, and each server is another."""
    return f"fields-{uuid.uuid4().hex[:8]}"


def listens(port):
    with socket.socket() as knock:
        return knock.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def environment(**settings):
    """These environment variables; what was there before comes back."""
    old = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in old.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def running(log, *command):
    """A process of its own, ended by its id; what it prints goes into a file."""
    with log.open("ab") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=printed, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def need(*programs, how):
    """Skip where a program is missing."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on the PATH ({how})")


@contextmanager
def ceph(folder):
    """A bucket of Ceph's RADOS Gateway over one monitor and one OSD that keeps its objects in memory."""
    need(
        "ceph-mon", "ceph-osd", "ceph-mgr", "radosgw", "monmaptool", "ceph", "radosgw-admin",
        how="Debian: ceph-mon ceph-osd ceph-mgr radosgw ceph-common",
    )  # fmt: skip
    monitor, gateway, fsid = free_port(), free_port(), str(uuid.uuid4())
    conf = folder / "ceph.conf"
    conf.write_text(
        f"""[global]
fsid = {fsid}
mon initial members = a
mon host = [v1:127.0.0.1:{monitor}]
ms bind msgr2 = false
public addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd crush chooseleaf type = 0
mon allow pool size one = true
osd objectstore = memstore
memstore device bytes = 4294967296
run dir = {folder}
admin socket = {folder}/$name.$pid.asok
log file = {folder}/$name.log
mon data = {folder}/mon
osd data = {folder}/osd
mgr data = {folder}/mgr
mgr initial modules =
"""
    )
    for name in ("mon", "osd", "mgr"):
        (folder / name).mkdir()
    log, map_file = folder / "printed.log", folder / "monmap"

    def do(program, *words):
        done = subprocess.run(
            [program, "-c", str(conf), *words], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, f"{program} {words}: {done.stdout}{done.stderr}"
        return done.stdout

    subprocess.run(
        ["monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v1:127.0.0.1:{monitor}]", str(map_file)],
        check=True, capture_output=True,
    )  # fmt: skip
    do("ceph-mon", "--mkfs", "-i", "a", "--monmap", str(map_file))
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{gateway}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }
    with ExitStack() as stack:
        stack.enter_context(running(log, "ceph-mon", "-c", str(conf), "-i", "a", "-f"))
        osd = do("ceph", "osd", "new", fsid).strip()
        do("ceph-osd", "-i", osd, "--mkfs", "--osd-uuid", fsid)
        stack.enter_context(running(log, "ceph-osd", "-c", str(conf), "-i", osd, "-f"))
        stack.enter_context(running(log, "ceph-mgr", "-c", str(conf), "-i", "x", "-f"))
        do(
            "radosgw-admin", "user", "create", "--uid=tests", "--display-name=tests",
            f"--access-key={KEY_ID}", f"--secret-key={SECRET}",
        )  # fmt: skip
        front = f"beast endpoint=127.0.0.1:{gateway}"
        stack.enter_context(
            running(log, "radosgw", "-c", str(conf), "-n", "client.rgw", "-f", f"--rgw-frontends={front}")
        )
        wait_for(lambda: listens(gateway), 90, "the gateway")
        with environment(**settings):
            name = new_name()
            make_s3_bucket(settings, name)
            yield f"s3://{name}"


def make_s3_bucket(settings, name):
    """Make a bucket by a signed request."""
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    request = AWSRequest("PUT", f"{settings['AWS_ENDPOINT_URL']}/{name}")
    who = Credentials(settings["AWS_ACCESS_KEY_ID"], settings["AWS_SECRET_ACCESS_KEY"])
    S3SigV4Auth(who, "s3", settings["AWS_REGION"]).add_auth(request)
    asked = urllib.request.Request(request.url, method="PUT", headers=dict(request.headers))
    urllib.request.urlopen(asked).close()


@contextmanager
def google(folder):
    """A bucket of the tests' own server of Google's XML API."""
    file = folder / "port"
    command = (sys.executable, str(Path(__file__).with_name("google_server.py")), str(file))
    with running(folder / "printed.log", *command):
        port = wait_for(lambda: file.exists() and file.read_text(), 30, "the server")
        # An account whose requests are not signed, at another address than Google's.
        account = {"gcs_base_url": f"http://127.0.0.1:{port}", "disable_oauth": True}
        account |= dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
        with environment(GOOGLE_SERVICE_ACCOUNT_KEY=json.dumps(account), GOOGLE_ALLOW_HTTP="true"):
            yield f"gs://{new_name()}"


# What every emulator of Azure's storage goes by; no secret.
AZURE_NAME = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@contextmanager
def azure(folder):
    """A container of Azurite."""
    need("azurite-blob", how="npm: azurite")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = (
        "azurite-blob", "--blobHost", "127.0.0.1", "--blobPort", str(port), "--silent",
        "--skipApiVersionCheck", "--disableTelemetry", "--inMemoryPersistence",
    )  # fmt: skip
    settings = {
        "AZURE_STORAGE_USE_EMULATOR": "true",
        "AZURITE_BLOB_STORAGE_URL": address,
        "AZURE_STORAGE_ACCOUNT_NAME": AZURE_NAME,
        "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY,
    }
    with running(folder / "printed.log", *command), environment(**settings):
        wait_for(lambda: listens(port), 60, "Azurite")
        name = new_name()
        make_container(address, name)
        yield f"az://{name}"


def make_container(address, name):
    """Make a container by a request signed with the account's key."""
    date, version = formatdate(usegmt=True), "2021-08-06"
    resource = f"/{AZURE_NAME}/{AZURE_NAME}/{name}\nrestype:container"
    text = f"PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{date}\nx-ms-version:{version}\n{resource}"
    digest = hmac.new(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256).digest()
    signed = f"SharedKey {AZURE_NAME}:{base64.b64encode(digest).decode()}"
    headers = {"x-ms-date": date, "x-ms-version": version, "Authorization": signed}
    asked = urllib.request.Request(
        f"{address}/{AZURE_NAME}/{name}?restype=container", method="PUT", headers=headers
    )
    urllib.request.urlopen(asked).close()


SERVERS = {"ceph": ceph, "google": google, "azure": azure}
OTHERS = ["google", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ceph", "azure"))]


@contextmanager
def other_store(name, folder):
    """URL of an empty bucket in a store of another kind, and the environment that opens it."""
    pytest.importorskip("obstore", reason="needs the extra `objects`")
    began = time.monotonic()
    with SERVERS[name](folder) as url:
        LOG.info("%s: up in %.1f s", name, time.monotonic() - began)
        yield url
