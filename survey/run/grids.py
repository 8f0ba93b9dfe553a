"""Frames of a field on another grid than the sky's, from the files they came in."""

from __future__ import annotations

from survey.run.engine import Engine, stage_key
from survey.run.ingest import IngestError
from survey.run.record import new_run_id
from survey.stages import frame_table, place
from survey.stages.calibrated import Grid
from survey.stages.protocol import Unit


def place_grid(engine: Engine, grid: Grid) -> None:
    """Write ``images/<grid>`` of a field's frames, as far as it is missing, from the files they came in.

    Raises
    ------
    IngestError
        If a block could not be written, as where the files are gone.
    FieldBusyError
        If another run writes images.
    """
    field = engine.target
    ledger, wanted = field.ledger("place"), _grid_units(engine, grid)
    if all(ledger.has(unit.name, key) for unit, key in wanted):
        engine.skip(len(wanted))
        return
    owner = engine.holder[1] if engine.holder else new_run_id()
    with field.lease("images", owner) as lease:
        placer = Engine(field, engine.config, engine.executor, engine.progress, ("images", owner))
        # One list of reports and failures for the whole run.
        placer.reports, placer.failures = engine.reports, engine.failures
        placer.leases = [lease]
        failed = len(engine.failures)
        frames = field.frames()
        height, width = field.shape
        field.require_group(f"images/{grid}", {"time": frames.sizes["time"], "y": height, "x": width})
        placer.submit("place", _grid_units(engine, grid), label=f"place ({grid})")
        placer.collect()
        placer.finish()
    engine.skip(placer.skipped)
    if len(engine.failures) > failed:
        first = engine.failures[failed]
        raise IngestError(
            f"images/{grid} cannot be made: {first.unit}: {first.reason}; "
            "method needs the files that the field was made of where they were"
        )


def _grid_units(engine: Engine, grid: Grid) -> list[tuple[Unit, str]]:
    """Blocks of a grid and their keys, of the frames as the field holds them now."""
    field, config = engine.target, engine.config
    frames = field.frames()
    units = place.place_units(field, frames, frame_table.stored_headers(frames), 0, config, grid)
    return [(u, stage_key("place", config, u.name, {"frames": place.unit_identity(u)})) for u in units]
