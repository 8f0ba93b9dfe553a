"""Light curves that later epochs are added to: what is known of them and stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from survey.run.engine import stage_key
from survey.stages import photometry
from survey.stages.protocol import Unit

if TYPE_CHECKING:
    from survey.run.pipeline import Pipeline


class LightCurves:
    """Units of photometry, told what of their objects need not be measured again.

    An object's points before the last addition stay where its tile's differences of these epochs and those
    around are what they were, and the new epochs say nothing of its place. To the bit, these points are what
    a measurement of all epochs would give.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.records = dict(pipeline.engine.ledger("photometry").records)

    def identity(self, unit: Unit, *, before: bool = False) -> str | None:
        """Of all that a unit's light curves are measured on; with ``before`` until the last addition."""
        pipeline = self.pipeline
        around = pipeline.around(unit, photometry.tile_halo(pipeline.config))
        keys = [pipeline.differences.stands(u, pipeline.touched[u.name], before=before) for u in around]
        if None in keys:
            return None
        inputs = {"difference": keys, "psf": pipeline.psf_key()}
        return stage_key("photometry", pipeline.config, unit.name, inputs)

    def with_known(self, unit: Unit) -> Unit:
        """The unit with what is known of its objects."""
        pipeline, record = self.pipeline, self.records.get(unit.name)
        if record is None or record.payload.get("of") is None:
            return unit
        start, found = int(record.payload["epochs"]), self.identity(unit, before=True)
        starts = pipeline.differences.additions()
        if found != record.payload["of"] or not starts or starts[-1] != start:
            return unit
        first = float(pipeline.frames["time"].values[start:].min())
        rows = {tuple(row): k for k, row in enumerate(record.payload["rows"])}
        known = tuple(
            rows.get(tuple(photometry.item_identity(item)))
            if photometry.is_settled(item, first, pipeline.config)
            else None
            for item in unit.items
        )
        if all(row is None for row in known):
            return unit
        return Unit(unit.name, unit.tile, (*unit.items, photometry.Known(start, known)))
