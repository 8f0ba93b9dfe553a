"""Simulated frames placed on the sky grid: cubes for the tests of the kernels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from survey.kernels.pixelmap import nearest_pixels
from survey.simulate.build import make_scene
from survey.simulate.detector import expose, true_error
from survey.simulate.scene import Scene, SceneSettings

Array = NDArray[np.floating]


@dataclass(frozen=True)
class SimulatedCube:
    """A placed cube with known truth.

    Attributes
    ----------
    flux, error : arrays (time, y, x)
        Observed flux, the sky included, and the error that a pipeline gives (from observed counts).
    true_error : array (time, y, x)
        Standard deviation of the noise that was added.
    mask : bool array (time, y, x)
        True = bad: saturated pixels, bad pixels and the cosmic rays that were flagged.
    phase_y, phase_x : arrays (time,), or (time, y, x) with rotation
        Sample [k, y, x] was taken at reference position (y + phase_y, x + phase_x).
    time : array (time,)
        MJD at mid-exposure.
    truth : structured array
        One row an event or variable; fields in `survey.simulate.events.TRUTH_DTYPE`, positions on the
        reference grid.
    noiseless : array (time, y, x)
        Expected flux.
    cosmic_rays : bool array (time, y, x)
        Samples touched by a cosmic ray, flagged or not.
    scene : Scene
        What it was made from.
    """

    flux: Array
    error: Array
    true_error: Array
    mask: NDArray[np.bool_]
    phase_y: Array
    phase_x: Array
    time: Array
    truth: NDArray[np.void]
    noiseless: Array
    cosmic_rays: NDArray[np.bool_]
    scene: Scene = field(repr=False)

    def light_curve(self, i: int) -> Array:
        """True flux change of source i about its baseline at every frame."""
        return self.scene.light_curve(i)


def simulate_cube(
    shape: tuple[int, int],
    n_frames: int,
    *,
    seed: int,
    density: float = 0.63,
    psf_fwhm: float = 1.1,
    rotation: float = 0.0,
    events: int = 0,
    variables: int = 0,
    saturation: float | None = None,
    cosmic_rays: float = 0.0,
    dtype: type[np.floating] = np.float64,
    **settings: Any,
) -> SimulatedCube:
    """Frames of a crowded field, dithered, observed and placed on the sky grid by nearest pixel.

    Parameters
    ----------
    shape : tuple of int
        (y, x) pixels.
    n_frames : int
    seed : int
        Frame k has the same pointing and noise whatever the number of frames.
    density, psf_fwhm, rotation, events, variables, saturation, cosmic_rays
        See `SceneSettings`, as for all other keywords: `psf`, `psf_variation`, `dither`, `background`,
        `bad_pixels`, `flat_error`, `scale_variation`, ... Flux is in electrons per second.
    dtype : type
        Of flux, errors and the noiseless cube.

    Examples
    --------
    >>> cube = simulate_cube((32, 32), 5, seed=1)
    >>> cube.flux.shape, cube.phase_y.shape, bool(abs(cube.phase_y).max() <= 0.5)
    ((5, 32, 32), (5,), True)
    """
    chosen = SceneSettings(
        density=density,
        psf_fwhm=psf_fwhm,
        rotation=rotation,
        events=events,
        variables=variables,
        saturation=saturation,
        cosmic_rays=cosmic_rays,
        **settings,
    )
    scene = make_scene(shape, n_frames, seed=seed, settings=chosen, first_is_reference=False)
    border = int(np.ceil(chosen.dither + scene.turn)) + 1
    cube_shape = (n_frames, *shape)
    names = ("flux", "error", "true_error", "noiseless")
    cubes = {name: np.empty(cube_shape, dtype) for name in names}
    mask, hit = np.empty(cube_shape, bool), np.empty(cube_shape, bool)
    phases_y: list[Array] = []
    phases_x: list[Array] = []
    for k in range(n_frames):
        exposure = expose(scene, k, border)
        jy, jx, phase_y, phase_x = nearest_pixels(scene.pixel_map(k), (0, shape[0]), (0, shape[1]), shape)
        placed = (jy + border, jx + border)
        cubes["flux"][k] = exposure.flux[placed]
        cubes["error"][k] = exposure.error[placed]
        cubes["noiseless"][k] = exposure.noiseless[placed]
        cubes["true_error"][k] = true_error(scene, exposure.noiseless[placed])
        mask[k] = exposure.dq[placed] != 0
        hit[k] = exposure.cosmic_rays[placed]
        phases_y.append(phase_y)
        phases_x.append(phase_x)
    return SimulatedCube(
        **cubes,
        mask=mask,
        cosmic_rays=hit,
        phase_y=_stack_phases(phases_y, shape),
        phase_x=_stack_phases(phases_x, shape),
        time=scene.time,
        truth=scene.sources,
        scene=scene,
    )


def _stack_phases(phases: list[Array], shape: tuple[int, int]) -> Array:
    """Phases as (time,) where every frame is a pure shift, else (time, y, x)."""
    if all(p.ndim == 0 for p in phases):
        return np.array([float(p) for p in phases])
    return np.stack([np.broadcast_to(p, shape) for p in phases])
