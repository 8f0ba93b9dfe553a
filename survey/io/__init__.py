"""Files and stores: frames, the Zarr cube, catalogues."""
