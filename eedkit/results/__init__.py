"""Labelled results: schema, summaries, verdicts, storage. Knows xarray and never torch."""
