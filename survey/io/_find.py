"""Files of frames, from paths, patterns and directories."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from survey.io._frame import COMPRESSIONS, SUFFIXES, FrameError, nearest


def find_files(patterns: Sequence[str | Path]) -> list[str]:
    """Absolute paths of the files that match paths, patterns (``**`` too) or directories; sorted, each once.

    Raises
    ------
    FrameError
        If a pattern matches nothing, naming the nearest file there is.
    """
    if isinstance(patterns, str | Path):
        patterns = [patterns]
    found: set[str] = set()
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_file():
            matched = [str(path)]
        elif path.is_dir():
            matched = [
                str(entry) for entry in path.iterdir() if entry.is_file() and is_frame_name(entry.name)
            ]
        else:
            matched = [name for name in glob.glob(str(path), recursive=True) if Path(name).is_file()]
        if not matched:
            raise FrameError(path, f"no frame matches {pattern}", _nothing_found(path))
        found.update(str(Path(name).absolute()) for name in matched)
    if not found:
        raise FrameError(
            "frames", "no frames were named", "give files, patterns or directories: [input] frames"
        )
    return sorted(found)


def is_frame_name(name: str) -> bool:
    """Whether a file's name looks like a frame's (.fits, .fit, .fts, .asdf, compressed or not)."""
    lower = name.lower()
    for ending in COMPRESSIONS:
        lower = lower.removesuffix(ending)
    return lower.endswith(SUFFIXES)


def _nothing_found(path: Path) -> str:
    if path.is_dir():
        return f"the directory holds no file ending in {', '.join(SUFFIXES)}, compressed or not"
    base = path.parent
    while any(c in str(base) for c in "*?["):
        base = base.parent
    if not base.is_dir():
        return f"no directory {base}"
    names = sorted(entry.name for entry in base.iterdir() if is_frame_name(entry.name))
    return nearest(path.name, names[:1000]) if names else f"{base} holds no frames"
