"""A study on disk: one file for each block, joined to labelled results when it is opened. Never knows torch."""
