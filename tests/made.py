"""Datasets made by hand, whose answers are known, blocks of a small study as `measure_block` gives them, a network and images."""

import numpy as np
import torch
import xarray as xr
from torch import nn
from torch.nn import functional as F

from eedkit.results import schema
from eedkit.study.blocks import Block
from eedkit.study.store import Cell, State, Store

N, BOUNDS = 10, [(0, 4), (4, 8), (8, 10)]
SETTINGS = {"model": "spec [w]", "data": "digits [1]", "metrics": ["latent"], "null": True, "about": {"seed": 0}}
DIMS = ("model", "layer", "element", "sample")
IDS = np.array([f"image {i} · 图 " + "x" * i for i in range(N)], dtype=object)
LATENT = {
    "long_name": "latent", "units": "1", "best": -1.0, "upper": 1.0, "order": 2, "scale": 1.0, "rounding": 1e-7, "equation": "m",
    "source": "eq. 6",
}  # fmt: skip


def result(values, null=None, *, model="a", layers=("one", "latent"), pair=0.5, reasons=None, elements=2, **attrs):
    """A Dataset of the schema whose `latent` holds the given (layer, element, sample) values; there are no chains."""
    values = np.asarray(values, dtype=np.float32)
    data = {"latent": (DIMS, values[None], {**LATENT, **attrs})}
    if null is not None:
        data["latent_null"] = (DIMS, np.asarray(null, dtype=np.float32)[None], {**LATENT, **attrs})
    data["latent_pair_cosine"] = (("model", "layer"), [[pair] * len(layers)])
    n = values.shape[2]
    if attrs.get("scale") == "latent_norm":
        data["latent_norm"] = (("model", "layer", "sample"), np.full((1, len(layers), n), 4.0, np.float32))
    numbers = {"channels": 3, "height": 5, "width": 5, "latent_kernel_order": 1}
    texts = {"layer_type": ["Block"] * len(layers), "layout": ["b c h w"] * len(layers)}
    texts["latent_nan_reason"] = list(reasons or [""] * len(layers))
    coords = {
        "model": np.array([model], dtype=object),
        "layer": np.array(layers, dtype=object),
        "element": np.array(["e", "r180", *range(2, elements)], dtype=object),
        "sample": np.arange(n),
        "angle": ("element", np.linspace(0, 360, elements, endpoint=False)),
        "depth": (("model", "layer"), [np.linspace(0, 1, len(layers))]),
        **{name: (("model", "layer"), [[number] * len(layers)]) for name, number in numbers.items()},
        **{name: (("model", "layer"), np.array([text], dtype=object)) for name, text in texts.items()},
    }
    attrs = {"group": "C2", "action": "spatial", "data": "x", "schema": schema.SCHEMA, "eedkit_version": "0"}
    return xr.Dataset(data, coords, attrs)


def vectors(n=N, layers=2, seed=0):
    """Unit vectors (sample, layer, feature) with a common direction, so that M is well above 0."""
    found = np.random.default_rng(seed).standard_normal((n, layers, 3)) + 2
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def whole(n=N, *, layers=("one", "latent"), weights="w", model="m", seed=0):
    """Values of all samples as measure() gives them."""
    rng, depth = np.random.default_rng(seed), len(layers)
    about = {**LATENT, "scale": "latent_norm"}
    names = ("latent", "latent_null", "latent_from_x", "latent_from_x_null")
    drawn = {name: rng.uniform(-1, 1, (1, depth, 2, n)).astype(np.float32) for name in names}
    variables = {name: (DIMS, array, {**about, "long_name": name}) for name, array in drawn.items()}
    variables["latent_norm"] = (("model", "layer", "sample"), rng.uniform(1, 2, (1, depth, n)).astype(np.float32))
    variables["latent_pair_cosine"] = (("model", "layer"), np.full((1, depth), np.nan), {"samples": n})
    variables["prediction"] = (("model", "element", "sample"), rng.integers(0, 9, (1, 2, n)).astype(np.int32))
    variables["confidence"] = (("model", "element", "sample"), rng.uniform(0, 1, (1, 2, n)).astype(np.float32))
    on_layer = {name: (("model", "layer"), np.full((1, depth), 1)) for name in ("channels", "height", "width", "latent_kernel_order")}  # fmt: skip
    text = {"model": [model], "layer": list(layers), "element": ["e", "r180"]}
    coords = {
        **{name: np.array(labels, dtype=object) for name, labels in text.items()},
        "weights": ("model", np.array([weights], dtype=object)),
        "angle": ("element", [0.0, 180.0]),
        "depth": (("model", "layer"), np.linspace(0, 1, depth)[None]),
        "layer_type": (("model", "layer"), np.full((1, depth), "Block", dtype=object)),
        "layout": (("model", "layer"), np.full((1, depth), "b c h w", dtype=object)),
        "latent_nan_reason": (("model", "layer"), np.full((1, depth), "", dtype=object)),
        **on_layer,
    }
    attrs = {"group": "C2", "schema": schema.SCHEMA, "eedkit_version": "0", "data": "block", "device": "cpu", "seed": 0}
    coords["sample"] = IDS[:n]
    coords["label"] = ("sample", np.arange(n) % 3 + 5)
    coords["chain"] = ("sample", np.arange(n) // 4)
    return xr.Dataset(variables, coords, attrs)


def states(start, stop, *, layers=2, flaws=(), n=N, reason="", undefined=0, seed=0):
    """The states of a block; `reason` and `undefined` of its first layer."""
    reasons, counts = np.full((1, layers), "", dtype=object), np.zeros((1, layers), dtype=np.int64)
    reasons[0, 0], counts[0, 0] = reason, undefined
    variables = {
        "pair_sum": (("normalised", "layer", "feature"), vectors(n, layers, seed)[start:stop].sum(0)[None]),
        "pair_n": (("normalised", "layer"), np.full((1, layers), stop - start)),
        "dead": ("layer", np.full(layers, float(start))),
        "live_or_dead": ("layer", np.full(layers, 100.0)),
        "reason": (("metric", "layer"), reasons),
        "undefined": (("metric", "layer"), counts),
    }
    names = np.array(["latent"], dtype=object)
    return xr.Dataset(variables, {"metric": names, "normalised": names}, {"flaws": list(flaws)})


def block(number, *, values=None, **more) -> Block:
    start, stop = BOUNDS[number]
    values = whole() if values is None else values
    return Block.of(values.isel(sample=slice(start, stop)), states(start, stop, **more))


def begin(store: Store, cell: Cell) -> State:
    store.promise([cell], {})
    state = store.state(cell)
    store.begin(state, SETTINGS, BOUNDS)
    return state


def write(store: Store, cell: Cell, number: int, **more) -> None:
    store.write(store.state(cell), number, block(number, **{"values": whole(model=cell.model)} | more))


class Net(nn.Module):
    """Layers stem (8 maps, the third constant and dead once rectified), act, down (6 maps of half the side), act#2, fc."""

    def __init__(self, colours=1):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem, self.act = nn.Conv2d(colours, 8, 3, padding=1), nn.ReLU(inplace=True)
            self.down, self.fc = nn.Conv2d(8, 6, 2, stride=2), nn.Linear(6, 4)
        with torch.no_grad():
            self.stem.weight.mul_(3)
            # no float holds it
            self.stem.weight[2], self.stem.bias[2] = 0, -1e3 / 3
            self.fc.weight.mul_(4)

    def features(self, x):
        return self.act(self.down(self.act(self.stem(x)))).mean((-2, -1))

    def forward(self, x):
        return self.fc(self.features(x))

    def trace(self, x):
        """What every layer puts out for one image (C, H, W), by functions and not by modules."""
        with torch.no_grad():
            z = torch.from_numpy(x.copy())[None].to(self.stem.weight)
            maps = {"stem": F.conv2d(z, self.stem.weight, self.stem.bias, padding=1)}
            maps["act"] = maps["stem"].clamp_min(0)
            maps["down"] = F.conv2d(maps["act"], self.down.weight, self.down.bias, stride=2)
            maps["act#2"] = maps["down"].clamp_min(0)
            maps["latent"] = maps["act#2"].mean((-2, -1))
            maps["cls"] = F.linear(maps["latent"], self.fc.weight, self.fc.bias)
        return {key: z[0].double().numpy() for key, z in maps.items()}


def noise(n, channels=1, side=6, seed=1):
    """Images of float64, of either sign."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, side, side, dtype=torch.float64, generator=generator)


class Torn(torch.utils.data.Dataset):
    """Images of which those of some numbers cannot be read."""

    def __init__(self, images, torn):
        self.images, self.torn = images, torn

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        if i in self.torn:
            raise OSError(f"file {i} is torn")
        return self.images[i]
