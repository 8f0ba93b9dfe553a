"""Drawing a scene: its stars, and events and variables at places where they can be judged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from survey.simulate import events as ev
from survey.simulate.psf import ProfileTable, make_psf
from survey.simulate.scene import SOURCES, STARS, Scene, SceneSettings
from survey.simulate.stars import IDENTITY, add_catalog, draw_stars

Array = NDArray[np.float64]

# Sources keep this distance from what is not covered by every frame, and from each other.
EDGE, SEPARATION = 8.0, 12.0

EVENT_MAGNITUDES = (18.0, 27.0)
VARIABLE_MAGNITUDES = (19.5, 23.5)

# Nothing within a source's stamp may come nearer to saturation than this fraction, or, where nothing
# saturates, nearer to a star whose noise would hide it.
BRIGHTEST, HIDING = 0.8, 2500.0


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
    widest = psf.radius * (1 + 2.5 * settings.psf_variation) + 1
    # Twice what a detector can see, since a cube's frames have a border of a dither and a turn.
    margin = float(np.ceil(2 * (settings.dither + turn + 1) + widest))
    stars = draw_stars(
        shape,
        margin,
        density=settings.density,
        luminosity=settings.luminosity,
        zero_point=settings.zero_point,
        seed=seed,
        key=STARS,
    )
    nothing = np.zeros(0, ev.TRUTH_DTYPE)
    scene = Scene((shape[0], shape[1]), n_frames, seed, settings, first_is_reference, stars, nothing)
    return replace(scene, sources=draw_sources(scene, psf))


def draw_sources(scene: Scene, psf: ProfileTable) -> NDArray[np.void]:
    """Events, variables and moving bodies, apart from each other and from saturated stars."""
    s = scene.settings
    rng = scene.rng(SOURCES)
    level = _mean_level(scene, psf)
    edge = [min(EDGE + s.dither + scene.turn, n / 4) for n in scene.shape]
    kinds = ["microlensing"] * s.events + [("sinusoid", "rrlyrae")[i % 2] for i in range(s.variables)]
    kinds += ["moving"] * s.moving
    rows = np.zeros(len(kinds), ev.TRUTH_DTYPE)
    for i, kind in enumerate(kinds):
        for _ in range(500):
            y, x = (float(rng.uniform(e, n - 1 - e)) for e, n in zip(edge, scene.shape, strict=True))
            apart = np.hypot(rows["x"][:i] - x, rows["y"][:i] - y)
            row = _try_source(scene, psf, level, rng, kind, y, x)
            if row is not None and np.all(apart > SEPARATION):
                break
        else:
            raise ValueError(
                f"no room for {len(kinds)} events and variables on {scene.shape} pixels and {scene.n_frames} "
                "frames: ask for fewer, or for a larger field or more frames"
            )
        rows[i] = row
        rows[i]["id"] = i
    return rows


def _mean_level(scene: Scene, psf: ProfileTable) -> Array:
    """Flux of the sky and the constant stars on the reference grid."""
    pad = psf.rows.shape[2]
    level = np.full([n + 2 * pad for n in scene.shape], scene.settings.background)
    affine = IDENTITY.copy()
    affine[:, 0] = pad
    add_catalog(level, scene.stars, affine, psf)
    return level[pad:-pad, pad:-pad]


def _try_source(
    scene: Scene, psf: ProfileTable, level: Array, rng: np.random.Generator, kind: str, y: float, x: float
) -> np.void | None:
    """A truth row for a source at (y, x), or None where the place or the flux is unsuitable."""
    s, r = scene.settings, psf.radius
    iy, ix = round(y), round(x)
    local = level[max(iy - r, 0) : iy + r + 1, max(ix - r, 0) : ix + r + 1]
    row = _draw_row(scene, rng, kind)
    row["y"], row["x"] = y, x
    target = float(np.exp(rng.uniform(*np.log(s.event_snr))))
    magnitude = float(rng.uniform(*VARIABLE_MAGNITUDES))
    stamp = psf.stamp(y - iy, x - ix)
    if local.shape != stamp.shape:
        return None
    change = ev.relative_light_curve(row, scene.time)
    flux = float(10 ** (-0.4 * (magnitude - s.zero_point)))
    if kind == "microlensing":
        flux = _flux_for_snr(target, change, stamp, local, scene.gain, s.read_noise)
        magnitude = s.zero_point - 2.5 * float(np.log10(flux))
        if not EVENT_MAGNITUDES[0] < magnitude < EVENT_MAGNITUDES[1]:
            return None
    brightest = local.max() + flux * (1 + change.max()) * psf.stamp(0.0, 0.0).max()
    if brightest > BRIGHTEST * (HIDING if s.saturation is None else s.saturation):
        return None
    row["flux"], row["magnitude"] = flux, magnitude
    row["peak_difference_flux"] = flux * change[np.argmax(np.abs(change))]
    row["snr"] = ev.expected_snr(change, flux, stamp, local, scene.gain, s.read_noise)
    return row


def _draw_row(scene: Scene, rng: np.random.Generator, kind: str) -> np.void:
    """A truth row with the parameters of its light curve or motion; what has no meaning is NaN."""
    row = np.zeros(1, ev.TRUTH_DTYPE)[0]
    for name in ("u0", "tE", "period", "amplitude", "vx", "vy", "duration"):
        row[name] = np.nan
    time = scene.time
    if kind == "microlensing":
        shortest, longest = scene.settings.event_duration
        durations = (shortest, max(shortest, min(longest, scene.n_frames / 4)))
        drawn = ev.draw_microlensing(rng, time, durations, scene.cadence)
    elif kind == "moving":
        drawn = ev.draw_moving(rng, time, scene.cadence)
    else:
        drawn = ev.draw_variable(rng, time, scene.cadence)
    row["kind"] = kind
    for name, value in drawn.items():
        row[name] = value
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
