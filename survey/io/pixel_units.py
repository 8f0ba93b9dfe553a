"""Gain and zero point of a FITS image, by the unit its pixels have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from survey.config import InputSettings

if TYPE_CHECKING:
    from survey.io._fits_header import Cards

ZERO_POINTS = (5.0, 45.0)
"""A star of one unit is of no magnitude outside these, whatever the unit and the telescope."""

_RATE = re.compile(r"(/\s*s(ec(ond)?)?|\*?\*?\s*s(\*\*|\^)?\(?-1\)?)$")
_ELECTRONS = re.compile(r"^(electrons?|e-?|photo-?electrons?)$")
_COUNTS = re.compile(r"^(counts?|ct|adus?|dn|data numbers?)$")


def read_gain(
    path: str | Path, cards: Cards, settings: InputSettings, exposure: float | None
) -> tuple[float | None, list[str]]:
    """Electrons per unit of the pixels, None where nothing tells, and warnings.

    The keyword is of the camera's counts: pixels in electrons have a gain of 1 whatever it says, and of a
    rate one unit is as many electrons (or counts) as the exposure has seconds.
    """
    if settings.gain is not None:
        return settings.gain, []
    keyword = cards.number(path, settings.keywords.gain, "gain")
    keyword = keyword if keyword and keyword > 0 else None
    unit, rate = _unit(cards, settings)
    if _ELECTRONS.match(unit):
        gain: float | None = 1.0
    elif not unit or _COUNTS.match(unit):
        gain = keyword
    else:
        said = [] if keyword is None else [f"the gain of counts says nothing of {unit}; set [input] gain"]
        return None, said
    if rate and gain is not None:
        gain = gain * exposure if exposure is not None and exposure > 0 else None
    return gain, []


def read_zero_point(
    path: str | Path, cards: Cards, settings: InputSettings, exposure: float | None
) -> tuple[float | None, list[str]]:
    """Magnitude of a star of one unit, None where nothing tells, and warnings.

    Hubble's PHOTZPT is the constant of the ST system, to which PHOTFLAM, the flux of one electron a second,
    is added.
    """
    name, _ = cards.first(settings.keywords.zero_point)
    value = cards.number(path, settings.keywords.zero_point, "zero_point")
    if value is None:
        return None, []
    if name == "PHOTZPT":
        inverse = cards.number(path, ["PHOTFLAM"], "zero_point")
        if inverse is not None and inverse > 0:
            value -= 2.5 * np.log10(inverse)
            if not _unit(cards, settings).is_rate and exposure is not None and exposure > 0:
                value += 2.5 * np.log10(exposure)
    if not ZERO_POINTS[0] <= value <= ZERO_POINTS[1]:
        way_out = "set [input.keywords] zero_point"
        return None, [f"{name} makes a zero point of {value:.2f} mag, which none is: left out; {way_out}"]
    return float(value), []


class PixelUnit(NamedTuple):
    """A unit in lower case without its time, and whether it is a rate."""

    name: str
    is_rate: bool


def split_unit(text: str) -> PixelUnit:
    """Take the time out of a unit.

    Examples
    --------
    >>> split_unit("Electron / s")
    PixelUnit(name='electron', is_rate=True)
    >>> split_unit("adu")
    PixelUnit(name='adu', is_rate=False)
    """
    text = text.strip().lower()
    rate = _RATE.search(text)
    return PixelUnit(text[: rate.start()].strip(" .*") if rate else text, rate is not None)


def _unit(cards: Cards, settings: InputSettings) -> PixelUnit:
    value = cards.first(settings.keywords.units)[1]
    return split_unit("" if value is None else str(value))
