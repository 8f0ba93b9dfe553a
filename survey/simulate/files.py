"""Simulated frames as FITS files, one frame in memory at a time, with a table of the truth beside them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.time import Time
from astropy.wcs import WCS
from numpy.typing import NDArray

from survey.simulate import events as ev
from survey.simulate.build import make_scene
from survey.simulate.detector import Exposure, expose
from survey.simulate.scene import POINTING, Scene, SceneSettings

PIXEL_SCALE = 0.11  # arcseconds
FIELD_CENTER = (268.0, -29.2)  # RA, Dec in degrees: the Galactic bulge
BAND, DETECTOR_NAME = "F146", "SIM01"

TRUTH_UNITS = {
    "x": "pix",
    "y": "pix",
    "ra": "deg",
    "dec": "deg",
    "magnitude": "mag",
    "tE": "d",
    "t0": "d",
    "period": "d",
    "duration": "d",
    "vx": "pix / d",
    "vy": "pix / d",
}


@dataclass(frozen=True)
class SimulatedField:
    """Frames on disk and the truth about them.

    Attributes
    ----------
    directory : Path
    paths : list of Path
        The frames in order of time.
    truth : astropy.table.Table
        One row an event, variable or moving body, as in ``truth.ecsv``; positions on the pixel grid
        of frame 0, times MJD at mid-exposure.
    scene : Scene
    """

    directory: Path
    paths: list[Path]
    truth: Table
    scene: Scene = field(repr=False)

    @property
    def time(self) -> NDArray[np.float64]:
        """MJD at mid-exposure of every frame."""
        return self.scene.time

    def light_curve(self, i: int) -> NDArray[np.float64]:
        """True flux change of source i about its baseline at every frame, electrons per second."""
        return self.scene.light_curve(i)


def simulate_field(
    directory: str | os.PathLike[str],
    *,
    size: int | tuple[int, int] = 256,
    frames: int = 96,
    seed: int = 1,
    events: int = 12,
    variables: int = 6,
    moving: int = 0,
    rotation: float = 0.0,
    psf_variation: float = 0.0,
    dither: float = 3.0,
    cosmic_rays: float = 1e-4,
    cosmic_rays_flagged: float = 0.8,
    bad_pixels: float = 1e-3,
    saturation: float | None = 2900.0,
    background: float = 3.4,
    cadence_minutes: float = 15.0,
    wcs: bool = True,
    overwrite: bool = False,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> SimulatedField:
    """Write a crowded, dithered, Roman-like time series as FITS frames, and the truth about it.

    Each frame has extensions SCI and ERR (float32, electron / s, the sky included) and DQ (int32; bits
    in `survey.simulate.detector`), with a TAN WCS and MJD-OBS, EXPTIME, FILTER, DETECTOR, GAIN, RDNOISE,
    SATURATE, PHOTZPT in the headers. ``truth.ecsv`` lists the events, variables and moving bodies.
    The same seed gives the same bytes; frame k does not depend on the others.

    Parameters
    ----------
    directory : path
        Created where it is missing.
    size : int or tuple of int
        Pixels on a side, or (y, x).
    frames : int
        Number of frames, `cadence_minutes` apart.
    seed : int
    events, variables, moving, rotation, psf_variation, dither, cosmic_rays, cosmic_rays_flagged, \
bad_pixels, saturation, background, cadence_minutes
        See `SceneSettings`, as for all other keywords: `density`, `psf`, `psf_fwhm`, `wcs_error`, ...
    wcs : bool
        Whether the headers state a WCS.
    overwrite : bool
        Replace frames that are already in the directory.
    threads : int
        Frames made at the same time; each holds one frame in memory.
    progress : callable, optional
        Called with (frames written, frames in all).

    Raises
    ------
    FileExistsError
        If the directory holds frames and `overwrite` is false.
    ValueError
        If a setting makes no sense.
    """
    directory = Path(directory)
    shape = (size, size) if isinstance(size, int) else (size[0], size[1])
    chosen = SceneSettings(
        events=events,
        variables=variables,
        moving=moving,
        rotation=rotation,
        psf_variation=psf_variation,
        dither=dither,
        cosmic_rays=cosmic_rays,
        cosmic_rays_flagged=cosmic_rays_flagged,
        bad_pixels=bad_pixels,
        saturation=saturation,
        background=background,
        cadence_minutes=cadence_minutes,
        **settings,
    )
    scene = make_scene(shape, frames, seed=seed, settings=chosen)
    _clear(directory, overwrite)
    truth = truth_table(scene)
    truth.write(directory / "truth.ecsv", overwrite=True)
    paths = []
    with ThreadPoolExecutor(threads) as pool:
        for path in pool.map(lambda k: write_frame(scene, k, directory, wcs=wcs), range(frames)):
            paths.append(path)
            if progress is not None:
                progress(len(paths), frames)
    return SimulatedField(directory, paths, truth, scene)


def simulate_frames(scene: Scene) -> Iterator[Exposure]:
    """Frames of a scene one after the other, none kept."""
    for k in range(scene.n_frames):
        yield expose(scene, k, dtype=np.float32)


def _clear(directory: Path, overwrite: bool) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    old = sorted(directory.glob("frame_*.fits"))
    if old and not overwrite:
        raise FileExistsError(f"{directory} already holds {len(old)} frames: choose another, or overwrite")
    for path in old:
        path.unlink()


def write_frame(scene: Scene, k: int, directory: str | os.PathLike[str], *, wcs: bool = True) -> Path:
    """Render frame k and write it: complete or not at all. Pure in (scene, k), so a cluster may call it."""
    exposure = expose(scene, k, dtype=np.float32)
    header = frame_header(scene, k, wcs=wcs)
    primary = fits.PrimaryHDU(header=_without_wcs(header))
    science = fits.ImageHDU(exposure.flux, header, name="SCI")
    error = fits.ImageHDU(exposure.error, name="ERR")
    error.header["BUNIT"] = _flux_unit(scene)
    quality = fits.ImageHDU(exposure.dq.astype(np.int32), name="DQ")
    path = Path(directory) / f"frame_{k:05d}.fits"
    partial = path.with_suffix(".fits.partial")
    fits.HDUList([primary, science, error, quality]).writeto(
        partial, overwrite=True, output_verify="exception"
    )
    partial.replace(path)
    return path


def frame_header(scene: Scene, k: int, *, wcs: bool = True) -> fits.Header:
    """FITS header of frame k: time, detector, photometry and (TAN) WCS."""
    s = scene.settings
    middle, half = scene.time[k], s.exposure / 2 / 86400
    header = fits.Header()
    header["ORIGIN"] = ("survey.simulate", "synthetic data")
    header["TELESCOP"] = "SIMULATED"
    header["DATE-OBS"] = (Time(middle - half, format="mjd").isot, "start of the exposure, UTC")
    header["TIMESYS"] = "UTC"
    header["DATE-AVG"] = (Time(middle, format="mjd").isot, "middle of the exposure, UTC")
    header["MJD-OBS"] = (middle - half, "[d] start of the exposure")
    header["MJD-AVG"] = (middle, "[d] middle of the exposure")
    header["EXPTIME"] = (s.exposure, "[s]")
    header["FILTER"] = BAND
    header["DETECTOR"] = DETECTOR_NAME
    header["FRAME"] = (k, "number of the frame")
    header["SEED"] = scene.seed
    header["BUNIT"] = _flux_unit(scene)
    header["GAIN"] = (scene.gain, "electrons per unit of BUNIT")
    header["RDNOISE"] = (s.read_noise, "[electron]")
    if s.saturation is not None:
        header["SATURATE"] = (s.saturation, "[BUNIT] level of saturation")
    header["PHOTZPT"] = (s.zero_point, "[mag] of a star of 1 BUNIT")
    if wcs:
        header.update(frame_wcs_header(scene, k))
    return header


def _flux_unit(scene: Scene) -> str:
    return "electron / s" if scene.settings.gain is None else "count"


def frame_wcs_header(scene: Scene, k: int) -> fits.Header:
    """Tangent-plane WCS of frame k, off by the pointing error that the settings ask for.

    The tangent point is the field's centre, so the maps between frames are exactly affine.
    """
    pixel_map = scene.pixel_map(k)
    cy, cx = scene.center
    x, y = pixel_map.evaluate(cx, cy)
    off_x, off_y = scene.rng(POINTING, k, 1).standard_normal(2) * scene.settings.wcs_error
    if k == 0 and scene.first_is_reference:
        off_x = off_y = 0.0
    # North up, east left on the reference frame.
    to_sky = np.diag([-1.0, 1.0]) * PIXEL_SCALE / 3600 @ np.linalg.inv(pixel_map.coefficients[:, 1:])
    header = fits.Header()
    header["WCSAXES"] = 2
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    header["CUNIT1"] = header["CUNIT2"] = "deg"
    header["CRPIX1"], header["CRPIX2"] = float(x) + 1 + off_x, float(y) + 1 + off_y
    header["CRVAL1"], header["CRVAL2"] = FIELD_CENTER
    header["CD1_1"], header["CD1_2"] = to_sky[0]
    header["CD2_1"], header["CD2_2"] = to_sky[1]
    header["RADESYS"] = "ICRS"
    return header


def _without_wcs(header: fits.Header) -> fits.Header:
    """The primary header: no image, so neither a WCS nor a unit."""
    kept = fits.Header()
    for card in header.cards:
        if not card.keyword.startswith(
            ("WCSAXES", "CTYPE", "CUNIT", "CRPIX", "CRVAL", "CD", "RADESYS", "BUNIT")
        ):
            kept.append(card)
    return kept


def truth_table(scene: Scene) -> Table:
    """Truth about the changing sources, with sky positions; NaN where a column has no meaning.

    Columns: id, kind, x, y, ra, dec, magnitude, flux (baseline), u0, tE, t0, period, amplitude, vx, vy,
    peak_difference_flux, duration (full width at half peak), snr (of the known light curve in all
    frames, its baseline measured in the same frames). The metadata say how the frames were made.
    """
    table = Table(scene.sources)
    wcs = WCS(frame_wcs_header(scene, 0))
    ra, dec = wcs.all_pix2world(scene.sources["x"], scene.sources["y"], 0)
    at = table.colnames.index("y") + 1
    table.add_columns([ra, dec], indexes=[at, at], names=["ra", "dec"])
    for name, unit in TRUTH_UNITS.items():
        table[name].unit = unit
    for name in ("flux", "peak_difference_flux"):
        table[name].unit = _flux_unit(scene)
    s = scene.settings
    table.meta = {
        "seed": scene.seed,
        "frames": scene.n_frames,
        "shape": list(scene.shape),
        "start_mjd": s.start,
        "cadence_days": scene.cadence,
        "zero_point": s.zero_point,
        "gain": scene.gain,
        "read_noise": s.read_noise,
        "psf_fwhm": s.psf_fwhm,
        "rotation": s.rotation,
        "n_stars": len(scene.stars),
    }
    return table


def true_light_curve(row: Any, time: Any) -> NDArray[np.float64]:
    """Flux change of one row of ``truth.ecsv`` about its baseline at the given times (MJD).

    Examples
    --------
    >>> row = {"kind": "sinusoid", "flux": 10.0, "amplitude": 0.5, "period": 1.0, "t0": 0.0}
    >>> float(true_light_curve(row, 0.25))
    5.0
    """
    return float(row["flux"]) * ev.relative_light_curve(row, time)
