"""The scene behind simulated frames: settings, pointing, sources. Every frame follows from it and k."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from survey.kernels.pixelmap import PixelMap
from survey.simulate import events as ev
from survey.simulate.psf import PSF, ProfileTable, make_psf
from survey.simulate.stars import LuminosityFunction, StarCatalog, add_catalog, add_sources, draw_stars

Array = NDArray[np.float64]

# Spawn keys of the seed's independent streams: what is drawn from one does not move another.
STARS, SOURCES, POINTING, NOISE, COSMIC, DETECTOR = range(6)

# Sources keep this distance from the edge and from each other, so that each can be judged alone.
EDGE, SEPARATION = 8.0, 12.0


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
    events, variables : int
        Microlensing events; periodic variables (sinusoids and RR Lyrae-like in turn).
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

    def noiseless(self, k: int, border: int = 0, *, sources: bool = True) -> Array:
        """Flux of frame k before it meets the detector, with `border` pixels around the detector."""
        p, pixel_map = self.pointing(k), self.pixel_map(k)
        psf = make_psf(self.settings.psf, self.settings.psf_fwhm).table(p.width)
        image = np.zeros((self.shape[0] + 2 * border, self.shape[1] + 2 * border))
        x0, y0 = pixel_map.evaluate(0.0, 0.0)
        (cos, _), (sin, _) = pixel_map.coefficients[:, 1:]
        affine = np.array([[y0 + border, cos, sin], [x0 + border, -sin, cos]], float)
        add_catalog(image, self.stars, affine, psf)
        if sources and len(self.sources):
            xd, yd = pixel_map.evaluate(self.sources["x"], self.sources["y"])
            time = self.time[k]
            change = np.array([float(ev.relative_light_curve(s, time)) for s in self.sources])
            flux = self.sources["flux"] * (1 + change)
            add_sources(image, np.asarray(yd) + border, np.asarray(xd) + border, flux, psf)
        image *= p.scale
        image += p.background
        return image


def make_scene(
    shape: tuple[int, int],
    n_frames: int,
    *,
    seed: int,
    settings: SceneSettings,
    first_is_reference: bool = True,
) -> Scene:
    """Draw a scene's stars, events and variables.

    Stars depend on the seed and their place alone; the pointing and the noise of frame k on the seed
    and k. Events are spread over the time span, so they do depend on the number of frames.

    Raises
    ------
    ValueError
        If a setting makes no sense, or the field is too small for the sources asked for.
    """
    if min(shape) < 1 or n_frames < 1:
        raise ValueError(f"a scene needs pixels and frames, not {shape} and {n_frames}")
    if seed < 0 or min(settings.density, settings.rotation, settings.dither, settings.read_noise) < 0:
        raise ValueError("seed, density, rotation, dither and read_noise must not be negative")
    psf = make_psf(settings.psf, settings.psf_fwhm).table()
    turn = np.deg2rad(settings.rotation) * np.hypot(*shape) / 2
    margin = float(np.ceil(settings.dither + turn + psf.radius * (1 + 2.5 * settings.psf_variation) + 2))
    stars = draw_stars(
        shape,
        2 * margin,
        density=settings.density,
        luminosity=settings.luminosity,
        zero_point=settings.zero_point,
        seed=seed,
        key=STARS,
    )
    empty = np.zeros(0, ev.TRUTH_DTYPE)
    scene = Scene((shape[0], shape[1]), n_frames, seed, settings, first_is_reference, stars, empty)
    if settings.events + settings.variables == 0:
        return scene
    return replace(scene, sources=_draw_sources(scene, psf))


def _draw_sources(scene: Scene, psf: ProfileTable) -> NDArray[np.void]:
    """Events and variables at places where nothing saturates, each with the flux that its S/N asks for."""
    s = scene.settings
    rng = scene.rng(SOURCES)
    level = np.full(scene.shape, s.background)
    add_catalog(level, scene.stars, np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), psf)
    kinds = ["microlensing"] * s.events + [("sinusoid", "rrlyrae")[i % 2] for i in range(s.variables)]
    rows = np.zeros(len(kinds), ev.TRUTH_DTYPE)
    for i, kind in enumerate(kinds):
        for _ in range(500):
            y, x = (
                float(rng.uniform(EDGE, n - 1 - EDGE)) if n > 2 * EDGE + 1 else np.nan for n in scene.shape
            )
            apart = np.hypot(rows["x"][:i] - x, rows["y"][:i] - y)
            if np.isfinite(x + y) and (i == 0 or apart.min() > SEPARATION):
                row = _try_source(scene, psf, level, rng, kind, y, x)
                if row is not None:
                    break
        else:
            raise ValueError(f"no room for {len(kinds)} events and variables on {scene.shape} pixels")
        rows[i] = row
        rows[i]["id"] = i
    return rows


def _try_source(
    scene: Scene, psf: ProfileTable, level: Array, rng: np.random.Generator, kind: str, y: float, x: float
) -> np.void | None:
    """A truth row for a source at (y, x), or None where the place or the flux is unsuitable."""
    s, time = scene.settings, scene.time
    row = np.zeros(1, ev.TRUTH_DTYPE)[0]
    for name in ("u0", "tE", "period", "amplitude"):
        row[name] = np.nan
    if kind == "microlensing":
        shortest, longest = s.event_duration
        durations = (shortest, max(shortest, min(longest, scene.n_frames / 4)))
        drawn = ev.draw_microlensing(rng, time, durations, scene.cadence)
    else:
        drawn = ev.draw_variable(rng, kind, time, scene.cadence)
    row["kind"], row["y"], row["x"] = kind, y, x
    for name, value in drawn.items():
        row[name] = value
    iy, ix, r = round(y), round(x), psf.radius
    stamp = psf.stamp(y - iy, x - ix)
    inside = np.s_[max(iy - r, 0) : iy + r + 1, max(ix - r, 0) : ix + r + 1]
    local = level[inside]
    if local.shape != stamp.shape:
        return None
    change = ev.relative_light_curve(row, time)
    target = float(np.exp(rng.uniform(*np.log(s.event_snr))))
    if kind == "microlensing":
        flux = _flux_for_snr(target, change, stamp, local, scene.gain, s.read_noise)
    else:
        flux = float(10 ** (-0.4 * (rng.uniform(19.5, 23.5) - s.zero_point)))
    magnitude = s.zero_point - 2.5 * np.log10(flux)
    brightest = local.max() + flux * (1 + change.max()) * psf.stamp(0.0, 0.0).max()
    ceiling = np.inf if s.saturation is None else 0.8 * s.saturation
    if not 18 < magnitude < 27 or brightest > min(ceiling, 40 * s.background + 2000):
        return None
    row["flux"], row["magnitude"] = flux, magnitude
    peak = change[np.argmax(np.abs(change))]
    row["peak_difference_flux"] = flux * peak
    row["snr"] = ev.expected_snr(change, flux, stamp, local, scene.gain, s.read_noise)
    return row


def _flux_for_snr(
    target: float, change: Array, stamp: Array, level: Array, gain: float, read_noise: float
) -> float:
    """Baseline flux at which a light curve is expected at S/N `target`, by bisection of its logarithm."""
    low, high = -4.0, 8.0
    for _ in range(50):
        middle = (low + high) / 2
        if ev.expected_snr(change, 10**middle, stamp, level, gain, read_noise) < target:
            low = middle
        else:
            high = middle
    return float(10**middle)
