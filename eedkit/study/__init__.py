"""Many measurements: models × data sets × groups."""
