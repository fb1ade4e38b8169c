"""A block of a study as the bytes of one file: what `measure_block` gave for some images of one model, data set and group.

Knows xarray and NumPy. The values of one type stand one after the other in one array, so that opening a block costs three
arrays, however many variables it has. Anybody reads it without eedkit:

    file = np.load("block-0000.….npz")
    about = json.loads(file["about.json"])
    place = about["arrays"]["latent"]
    latent = file[place["type"]][place["start"] : place["stop"]].reshape(place["shape"])
    latent = xr.DataArray(latent, dims=about["variables"]["latent"]["dims"])
"""

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from eedkit.study.files import DamageError

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
        `flaws`, why single samples have no value; and in a file `of`, its cell and place, and `arrays`, their places in it.
    """

    arrays: Mapping[str, np.ndarray]
    about: dict[str, Any]

    @classmethod
    def of(cls, values: xr.Dataset, states: xr.Dataset) -> "Block":
        """What `measure_block` gave."""
        arrays = {
            str(name): variable.values for name, variable in values.data_vars.items() if "sample" in variable.dims
        }
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
            file = zipfile.ZipFile(io.BytesIO(content))
            about = json.loads(file.read("about.json"))
            return cls(_Stored(file, about["arrays"]), about)
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise DamageError(f"{name} is no block of a study ({error})") from error

    def to_bytes(self) -> bytes:
        """A compressed .npz file."""
        arrays_of_type: dict[str, list[np.ndarray]] = {}
        sizes: dict[str, int] = {}
        places = {}
        for name, array in self.arrays.items():
            kind = str(array.dtype)
            start = sizes.get(kind, 0)
            sizes[kind] = start + array.size
            arrays_of_type.setdefault(kind, []).append(array.ravel())
            places[name] = {"type": kind, "start": start, "stop": sizes[kind], "shape": array.shape}
        members = {"about.json": json.dumps({**self.about, "arrays": places}, default=_plain).encode()}
        for kind, arrays in arrays_of_type.items():
            stored = io.BytesIO()
            np.save(stored, np.concatenate(arrays), allow_pickle=False)
            members[f"{kind}.npy"] = stored.getvalue()
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as file:
            for name, member in members.items():
                # without the time, so that equal blocks have equal bytes
                file.writestr(zipfile.ZipInfo(name), member, zipfile.ZIP_DEFLATED)
        return content.getvalue()

    @property
    def size(self) -> int:
        """Samples."""
        return len(self.about["coords"]["sample"]["values"])


class _Stored(Mapping):
    """The arrays in a file by the names of their variables; those of one type are decompressed together, when one is used."""

    def __init__(self, file: zipfile.ZipFile, places: Mapping[str, Mapping[str, Any]]) -> None:
        self._file = file
        self._places = places
        self._of_type: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        place = self._places[name]
        kind = place["type"]
        if kind not in self._of_type:
            member = self._file.read(f"{kind}.npy")
            # the header says again what `about` does; parsing it takes longer than reading the values
            header = 10 + int.from_bytes(member[8:10], "little")
            self._of_type[kind] = np.frombuffer(member, kind, offset=header)
        return self._of_type[kind][place["start"] : place["stop"]].reshape(place["shape"])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _plain(value: Any) -> Any:
    """What JSON has in place of NumPy's numbers."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is nothing that a block can hold")
