"""An S3 of moto on loopback; every request leaves a line: method, path, status, bytes, query."""

import logging
import sys
from pathlib import Path

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


class Counted:
    """The application, and a line for each request that it answers."""

    def __init__(self, app, file):
        self.app, self.file = app, file

    def __call__(self, environ, start_response):
        def started(status, headers, *rest):
            sizes = [environ.get("CONTENT_LENGTH") or "0", dict(headers).get("Content-Length", "0")]
            size = sizes[0] if environ["REQUEST_METHOD"] == "PUT" else sizes[1]
            method, path, query = (environ[n] for n in ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING"))
            self.file.write(f"{method}\t{path}\t{status[:3]}\t{size}\t{query}\n")
            return start_response(status, headers, *rest)

        return self.app(environ, started)


if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with Path(sys.argv[1]).open("a", buffering=1) as lines:
        app = Counted(DomainDispatcherApplication(create_backend_app), lines)
        server = make_server("127.0.0.1", 0, app, threaded=True)
        Path(sys.argv[2]).write_text(str(server.port))
        server.serve_forever()
