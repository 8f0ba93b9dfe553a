"""PSFs of all frames, each from its own stars: made once a field, whoever subtracts frames by them."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr

from survey.config import Config
from survey.run.differences import RunError
from survey.run.engine import Engine, ledger_name, stage_key
from survey.run.grids import place_grid
from survey.run.identity import epoch_keys
from survey.run.record import new_run_id
from survey.stages import frame_psf
from survey.stages.nn2_cutouts import pair_grid
from survey.stages.protocol import Unit


def own_pixels(engine: Engine, frames: xr.Dataset) -> list[str]:
    """Identity of each epoch's image on the frames' own pixels, which are placed where they are missing."""
    grid = pair_grid(engine.target)
    if grid != "sky":
        place_grid(engine, grid)
    return epoch_keys(engine.target, frames, grid)


def frame_psf_units(engine: Engine, images: Sequence[str]) -> list[tuple[Unit, str]]:
    """Blocks of frames whose PSFs are measured on such images, with their keys.

    The frame that told stars from galaxies first goes on to do so: a sharper one that comes later changes
    no PSF of before, until all is made anew.
    """

    def keyed(sharp: int | None) -> list[tuple[Unit, str]]:
        units = frame_psf.units(engine.target, engine.config, sharp)
        return [(unit, _block_key(engine.config, images, unit)) for unit in units]

    records = engine.target.ledger(ledger_name("frame_psf", frame_psf.KEPT_BY)).records
    known = {record.payload.get("sharp") for record in records.values()}
    for sharp in sorted(k for k in known if k is not None and k < len(images)):
        found = keyed(sharp)
        if any(unit.name in records and records[unit.name].key == key for unit, key in found):
            return found
    return keyed(None)


def _block_key(config: Config, images: Sequence[str], unit: Unit) -> str:
    first, end, sharp = unit.items
    inputs = {"images": list(images[first:end]), "stars": images[sharp], "epochs": list(unit.items)}
    return stage_key("frame_psf", config, unit.name, inputs)


def psf_keys(
    config: Config, images: Sequence[str], keyed: Sequence[tuple[Unit, str]], made: Sequence[str]
) -> list[str]:
    """Identity of each epoch's PSF, whatever frames it was measured with; ``made``: what is there."""
    found = []
    for (unit, key), there in zip(keyed, made, strict=True):
        first, end, sharp = unit.items
        for k in range(first, end):
            inputs = {"image": images[k], "stars": images[sharp], "without": there.removeprefix(key)}
            found.append(stage_key("frame_psf", config, str(k), inputs))
    return found


def ensure_frame_psfs(engine: Engine, keyed: list[tuple[Unit, str]]) -> list[str]:
    """Measure the PSFs that are missing, under a lease of their own: runs of several kinds want the same.

    Tiles that cannot be read are done without and told; whoever comes next looks at them again.

    Returns
    -------
    list of str
        What the PSFs are: their keys, with the tiles they do without.

    Raises
    ------
    RunError
        If a block of them cannot be made.
    FieldBusyError
        If another run makes them just now.
    """
    field = engine.target
    ledger = field.ledger(ledger_name("frame_psf", frame_psf.KEPT_BY))
    again = [name for name, record in ledger.records.items() if record.payload.get("unread")]
    if not again and all(ledger.has(unit.name, key) for unit, key in keyed):
        engine.skip(len(keyed))
        return [key for _, key in keyed]
    config = engine.config.model_copy(update={"method": frame_psf.KEPT_BY})
    owner = engine.holder[1] if engine.holder else new_run_id()
    with field.lease(frame_psf.FOLDER, owner) as lease:
        maker = Engine(field, config, engine.executor, engine.progress, (frame_psf.FOLDER, owner))
        # One list of reports and failures for the whole run.
        maker.reports, maker.failures = engine.reports, engine.failures
        maker.leases = [lease]
        maker.ledger("frame_psf").invalidate(again)
        maker.submit("frame_psf", keyed, label="psf of frames", note=lambda unit: {"sharp": unit.items[2]})
        maker.collect()
        maker.finish()
    engine.skip(maker.skipped)
    made = maker.ledger("frame_psf")
    if not all(made.has(unit.name, key) for unit, key in keyed):
        raise RunError(f"no PSFs of the frames: {engine.failures[-1].reason}")
    unread = {unit.name: made.records[unit.name].payload.get("unread", []) for unit, _ in keyed}
    tiles = sorted({tile for names in unread.values() for tile in names})
    if tiles:
        engine.warn(f"PSFs of frames are measured without {', '.join(tiles)}, which cannot be read")
    return [f"{key} without {unread[unit.name]}" if unread[unit.name] else key for unit, key in keyed]
