"""What a field decides of its settings: polynomials that its epochs can fix, cpm's grid, sfft's kernel."""

from __future__ import annotations

import numpy as np

from survey.config import Config
from survey.io.store import Field
from survey.run.progress import Progress
from survey.stages.differences import star_motion
from survey.stages.kernel_model import kernel_size
from survey.stages.template_records import template_looks

# RMS motion of stars across the detector's pixels, in widths of the PSF, up to which prediction does better
# there than on the sky grid (measured: equal at 0.55, four times worse at 1.4; deploy/ARCHITECTURE.md).
MOTION_LIMIT = 0.6


def settle(
    field: Field, config: Config, progress: Progress, *, rebuild: bool = False
) -> tuple[Config, list[str]]:
    """Settings as they hold for this field, and warnings about those that were asked for all the same.

    What was settled for the field's first frames stays, unless all is to be made again.
    """
    config = _for_epochs(field, config, progress)
    if config.method == "sfft":
        return _for_widths(field, config, rebuild=rebuild), []
    if config.method != "cpm":
        return config, []
    if config.cpm.grid == "auto" and not rebuild and field.has("difference/cpm"):
        noted = field.group_attrs("difference/cpm").get("grid")
        if noted in ("sky", "detector"):
            return _on(config, noted), []
    return _for_motion(field, config, progress)


def _on(config: Config, grid: str) -> Config:
    return config.model_copy(update={"cpm": config.cpm.model_copy(update={"grid": grid})})


def _for_widths(field: Field, config: Config, *, rebuild: bool) -> Config:
    """Settings with the edge of the kernel that the first frames' PSFs asked for, where none is set.

    They asked for it with the template of then; another one, or one that looks otherwise, needs its own.
    """
    name = config.subtraction.template
    if config.subtraction.kernel_size is not None:
        return config
    known = not rebuild and field.has("difference/sfft", "kernel")
    if known:
        noted = field.group_attrs("difference/sfft")
        known = (noted.get("template"), noted.get("looks")) == (name, str(template_looks(field, name)))
    edge = field.array("difference/sfft", "kernel").shape[1] if known else kernel_size(field, config)
    return config.model_copy(
        update={"subtraction": config.subtraction.model_copy(update={"kernel_size": int(edge)})}
    )


def _for_epochs(field: Field, config: Config, progress: Progress) -> Config:
    """Settings with no more polynomials than the field's epochs can fix."""
    epochs = field.frames().sizes["time"]
    reference = config.reference.for_epochs(epochs)
    if reference.n_basis < config.reference.n_basis:
        progress.message(
            f"{epochs} frames: the reference takes {reference.n_basis} polynomials an axis, "
            f"not {config.reference.n_basis}; where stars are sharper than 1.3 px it misses part of bright "
            "ones, whose errors are then too small"
        )
    return config.model_copy(update={"reference": reference})


def _for_motion(field: Field, config: Config, progress: Progress) -> tuple[Config, list[str]]:
    """Settings with the grid on which a pixel's series holds the same stars.

    Frames are taken as they were registered: refined offsets differ by less than matters here.
    """
    frames, asked = field.frames(), config.cpm.grid
    widths = frames["psf_fwhm"].values[np.isfinite(frames["psf_fwhm"].values)]
    # without a star nothing tells that any moves
    motion, width = star_motion(field, frames), float(np.median(widths)) if len(widths) else np.inf
    steady = motion <= MOTION_LIMIT * width
    text = f"cpm: stars move by {motion:.1f} px (rms) on the detector, {motion / width:.1f} widths of the PSF"
    if asked == "detector" and not steady:
        return config, [
            f'{text}: a pixel\'s series holds no one star, and false events follow; set [cpm] grid = "sky" '
            'or "auto"'
        ]
    if asked != "auto":
        return config, []
    grid = "detector" if steady else "sky"
    if not steady:
        progress.message(f"{text}: differences are made on the sky grid")
    return _on(config, grid), []
