"""The scene behind simulated frames: settings, pointing, sources. Every frame follows from it and k."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from survey.kernels.pixelmap import PixelMap
from survey.simulate import events as ev
from survey.simulate.psf import PSF, ProfileTable, make_psf
from survey.simulate.stars import LuminosityFunction, StarCatalog, add_catalog, add_sources

Array = NDArray[np.float64]

# Spawn keys of the seed's independent streams: what is drawn from one does not move another.
STARS, SOURCES, POINTING, NOISE, COSMIC, DETECTOR = range(6)


@dataclass(frozen=True)
class SceneSettings:
    """Everything that can be set about a simulated field.

    Parameters
    ----------
    density : float
        Stars a pixel.
    psf : {"gaussian", "roman"} or PSF object
    psf_fwhm : float
        Full width at half maximum in pixels, before integration over the pixel.
    psf_variation : float
        Relative scatter of the width from frame to frame.
    rotation : float
        Largest rotation of a frame about the field's centre, degrees; uniform in both directions.
    dither : float
        Largest shift of a frame in each axis, pixels; uniform, so sub-pixel phases are uniform too.
    events, variables, moving : int
        Microlensing events; periodic variables (sinusoids and RR Lyrae-like in turn); bodies of constant
        flux that move 0.1 to 3 pixels a frame.
    event_snr : tuple of float
        Range of the events' expected S/N, log-uniform. The source's flux follows from it.
    event_duration : tuple of float
        Range of the events' full duration at half of their peak, in frames, log-uniform.
    saturation : float, optional
        Flux at which a pixel is clipped and flagged.
    cosmic_rays : float
        Hits a pixel a frame.
    cosmic_rays_flagged : float
        Fraction of the hits that the mask knows.
    bad_pixels : float
        Fraction of the detector's pixels that are dead or hot, always at the same places, always flagged.
    flat_error : float
        Relative scatter of the pixels' response left over after flat-fielding.
    background : float
        Sky level, flux a pixel.
    background_variation, scale_variation : float
        Relative scatter of the sky and of the transparency from frame to frame.
    wcs_error : float
        Scatter in each axis between the true pointing and the WCS that a file's header states, pixels.
    read_noise : float
        Electrons.
    exposure : float
        Seconds.
    gain : float, optional
        Electrons per unit of flux. By default the exposure time: images are in electrons per second.
    cadence_minutes : float
        Time between frames.
    start : float
        MJD of the first frame's mid-exposure.
    zero_point : float
        Magnitude of a star of flux 1.
    luminosity : LuminosityFunction
    """

    density: float = 0.63
    psf: str | PSF = "gaussian"
    psf_fwhm: float = 1.1
    psf_variation: float = 0.0
    rotation: float = 0.0
    dither: float = 0.5
    events: int = 0
    variables: int = 0
    moving: int = 0
    event_snr: tuple[float, float] = (8.0, 100.0)
    event_duration: tuple[float, float] = (2.0, 16.0)
    saturation: float | None = None
    cosmic_rays: float = 0.0
    cosmic_rays_flagged: float = 0.0
    bad_pixels: float = 0.0
    flat_error: float = 0.0
    background: float = 3.4
    background_variation: float = 0.0
    scale_variation: float = 0.0
    wcs_error: float = 0.0
    read_noise: float = 12.0
    exposure: float = 145.92
    gain: float | None = None
    cadence_minutes: float = 15.0
    start: float = 61500.0
    zero_point: float = 27.615
    luminosity: LuminosityFunction = field(default_factory=LuminosityFunction)


@dataclass(frozen=True)
class Pointing:
    """How one frame was taken.

    Attributes
    ----------
    dx, dy : float
        Shift of the field's centre on the detector, pixels.
    angle : float
        Rotation from the x to the y axis of the detector, degrees.
    background, scale, width : float
        Sky level, transparency, and the PSF's width relative to the settings.
    """

    dx: float
    dy: float
    angle: float
    background: float
    scale: float
    width: float


@dataclass(frozen=True)
class Scene:
    """A simulated field: pure data, small enough to send to a worker; `expose` renders frame k of it.

    Attributes
    ----------
    shape : tuple of int
        (y, x) of the reference grid, which is the detector's own.
    n_frames, seed : int
    first_is_reference : bool
        Whether frame 0 has no shift and no rotation.
    stars : StarCatalog
        The constant stars.
    sources : structured array
        Truth about events and variables, `events.TRUTH_DTYPE`.
    """

    shape: tuple[int, int]
    n_frames: int
    seed: int
    settings: SceneSettings
    first_is_reference: bool
    stars: StarCatalog
    sources: NDArray[np.void]

    @property
    def _psf(self) -> PSF:
        return make_psf(self.settings.psf, self.settings.psf_fwhm)

    @cached_property
    def _profile(self) -> ProfileTable:
        return self._psf.table()

    @property
    def turn(self) -> float:
        """Pixels by which rotation moves the field's corners at most."""
        return float(np.deg2rad(self.settings.rotation) * np.hypot(*self.shape) / 2)

    @property
    def gain(self) -> float:
        """Electrons per unit of flux."""
        return self.settings.exposure if self.settings.gain is None else self.settings.gain

    @property
    def cadence(self) -> float:
        """Days between frames."""
        return self.settings.cadence_minutes / 1440

    @property
    def time(self) -> Array:
        """MJD at mid-exposure of every frame."""
        return self.settings.start + np.arange(self.n_frames, dtype=float) * self.cadence

    def rng(self, *key: int) -> np.random.Generator:
        """Random numbers of one stream."""
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))

    def pointing(self, k: int) -> Pointing:
        """Pointing and observing conditions of frame k, whatever the number of frames."""
        s = self.settings
        rng = self.rng(POINTING, k)
        dx, dy, turn = rng.uniform(-1, 1, 3) * (s.dither, s.dither, s.rotation)
        sky, scale, width = 1 + np.clip(rng.standard_normal(3), -2.5, 2.5) * (
            s.background_variation,
            s.scale_variation,
            s.psf_variation,
        )
        if k == 0 and self.first_is_reference:
            dx = dy = turn = 0.0
        background = max(sky, 0.0) * s.background
        return Pointing(float(dx), float(dy), float(turn), float(background), float(scale), float(width))

    def pixel_map(self, k: int) -> PixelMap:
        """Map from reference pixel to detector pixel of frame k."""
        p = self.pointing(k)
        (cy, cx), angle = self.center, np.deg2rad(p.angle)
        cos, sin = np.cos(angle), np.sin(angle)
        return PixelMap(np.array([[cx + p.dx, cos, -sin], [cy + p.dy, sin, cos]]), (cx, cy))

    @property
    def center(self) -> tuple[float, float]:
        """(y, x) of the reference grid's centre, about which frames turn."""
        return (self.shape[0] - 1) / 2, (self.shape[1] - 1) / 2

    def light_curve(self, i: int) -> Array:
        """Flux change of source i about its baseline at every frame, in flux units of transparency 1."""
        source = self.sources[i]
        return float(source["flux"]) * ev.relative_light_curve(source, self.time)

    def noiseless(self, k: int, border: int = 0) -> Array:
        """Flux of frame k before it meets the detector, with `border` pixels around the detector."""
        p, pixel_map = self.pointing(k), self.pixel_map(k)
        psf = self._profile if p.width == 1 else self._psf.table(p.width)
        pad = border + psf.rows.shape[2]
        image = np.zeros((self.shape[0] + 2 * pad, self.shape[1] + 2 * pad))
        x0, y0 = pixel_map.evaluate(0.0, 0.0)
        (cos, _), (sin, _) = pixel_map.coefficients[:, 1:]
        add_catalog(image, self.stars, np.array([[y0 + pad, cos, sin], [x0 + pad, -sin, cos]], float), psf)
        if len(self.sources):
            x, y, flux = self._sources_at(k)
            xd, yd = pixel_map.evaluate(x, y)
            add_sources(image, yd + pad, xd + pad, flux, psf)
        cut = pad - border
        image = image[cut:-cut, cut:-cut]
        image *= p.scale
        image += p.background
        return image

    def _sources_at(self, k: int) -> tuple[Array, Array, Array]:
        """Reference position (x, y) and flux of the changing sources at frame k."""
        sources, time = self.sources, self.time[k]
        elapsed = np.where(sources["kind"] == "moving", time - sources["t0"], 0.0)
        change = np.array([float(ev.relative_light_curve(s, time)) for s in sources])
        x = sources["x"] + np.nan_to_num(sources["vx"]) * elapsed
        y = sources["y"] + np.nan_to_num(sources["vy"]) * elapsed
        return x, y, sources["flux"] * (1 + change)
