"""A block comes back from its bytes as it was, and anybody can read it."""

import io
import json
import time
import zipfile

import numpy as np
import pytest
import xarray as xr
from made import block, whole

from eedkit.study.blocks import Block
from eedkit.study.files import DamageError


def test_a_block_comes_back_as_it_was():
    before = block(1, flaws=["image 5: not finite"], reason="why", undefined=2)
    after = Block.from_bytes(before.to_bytes())
    assert after.about == json.loads(json.dumps(before.about))
    for name in before.about["arrays"]:
        np.testing.assert_array_equal(after.array(name), before.array(name))
        assert after.array(name).dtype == before.array(name).dtype
    # 4 variables of 2 layers and 2 elements, the norm of 2 layers, a prediction and a confidence of 2 elements
    assert after.bytes_of_sample == 4 * (4 * 2 * 2 + 2 + 2 + 2)


def test_a_block_is_read_without_eedkit():
    file = np.load(io.BytesIO(block(0).to_bytes()))
    about = json.loads(file["about.json"])
    for name in ("latent", "prediction"):
        place = about["arrays"][name]
        values = file[place["type"]][place["start"] : place["stop"]].reshape(place["shape"])
        found = xr.DataArray(values, dims=about["variables"][name]["dims"])
        xr.testing.assert_equal(found, whole()[name].isel(sample=slice(4)).drop_vars(whole().coords, errors="ignore"))


def test_opening_a_block_reads_no_values_and_one_array_for_all_of_a_type(monkeypatch):
    found = Block.from_bytes(block(0).to_bytes())
    read, times = zipfile.ZipFile.read, []
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda file, name: times.append(name) or read(file, name))
    assert found.about["arrays"]["latent"]["shape"] == [1, 2, 2, 4]
    for name in found.about["arrays"]:
        assert found.array(name).size
    assert sorted(times) == ["float32.npy", "float64.npy", "int32.npy"]


def test_equal_blocks_have_equal_bytes(monkeypatch):
    before = block(0).to_bytes()
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert block(0).to_bytes() == before


@pytest.mark.parametrize(
    "text", ["图", "a\udcff", "x" * 10_000, "\x1b]0;title\x07", "", "file", "allow_pickle", "about", "a/b"]
)
def test_any_text_and_name_of_a_variable_survive(text):
    values = whole().rename(latent=text)
    found = Block.from_bytes(block(0, values=values, flaws=[text]).to_bytes())
    assert found.about["flaws"] == [text]
    np.testing.assert_array_equal(found.array(text), values[text].values[..., :4])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"nothing"])
def test_bytes_that_are_no_block_are_refused(content):
    with pytest.raises(DamageError, match="is no block of a study"):
        Block.from_bytes(content)
