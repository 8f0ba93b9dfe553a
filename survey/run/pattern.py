"""The detector's pattern of a field: measured once, when its first frames come in, and used ever after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import xarray as xr

from survey.config import Config
from survey.io.frames import FrameHeader
from survey.io.locations import Location
from survey.io.store import Field, is_field
from survey.kernels.pattern import Pattern
from survey.run.executor import Executor
from survey.stages import pattern as stage

# Calls a function on every item, on the cluster: `survey.run.calls.map_calls` with its executor.
Map = Callable[..., list[Any]]


class PatternError(RuntimeError):
    """Settings and field disagree, or the frames hold no pattern that can be told from stars."""


class FieldPattern:
    """What is taken off every frame of a field.

    Parameters
    ----------
    path : Location
        The field, which need not exist yet.
    headers : sequence of FrameHeader
        The frames that are coming in.
    old : bool
        Whether the field holds frames already.
    """

    def __init__(
        self,
        path: str | Location,
        headers: Sequence[FrameHeader],
        config: Config,
        map_calls: Map,
        *,
        old: bool,
    ) -> None:
        self.pattern: Pattern | None = None
        self._key: str | None = None
        stored = stage.pattern_key(Field.open(path)) if is_field(path) else None
        if old and (stored is not None) != config.input.pattern:
            raise PatternError(
                f"{path}: its frames were placed with{'out' if stored is None else ''} a pattern of the "
                f"detector; set [input] pattern = {'false' if stored is None else 'true'}, "
                "or make another field"
            )
        if not config.input.pattern or not headers:
            return
        sample = stage.sampled(headers, config)
        key = stage.measured_key(sample, config)
        if stored is not None and (old or stored == key):
            self.pattern = stage.stored_pattern(Field.open(path))
            return
        parts = map_calls(stage.measure_band, stage.bands(sample, config), sample, config)
        for part in parts:
            if isinstance(part, BaseException):
                raise part
        self.pattern, self._key = stage.joined(parts, key), key

    def share(self, executor: Executor) -> Any:
        """The pattern as an argument of calls: sent to a worker once, not with every call."""
        return None if self.pattern is None else executor.share(self.pattern)

    def check(self, frames: xr.Dataset, shape: tuple[int, int]) -> None:
        """See that the frames drift enough for what was measured to be the detector's.

        Raises
        ------
        PatternError
            If they do not.
        """
        if self._key is None:
            return
        drift, fwhm = stage.drift(frames, shape), float(frames["psf_fwhm"].median())
        if not drift >= stage.LEAST_DRIFT * fwhm:
            raise PatternError(
                f"the frames drift over the detector by {drift:.1f} px (rms), {stage.LEAST_DRIFT:g} FWHM of "
                f"{fwhm:.1f} px are needed to tell its pattern from stars; set [input] pattern = false, "
                "or give bias and dark"
            )

    def keep(self, field: Field) -> None:
        """Put what was measured into the field."""
        if self.pattern is not None and self._key is not None:
            stage.keep_pattern(field, self.pattern, self._key)
