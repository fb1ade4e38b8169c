"""Metrics as values: what tells them apart."""

from dataclasses import replace

import pytest

from eedkit.probe.metrics import METRICS, Metric


@pytest.mark.parametrize("option", ["field", "normalised", "matched"])
def test_descriptions_tell_every_option(option):
    where = "vectors" if option == "normalised" else "maps"
    distance = METRICS["latent" if option == "normalised" else "channelwise"].distance
    plain = Metric("mine", where, distance)
    assert replace(plain, **{option: True}).description != plain.description
