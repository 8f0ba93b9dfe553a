"""Differences of methods that know the PSFs: zogy, and the external program HOTPANTS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from survey.config import Config
from survey.kernels.psf import EffectivePSF
from survey.run.blocks import Span
from survey.run.differences import RunError
from survey.run.executor import Executor
from survey.run.frame_psfs import ensure_frame_psfs, frame_psf_units, own_pixels, psf_keys
from survey.run.subtraction import FrameFits, SubtractionDifferences
from survey.stages import frame_psf, hotpants, psf, zogy
from survey.stages.difference_psf import is_of_others, template_psf
from survey.stages.pairwise import FrameState, Shared

if TYPE_CHECKING:
    from survey.run.pipeline import Pipeline


def check_program(config: Config, executor: Executor) -> None:
    """Raise `HotpantsError` if the settings want HOTPANTS and the machine that would run it has none."""
    if config.method != "hotpants":
        return
    call = executor.submit(hotpants.program_of, config, name="hotpants")
    for _, _, error in executor.completed([call]):
        if error is not None:
            raise error


class _Known:
    """Frames of which nothing is fitted."""

    def __init__(self, state: Shared) -> None:
        self.state = state

    def add(self, tile: Any) -> None:
        """There are no sums."""

    def step(self) -> None:
        """Nor passes."""


class PairDifferences(SubtractionDifferences):
    """Every frame is subtracted on its own pixels, of which a field of turned frames keeps the images."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, field = pipeline, pipeline.field
        self._images = own_pixels(pipeline.engine, pipeline.frames)
        self._field_psf = psf.load(field) if field.has_table("psf") else None
        self._template_psf: EffectivePSF | None = None
        self._psfs: list[str] | None = None
        if self._own_psfs():
            engine = pipeline.engine
            keyed = frame_psf_units(engine, self._images)
            self._psfs = psf_keys(engine.config, self._images, keyed, ensure_frame_psfs(engine, keyed))
        self.sharpens = pipeline.config.method == "hotpants"
        super().__init__(pipeline)

    @property
    def passes(self) -> int:
        """None for the program, which fits each tile itself."""
        return 0 if self.pipeline.config.method == "hotpants" else super().passes

    def _psf_key(self) -> str:
        """Identity of the field's PSF."""
        assert self.pipeline.base is not None
        return self.pipeline.base.psf_key()

    def _own_psfs(self) -> bool:
        """Whether the frames' own PSFs are wanted."""
        return self._field_psf is not None and frame_psf.own_psfs(self.pipeline.config, self._field_psf)

    def _image_keys(self) -> list[str]:
        """Of images on the frames' own pixels."""
        return self._images

    def _inputs(self, span: Span) -> dict[str, Any]:
        """PSFs, besides images and the template."""
        inputs = super()._inputs(span) | {"psf": self._psf_key()}
        if self._psfs is not None:
            inputs["psfs"] = self._psfs[slice(*span)]
        return inputs

    def _fits(self, span: Span) -> FrameFits:
        """Ratio and shift of the block's frames; for the program nothing but their PSFs."""
        pipeline, epochs = self.pipeline, np.arange(*span)
        own = frame_psf.load(pipeline.field, epochs) if self._psfs is not None else {}
        shared = Shared([FrameState(own.get(int(k))) for k in epochs], self._psf_of_template())
        return zogy.FrameMatches(shared) if self.passes else _Known(shared)

    def _psf_of_template(self) -> EffectivePSF | None:
        """The field's for its reference; that of its own stars for another template."""
        if not self._own_template_psf():
            return self._field_psf
        if self._template_psf is None:
            self._template_psf = template_psf(self.pipeline.field, self.pipeline.config)
        return self._template_psf

    def _own_template_psf(self) -> bool:
        """The program is told a template's width; zogy its PSF, unless all have the field's."""
        config = self.pipeline.config
        if config.subtraction.template == "reference":
            return False
        return config.method == "hotpants" or self._own_psfs() or is_of_others(self.pipeline.field, config)

    def sizes(self) -> Mapping[str, int]:
        """There are no kernels to keep."""
        return {}

    def _keep(self, span: Span, fit: FrameFits) -> None:
        """Nothing: ratio and shift are within a frame's calibration."""

    def _frame_bytes(self) -> int:
        """A few sums of four parameters."""
        return 256

    def _tell_failed(self) -> None:
        """Warn of frames that could not be subtracted somewhere; raise if none could anywhere."""
        engine, name = self.pipeline.engine, self.stage.name
        payloads = engine.payloads(name, self.units)
        failed = [(k, why) for payload in payloads for k, why in payload["failed"]]
        if not failed:
            return
        frames = sorted({k for k, _ in failed})
        text = (
            f"{name}: {len(frames)} of {self.pipeline.frames.sizes['time']} frames could not be subtracted "
            f"in every tile and are masked there ({len(failed)} times); frame {failed[0][0]}: {failed[0][1]}"
        )
        if not any(payload["samples"] for payload in payloads):
            raise RunError(text)
        engine.warn(text)
