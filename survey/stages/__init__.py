"""One file a stage, each with the protocol of `survey.stages.protocol`; no Dask in here."""
