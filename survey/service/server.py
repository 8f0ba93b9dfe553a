"""A small HTTP server over the fields of one folder: what is there, what runs, what was found.

It reads. What changes a field, submitting and cancelling, asks for the token that was made when it started,
so that no page in a browser can do it unasked. A request names fields below the folder and nothing else: no
path, no setting, no code.
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import socket
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from survey.io.catalogs import dump_table
from survey.io.ledger import FieldBusyError
from survey.run.api import stored_config
from survey.run.live import RunError, cancel, run_states
from survey.run.results import ResultError, light_curve, list_events
from survey.run.status import field_status
from survey.run.submit import submit
from survey.service.paths import OutsideError, field_in, fields_in, place_in

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost", "::1")
Query = dict[str, str]


def _status(field: Path, query: Query) -> Any:
    return {**field_status(field, query.get("method", "oversampled")), "runs": run_states(field)}


def _events(field: Path, query: Query) -> Any:
    return dump_table(list_events(field, query.get("method", "oversampled")), "csv")


def _light_curve(field: Path, query: Query) -> Any:
    where: dict[str, Any] = {name: float(query[name]) for name in ("ra", "dec", "x", "y") if name in query}
    method = query.get("method", "oversampled")
    return dump_table(light_curve(field, method, event=query.get("event"), **where), "csv")


def _run(field: Path, query: Query) -> Any:
    return {"run_id": submit(field, stored_config(field))}


def _cancel(field: Path, query: Query) -> Any:
    return {"state": cancel(field)["state"]}


READS: dict[str, Callable[[Path, Query], Any]] = {
    "status": _status,
    "events": _events,
    "lightcurve": _light_curve,
}
CHANGES: dict[str, Callable[[Path, Query], Any]] = {"run": _run, "cancel": _cancel}


class Service(ThreadingHTTPServer):
    """The server of one folder, on a loopback address.

    Parameters
    ----------
    root : path
        The folder whose fields it knows.
    host, port : str, int
        Port 0: any that is free.

    Raises
    ------
    ValueError
        If the host is not this machine's own: whoever is asked from outside belongs behind a proxy that
        knows who asks.
    """

    def __init__(self, root: Path, host: str = "127.0.0.1", port: int = 0) -> None:
        if host not in LOOPBACK:
            raise ValueError(
                f"{host}: the service listens on loopback only ({', '.join(LOOPBACK)}); for others put a "
                "proxy before it that asks who they are, or tunnel by ssh -L"
            )
        if not root.is_dir():
            raise ValueError(f"{root}: no folder to serve")
        self.root = root
        self.token = secrets.token_urlsafe(24)
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        """What its addresses begin with."""
        host, port = self.server_address[:2]
        return (
            f"http://[{host!s}]:{port}"
            if self.address_family == socket.AF_INET6
            else f"http://{host!s}:{port}"
        )


class _Handler(BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        """``/fields``, ``/fields/NAME/{status,events,lightcurve}``, ``/fields/NAME/report.html``."""
        self._guarded(READS)

    def do_POST(self) -> None:
        """``/fields/NAME/{run,cancel}``, with the token."""
        self._guarded(CHANGES)

    def _guarded(self, actions: dict[str, Callable[[Path, Query], Any]]) -> None:
        """Answer, and say of what goes wrong no more than whose fault it is."""
        try:
            self._answer(actions)
        except OutsideError as error:
            self._send(HTTPStatus.BAD_REQUEST, str(error))
        except FileNotFoundError as error:
            self._send(HTTPStatus.NOT_FOUND, str(error))
        except (RunError, ResultError, FieldBusyError, ValueError) as error:
            self._send(HTTPStatus.CONFLICT, str(error))
        except Exception:
            logger.exception("%s", self.path)
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "failed; the server's log says why")

    def _answer(self, actions: dict[str, Callable[[Path, Query], Any]]) -> None:
        split = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(split.query).items()}
        host = (self.headers.get("Host") or "").rpartition(":")[0].strip("[]")
        if host not in LOOPBACK:
            # A page of somebody else's name that was made to point here.
            self._send(HTTPStatus.FORBIDDEN, "ask for this machine by its loopback address")
            return
        if actions is CHANGES and not self._knows_token():
            self._send(HTTPStatus.UNAUTHORIZED, "needs the token that the server printed when it started")
            return
        # Taken apart before it is decoded, so that an encoded slash belongs to a name, which is then none.
        words = [unquote(word).replace("/", "\\") for word in split.path.strip("/").split("/")]
        if words == ["fields"] and actions is READS:
            self._send(HTTPStatus.OK, {"fields": list(fields_in(self.server.root))})
            return
        if len(words) < 3 or words[0] != "fields":
            raise FileNotFoundError(f"{split.path!r}: see /fields")
        name, what = "/".join(words[1:-1]), words[-1]
        field = field_in(self.server.root, name)
        if what == "report.html" and actions is READS:
            page = place_in(self.server.root, f"{name}/{what}").read_bytes()
            self._send(HTTPStatus.OK, page, "text/html; charset=utf-8")
            return
        if what not in actions:
            raise FileNotFoundError(f"{what!r}: known are {', '.join(actions)}")
        found = actions[what](field, query)
        self._send(HTTPStatus.OK, found, "text/csv; charset=utf-8" if isinstance(found, bytes) else None)

    def _knows_token(self) -> bool:
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        return hmac.compare_digest(given.encode(), self.server.token.encode())

    def _send(self, status: HTTPStatus, body: Any, kind: str | None = None) -> None:
        if kind is None:
            body = {"error": body} if isinstance(body, str) else body
            body, kind = json.dumps(body, default=str), "application/json"
        data = body if isinstance(body, bytes) else body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, form: str, *args: Any) -> None:
        """Into the log, not onto the terminal."""
        logger.info(form, *args)
