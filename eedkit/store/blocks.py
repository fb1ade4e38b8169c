"""A block of a study as the bytes of one file: what `measure_block` gave for some images of one model, data set and group.

Knows xarray and NumPy. Anybody reads it without eedkit:

    block = np.load("block-0000.….npz")
    about = json.loads(str(block["about"]))
    latent = xr.DataArray(block["values/latent"], dims=about["variables"]["latent"]["dims"])
"""

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from eedkit.store.files import DamageError

PAIR_SUM = "states/pair_sum"
STATES = ("pair_n", "dead", "live_or_dead", "reason", "undefined")
"""What joining blocks needs besides the sums of unit vectors; small, so that it stands in `about`."""


@dataclass(frozen=True)
class Block:
    """The arrays (…, sample) of a block by name, and what is said of them.

    Parameters
    ----------
    arrays : mapping from str to array
        The variables along `sample`, and `PAIR_SUM` (normalised, layer, feature).
    about : dict
        `attrs`; for each of the `variables` and `coords` its `dims` and `attrs`; the `values` of coordinates; `states`;
        `flaws`, why single samples have no value.
    """

    arrays: Mapping[str, np.ndarray]
    about: dict[str, Any]

    @classmethod
    def of(cls, values: xr.Dataset, states: xr.Dataset) -> "Block":
        """What `measure_block` gave."""
        arrays = {name: variable.values for name, variable in values.data_vars.items() if "sample" in variable.dims}
        arrays[PAIR_SUM] = states.pair_sum.values
        coords = {}
        for name, coord in values.coords.items():
            coords[name] = {"dims": coord.dims, "attrs": coord.attrs, "values": coord.values.tolist()}
        about = {
            "attrs": values.attrs,
            "variables": {name: {"dims": v.dims, "attrs": v.attrs} for name, v in values.data_vars.items()},
            "coords": coords,
            "states": {name: states[name].values.tolist() for name in STATES},
            "metrics": states.metric.values.tolist(),
            "normalised": states.normalised.values.tolist(),
            "flaws": states.attrs["flaws"],
        }
        return cls(arrays, about)

    @classmethod
    def from_bytes(cls, content: bytes, name: str = "the block") -> "Block":
        """What `to_bytes` gave; the arrays are read when they are used."""
        try:
            arrays = np.load(io.BytesIO(content), allow_pickle=False)
            return cls(_Values(arrays), json.loads(str(arrays["about"])))
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise DamageError(f"{name} is no block of a study ({error})") from error

    def to_bytes(self) -> bytes:
        """A compressed .npz file."""
        content = io.BytesIO()
        about = np.array(json.dumps(self.about, default=_plain, ensure_ascii=True))
        arrays = {f"values/{name}": array for name, array in self.arrays.items()}
        np.savez_compressed(content, allow_pickle=False, about=about, **arrays)
        return content.getvalue()

    @property
    def size(self) -> int:
        """Samples."""
        return len(self.about["coords"]["sample"]["values"])


class _Values(Mapping):
    """The arrays in a file, by the names of their variables."""

    def __init__(self, members: Mapping[str, np.ndarray]) -> None:
        self._members = members

    def __getitem__(self, name: str) -> np.ndarray:
        return self._members[f"values/{name}"]

    def __iter__(self) -> Iterator[str]:
        return (member.removeprefix("values/") for member in self._members if member != "about")

    def __len__(self) -> int:
        return len(self._members) - 1


def _plain(value: Any) -> Any:
    """What JSON has in place of NumPy's numbers."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is nothing that a block can hold")
