"""Whether a FITS file is all there: astropy silently drops an extension that is cut off in its header."""

from __future__ import annotations

import bz2
import gzip
import zlib
from functools import lru_cache
from pathlib import Path
from typing import IO

from astropy.io import fits

from survey.io._frame import FrameError

BLOCK = 2880
AGAIN = "fetch the file again or leave it out"


def check_whole(path: str | Path, hdul: fits.HDUList) -> None:
    """See that a file is as long as its headers say, and no longer.

    Raises
    ------
    FrameError
        If not, or if it is compressed as a whole and that stream is cut off or damaged.
    """
    changed = Path(path).stat()
    length = _length(str(path), changed.st_mtime_ns, changed.st_size)
    end = 0
    for index, hdu in enumerate(hdul):
        info = hdul.fileinfo(index)
        end = info["datLoc"] + info["datSpan"]
        # The last block need not be padded with zeros to 2880 bytes; a packed image does not tell its size.
        packed = isinstance(hdu, fits.CompImageHDU)
        needed = end - (BLOCK - 1 if packed else info["datSpan"] - hdu.size) if info["datSpan"] else 0
        if needed > length:
            raise FrameError(
                path, f"truncated: extension {index} ends at byte {end}, the file at {length}", AGAIN
            )
    if length > end:
        with _opened(path) as stream:
            stream.seek(end)
            rest = stream.read(BLOCK).strip(b"\0 ")
        if rest:
            after = f"{length - end} bytes after extension {len(hdul) - 1}"
            raise FrameError(path, f"truncated or damaged: {after} are no extension", AGAIN)


def _opened(path: str | Path) -> IO[bytes]:
    """The file's bytes, unpacked where it is compressed as a whole."""
    with Path(path).open("rb") as stream:
        start = stream.read(3)
    if start[:2] == b"\x1f\x8b":
        return gzip.open(path)  # type: ignore[return-value]
    return bz2.open(path) if start == b"BZh" else Path(path).open("rb")


@lru_cache(maxsize=4096)
def _length(path: str, changed: int, size: int) -> int:
    """Bytes of a file, unpacked; a compressed one is read to its end, once a process."""
    with _opened(path) as stream:
        if not isinstance(stream, gzip.GzipFile | bz2.BZ2File):
            return size
        length = 0
        try:
            while part := stream.read(1 << 20):
                length += len(part)
        except (OSError, EOFError, zlib.error) as error:
            reason = f"truncated or damaged compressed file of {size} bytes ({error})"
            raise FrameError(path, reason, AGAIN) from None
    return length
