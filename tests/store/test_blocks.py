"""A block comes back from its bytes as it was, and anybody can read it."""

import io
import json

import numpy as np
import pytest
import xarray as xr
from made import block, whole

from eedkit.store.blocks import Block
from eedkit.store.files import DamageError


def test_a_block_comes_back_as_it_was():
    before = block(1, flaws=["image 5: not finite"], reason="why", undefined=2)
    after = Block.from_bytes(before.to_bytes())
    assert after.about == json.loads(json.dumps(before.about))
    for name, array in before.arrays.items():
        np.testing.assert_array_equal(after.arrays[name], array)
        assert after.arrays[name].dtype == array.dtype
    assert after.size == 4


def test_a_block_is_read_without_eedkit():
    content = np.load(io.BytesIO(block(0).to_bytes()))
    about = json.loads(str(content["about"]))
    latent = xr.DataArray(content["values/latent"], dims=about["variables"]["latent"]["dims"])
    xr.testing.assert_equal(latent, whole().latent.isel(sample=slice(4)).drop_vars(whole().coords))


@pytest.mark.parametrize("text", ["图", "a\udcff", "x" * 10_000, "\x1b]0;title\x07", ""])
def test_text_survives(text):
    found = Block.from_bytes(block(0, flaws=[text]).to_bytes())
    assert found.about["flaws"] == [text]


@pytest.mark.parametrize("name", ["file", "allow_pickle", "about", "pair_sum", "a/b", "é"])
def test_a_variable_may_be_called_anything(name):
    values = whole().rename(latent=name)
    found = Block.from_bytes(block(0, values=values).to_bytes())
    np.testing.assert_array_equal(found.arrays[name], values[name].values[..., :4])
    assert name in found.about["variables"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"nothing"])
def test_bytes_that_are_no_block_are_refused(content):
    with pytest.raises(DamageError, match="is no block of a study"):
        Block.from_bytes(content)
