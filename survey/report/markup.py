"""Small pieces of HTML: tables, figures, numbers a person can read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np
from astropy.time import Time

THIN = "\u202f"


def finite(value: Any) -> bool:
    """Whether a value is a number that can be shown."""
    return value is not None and not isinstance(value, str) and bool(np.isfinite(value))


def number(value: Any, digits: int = 3, *, unit: str = "") -> str:
    """A value to so many significant digits; a dash where it is not known.

    Examples
    --------
    >>> number(0.123456), number(123456.0), number(None)
    ('0.123', '123456', '–')
    """
    if not finite(value):
        return "–"
    value = float(value)
    if value == 0:
        text = "0"
    elif 1e-3 <= abs(value) < 1e7:
        decimals = max(digits - 1 - int(np.floor(np.log10(abs(value)))), 0)
        text = f"{value:.{decimals}f}"
    else:
        text = f"{value:.{digits - 1}e}"
    text = text.replace("-", "\u2212")
    return text + (f"{THIN}{escape(unit)}" if unit else "")


def count(value: Any) -> str:
    """A whole number, or one with the decimals it needs."""
    return f"{float(value):g}" if finite(value) else "–"


def fixed(value: Any, decimals: int, *, sign: bool = False) -> str:
    """A value with so many decimals.

    Examples
    --------
    >>> fixed(2, 1, sign=True), fixed(-0.00001, 2)
    ('+2.0', '0.00')
    """
    if not finite(value):
        return "–"
    rounded = round(float(value), decimals) or 0.0
    return f"{rounded:{'+' if sign else ''}.{decimals}f}".replace("-", "\u2212")


def with_error(value: Any, error: Any, unit: str = "") -> str:
    """Value and 1-sigma error, both to the error's second digit.

    Examples
    --------
    >>> with_error(21.3456, 0.123)
    '21.35 ± 0.12'
    """
    if not (finite(value) and finite(error)) or error <= 0:
        return number(value, unit=unit)
    decimals = max(1 - int(np.floor(np.log10(error))), 0)
    tail = f"{THIN}{escape(unit)}" if unit else ""
    return f"{fixed(value, decimals)} ± {fixed(error, decimals)}{tail}"


def duration(seconds: Any) -> str:
    """Seconds as a person says them.

    Examples
    --------
    >>> duration(0.25), duration(95), duration(7500)
    ('0.25 s', '1 min 35 s', '2 h 5 min')
    """
    if not finite(seconds):
        return "–"
    if seconds < 60:
        return f"{number(seconds, 2 if seconds < 10 else 3)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def date(mjd: Any) -> str:
    """Day and minute of an MJD as a calendar has them, on one line."""
    if not finite(mjd):
        return "–"
    return f'<span class="whole">{str(Time(float(mjd), format="mjd").iso)[:16]}</span>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: Sequence[int] = (0,)) -> str:
    """A table of HTML cells, scrolled sideways where the window is narrow; columns `left` hold text."""

    def cells(kind: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{kind}{' class=left' if i in left else ''}>{cell}</{kind}>" for i, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    top = f"<thead><tr>{cells('th', head)}</tr></thead>"
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def figure(picture: str, caption: str = "", *, css: str = "") -> str:
    """A picture with its caption."""
    words = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure class="{css}">{picture}{words}</figure>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values in a list."""
    return "<dl>" + "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in pairs) + "</dl>"


def missing(text: str) -> str:
    """A line that says what is not there yet and what would make it."""
    return f'<p class="missing">{text}</p>'


def section(anchor: str, title: str, body: str, lead: str = "") -> str:
    """A section of the page."""
    intro = f'<p class="lead">{lead}</p>' if lead else ""
    return f'<section id="{anchor}"><h2>{title}</h2>{intro}{body}</section>'
