"""Fluxes of objects in differences of pairs of frames: a unit is a group of objects and a block of pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from survey.config import Config
from survey.io.store import Field
from survey.kernels.pair_flux import Difference, copies_scale, empty_places, point_fluxes
from survey.kernels.pair_position import common_position
from survey.kernels.psf import EffectivePSF
from survey.stages import frame_psf
from survey.stages.calibrated import calibrated_frames
from survey.stages.nn2_cutouts import Cutouts, pair_grid, read_cutouts
from survey.stages.nn2_plan import Group, epoch_pairs
from survey.stages.nn2_subtract import OWN_FWHM, Plane, Subtracted, own_pixels, subtract
from survey.stages.protocol import Outlook, Output, Stage, Unit

FOLDER = "lightcurves/nn2/pairs"
# Epochs in a block: a unit holds the cutouts of two blocks.
BLOCK = 16
# Epochs that a position is fitted on, at most, and pairs of each.
POSITION_EPOCHS = 24
POSITION_PARTNERS = 4
# Half width, in FWHM, of the stamps that a position is fitted on.
CORE = 1.4
SCHEMA = pa.schema(
    [
        ("object_id", pa.string()),
        ("template", pa.int32()),
        ("image", pa.int32()),
        ("flux", pa.float64()),
        ("error", pa.float64()),
        ("noise_error", pa.float64()),
        ("bias", pa.float64()),
        ("copies", pa.int32()),
        ("scale", pa.float64()),
        ("level", pa.float64()),
    ]
)
# Rows of constant stars go by no name. S/N of a star's pixel that shows how far a difference errs by a share
# of the flux, and how many are looked at.
NO_OBJECT, BRIGHT, MOST_BRIGHT = "", 20.0, 12


@dataclass
class PairData:
    """Cutouts of a group and the pairs to subtract."""

    group: Group
    pairs: NDArray[np.int64]
    cutouts: Cutouts
    psfs: dict[int, EffectivePSF]

    def places(self, epoch: int) -> NDArray[np.float64]:
        """(y, x) of the objects in an epoch's cutout."""
        k = self.cutouts.index(epoch)
        return np.array([self.cutouts.place(k, item["y"], item["x"]) for item in self.group.objects])


def read(field: Field, unit: Unit, config: Config) -> PairData:
    """Cutouts of the epochs that the unit's pairs need."""
    group, pairs = unit.items
    pairs = np.asarray(pairs, np.int64)
    frames = calibrated_frames(field)
    epochs = np.unique(pairs)
    cutouts = read_cutouts(field, frames, epochs, (group.y, group.x), group.size, pair_grid(field))
    return PairData(group, pairs, cutouts, frame_psf.load(field, epochs))


def apply(data: PairData, state: None, config: Config) -> Output:
    """Fluxes of all objects in all differences of the unit, as a table; frames without them are left out."""
    rows, failed = [], []
    for a, b in data.pairs:
        if not (covered(data, int(a)) and covered(data, int(b))):
            continue
        for template, image in orders(data, int(a), int(b), config.nn2.direction):
            try:
                found = difference(data, template, image, config)
            except ValueError as error:
                failed.append([template, image, str(error)])
                continue
            rows += measure(data, found, template, image, config.nn2.errors)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    return Output(tables={FOLDER: table}, payload={"measured": len(rows), "failed": failed})


def covered(data: PairData, epoch: int) -> bool:
    """Whether an epoch shows a good pixel of any of the objects."""
    mask = data.cutouts.mask[data.cutouts.index(epoch)]
    y, x = np.rint(data.places(epoch)).astype(int).T
    inside = (np.minimum(y, x) >= 0) & (np.maximum(y, x) < mask.shape[0])
    return bool(inside.any()) and not bool(mask[y[inside], x[inside]].all())


def orders(data: PairData, a: int, b: int, direction: str) -> list[tuple[int, int]]:
    """(template, image) of a pair: the sharper convolved to the broader, or each to the other."""
    sharp, broad = (a, b) if data.psfs[a].fwhm <= data.psfs[b].fwhm else (b, a)
    return [(sharp, broad)] if direction == "sharper" else [(sharp, broad), (broad, sharp)]


def difference(data: PairData, template: int, image: int, config: Config) -> Subtracted:
    """One epoch less another, in the pixels of the first."""
    cuts, i, j = data.cutouts, data.cutouts.index(template), data.cutouts.index(image)
    flux, error, mask = cuts.on_pixels_of(i, j)
    size, places = cuts.flux.shape[1], data.places(image)
    radius = OWN_FWHM * data.psfs[image].fwhm
    varies = np.array([item["kind"] != "target" for item in data.group.objects])
    return subtract(
        config.nn2.subtract,
        Plane(cuts.flux[j], cuts.error[j], cuts.mask[j], data.psfs[image]),
        Plane(flux, error, mask, data.psfs[template]),
        own_pixels(size, places[varies], radius),
        own_pixels(size, places[~varies], radius),
        config.nn2.kernel,
    )


def stamp_half(psf: EffectivePSF) -> int:
    """Half width of the stamp that holds a PSF and some sky."""
    return int(np.clip(np.ceil(2 * psf.fwhm), 4, 15))


def measure(
    data: PairData, found: Subtracted, template: int, image: int, errors: str
) -> list[dict[str, Any]]:
    """The objects' fluxes in one difference, their errors scaled by what copies scatter.

    ``level`` is the constant light under the object. How far bright light is not taken away, a kernel's or a
    flat field's error, no copy in an empty place says: the brightest other sources are measured for it.
    """
    diff = found.difference
    places, half = data.places(image), stamp_half(data.psfs[image])
    names = [item["object_id"] for item in data.group.objects]
    scale, bias, count = 1.0, np.nan, 0
    if errors == "copies":
        own = own_pixels(diff.flux.shape[0], places, half)
        y, x = empty_places(found.level, diff.error, diff.mask | own, half + 1)
        scale, bias, count = copies_scale(diff, y, x, half)
        scale = scale if np.isfinite(scale) else 1.0
        stars = bright_stars(data, found, image)
        names, places = names + [NO_OBJECT] * len(stars), np.concatenate([places, stars])
    flux, noise = point_fluxes(diff, places[:, 0], places[:, 1], half)
    under = Difference(found.level, diff.error, diff.mask, data.psfs[image])
    level, _ = point_fluxes(under, places[:, 0], places[:, 1], half)
    return [
        {
            "object_id": name,
            "template": template,
            "image": image,
            "flux": float(flux[k]),
            "error": float(noise[k] * scale),
            "noise_error": float(noise[k]),
            "bias": float(bias * noise[k]),
            "copies": count,
            "scale": found.scale,
            "level": float(level[k]),
        }
        for k, name in enumerate(names)
        if np.isfinite(flux[k]) and np.isfinite(noise[k])
    ]


def bright_stars(data: PairData, found: Subtracted, image: int) -> NDArray[np.float64]:
    """Places (n, 2) of the brightest peaks of a template that are no object known to vary."""
    diff, places = found.difference, data.places(image)
    varies = np.array([item["kind"] != "target" for item in data.group.objects])
    out = own_pixels(diff.flux.shape[0], places[varies], OWN_FWHM * data.psfs[image].fwhm)
    signal = np.where(diff.mask | out, 0.0, found.level / diff.error)
    y, x = np.nonzero((signal == maximum_filter(signal, 5)) & (signal > BRIGHT))
    order = np.argsort(-signal[y, x], kind="stable")[:MOST_BRIGHT]
    return np.column_stack([y, x])[order].astype(float)


def fit_positions(data: PairData, state: None, config: Config) -> Output:
    """Positions of the group's objects on differences in which no epoch takes part more than a few times.

    Differences that share a template share its noise, and would all be pulled the same way.
    """
    shifts: dict[str, list[float]] = {}
    found: list[tuple[int, Subtracted]] = []
    used: list[tuple[int, int]] = []
    for a, b in data.pairs:
        template, image = orders(data, int(a), int(b), "sharper")[0]
        try:
            found.append((image, difference(data, template, image, config)))
        except ValueError:
            continue
        used.append((template, image))
    for item in data.group.objects:
        if not item.get("refine", True) or not found:
            continue
        ks = [data.cutouts.index(image) for image, _ in found]
        place = np.array([data.cutouts.place(k, item["y"], item["x"]) for k in ks])
        turn = np.array([data.cutouts.turn(k, item["y"], item["x"]) for k in ks])
        images = [sub.difference for _, sub in found]
        half = [int(np.clip(round(CORE * data.psfs[image].fwhm), 3, 12)) for image, _ in found]
        shift, error = common_position(images, place, turn, half, frames=np.array(used))
        if np.isfinite(error):
            shifts[item["object_id"]] = [item["y"] + shift[0], item["x"] + shift[1], error]
    return Output(payload={"positions": shifts})


def position_pairs(epochs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs (n, 2) of at most `POSITION_EPOCHS` of the epochs, on which positions are fitted."""
    epochs = np.asarray(epochs, np.int64)
    if len(epochs) > POSITION_EPOCHS:
        epochs = epochs[np.linspace(0, len(epochs) - 1, POSITION_EPOCHS).round().astype(int)]
    return epoch_pairs(epochs, POSITION_PARTNERS)


def read_positions(field: Field, unit: Unit, config: Config) -> PairData:
    """Cutouts of the epochs that positions are fitted on; the unit's items are a group and the epochs."""
    group, epochs = unit.items
    return read(field, Unit(unit.name, items=(group, position_pairs(epochs))), config)


def memory(unit: Unit, outlook: Outlook, config: Config) -> float:
    """Bytes of the cutouts of the epochs, and of a hundred planes of one subtraction (measured: 97)."""
    group, pairs = unit.items
    return float(group.size**2 * (17 * len(np.unique(pairs)) + 8 * 100))


def positions_memory(unit: Unit, outlook: Outlook, config: Config) -> float:
    """The same for the pairs taken, and all their differences at once: flux, error, mask and level."""
    group, epochs = unit.items
    pairs = position_pairs(epochs)
    return memory(Unit(unit.name, items=(group, pairs)), outlook, config) + group.size**2 * 25 * len(pairs)


def settings(config: Config) -> dict[str, Any]:
    """What a pair's flux depends on."""
    return config.nn2.model_dump(include={"subtract", "direction", "kernel", "errors"}) | {"block": BLOCK}


STAGE = Stage("nn2_pairs", 5, settings, lambda field, config: [], read, apply=apply, memory=memory)
POSITIONS = Stage(
    "nn2_positions",
    4,
    settings,
    lambda field, config: [],
    read_positions,
    apply=fit_positions,
    memory=positions_memory,
)
