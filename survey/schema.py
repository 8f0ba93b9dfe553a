"""Every array of a field's cube as data: what it is called, its dimensions, type, units and meaning."""

from __future__ import annotations

from dataclasses import dataclass

SCHEMA_VERSION = 1


class SchemaError(ValueError):
    """A store that this version cannot read; nothing in it was touched."""


@dataclass(frozen=True)
class ArraySpec:
    """One array of the store.

    ``group`` may hold ``<method>`` or ``<grid>``; ``units`` names a unit, or ``"flux"`` for the
    field's own flux unit, or ``""`` for a pure number. ``fill`` is what an unwritten sample reads as.
    """

    group: str
    name: str
    dims: tuple[str, ...]
    dtype: str
    units: str
    meaning: str
    fill: float | bool | int = 0


_CUBE = ("time", "y", "x")
_IMAGE = ("y", "x")

ARRAYS: tuple[ArraySpec, ...] = (
    ArraySpec("images/<grid>", "flux", _CUBE, "float32", "counts", "frame as read, placed", float("nan")),
    ArraySpec("images/<grid>", "error", _CUBE, "float32", "counts", "1-sigma error of flux", float("nan")),
    ArraySpec("images/<grid>", "mask", _CUBE, "bool", "", "True = bad or not covered", True),
    ArraySpec("images/<grid>", "dq", _CUBE, "uint32", "", "data-quality bits of the input"),
    ArraySpec("frames", "time", ("time",), "float64", "d", "MJD at mid-exposure"),
    ArraySpec("frames", "frame_id", ("time",), "str", "", "name of the frame"),
    ArraySpec("frames", "path", ("time",), "str", "", "file the frame was read from"),
    ArraySpec("frames", "header", ("time",), "str", "", "what the file said of the frame, JSON"),
    ArraySpec("frames", "detector", ("time",), "str", "", "detector"),
    ArraySpec("frames", "exposure", ("time",), "float64", "s", "exposure time"),
    ArraySpec("frames", "map", ("time", "axis", "term"), "float64", "pixel", "reference -> detector pixel"),
    ArraySpec("frames", "map_center", ("time", "axis"), "float64", "pixel", "centre of the map's polynomial"),
    ArraySpec("frames", "map_scale", ("time",), "float64", "pixel", "length that normalises the map"),
    ArraySpec("frames", "registration_rms", ("time",), "float64", "pixel", "rms residual of held-out stars"),
    ArraySpec("frames", "registration_median", ("time",), "float64", "pixel", "median of the same"),
    ArraySpec("frames", "n_matched", ("time",), "int64", "", "stars matched to the reference frame"),
    ArraySpec("frames", "n_stars", ("time",), "int64", "", "clean stars found in the frame"),
    ArraySpec("frames", "gain", ("time",), "float64", "electron/counts", "electrons per count, NaN: unknown"),
    ArraySpec("frames", "zero_point", ("time",), "float64", "mag", "of the frame's counts, NaN: unknown"),
    ArraySpec("frames", "scale", ("time",), "float64", "", "photometric scale, frame / reference frame"),
    ArraySpec("frames", "scale_error", ("time",), "float64", "", "1-sigma error of scale"),
    ArraySpec("frames", "background", ("time", "background_term"), "float64", "counts", "sky polynomial"),
    ArraySpec("frames", "background_rms", ("time",), "float64", "counts", "scatter of the sky"),
    ArraySpec("frames", "psf_fwhm", ("time",), "float64", "pixel", "full width at half maximum of stars"),
    ArraySpec("frames", "elongation", ("time",), "float64", "", "median major / minor axis of stars"),
    ArraySpec("frames", "flags", ("time",), "int64", "", "quality bits, survey.kernels.registration"),
    ArraySpec("pattern", "flux", _IMAGE, "float32", "counts", "what the detector adds to every frame alike"),
    ArraySpec("pattern", "error", _IMAGE, "float32", "counts", "1-sigma error of flux, and excess scatter"),
    ArraySpec("pattern", "mask", _IMAGE, "bool", "", "True = unstable pixel of the detector"),
    ArraySpec(
        "reference", "coefficients", ("y", "x", "ky", "kx"), "float32", "flux", "Legendre coefficients"
    ),
    ArraySpec(
        "reference", "normal", ("y", "x", "my", "mx"), "float64", "", "sums from which a later night goes on"
    ),
    ArraySpec("reference", "moment", ("y", "x", "ky", "kx"), "float64", "", "right-hand sides of those sums"),
    ArraySpec("reference", "n_used", _IMAGE, "int16", "", "images in the fit of each pixel"),
    ArraySpec("reference", "chi2", _IMAGE, "float32", "", "reduced chi2 of the fit", float("nan")),
    ArraySpec(
        "template/<name>", "flux", _IMAGE, "float32", "flux", "template, its sky subtracted", float("nan")
    ),
    ArraySpec("template/<name>", "error", _IMAGE, "float32", "flux", "1-sigma error of flux", float("nan")),
    ArraySpec("template/<name>", "mask", _IMAGE, "bool", "", "True = bad", True),
    ArraySpec("difference/<method>", "flux", _CUBE, "float32", "flux", "difference", float("nan")),
    ArraySpec("difference/<method>", "error", _CUBE, "float32", "flux", "1-sigma error", float("nan")),
    ArraySpec("difference/<method>", "mask", _CUBE, "bool", "", "True = bad, no difference", True),
    ArraySpec("difference/<method>", "fit_mask", _CUBE, "bool", "", "True = good but kept out of the fit"),
    ArraySpec("difference/<method>", "leverage", _CUBE, "float32", "", "weight of a sample in its own model"),
    ArraySpec(
        "difference/<method>", "version", ("time",), "int16", "", "how often the reference had been added to"
    ),
    ArraySpec(
        "difference/<method>",
        "kernel",
        ("time", "kernel_y", "kernel_x", "kernel_term"),
        "float64",
        "",
        "matching kernel of each frame, polynomials over the grid",
        float("nan"),
    ),
    ArraySpec(
        "difference/<method>",
        "kernel_background",
        ("time", "kernel_background_term"),
        "float64",
        "flux",
        "sky that was fitted with the kernel, polynomials over the grid",
        float("nan"),
    ),
    ArraySpec(
        "variability/<method>",
        "deviation",
        _IMAGE,
        "float32",
        "",
        "mean |difference| / photon error of the first epochs",
    ),
    ArraySpec(
        "variability/<method>", "excluded", _IMAGE, "bool", "", "True = variable, predicts no other pixel"
    ),
    ArraySpec("search/<method>", "significance", _IMAGE, "float32", "", "S/N of the largest |S/N| in time"),
    ArraySpec("search/<method>", "scale_index", _IMAGE, "int16", "", "its time scale", -1),
    ArraySpec("search/<method>", "time_index", _IMAGE, "int32", "", "its epoch", -1),
)


def arrays_of(group: str) -> list[ArraySpec]:
    """Specifications of a group; ``difference/oversampled`` finds ``difference/<method>``."""
    generic = group
    heads = {"images/": "<grid>", "template/": "<name>", "difference/": "<method>", "search/": "<method>"}
    heads["variability/"] = "<method>"
    for head, tail in heads.items():
        if group.startswith(head):
            generic = head + tail
    found = [spec for spec in ARRAYS if spec.group == generic]
    if not found:
        raise SchemaError(f"no group {group!r} in the schema")
    return found
