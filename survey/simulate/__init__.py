"""Honest synthetic fields with known truth: cubes for kernel tests, FITS frames for the whole pipeline."""

from survey.simulate.cube import SimulatedCube, simulate_cube
from survey.simulate.detector import DEAD, DO_NOT_USE, HOT, JUMP_DET, SATURATED, Exposure, expose
from survey.simulate.events import magnification, microlensing
from survey.simulate.psf import ArrayPSF, GaussianPSF, RomanLikePSF
from survey.simulate.scene import Scene, SceneSettings, make_scene
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
    "expose",
    "magnification",
    "make_scene",
    "microlensing",
    "simulate_cube",
]
