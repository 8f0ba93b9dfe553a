"""Plans a run, runs its units on Dask, records them: the only part of `survey` that imports distributed."""
