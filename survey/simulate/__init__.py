"""Honest synthetic fields with known truth: cubes for kernel tests, FITS frames for the whole pipeline."""

from survey.simulate.build import make_scene
from survey.simulate.cube import SimulatedCube, simulate_cube
from survey.simulate.detector import DEAD, DO_NOT_USE, HOT, JUMP_DET, SATURATED, Exposure, expose, true_error
from survey.simulate.events import magnification, microlensing
from survey.simulate.files import (
    SimulatedField,
    frame_header,
    frame_wcs_header,
    simulate_field,
    simulate_frames,
    true_light_curve,
    truth_table,
    write_frame,
)
from survey.simulate.psf import ArrayPSF, GaussianPSF, RomanLikePSF
from survey.simulate.scene import Scene, SceneSettings
from survey.simulate.stars import LuminosityFunction

__all__ = [
    "DEAD",
    "DO_NOT_USE",
    "HOT",
    "JUMP_DET",
    "SATURATED",
    "ArrayPSF",
    "Exposure",
    "GaussianPSF",
    "LuminosityFunction",
    "RomanLikePSF",
    "Scene",
    "SceneSettings",
    "SimulatedCube",
    "SimulatedField",
    "expose",
    "frame_header",
    "frame_wcs_header",
    "magnification",
    "make_scene",
    "microlensing",
    "simulate_cube",
    "simulate_field",
    "simulate_frames",
    "true_error",
    "true_light_curve",
    "truth_table",
    "write_frame",
]
