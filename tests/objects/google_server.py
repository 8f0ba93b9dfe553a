"""Google's storage as far as a field asks of it: its XML API, on loopback, in memory.

Written for these tests after Google's documentation, because no emulator to be had serves what obstore asks:
fake-gcs-server (PyPI's wrapper 0.1.1) answers a plain PUT of the XML API with "invalid uploadType", and
gcp-storage-emulator (2026.7) has neither XML listings nor conditions on generations. Every write raises an
object's generation; ``x-goog-if-generation-match`` holds a write to one (0: none yet); deleting what is not
there is a 404, and nothing deletes many at once.
"""

import hashlib
import sys
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class Stored(NamedTuple):
    data: bytes
    generation: int
    written: float

    @property
    def tag(self):
        return f'"{hashlib.md5(self.data).hexdigest()}"'


OBJECTS: dict[str, Stored] = {}
LOCK = threading.Lock()
PAGE = 1000


class Handler(BaseHTTPRequestHandler):
    """One request; paths are /bucket/object, the bucket is whatever is asked for."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def parts(self):
        split = urlsplit(self.path)
        bucket, _, name = split.path.lstrip("/").partition("/")
        return unquote(bucket), unquote(name), {k: v[0] for k, v in parse_qs(split.query).items()}

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", headers.pop("length", len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, code):
        self.answer(status, f"<Error><Code>{code}</Code></Error>".encode())

    def do_PUT(self):
        bucket, name, _ = self.parts()
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        source = self.headers.get("x-goog-copy-source")
        wanted = self.headers.get("x-goog-if-generation-match")
        with LOCK:
            key = f"{bucket}/{name}"
            if source is not None:
                found = OBJECTS.get(unquote(source).lstrip("/"))
                if found is None:
                    return self.refuse(404, "NoSuchKey")
                data = found.data
            now = OBJECTS[key].generation if key in OBJECTS else 0
            if wanted is not None and int(wanted) != now:
                return self.refuse(412, "PreconditionFailed")
            OBJECTS[key] = stored = Stored(data, max(time.time_ns() // 1000, now + 1), time.time())
        body = b"<CopyObjectResult/>" if source is not None else b""
        return self.answer(200, body, **self.about(stored))

    def about(self, stored):
        return {
            "ETag": stored.tag,
            "x_goog_generation": str(stored.generation),
            "Last_Modified": formatdate(stored.written, usegmt=True),
        }

    def do_GET(self):
        bucket, name, query = self.parts()
        if not name:
            return self.listing(bucket, query)
        stored = OBJECTS.get(f"{bucket}/{name}")
        if stored is None:
            return self.refuse(404, "NoSuchKey")
        asked = self.headers.get("Range")
        if asked is None:
            return self.answer(200, stored.data, **self.about(stored))
        size = len(stored.data)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(size - int(last), 0)
        stop = min(int(last) + 1, size) if first and last else size
        if start >= size:
            return self.refuse(416, "InvalidRange")
        return self.answer(
            206,
            stored.data[start:stop],
            Content_Range=f"bytes {start}-{stop - 1}/{size}",
            **self.about(stored),
        )

    def do_HEAD(self):
        bucket, name, _ = self.parts()
        stored = OBJECTS.get(f"{bucket}/{name}")
        if stored is None:
            return self.answer(404)
        return self.answer(200, stored.data, **self.about(stored))

    def do_DELETE(self):
        bucket, name, _ = self.parts()
        with LOCK:
            gone = OBJECTS.pop(f"{bucket}/{name}", None)
        return self.refuse(404, "NoSuchKey") if gone is None else self.answer(204)

    def listing(self, bucket, query):
        """A page of the objects under a prefix, those behind the delimiter folded into their prefixes."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        after = query.get("continuation-token", "")
        with LOCK:
            found = {k.partition("/")[2]: v for k, v in OBJECTS.items() if k.startswith(f"{bucket}/{prefix}")}
        entries: dict[str, Stored | None] = {}
        for name in sorted(found):
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                entries[prefix + rest.partition(delimiter)[0] + delimiter] = None
            else:
                entries[name] = found[name]
        names = [name for name in entries if name > after]
        page = names[: int(query.get("max-keys", PAGE))]
        rows = []
        for name in page:
            stored = entries[name]
            if stored is None:
                rows.append(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>")
                continue
            when = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(stored.written))
            rows.append(
                f"<Contents><Key>{escape(name)}</Key><Size>{len(stored.data)}</Size><ETag>{stored.tag}</ETag>"
                f"<LastModified>{when}</LastModified></Contents>"
            )
        if len(page) < len(names):
            rows.append(f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>")
        self.answer(200, f"<ListBucketResult>{''.join(rows)}</ListBucketResult>".encode())

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Path(sys.argv[1]).write_text(str(server.server_port))
    server.serve_forever()
