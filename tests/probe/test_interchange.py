"""Interchange: loops with hooks of their own, exact facts, the control, the model left as found, and why there is no value."""

import numpy as np
import oracles
import pytest
import torch
from made import Torn, noise
from torch import nn

import eedkit as ek
from eedkit.lab.networks import GroupCNN
from eedkit.probe.guard import fingerprint
from eedkit.probe.interchange import interchange, written
from eedkit.probe.layers import Layer
from eedkit.probe.layouts import parse_layout

SEED = 3
LAYERS = ["wide", "act", "down"]


class Skips(nn.Module):
    """Maps `wide` beside which the images go on, rectified in place by `act`, and halved by `down`; features are not invariant."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.wide = nn.Conv2d(1, 4, 3, padding=1)
            self.act = nn.ReLU(inplace=True)
            self.down = nn.Conv2d(4, 3, 2, stride=2)
            self.fc = nn.Linear(3, 5)
            # turned, its first channel is nearly its second, so that there is something to match
            with torch.no_grad():
                self.wide.weight[1] = self.wide.weight[0].rot90(2, (-2, -1)) + 0.1 * self.wide.weight[1]

    def forward(self, x):
        z = self.act(self.wide(x) + x)
        return self.fc(self.down(z).square().mean((-2, -1)).log())


def run(images, **options):
    model = options.pop("model", None)
    model = Skips().double() if model is None else model
    settings = {"group": "C4", "progress": False, "device": "cpu", "seed": SEED, "layers": LAYERS}
    return interchange(model, images, **settings | options).isel(model=0)


def value_at(layer, x, put=None):
    """What `Skips` gives at a layer for one image (C, H, W), with other maps put in place of them; "fc" is the head's input."""
    model = Skips().double()
    seen = {}

    def hook(name):
        def see(module, inputs, output):
            del module
            seen[name] = (inputs[0] if name == "fc" else output)[0].numpy().copy()
            return torch.from_numpy(put.copy())[None] if put is not None and name == layer else None

        return see

    for name in (*LAYERS, "fc"):
        model.get_submodule(name).register_forward_hook(hook(name))
    with torch.no_grad():
        model(torch.from_numpy(x.copy())[None])
    return seen[layer] if put is None else seen["fc"]


def exchanged(images, layer, group, *, matched):
    """The features of gx, when g f(x) stands in place of f(gx), (g, n, d)."""
    maps = oracles.orbits(lambda x: value_at(layer, x), images, group)
    order = oracles.seeded_order(len(images), SEED)
    half = len(images) // 2
    orbit = []
    for element in oracles.ELEMENTS[group]:
        best = [oracles.best_permutation(maps, group, element, part) for part in (order[:half], order[half : 2 * half])]
        of_element = []
        for i, x in enumerate(images):
            moved = oracles.move(group, element, maps[0, i])
            if matched:
                # what was fitted on the half of the order in which the image is not
                moved = moved[best[int(order.index(i) < half)]]
            of_element.append(value_at(layer, oracles.move(group, element, x), put=moved))
        orbit.append(of_element)
    return np.array(orbit)


@pytest.mark.parametrize(
    ("group", "channels", "batch_size"),
    [("C4", "as they are", 1), ("D4", "as they are", None), ("C4", "matched", None), ("D4", "matched", 3)],
)
def test_it_is_what_loops_with_hooks_of_their_own_give(group, channels, batch_size):
    images = noise(13)
    ds = run(images, group=group, channels=channels, batch_size=batch_size)
    of_chains = oracles.chains(13, len(oracles.ELEMENTS[group]), oracles.seeded_order(13, SEED))
    kernel = range(len(oracles.ELEMENTS[group]))
    for layer in LAYERS:
        orbit = exchanged(images.numpy(), layer, group, matched=channels == "matched")
        wanted = oracles.eed(orbit, group, oracles.stay, oracles.latent, kernel)
        null = oracles.eed(oracles.shuffled(orbit, of_chains), group, oracles.stay, oracles.latent, kernel)
        np.testing.assert_allclose(ds.latent.sel(layer=layer), wanted, atol=1e-6)
        np.testing.assert_allclose(ds.latent_null.sel(layer=layer), null, atol=1e-6)
    # the layers differ by more than that; after `down` comes the mean over positions alone
    means = ds.latent.mean(("element", "sample"))
    assert abs(means.sel(layer="image") - means.sel(layer="act")) > 9e-4
    assert channels == "matched" or means.sel(layer="down") == pytest.approx(-1, abs=1e-6)


def test_turning_the_image_is_what_measure_gives():
    images = noise(12)
    ds = run(images, labels=[0, 1, 2] * 4).sel(layer="image")
    options = {"group": "C4", "seed": SEED, "progress": False, "layers": LAYERS, "labels": [0, 1, 2] * 4}
    measured = ek.measure(Skips().double(), images, **options).isel(model=0)
    for name in ("latent", "latent_null", "latent_from_x", "latent_from_x_null", "latent_pair_cosine"):
        np.testing.assert_array_equal(ds[name], measured[name].sel(layer="latent"))
    for name in ("prediction", "confidence", "label", "chain"):
        np.testing.assert_array_equal(ds[name], measured[name])
    assert (ds.depth.item(), ds.height.item(), ds.channels.item()) == (0, 6, 1)


def test_results_go_where_those_of_measure_go():
    images = noise(12)
    options = {"group": "C4", "seed": SEED, "progress": False, "layers": LAYERS}
    kinds = [interchange(Skips().double(), images, name=f"net {kind}", **options) for kind in range(2)]
    table = ek.summarise(ek.concat(kinds, recipe=["plain", "plain"]), full=True).query("layer != ''")
    assert table.layer.tolist() == 2 * ["image", *LAYERS]
    assert table[["relative", "relative_low", "pair_cosine", "scale"]].notna().all(axis=None)
    (ax,) = ek.plots.depth_profile(table, metric="latent", relative=True).axes
    np.testing.assert_allclose(ax.lines[0].get_ydata(), table.relative[:4])


class Symmetric(nn.Module):
    """Convolutions whose filters no quarter turn changes: every layer turns with the image; features keep their places."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(1, 3, 3, padding=1, padding_mode="circular", bias=False)
        self.two = nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")
        self.fc = nn.Linear(4 * 36, 5)
        for conv in (self.one, self.two):
            weight = conv.weight.detach()
            conv.weight.data = torch.stack([weight.rot90(k, (-2, -1)) for k in range(4)]).mean(0)

    def forward(self, x):
        return self.fc(self.two(self.one(x).tanh()).flatten(1))


@pytest.mark.parametrize("channels", ["as they are", "matched"])
def test_where_every_layer_turns_with_the_image_nothing_changes(channels):
    torch.manual_seed(0)
    ds = run(noise(16), model=Symmetric().double(), channels=channels, layers=["one", "two"])
    for layer in ("one", "two"):
        np.testing.assert_allclose(ds.latent.sel(layer=layer), ds.latent.sel(layer="image"), atol=1e-6)
    assert ds.latent.sel(layer="image").isel(element=slice(1, None)).max() > -0.9


def test_a_group_convolution_is_invariant_by_layers_whose_channels_move():
    torch.manual_seed(0)
    model, images = GroupCNN("C4", classes=10), torch.randn(40, 1, 17, 17)
    options = {"model": model, "layers": r"blocks\.\d"}
    blocks = [f"blocks.{k}" for k in range(5)]
    matched = run(images, channels="matched", **options).sel(layer=["image", *blocks])
    np.testing.assert_allclose(matched.latent, -1, atol=1e-6)
    table = ek.summarise(run(images, **options).expand_dims("model")).set_index("layer")
    assert (table.relative[blocks[:4]] > 0.5).all()
    # after it comes the mean over positions alone
    assert table.relative[blocks[4]] < 1e-2


class Recorded(Skips):
    """Keeps what comes before and after `wide`, as its own neighbours see it."""

    def __init__(self):
        super().__init__()
        self.given, self.taken = [], []
        self.wide.register_forward_hook(lambda _module, _inputs, output: self.given.append(output.clone()))

    def forward(self, x):
        z = self.wide(x)
        self.taken.append(z.clone())
        return self.fc(self.down(self.act(z)).square().mean((-2, -1)).log())


def test_the_control_adds_noise_as_large_as_the_exchange_and_turns_nothing():
    model, images = Recorded().double(), noise(8)
    run(images, model=model, channels="perturbed", layers=["wide"], batch_size=32)
    of_orbit, of_x = model.given[-2:]
    turned = torch.stack([of_orbit[:8].rot90(k, (-2, -1)) for k in range(4)]).flatten(0, 1)
    wanted = (of_orbit - turned).flatten(1).norm(dim=1)
    added = model.taken[-1] - of_x
    torch.testing.assert_close(added.flatten(1).norm(dim=1), wanted)
    torch.testing.assert_close(of_x[8:16], of_x[:8])
    assert wanted[8:].min() > 1 > wanted[:8].max() == 0
    other_directions = torch.cosine_similarity(added[8:16].flatten(1), added[16:24].flatten(1))
    assert other_directions.abs().max() < 0.4
    # another seed gives other noise to what is read first
    run(images, model=model, channels="perturbed", layers=["wide"], batch_size=32, seed=SEED + 1)
    by_other_seed = model.taken[-1] - model.given[-1]
    assert torch.cosine_similarity(added[8:].flatten(1), by_other_seed[8:].flatten(1)).abs().max() < 0.4


class Twice(Skips):
    """Calls `act` once more, behind `down`."""

    def forward(self, x):
        z = self.act(self.down(self.act(self.wide(x))))
        return self.fc(torch.stack([z[..., 0, 0], z.amax((-2, -1)), z.mean((-2, -1))]).mean(0))


def test_of_a_module_that_runs_twice_one_call_is_exchanged():
    latent = run(noise(12), model=Twice().double(), layers=["wide", "act", "down"]).latent
    # rectifying goes with moving, so that it does not matter which of the two comes first
    np.testing.assert_allclose(latent.sel(layer="act"), latent.sel(layer="wide"), atol=1e-6)
    np.testing.assert_allclose(latent.sel(layer="act#2"), latent.sel(layer="down"), atol=1e-6)
    assert abs(latent.sel(layer="act") - latent.sel(layer="act#2")).max() > 0.01


@pytest.mark.parametrize("group", ["C4", "D4"])
def test_noise_depends_on_the_seed_and_not_on_batches(group):
    images = noise(13)
    control = {"channels": "perturbed", "group": group}
    wanted = run(images, **control).latent
    np.testing.assert_allclose(run(images, batch_size=1, **control).latent, wanted, atol=1e-6)
    assert not np.allclose(run(images, seed=4, **control).latent, wanted, atol=1e-3)


@pytest.mark.parametrize("text", ["b c h w", "b h w c", "b 1+2x3+1 c", "1+2x3 b c", "b c 2x3t"])
def test_maps_are_written_where_they_are_read(text):
    sizes = {"b": 8, "c": 5, "h": 2, "w": 3, "1+2x3+1": 8, "1+2x3": 7, "2x3t": 6}
    given = torch.arange(8.0 * 5 * 8).repeat(1)[: np.prod([sizes[word] for word in text.split()])]
    given = given.reshape([sizes[word] for word in text.split()])
    layout = parse_layout(text, given.shape)
    maps = torch.randn(8, 6, 5)
    layer = Layer("at", 1, "At", 0.5, layout=layout)
    changed = written(layer, given, maps, 4)
    torch.testing.assert_close(layout.read(changed), maps)
    # what is beside the grid is that of the first images, twice
    kept = written(layer, changed, layout.read(given)[:4].repeat(2, 1, 1), 4)
    of_first = given.movedim(layout.batch, 0)[:4]
    torch.testing.assert_close(kept.movedim(layout.batch, 0), torch.cat([of_first, of_first]))


class Tokens(nn.Module):
    """A small transformer: patches with places, a class token that is the features, and a block that gives a tuple."""

    def __init__(self, *, gives=lambda z: (z, None)):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 2, stride=2)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        self.places = nn.Parameter(torch.randn(1, 10, 8))
        self.blocks = nn.ModuleList([Gives(gives), Gives(gives)])
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        z = self.stem(x).flatten(2).mT
        z = torch.cat([self.cls_token.expand(len(z), -1, -1), z], 1) + self.places
        for block in self.blocks:
            z = block(z)
            z = z["z"] if isinstance(z, dict) else z[0]
        return self.fc(z[:, 0])


class Gives(nn.Module):
    """An encoder block that gives its tokens in a tuple, or in something else."""

    def __init__(self, gives):
        super().__init__()
        self.inside = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.gives = gives

    def forward(self, z):
        return self.gives(self.inside(z))


def test_tokens_turn_and_the_class_token_is_that_of_the_image():
    torch.manual_seed(0)
    model, images = Tokens().double().eval(), noise(8)
    ds = run(images, model=model, layers=["blocks.0", "blocks.1"])
    # the features are the last block's class token, which is exchanged with its map
    np.testing.assert_allclose(ds.latent.sel(layer="blocks.1"), -1, atol=1e-6)
    orbit = []
    with torch.no_grad():
        maps = model.blocks[0](
            torch.cat([model.cls_token.expand(8, -1, -1), model.stem(images).flatten(2).mT], 1) + model.places
        )[0]
        for k in range(4):
            grid = maps[:, 1:].unflatten(1, (3, 3)).rot90(k, (1, 2)).flatten(1, 2)
            orbit.append(model.blocks[1](torch.cat([maps[:, :1], grid], 1))[0][:, 0].numpy())
    wanted = oracles.eed(np.array(orbit), "C4", oracles.stay, oracles.latent, range(4))
    np.testing.assert_allclose(ds.latent.sel(layer="blocks.0"), wanted, atol=1e-6)
    assert ds.latent_nan_reason.sel(layer="blocks.0[class]").item() == "a class token lies nowhere"


def test_what_cannot_be_put_together_again_says_so():
    model = Tokens(gives=lambda z: {"z": z}).double().eval()
    ds = run(noise(8), model=model, layers=["blocks.0"])
    assert ds.latent_nan_reason.sel(layer="blocks.0").item() == "nothing can be put in place of what it gives, dict"
    assert ds.latent.sel(layer="image").notnull().all()
    assert ds.latent.sel(layer="blocks.0").isnull().all()


class Odd(Skips):
    """A vector inside, a layer that runs in some passes only, and maps that are made after the features."""

    def __init__(self):
        super().__init__()
        self.pool, self.early, self.late = nn.AdaptiveAvgPool2d(1), nn.Identity(), nn.Conv2d(4, 2, 3)

    def forward(self, x):
        z = self.act(self.wide(x))
        self.pool(z)
        if x.amax() < 50:
            z = self.early(z)
        scores = self.fc(self.down(z).square().mean((-2, -1)).log())
        self.late(z)
        return scores


@pytest.mark.parametrize("channels", ["as they are", "perturbed"])
def test_layers_without_a_value_say_why(channels):
    images = noise(24)
    images[oracles.seeded_order(24, SEED)[20]] = 100
    layers = ["pool", "early", "late", "down", "fc"]
    ds = run(images, model=Odd().double(), layers=layers, channels=channels, batch_size=16)
    said = ds.latent_nan_reason.to_series()
    assert said["pool"] == said["fc"] == "its output has one position, which the group does not move"
    assert said["early"] == "it does not run in every forward pass"
    assert said["late"] == "it does not run before the features are taken"
    assert said["down"] == said["image"] == ""
    assert (ds.latent.isnull().all(("element", "sample")).to_series() == (said != "")).all()
    assert (ds.latent_null.isnull().all(("element", "sample")).to_series() == (said != "")).all()


@pytest.mark.parametrize(
    ("group", "side", "reasons"),
    [
        ("C8", 6, {"wide": "C8 interpolates here", "down": "C8 interpolates here"}),
        ("shift6", 6, {"wide": "", "down": "shifts by 1/6"}),
        ("rgb", 6, {"wide": "the group does not move its maps", "down": "the group does not move its maps"}),
    ],
)
def test_an_action_that_maps_do_not_have(group, side, reasons):
    model = Skips().double()
    images = noise(12, side=side)
    if group == "rgb":
        images = noise(12, 3, side)
        model.wide = nn.Conv2d(3, 4, 3, padding=1).double()
        model.forward = lambda x: model.fc(model.down(model.act(model.wide(x))).square().mean((-2, -1)).log())
    ds = run(images, model=model, group=group, layers=["wide", "down"])
    for layer, reason in reasons.items():
        said = ds.latent_nan_reason.sel(layer=layer).item()
        assert said.startswith(reason)
        assert bool(said) == bool(reason) == bool(ds.latent.sel(layer=layer).isnull().all())
    assert ds.latent.sel(layer="image").notnull().all()


@pytest.mark.filterwarnings("ignore:.* samples have no value", "ignore:invalid value")
@pytest.mark.parametrize("channels", ["as they are", "matched", "perturbed"])
def test_a_broken_image_costs_itself(channels):
    images, torn = noise(13), [4]
    ds = run(Torn(images, torn), channels=channels)
    is_lost = ds.latent.isnull().any("element")
    assert (is_lost.sel(layer=["image", *LAYERS]).values == (np.arange(13) == 4)).all()
    if channels != "matched":  # there the fit is another
        rest = np.arange(13) != 4
        wanted = run(images, channels=channels).latent[..., rest]
        np.testing.assert_allclose(ds.latent[..., rest], wanted, atol=1e-6)


class Fails(Skips):
    """Raises in its third forward pass on many images."""

    passes = 0

    def forward(self, x):
        self.passes += len(x) > 4
        if self.passes == 3:
            raise RuntimeError("power cut")
        return super().forward(x)


@pytest.mark.parametrize("kind", [Skips, Fails])
def test_the_model_is_left_as_found(kind):
    model = kind().double().train()
    before = fingerprint(model)
    if kind is Fails:
        with pytest.raises(RuntimeError, match="power cut"):
            run(noise(12), model=model)
    else:
        run(noise(12), model=model)
    assert fingerprint(model) == before
    assert all(not (module._forward_hooks or module._forward_pre_hooks) for module in model.modules())
    assert all(module.training for module in model.modules())


def test_headless_models_have_features_too():
    images = noise(12)
    whole = run(images)
    model = Skips().double()
    model.fc = nn.Identity()
    ds = run(images, model=model, output="features")
    np.testing.assert_allclose(ds.latent, whole.latent, atol=1e-6)


def test_what_is_refused():
    model = nn.Sequential(nn.Flatten(2), nn.Flatten(), nn.Linear(36, 3)).double()
    model.add_module("image", nn.Linear(3, 3).double())
    with pytest.raises(ValueError, match="the turned image is the layer 'image'"):
        run(noise(8), model=model, layers=["image"])
    with pytest.raises(ValueError, match="'mached'; did you mean 'matched'"):
        run(noise(8), channels="mached")
    with pytest.raises(ValueError, match="channels are matched on the seeded order"):
        run(noise(16), channels="matched", null="within-class", labels=[0, 1] * 8)
    with pytest.raises(ValueError, match="needs 4 images, got 3"):
        run(noise(3))
