"""Files of public archives: fetched once, kept, asked for again where the network fails, resumed.

Only plain GET requests without credentials are made.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import logging
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any

from survey.io.files import write_atomic
from survey.io.frames import FrameError

logger = logging.getLogger(__name__)

_CHUNK = 1 << 18
# Answers after which the same question may be answered yet.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_AGENT = "survey (difference imaging; Python urllib)"


class ArchiveError(RuntimeError):
    """An archive that cannot be reached, or an answer that cannot be used."""


class NotInArchiveError(ArchiveError):
    """The archive has no such file: the sky there was not observed, say."""


@contextmanager
def discarded_if_damaged(*paths: Path) -> Iterator[None]:
    """While fetched files are read: one that cannot be is deleted, so that it is fetched anew.

    Raises
    ------
    ArchiveError
        In place of what was wrong with it.
    """
    try:
        yield
    except (FrameError, OSError, EOFError, zlib.error) as problem:
        if isinstance(problem, OSError) and problem.errno is not None:
            # too many open files, no permission: the system's fault, not the file's
            raise ArchiveError(f"{problem}: try again") from problem
        named = [path for path in paths if str(path) == getattr(problem, "path", None)]
        for path in named or paths:
            path.unlink(missing_ok=True)
        raise ArchiveError(f"{problem}; deleted, so that it is fetched anew: try again") from problem


def default_folder() -> Path:
    """Where fetched files are kept: ``$SURVEY_CACHE``, else a folder of the user's cache."""
    own = os.environ.get("SURVEY_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(base) / "survey"


@dataclass
class Archive:
    """Fetches addresses into a folder.

    Parameters
    ----------
    folder : Path
        Where files are kept, each under a name made of its whole address.
    attempts : int
        Requests for one file before giving up.
    wait : float
        Seconds before the second attempt; doubled for each further one, up to a minute.
    timeout : float
        Seconds without a byte after which a connection counts as lost.
    sleep : callable
        For tests.
    """

    folder: Path = field(default_factory=default_folder)
    attempts: int = 5
    wait: float = 1.0
    timeout: float = 60.0
    sleep: Callable[[float], None] = lambda seconds: time.sleep(seconds)

    def fetch(self, url: str, *, starts: tuple[bytes, ...] = ()) -> Path:
        """File of an address, from the folder or from the archive.

        Parameters
        ----------
        url : str
            http or https.
        starts : tuple of bytes
            What the content may begin with; an answer that begins otherwise (a page that says sorry) is an
            error and is not kept.

        Raises
        ------
        NotInArchiveError
            If the archive has no such file.
        ArchiveError
            If it cannot be reached, refuses, or sends something else.
        """
        target = self.path_of(url)
        if target.exists():
            return target
        with _claimed(target.with_name(f".{target.name}.lock")):
            if not target.exists():  # another process may have fetched it meanwhile
                self._fetch(url, target, starts)
        return target

    def path_of(self, url: str) -> Path:
        """Where the file of an address is kept."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ArchiveError(f"{url}: not an http address")
        last = re.sub(r"[^A-Za-z0-9._-]+", "-", parts.path.rpartition("/")[2])[-80:]
        key = hashlib.sha256(url.encode()).hexdigest()[:20]
        return self.folder / parts.hostname / f"{key}-{last or 'index'}"

    def _fetch(self, url: str, target: Path, starts: tuple[bytes, ...]) -> None:
        part = target.with_name(f"{target.name}.part")
        for attempt in range(1, self.attempts + 1):
            try:
                _download(url, part, self.timeout)
                break
            except _PassingError as problem:
                if attempt == self.attempts:
                    raise ArchiveError(
                        f"{_short(url)}: {problem} ({attempt} attempts); what has come is kept, so try again "
                        f"later. Is there a network? Copies are looked for in {self.folder}"
                    ) from None
                seconds = problem.after or min(self.wait * 2 ** (attempt - 1), 60.0)
                logger.info("%s: %s; again in %.0f s", _short(url), problem, seconds)
                self.sleep(seconds)
        with part.open("rb") as stream:
            head = stream.read(64)
        if starts and not head.startswith(starts):
            part.unlink()
            raise ArchiveError(f"{_short(url)}: sent something else than asked for: {head[:40]!r}…")
        part.replace(target)
        _notes_of(part).unlink(missing_ok=True)


class _PassingError(Exception):
    """A failure that may pass."""

    def __init__(self, words: str, after: float | None = None) -> None:
        super().__init__(words)
        self.after = after


@contextmanager
def _claimed(lock: Path) -> Iterator[None]:
    """One process at a time fetches a file; the system frees the lock of one that dies."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _download(url: str, part: Path, timeout: float) -> None:
    """Fetch an address into a file, going on where an earlier attempt ended."""
    request = urllib.request.Request(url, headers={"User-Agent": _AGENT})
    notes, have = _read_notes(part), part.stat().st_size if part.exists() else 0
    if have and notes.get("validator"):
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", notes["validator"])  # if the file has changed, send it whole
    try:
        with _asked(request, timeout) as answer:
            going_on = answer.status == 206 and _first_byte(answer) == have
            if answer.status == 206 and not going_on:
                part.unlink(missing_ok=True)
                raise _PassingError("sent another part of the file than asked for")
            headers = answer.headers
            validator = headers.get("ETag") or headers.get("Last-Modified")
            if validator and validator.startswith("W/"):
                validator = headers.get("Last-Modified")
            write_atomic(_notes_of(part), json.dumps({"url": url, "validator": validator}).encode())
            with part.open("ab" if going_on else "wb") as stream:
                came = _copy(answer, stream)
            expected = headers.get("Content-Length")
            if expected is not None and came != int(expected):
                raise _PassingError(f"the connection broke after {part.stat().st_size} bytes")
    except urllib.error.HTTPError as refusal:
        raise _refused(url, refusal, part) from None


def _asked(request: urllib.request.Request, timeout: float) -> Any:
    """The beginning of an answer. Some failures of a connection come as bare errors of the system.

    Raises
    ------
    HTTPError
        If the server refuses.
    _PassingError
        If there is no answer.
    """
    try:
        return urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException) as problem:
        reason = getattr(problem, "reason", problem)
        raise _PassingError(f"cannot be reached: {reason}") from None


def _copy(answer: Any, stream: IO[bytes]) -> int:
    """Copy what comes; what has come before a connection breaks is on disk.

    Raises
    ------
    _PassingError
        If it breaks, by TLS or in any other way, or if an answer in chunks, whose length nothing else tells,
        ends before its last one.
    """
    came = 0
    while True:
        try:
            chunk = answer.read(_CHUNK)
        except http.client.IncompleteRead as broken:
            stream.write(broken.partial)
            raise _PassingError(f"the connection broke after {stream.tell()} bytes") from None
        except (OSError, http.client.HTTPException) as problem:
            raise _PassingError(f"the connection broke after {stream.tell()} bytes: {problem}") from None
        if not chunk:
            return came
        stream.write(chunk)
        came += len(chunk)


def _first_byte(answer: Any) -> int:
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(found[1]) if found else -1


def _refused(url: str, refusal: urllib.error.HTTPError, part: Path) -> Exception:
    """What an HTTP error means for us."""
    code = refusal.code
    if code == 416:  # what we have is longer than the file is now
        part.unlink(missing_ok=True)
        return _PassingError("the file has changed")
    words = f"HTTP {code} {refusal.reason}{_said(refusal)}"
    if code in _PASSING:
        return _PassingError(words, _retry_after(refusal.headers.get("Retry-After")))
    if code in (404, 410):
        return NotInArchiveError(f"{_short(url)}: {words}")
    return ArchiveError(f"{_short(url)}: {words}")


def _said(refusal: urllib.error.HTTPError) -> str:
    """The reason in an error's body, where it is JSON as hips2fits sends it, or short text."""
    try:
        text = refusal.read(4096).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException):
        return ""
    try:
        body = json.loads(text)
        text = str(body.get("description") or body.get("title") or "") if isinstance(body, dict) else text
    except json.JSONDecodeError:
        text = "" if text.startswith("<") else text.splitlines()[0] if text else ""
    return f": {text[:200]}" if text else ""


def _retry_after(value: str | None) -> float | None:
    """Seconds that a server asks to wait, at most five minutes."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return min(max(seconds, 0.0), 300.0) or None


def _notes_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_notes(part: Path) -> dict[str, Any]:
    try:
        notes = json.loads(_notes_of(part).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _short(url: str) -> str:
    """An address as a person wants to see it: without a query of a thousand characters."""
    return url if len(url) < 160 else f"{url[:120]}…"
