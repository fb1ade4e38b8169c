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
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from eedkit.study.files import DamageError

PAIR_SUM = "states/pair_sum"
STATES = ("pair_n", "dead", "live_or_dead", "reason", "undefined")
"""What joining blocks needs besides the sums of unit vectors; small, so that it stands in `about`."""


class _Members(dict):
    """The arrays in a file by type, each decompressed when it is used."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self.file = file

    def __missing__(self, kind: str) -> np.ndarray:
        member = self.file.read(f"{kind}.npy")
        # the header says again what `about` does; parsing it takes longer than reading the values
        header = 10 + int.from_bytes(member[8:10], "little")
        self[kind] = np.frombuffer(member, kind, offset=header)
        return self[kind]


@dataclass(frozen=True)
class Block:
    """The values of a block, and what is said of them.

    `values` are those of each type: the variables along `sample`, and `PAIR_SUM` (normalised, layer, feature). `about` holds
    `attrs`; for each of the `variables` and `coords` its `dims` and `attrs`; the `values` of coordinates; `states`; `flaws`, why
    single samples have no value; `arrays`, the places of variables; and in a file `of`, its cell and place.
    """

    values: dict[str, np.ndarray]
    about: dict[str, Any]

    @classmethod
    def of(cls, values: xr.Dataset, states: xr.Dataset) -> "Block":
        """What `measure_block` gave."""
        arrays = {
            str(name): variable.values for name, variable in values.data_vars.items() if "sample" in variable.dims
        }
        arrays[PAIR_SUM] = states.pair_sum.values
        arrays_of_type: dict[str, list[np.ndarray]] = {}
        sizes: dict[str, int] = {}
        places = {}
        for name, array in arrays.items():
            kind = str(array.dtype)
            start = sizes.get(kind, 0)
            sizes[kind] = start + array.size
            arrays_of_type.setdefault(kind, []).append(array.ravel())
            places[name] = {"type": kind, "start": start, "stop": sizes[kind], "shape": array.shape}
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
            "arrays": places,
        }
        return cls({kind: np.concatenate(of_type) for kind, of_type in arrays_of_type.items()}, about)

    @classmethod
    def from_bytes(cls, content: bytes, name: str = "the block") -> "Block":
        """What `to_bytes` gave; the arrays are read when they are used."""
        try:
            file = zipfile.ZipFile(io.BytesIO(content))
            return cls(_Members(file), json.loads(file.read("about.json")))
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise DamageError(f"{name} is no block of a study ({error})") from error

    def to_bytes(self) -> bytes:
        """A compressed .npz file."""
        members = {"about.json": json.dumps(self.about, default=_plain).encode()}
        for kind, array in self.values.items():
            stored = io.BytesIO()
            np.save(stored, array, allow_pickle=False)
            members[f"{kind}.npy"] = stored.getvalue()
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as file:
            for name, member in members.items():
                # without the time, so that equal blocks have equal bytes
                file.writestr(zipfile.ZipInfo(name), member, zipfile.ZIP_DEFLATED)
        return content.getvalue()

    def array(self, name: str) -> np.ndarray:
        """The values of a variable."""
        place = self.about["arrays"][name]
        return self.values[place["type"]][place["start"] : place["stop"]].reshape(place["shape"])

    @property
    def bytes_of_sample(self) -> int:
        """Of the variables, before compression."""
        total = 0
        for name, place in self.about["arrays"].items():
            if name != PAIR_SUM:
                total += np.dtype(place["type"]).itemsize * (place["stop"] - place["start"])
        return total // len(self.about["coords"]["sample"]["values"])

    def difference_to(self, first: "Block") -> str:
        """In what it differs from another block, so that they cannot be of one cell; empty where they can."""
        compared = {"variables": (sorted(first.about["variables"]), sorted(self.about["variables"]))}
        for what, coord in (("weights", "weights"), ("layers", "layer")):
            compared[what] = (first.about["coords"][coord]["values"], self.about["coords"][coord]["values"])
        for what, (there, here) in compared.items():
            if there != here:
                return f"other {what} than the first: {there} there, {here} here"
        return ""


def _plain(value: Any) -> Any:
    """What JSON has in place of NumPy's numbers."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is nothing that a block can hold")
