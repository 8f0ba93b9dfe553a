"""Where a template comes from: a file, or a public archive; projected on the grid of a field."""
