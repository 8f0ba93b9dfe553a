"""Image subtraction by the external program HOTPANTS (Becker 2015; Alard & Lupton 1998)."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import ArrayLike, NDArray

from survey.kernels._sfft_inputs import as_mask, autocorrelation_width, variance_of
from survey.kernels.subtraction import Subtraction

LOG = logging.getLogger(__name__)
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Its bits "bad value" and "bad input": without the second its convolution reads through a masked pixel.
_FLAGGED = 0x81
_FILL = 1e-29  # pixels without a result: a difference or a noise whose size is below this
_DIFFERENCE = "difference.fits"
_UNTITLED = ("", "COMMENT", "HISTORY")  # header lines without a value of their own


class HotpantsError(RuntimeError):
    """HOTPANTS is not there, or did not give a result for this pair."""


@dataclass(frozen=True)
class HotpantsRun:
    """What `subtract_hotpants` calls its kernel: how the program was run and what it said.

    Attributes
    ----------
    command : tuple of str
    header : dict
        Of the difference it wrote; the kernel sum and the figures of merit of its regions among others.
    coefficients : array (n, regions)
        Of kernel and background in the program's own order, by its ``-hki``; empty where it wrote none.
    basis : dict
        The header of those: numbers, degrees and widths of the Gaussians (NGAUSS, DGAUSS1, SGAUSS1 …), the
        kernel's edge (FWKERN), the degrees over the image (CKORDER, BGORDER).
    """

    command: tuple[str, ...]
    header: dict[str, Any]
    coefficients: Array = field(default_factory=lambda: np.zeros((0, 0)))
    basis: dict[str, Any] = field(default_factory=dict)


def find_hotpants(path: str | Path | None = None) -> str:
    """The program's path: as given, from $HOTPANTS, or on the PATH.

    Raises
    ------
    HotpantsError
        If it is not there.
    """
    wanted = str(path or os.environ.get("HOTPANTS") or "hotpants")
    found = shutil.which(wanted)
    if found is None:
        raise HotpantsError(
            f"{wanted!r} is no program here: install HOTPANTS (github.com/acbecker/hotpants, "
            "or your system's package), give its path by executable=… or "
            "$HOTPANTS, or use method 'sfft', which needs no other program"
        )
    return str(Path(found).absolute())


def subtract_hotpants(
    image: ArrayLike,
    template: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    template_mask: ArrayLike | None = None,
    error: ArrayLike | None = None,
    template_error: ArrayLike | None = None,
    image_gain: float | None = None,
    template_gain: float | None = None,
    image_fwhm: float | None = None,
    template_fwhm: float | None = None,
    stars: ArrayLike | None = None,
    kernel_poly_order: int = 2,
    bg_poly_order: int = 2,
    radius_fwhm: float = 3.0,
    stamp_fwhm: float = 4.0,
    regions: tuple[int, int] = (1, 1),
    stamps: tuple[int, int] = (10, 10),
    direction: str = "auto",
    extra: Mapping[str, Any] | None = None,
    executable: str | Path | None = None,
    timeout: float = 600.0,
    keep: str | Path | None = None,
) -> Subtraction:
    """Run HOTPANTS on a pair.

    Parameters
    ----------
    image, template : array (y, x)
        On one grid. Pixels that are not finite are bad.
    mask, template_mask : bool array (y, x), optional
        True = bad.
    error, template_error : array (y, x), optional
        1-sigma errors; without them the sky's noise is measured and, with a gain, photons are added.
    image_gain, template_gain : float, optional
        Electrons per unit.
    image_fwhm, template_fwhm : float, optional
        Of the PSFs, pixels; measured from the images' autocorrelation by default.
    stars : array (n, 2), optional
        (y, x) positions of stars for the program's stamps.
    kernel_poly_order, bg_poly_order : int
        Degree in x and y of kernel and background. With 0, STDPipe's choice, a PSF that varies over the image
        is not followed.
    radius_fwhm, stamp_fwhm : float
        Kernel's and stamps' half width in FWHM of the broader PSF.
    regions, stamps : (int, int)
        (y, x) regions that are fitted apart, and stamps in each.
    direction : {'auto', 'template', 'image'}
        Which of the two is convolved; 'auto': the narrower.
    extra : mapping, optional
        Options of the program itself: name -> value, sequence of values, or None for a bare flag. They
        override ours.
    executable : path, optional
        The program; by default $HOTPANTS or ``hotpants`` on the PATH.
    timeout : float
        Seconds after which the program is stopped.
    keep : path, optional
        An empty or new directory that keeps the files the program reads and writes; by default none stay.

    Returns
    -------
    Subtraction
        ``kernel`` is a `HotpantsRun`.

    Raises
    ------
    HotpantsError
        If the program is missing, crashes, runs too long or writes no usable difference.
    ValueError
        If shapes do not match or nothing is good.
    """
    shape = np.shape(image)
    if len(shape) != 2 or np.shape(template) != shape:
        raise ValueError(f"image and template must have one (y, x) shape, not {shape}, {np.shape(template)}")
    program = find_hotpants(executable)
    new = _prepare(image, mask, error, image_gain, "image")
    reference = _prepare(template, template_mask, template_error, template_gain, "template")
    widths = (image_fwhm or new.fwhm, template_fwhm or reference.fwhm)
    if direction == "auto":
        direction = "template" if widths[1] <= widths[0] else "image"
    if direction not in ("template", "image"):
        raise ValueError(f"direction {direction!r} is not auto, template or image")
    if str((extra or {}).get("n", "i")) != "i":
        raise ValueError("extra option n: differences are in the image's units, which is n = 'i'")
    options: dict[str, Any] = {
        **_geometry(widths, radius_fwhm, stamp_fwhm),
        "ko": kernel_poly_order, "bgo": bg_poly_order, "nrx": regions[1], "nry": regions[0],
        "nsx": stamps[1], "nsy": stamps[0], "c": "t" if direction == "template" else "i", "n": "i",
        "il": new.low, "iu": new.high, "tl": reference.low, "tu": reference.high, "allm": None, "hki": None,
        "v": 0, **(extra or {}),
    }  # fmt: skip
    if image_gain is not None:
        options.setdefault("ig", image_gain)
    if template_gain is not None:
        options.setdefault("tg", template_gain)
    try:
        with _workplace(keep) as place:
            command = _write(Path(place), new, reference, stars, options, program)
            _execute(command, Path(place), timeout)
            return _read(Path(place), command, new, reference)
    except OSError as problem:  # no program after all, or no room for its files: an error of this pair
        raise HotpantsError(f"HOTPANTS could not be run: {problem}") from problem


@dataclass
class _Input:
    values: NDArray[np.float32]
    bad: Mask
    error: NDArray[np.float32]
    fwhm: float
    low: float
    high: float


def _prepare(
    image: ArrayLike, mask: ArrayLike | None, error: ArrayLike | None, gain: float | None, name: str
) -> _Input:
    """Bad pixels set to the median; limits outside of which the program ignores pixels."""
    values = np.array(image, float)
    bad = ~np.isfinite(values) | as_mask(mask, values.shape)
    if bad.all():
        raise ValueError(f"no good pixel in the {name}")
    variance = variance_of(values, bad, error, gain)
    bad |= ~np.isfinite(variance) | (variance <= 0)
    good = values[~bad]
    median = float(np.median(good))
    mad = float(np.median(np.abs(good - median)))
    fwhm = 2.355 * autocorrelation_width(np.where(bad, median, values), bad)
    values[bad] = median
    sigma = np.sqrt(np.where(bad, np.median(variance[~bad]), variance))
    spread = float(good.max() - good.min())
    return _Input(
        values.astype(np.float32), bad, sigma.astype(np.float32), fwhm if np.isfinite(fwhm) else 3.0,
        # an upper limit that is not above zero is an error to the program
        median - 10 * max(1.4826 * mad, 1e-6), max(float(good.max()) + 0.01 * spread, 1e-6),
    )  # fmt: skip


def _geometry(widths: tuple[float, float], radius: float, stamp: float) -> dict[str, Any]:
    """Kernel and stamp sizes, and the three Gaussians of the kernel, from the PSFs' widths."""
    broad = max(widths)
    s = max(1.0, abs(widths[0] ** 2 - widths[1] ** 2) ** 0.5 / 2.355)
    return {
        "r": int(np.ceil(radius * broad)),
        "rss": int(np.ceil(stamp * broad)),
        "ng": [3, 6, round(0.5 * s, 4), 4, round(s, 4), 2, round(2 * s, 4)],
    }


def _workplace(keep: str | Path | None) -> Any:
    if keep is None:
        return tempfile.TemporaryDirectory(prefix="survey-hotpants-")
    Path(keep).mkdir(parents=True, exist_ok=True)
    if any(Path(keep).iterdir()):
        raise HotpantsError(f"{keep} is not empty; name another directory to keep the files in")
    return _Kept(str(keep))


class _Kept:
    """A directory that stays, as a context."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> str:
        return self._path

    def __exit__(self, *_: object) -> None:
        return None


def _write(
    place: Path,
    new: _Input,
    reference: _Input,
    stars: ArrayLike | None,
    options: dict[str, Any],
    program: str,
) -> tuple[str, ...]:
    """Write what the program reads; returns its command line.

    Files go by their bare names, as seen from ``place``: the program copies paths into 256 characters.
    """
    for name, array in (
        ("image", new.values), ("template", reference.values),
        ("image_mask", new.bad.astype(np.uint16) * _FLAGGED),
        ("template_mask", reference.bad.astype(np.uint16) * _FLAGGED),
        ("image_noise", new.error), ("template_noise", reference.error),
    ):  # fmt: skip
        fits.writeto(place / f"{name}.fits", array)
    files = {
        "inim": "image.fits", "tmplim": "template.fits", "outim": _DIFFERENCE, "imi": "image_mask.fits",
        "tmi": "template_mask.fits", "ini": "image_noise.fits", "tni": "template_noise.fits",
    }  # fmt: skip
    command = [program]
    for option, name in files.items():
        command += [f"-{option}", name]
    if stars is not None:
        # the program counts pixels from 1
        rows = [f"{x + 1:.3f} {y + 1:.3f}" for y, x in np.asarray(stars, float)]
        (place / "stars.txt").write_text("\n".join(rows) + "\n")
        command += ["-ssf", "stars.txt"]
    for option, value in options.items():
        command.append(f"-{option}")
        if value is not None:
            command += [str(v) for v in (value if isinstance(value, list | tuple) else [value])]
    return tuple(command)


def _execute(command: tuple[str, ...], place: Path, timeout: float) -> None:
    """Run the program in a process group of its own, so that nothing of it outlives a timeout."""
    LOG.debug("running %s", " ".join(command))
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True, cwd=place,
    ) as process:  # fmt: skip
        try:
            said, _ = process.communicate(timeout=timeout)
        except BaseException as problem:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if isinstance(problem, subprocess.TimeoutExpired):
                raise HotpantsError(
                    f"HOTPANTS had not ended after {timeout:g} s and was stopped; raise timeout, or give "
                    "fewer stamps or a smaller kernel"
                ) from None
            raise
    if process.returncode != 0:
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"status {process.returncode}"
        last = " | ".join([line.strip() for line in said.splitlines() if line.strip()][-3:])
        raise HotpantsError(f"HOTPANTS ended with {how}: {last or 'it said nothing'}")


def _read(place: Path, command: tuple[str, ...], new: _Input, reference: _Input) -> Subtraction:
    """The layers that the program wrote: difference, convolved, scaled, noise.

    Where a kernel does not fit in, along the edge, the difference alone is without a result.
    """
    try:
        with fits.open(place / _DIFFERENCE, memmap=False) as hdus:
            layers = [np.asarray(hdu.data, float) for hdu in hdus if hdu.is_image and hdu.data is not None]
            header = {key: value for key, value in hdus[0].header.items() if key not in _UNTITLED}
            kernel = _kernel_table(hdus)
    except (OSError, TypeError) as problem:
        raise HotpantsError(f"HOTPANTS wrote no readable difference: {problem}") from problem
    if len(layers) < 4 or any(layer.shape != new.values.shape for layer in layers):
        found = [layer.shape for layer in layers]
        raise HotpantsError(
            f"HOTPANTS wrote layers {found}, not difference, convolved image, scaled difference and noise; "
            "leave -allm as it is"
        )
    difference, convolved, _, error = layers[:4]
    bad = new.bad | reference.bad | ~np.isfinite(difference) | ~np.isfinite(error)
    bad |= (error <= _FILL) | (np.abs(difference) <= _FILL)
    if bad.all():
        raise HotpantsError("HOTPANTS found no pixel it could subtract: too few stamps with stars")
    difference, error = (np.where(bad, np.nan, a) for a in (difference, error))
    return Subtraction(
        difference, error, difference / error, convolved, bad, bad, HotpantsRun(command, header, *kernel),
        direction=_convolved(header),
    )  # fmt: skip


def _convolved(header: Mapping[str, Any]) -> str:
    """Which of the two the program says it convolved, as with the option c = 'b' it is free to choose."""
    found = {str(value).strip().lower() for key, value in header.items() if key.startswith("CONVOL")}
    if len(found) != 1 or not found <= {"template", "image"}:
        raise HotpantsError(
            f"HOTPANTS convolved {' and '.join(sorted(found)) or 'nobody knows what'}; give direction, or "
            "the option sconv for one direction in all regions"
        )
    return found.pop()


def _kernel_table(hdus: fits.HDUList) -> tuple[Array, dict[str, Any]]:
    """Coefficients (n, regions) of the kernel and what they belong to, from the table after the images."""
    for hdu in hdus:
        if isinstance(hdu, fits.BinTableHDU):
            columns = [np.asarray(hdu.data[name], float) for name in hdu.columns.names]
            return np.stack(columns, axis=1), dict(hdu.header.items())
    return np.zeros((0, 0)), {}
