"""An HTTP server on this machine that serves bytes, in parts where asked to, and fails where told to."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


@dataclass
class Served:
    """What the server holds, how it shall fail, and what was asked of it.

    ``files`` maps a path to bytes, or to a function of the query that gives (status, bytes); ``trouble``
    maps a path to what happens to the next requests of it: a status, ``(status, headers, body)``, or
    ``"cut N"``, which breaks the connection after N bytes, or ``"chunks cut N"``, the same in an answer that
    does not say its length.
    """

    files: dict = field(default_factory=dict)
    trouble: dict = field(default_factory=dict)
    requests: list = field(default_factory=list)
    etag: str | None = '"one"'
    url: str = ""

    def asked(self, path):
        """Headers of every request of a path."""
        return [headers for where, headers in self.requests if urlsplit(where).path == path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        served, parts = self.server.served, urlsplit(self.path)
        served.requests.append((self.path, dict(self.headers)))
        trouble = served.trouble.get(parts.path, [])
        event = trouble.pop(0) if trouble else None
        if isinstance(event, int):
            return self._send(event, b"<html>sorry</html>", {})
        if isinstance(event, tuple):
            status, headers, body = event
            return self._send(status, body, headers)
        content = served.files.get(parts.path)
        if content is None:
            return self._send(404, b"<html>not found</html>", {})
        if callable(content):
            status, body = content({name: values[0] for name, values in parse_qs(parts.query).items()})
            return self._send(status, body, {})
        headers = {"ETag": served.etag} if served.etag else {}
        status, start = 200, 0
        wanted = self.headers.get("Range")
        if wanted and self.headers.get("If-Range") in (None, served.etag):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                return self._send(416, b"", {})
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        cut = int(event.split()[-1]) if isinstance(event, str) else None
        return self._send(status, body, headers, cut, chunks=isinstance(event, str) and "chunks" in event)

    def _send(self, status, body, headers, cut=None, chunks=False):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if chunks:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        part = body if cut is None else body[:cut]
        if chunks and part:  # a whole chunk, and no last one after it
            part = f"{len(part):x}\r\n".encode() + part + b"\r\n"
        self.wfile.write(part)
        self.wfile.flush()
        if cut is not None:
            self.close_connection = True

    def log_message(self, *args):
        pass


@contextmanager
def serve():
    """A server on a free port of the loopback, and what it serves."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.served = Served(url=f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
