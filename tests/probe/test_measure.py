"""measure(): order and chains, exact facts, edges of numbers, what it leaves as it was, what it says, and bad input."""

import contextlib
import copy
import math
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import oracles
import pytest
import torch
import xarray as xr
from made import Net, Torn, noise
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import eedkit as ek
from eedkit.lab.networks import GroupConv
from eedkit.probe.guard import fingerprint
from eedkit.theory import actions, groups

N, SEED = 9, 3
COSINES = ["channelwise", "channelwise_centred", "latent"]
SOFTMAX = ["softmax", "softmax_reverse", "softmax_js", "softmax_tv", "softmax_hellinger"]
EVERY = [*COSINES, *SOFTMAX, "channelwise_zero", "channelwise_skip", "channelwise_rms", "channelwise_matched"]
EVERY += ["latent_unit", "latent_flat", "latent_euclidean"]


class Pool(nn.Module):
    def forward(self, z):
        return z.mean((-2, -1))


class Small(Net):
    """Layers stem, act, down, act#2 and fc."""

    def __init__(self):
        super().__init__(colours=2)


class Counts(Small):
    """Keeps how many images it was shown and under what; raises from a certain forward pass on."""

    def __init__(self, fails_at=math.inf):
        super().__init__()
        self.fails_at, self.seen = fails_at, []

    def forward(self, x):
        modes = torch.is_autocast_enabled("cpu"), self.training, torch.is_grad_enabled()
        self.seen.append((len(x), x.dtype, *modes))
        if len(self.seen) >= self.fails_at:
            raise RuntimeError(f"pass {self.fails_at}")
        return super().forward(x)


def pictures(n=N, side=6):
    return noise(n, 2, side)


def small():
    return Small().double()


def measure(model, images=None, **options):
    """In the type of the model."""
    images = pictures().to(next(model.parameters()).dtype) if images is None else images
    settings = {"group": "C4", "progress": False, "device": "cpu", "seed": SEED, "name": "m"}
    return ek.measure(model, images, **settings | options)


def latent_by_loops(images, of_chains=None):
    """Values under C4, or the null of these chains."""
    orbit = oracles.orbits(lambda x: small().trace(x)["latent"], images.numpy(), "C4")
    compared = orbit if of_chains is None else oracles.shuffled(orbit, of_chains)
    return oracles.eed(compared, "C4", oracles.stay, oracles.latent, range(4))


def reason(ds, metric, layer):
    return ds[f"{metric}_nan_reason"].sel(layer=layer).item()


def at(ds, name, layer="act"):
    """A metric of the output, at `latent`, or at a layer; (g, n)."""
    if name.startswith("softmax"):
        return ds[name][0]
    return ds[name].sel(layer="latent" if name.startswith("latent") else layer)[0]


def test_every_source_and_a_second_run_give_the_identical_dataset():
    wanted = measure(small(), labels=list(range(N)))
    loader = DataLoader(TensorDataset(pictures(), torch.arange(N)), batch_size=2)
    for source in (loader, iter(list(loader)), loader.dataset):
        ds = measure(small(), source)
        ds.attrs["created"] = wanted.attrs["created"]
        xr.testing.assert_identical(ds, wanted)


@pytest.mark.parametrize("batch_size", [4, 7, None])
def test_the_null_within_classes_is_that_of_chains_of_one_class(batch_size):
    images, labels = pictures(16), ["b", "a", "b", "b"] * 4
    reading = oracles.seeded_order(16, SEED)
    members = [[i for i in reading if labels[i] == name] for name in "ba"]
    of_chains = [chain for of_class in members for chain in oracles.chains(len(of_class), 4, of_class)]
    ds = measure(small(), images, null="within-class", labels=labels, batch_size=batch_size)
    np.testing.assert_allclose(at(ds, "latent_null"), latent_by_loops(images, of_chains), atol=1e-6)
    assert ds.attrs["null"] == "within-class"


@pytest.mark.parametrize("n", [1, N])
def test_without_a_null_the_estimates_are_the_same_and_one_image_is_enough(n):
    ds = measure(small(), pictures()[:n], null=False)
    np.testing.assert_allclose(at(ds, "latent"), latent_by_loops(pictures()[:n]), atol=1e-6)
    assert not [name for name in ds.variables if name.endswith("_null")]
    assert ds.latent_pair_cosine.isnull().all() == (n == 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_channelwise_misses_what_regular_fields_show(dtype):
    pooling = nn.Sequential(nn.Unflatten(1, (3, 4)), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    model = nn.Sequential(GroupConv(2, 3, group="C4", lifts=True), nn.ReLU(), pooling, nn.Linear(3, 4)).to(dtype)
    metrics = ["channelwise", "channelwise_regular", "latent", *SOFTMAX]
    ds = measure(model, metrics=metrics, layers=["1"])
    for name in metrics[1:]:
        np.testing.assert_allclose(at(ds, name, "1"), ds[name].attrs["best"], atol=1e-6)
    assert (at(ds, "channelwise", "1")[1:] > -0.95).all()


class Scaled(Small):
    """Its maps once more, of another size."""

    def __init__(self, size):
        super().__init__()
        self.maps, self.size = nn.Identity(), size

    def forward(self, x):
        self.maps(self.stem(x) * self.size)
        return super().forward(x)


@pytest.mark.parametrize("how", ["compiled", "tensor"])
@pytest.mark.parametrize("size", [1e-140, 1e-22, 1e19, 1e35, 1e140])
def test_the_size_of_activations_changes_no_cosine(size, how, take_sums, recwarn):
    take_sums(how)
    dtype = torch.float32 if 1e-40 < size < 1e38 else torch.float64
    found, wanted = (measure(Scaled(s).to(dtype), layers=["maps"], metrics=COSINES) for s in (size, 1.0))
    for name in (*COSINES, *(f"{name}_null" for name in COSINES)):
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-5, err_msg=name)
    assert found.dead_fraction.sel(layer="maps") == 0
    assert not recwarn.list


@pytest.mark.parametrize("how", ["compiled", "tensor"])
def test_features_that_are_all_zero_agree_perfectly(how, take_sums, recwarn):
    take_sums(how)
    model = Small()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    ds = measure(model, metrics=EVERY, layers=["act"])
    for name in EVERY:
        best = {"channelwise_zero": 0, "channelwise_skip": np.nan, "channelwise_centred": np.nan}
        for variable in (name, f"{name}_null"):
            np.testing.assert_allclose(at(ds, variable), best.get(name, ds[name].attrs["best"]), atol=1e-7)
    assert reason(ds, "channelwise_skip", "act").startswith("undefined for 9 of 9 samples")
    assert ds.dead_fraction.sel(layer="act") == 1
    assert ds.latent_pair_cosine.isnull().all()
    assert not recwarn.list


class Breaks(Small):
    """NaN at the output for the image with a mark in one corner, once it is turned by 180°."""

    def forward(self, x):
        scores = super().forward(x)
        return torch.where(x[:, 0, -1:, -1] > 90, scores * math.nan, scores)


@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_images_without_values_cost_themselves_and_are_named_in_one_warning(batch_size):
    images, torn = pictures(), [1, 2, 7]
    images[4, 0, 0, 0] = 99
    with pytest.warns(UserWarning, match="4 of 9 samples") as caught:
        ds = measure(Breaks().double(), Torn(images, torn), batch_size=batch_size)
    said = [f"number {i}: OSError: file {i} is torn" for i in torn]
    said.insert(2, "the model's output is not finite for sample 4 under r180")
    assert [str(one.message) for one in caught] == [f"4 of 9 samples have no value: {'; '.join(said[:3])} (and 1 more)"]
    whole, rest = measure(small(), images), [0, 3, 5, 6, 8]
    for name in ("latent", "channelwise", "softmax", "prediction", "confidence"):
        found, wanted = ds[name].isel(sample=rest), whole[name].isel(sample=rest)
        np.testing.assert_allclose(found, wanted, atol=1e-6, err_msg=name)
    assert np.flatnonzero(at(ds, "softmax").isnull().any("element")).tolist() == [1, 2, 4, 7]
    assert np.flatnonzero(at(ds, "latent").isnull().any("element")).tolist() == torn
    assert np.flatnonzero(ds.prediction.sel(element="r180")[0] == -1).tolist() == [1, 2, 4, 7]
    assert np.flatnonzero(ds.prediction.sel(element="r90")[0] == -1).tolist() == torn


class Dropping(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=True)


class Batchwise(Small):
    def forward(self, x):
        return super().forward(x - x.mean(0))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.Conv2d(2, 4, 3), Dropping(), nn.Flatten(), nn.Linear(64, 3)), "; '1' is the first module"),
        (Batchwise(), ", depending on the others in their batch"),
    ],
)
def test_a_model_that_is_no_function_of_its_images_is_told(model, said):
    with pytest.warns(UserWarning, match=f"gives other outputs for the same images{said}") as caught:
        assert measure(model).attrs["repeatable"] == 0
    assert len(caught) == 1


def state_of(*models):
    flags = {
        "types": (torch.get_default_dtype(), torch.get_float32_matmul_precision()),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32),
        "modes": (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_num_threads()),
        "chance": torch.get_rng_state().tolist(),
    }
    states = []
    for model in models:
        modules = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
        tensors = [*model.named_parameters(), *model.named_buffers()]
        states.append((modules, {key: (id(z), z.requires_grad, z.dtype, z.tolist()) for key, z in tensors}))
    return flags, states


def with_statistics():
    """In train mode but for one module, with a frozen weight and statistics of other images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), Pool(), nn.Linear(3, 2)).double()
        model(pictures() * 3)
    model[1].eval()
    model[0].weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("metrics", [["latent"], ["channelwise_matched", "softmax"]])
def test_the_model_is_left_as_found(metrics):
    model = with_statistics()
    before = state_of(model)
    ds = measure(model, metrics=metrics, layers=["0"])
    assert state_of(model) == before
    xr.testing.assert_equal(ds, measure(with_statistics().eval(), metrics=metrics, layers=["0"]))


@pytest.mark.parametrize("at", [1, 2, 6, 9])
def test_the_model_is_left_as_found_also_by_an_exception(at):
    model = Counts(at).train()
    model.stem.eval()
    before = state_of(model)
    with pytest.raises((RuntimeError, ValueError), match=f"pass {at}"):
        measure(model, batch_size=4)
    assert state_of(model) == before


def test_images_are_left_as_they_were():
    class InPlace(Small):
        def forward(self, x):
            return super().forward(x.mul_(2))

    images = pictures().requires_grad_()
    found, wanted = (measure(m, z, metrics=EVERY) for m, z in ((InPlace().double(), images), (small(), 2 * pictures())))
    assert torch.equal(images.detach(), pictures())
    assert images.grad is None
    xr.testing.assert_equal(found.drop_vars("weights"), wanted.drop_vars("weights"))


class Writes(Counts):
    """Writes to a parameter or a buffer as it runs on so many images or more, or only counts."""

    def __init__(self, how, fails_at=math.inf, least=0):
        super().__init__(fails_at)
        self.norm, self.how, self.least = nn.BatchNorm2d(2), how, least
        self.register_buffer("cache", torch.zeros(1))

    def forward(self, x):
        if len(x) >= self.least:
            self.write()
        self.norm.num_batches_tracked += 1
        return super().forward(self.norm(x))

    def write(self):
        if self.how == "in place":
            self.fc.bias.add_(1e-6)
        if self.how == "data":
            self.fc.bias.data = self.fc.bias + 1e-6
        if self.how == "another parameter":
            self.fc.bias = nn.Parameter(self.fc.bias + 1e-6)
        if self.how == "statistics":
            self.norm.train()
        if self.how == "grows":
            self.cache.resize_(self.cache.numel() + 1)
        if self.how == "another buffer":
            self.register_buffer("another", torch.ones(1))


CHANGED = {"statistics": "norm.running_mean, norm.running_var", "grows": "cache"}
CHANGED |= dict.fromkeys(("in place", "data", "another parameter"), "fc.bias")
CHANGED |= dict.fromkeys(("counts", "another buffer"))


@pytest.mark.parametrize("how", [how for how in CHANGED if CHANGED[how]])
def test_a_model_that_changes_its_weights_is_refused_before_the_pass(how):
    model = Writes(how)
    before = state_of(model)
    with pytest.raises(ValueError, match=rf"changes its own weights as it runs \({CHANGED[how]}\)"):
        measure(model)
    assert sum(run[0] for run in model.seen) <= 8
    assert state_of(model) == before


@pytest.mark.parametrize("fails_at", [math.inf, 6])
@pytest.mark.parametrize("how", CHANGED)
@pytest.mark.filterwarnings("ignore:m gives other outputs")
def test_a_model_that_changes_its_weights_later_is_refused_and_gets_them_back(how, fails_at):
    model = Writes(how, fails_at, least=8)
    before = state_of(model)
    if CHANGED[how] is None and fails_at == math.inf:
        assert measure(model).latent.notnull().all()
    else:
        said = rf"changes its own weights as it runs \({CHANGED[how]}\)" if fails_at == math.inf else "pass 6"
        with pytest.raises((ValueError, RuntimeError), match=said):
            measure(model, batch_size=4)
    assert state_of(model) == before


@pytest.mark.parametrize("shares_a_layer", [False, True])
def test_threads_measure_as_one_after_the_other(shares_a_layer):
    one = with_statistics()
    other = nn.Sequential(one[:4], nn.Linear(3, 2).double()) if shares_a_layer else one
    before = state_of(one, other)
    jobs = [(one, "C4"), (other, "flip")] * 4
    ready = threading.Barrier(len(jobs))

    def run(job, waits=False):
        if waits:
            ready.wait()
        return measure(job[0], pictures(24), group=job[1], batch_size=8, layers="all", metrics=["latent", "softmax"])

    wanted = [run(job) for job in jobs]
    with ThreadPoolExecutor(len(jobs)) as pool:
        found = list(pool.map(lambda job: run(job, waits=True), jobs))
    for pair in zip(found, wanted, strict=True):
        xr.testing.assert_equal(*pair)
    assert state_of(one, other) == before


FIRST_LOOP = """
import torch, eedkit as ek
from eedkit.probe import measure, sums
measure.is_worth_compiling = lambda numbers: True
torch.set_num_threads(1)
net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(18, 2))
ek.measure(net, torch.rand(8, 1, 5, 5), group="C4", progress=False, device="cpu")
print(sums._loop() is not None, torch.get_num_threads())
"""


def test_the_first_compiled_loop_leaves_the_number_of_threads():
    pytest.importorskip("numba")
    done = subprocess.run([sys.executable, "-c", FIRST_LOOP], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "1"], done.stderr


@contextlib.contextmanager
def bfloat16_by_default():
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("around", [lambda: torch.autocast("cpu", torch.bfloat16), bfloat16_by_default])
def test_what_is_switched_on_outside_changes_nothing(around):
    model, wanted = Small(), measure(Small(), metrics=EVERY)
    with around():
        before = state_of(model)
        xr.testing.assert_equal(measure(model, pictures().float(), metrics=EVERY), wanted)
        assert state_of(model) == before


@pytest.mark.parametrize(
    ("precision", "dtype", "seen"),
    [
        ("auto", torch.float64, (torch.float64, False)),
        ("auto", torch.bfloat16, (torch.bfloat16, False)),
        ("bfloat16", torch.bfloat16, (torch.bfloat16, False)),
        ("bfloat16", torch.float32, (torch.float32, True)),
        ("float16", torch.float32, (torch.float32, True)),
    ],
)
def test_a_model_runs_in_the_precision_that_is_asked_for(precision, dtype, seen, recwarn):
    model, metrics = Counts().to(dtype), ["channelwise", "channelwise_matched", "latent", "softmax"]
    ds = measure(model, pictures().float(), precision=precision, layers=["act"], metrics=metrics)
    assert {run[1:] for run in model.seen} == {(*seen, False, False)}
    assert ds.attrs["precision"] == (precision if precision != "auto" else str(dtype).removeprefix("torch."))
    wanted = measure(Small(), layers=["act"], metrics=metrics)
    for name in metrics:
        np.testing.assert_allclose(at(ds, name), at(wanted, name), atol=0.1)
        assert abs(at(ds, name) - at(wanted, name)).mean() < 0.005
    # the distances are not taken in half precision
    np.testing.assert_allclose(at(ds, "channelwise")[0], -1, atol=1e-6)
    assert ds.attrs["repeatable"] == 1
    assert not recwarn.list


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: nn.DataParallel(torch.compile(model))])
def test_compiled_and_parallel_models_are_the_module_inside(wrap):
    xr.testing.assert_equal(measure(wrap(Small()), pictures().float()), measure(Small()))


def test_a_model_may_be_called_in_another_way():
    class Prompted(Small):
        def forward(self, x, prompt):
            return super().forward(x) + prompt

    with pytest.raises(
        ValueError, match=r"argument: 'prompt'. If it wants more than images, .* call=lambda model, images: "
    ):
        measure(Prompted().double())
    wanted = measure(small())
    ds = measure(Prompted().double(), call=lambda model, images: model(images, prompt=0.5))
    np.testing.assert_allclose(ds.softmax, wanted.softmax, atol=1e-7)
    ds = measure(small(), call=lambda model, images: model.features(images), output="features", layers=["stem"])
    np.testing.assert_allclose(at(ds, "latent"), at(wanted, "latent"), atol=1e-7)


def test_a_custom_action_moves_images():
    mirror = actions.Action("mirror", groups.parse("C2"), move=lambda g, z: z.flip(-1) if g else z)
    ds, wanted = measure(small(), group=mirror), measure(small(), group="flip")
    for name in wanted.data_vars:
        np.testing.assert_array_equal(ds[name].values, wanted[name].values, err_msg=name)
    assert (ds.attrs["group"], ds.attrs["action"]) == ("C2", "mirror")


def test_the_dataset_says_where_it_comes_from():
    ds = measure(small(), name="mine", layers=["stem", "fc"], labels=list("abcabcabc"))
    assert ds.sizes == {"model": 1, "layer": 3, "element": 4, "sample": N}
    said = {"model": ["mine"], "element": ["e", "r90", "r180", "r270"], "angle": [0, 90, 180, 270], "classes": [4]}
    said |= {"layer": ["stem", "fc", "latent"], "layer_type": ["Conv2d", "Linear", "Linear"], "channels": [8, 4, 6]}
    said |= {"height": [6, 1, 1], "width": [6, 1, 1], "layout": ["b c h w", "b c", "b c"], "label": list("abcabcabc")}
    said |= {"channelwise_kernel_order": [1, 0, 0], "latent_kernel_order": [4, 4, 4], "weights": [fingerprint(small())]}
    assert {name: ds[name].values.ravel().tolist() for name in said} == said
    assert ds.depth[0].values.tolist() == pytest.approx([1 / 5, 1, 4.5 / 5])
    attrs = {"group": "C4", "head": "fc", "null": "True", "seed": SEED, "precision": "float64", "device": "cpu"}
    attrs |= {"output": "", "output_kind": "scores", "schema": 3}
    assert {key: ds.attrs[key] for key in attrs} == attrs
    about = {name: [ds[name].attrs[key] for key in ("best", "units", "order")] for name in ("latent", "softmax")}
    assert about == {"latent": [-1, "1", 2], "softmax": [0, "nat", 2]}
    assert {ds[name].dtype for name in ("channelwise", "latent", "softmax", "latent_null")} == {np.dtype("float32")}
    assert ds.softmax.dims == ("model", "element", "sample")


def test_layers_show_what_would_be_measured():
    class Heads(Small):
        def forward(self, x):
            return {"decoder": {"cls": super().forward(x)}, "mask": 2 * x}

    output = {"decoder.cls": "scores", "mask": "dense"}
    table = ek.layers(Heads(), torch.rand(1, 2, 6, 6), layers=["stem"], output=output)
    columns = ["layer", "layout", "height", "channels", "head", "entry", "kind"]
    assert table[columns].to_numpy().tolist() == [
        ["stem", "b c h w", 6, 8, "", "", ""],
        ["latent", "b c", 1, 6, "fc", "", ""],
        ["output", "b c", 1, 4, "", "decoder.cls", "scores"],
        ["output[mask]", "b c h w", 6, 2, "", "mask", "dense"],
    ]


def test_progress_shows_control_characters_of_a_name(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    measure(small(), name="\x1b]0;owned\x07", progress=True)
    shown = capsys.readouterr().err
    assert r"\x1b]0;owned\x07:" in shown
    assert "\x1b]" not in shown


def holding(value, **options):
    module = nn.Identity()
    module.register_buffer("b", value, **options)
    return module


COMPLEX, TWO = torch.tensor([1 + 2j, 3 - 1j]), torch.ones(2)
PAIRS_OF_MODELS = {
    "weights": lambda k: Small() if k else small(),
    "buffers that are not saved": lambda k: holding(k * TWO, persistent=False),
    "extra state": lambda k: type("Extra", (nn.Identity,), {"get_extra_state": lambda self: k * TWO})(),
    "sparse values": lambda k: holding(torch.sparse_coo_tensor([[0, 2]], torch.tensor([1, 2 + k]), (4,))),
    "conjugates": lambda k: holding(COMPLEX.conj() if k else COMPLEX),
    "half precisions": lambda k: holding((k * TWO).bfloat16()),
    "quantised weights": lambda k: holding(torch.quantize_per_tensor(TWO, 0.1 + k, 0, torch.qint8)),
    "classes": lambda k: nn.ReLU() if k else nn.GELU(),
}


@pytest.mark.parametrize("what", PAIRS_OF_MODELS)
@pytest.mark.filterwarnings("ignore:.*[Ss]parse", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_fingerprints_see(what):
    one, same, other = (PAIRS_OF_MODELS[what](k) for k in (0, 0, 1))
    copied = copy.deepcopy(one).to(memory_format=torch.channels_last)
    assert fingerprint(one) == fingerprint(same) == fingerprint(copied)
    assert fingerprint(one) != fingerprint(other)


BY_CLASS = {"null": "within-class"}
REFUSED = [
    # options, what the error says, how many images the model may have been shown before
    ({"group": "c4"}, "no group 'c4'; did you mean 'C4'", 0),
    ({"group": 4}, "a group is a name such as 'C4' or a Group, got int", 0),
    ({"group": "SO(2)?k=3"}, r"has 'k=3'; its options are n \(how many parts\), seed and jitter", 0),
    ({"metrics": ["latnet"]}, "no metric 'latnet'; did you mean 'latent'", 0),
    ({"metrics": [5]}, "a metric is a name such as 'latent' or a Metric, got int", 0),
    ({"metrics": []}, r"metrics must be one or more with different names, got \[\]", 0),
    ({"metrics": ["latent", "latent"]}, "different names", 0),
    ({"precision": "float23"}, "no precision 'float23'; did you mean 'float32'", 0),
    ({"precision": "float32"}, "'float32' needs float32 weights, but stem.weight is torch.float64; leave precision", 0),
    ({"null": "within"}, "null must be True, False or 'within-class', got 'within'", 0),
    ({**BY_CLASS, "labels": [0, 1, 1] * 3}, "needs 4 images of each class, got 3 of 0; leave that class out", 0),
    (BY_CLASS, "needs to know the labels", 0),
    ({**BY_CLASS, "labels": [0] * 9, "metrics": ["channelwise_matched"]}, "ask for one of both", 0),
    ({"batch_size": 0}, "batch_size must be a whole number from 1 on, or None to choose one, got 0", 0),
    ({"batch_size": 2.5}, "batch_size must be a whole number from 1 on, or None to choose one, got 2.5", 0),
    ({"device": "cda"}, "device must be 'auto', 'cpu', 'cuda' or 'cuda:1', got 'cda'", 0),
    ({"device": "mps"}, "device must be 'auto', .*, got 'mps'", 0),
    ({"device": "meta"}, "device must be 'auto', .*, got 'meta'", 0),
    ({"labels": [1, 2]}, "expected one label for each of 9 images, got 2", 0),
    ({"labels": [[0, 1, 1]] * 9}, "the labels say several classes .* pass output='independent'", 0),
    ({"call": "features"}, r"call must be a function \(model, images\) -> output, got str", 0),
    ({"layers": 3}, "layers must be a text or a list of names, got 3", 0),
    ({"layouts": "b c h w"}, "layouts must be a dict from names to texts, got 'b c h w'", 0),
    ({"layouts": {"stem": 4}}, "layouts must be a dict from names to texts, got 'stem': 4", 0),
    ({"output": 1.5}, "output must be the name or number of an entry, what it is .* got 1.5", 0),
    ({"output": {"logits": "score"}}, "no kind of output 'score'; did you mean 'scores'", 0),
    ({"layers": "("}, r"layers='\(' is no regular expression", 2),
    ({"layers": ["sten"]}, "no layer 'sten'; did you mean 'stem'", 2),
    ({"layers": "block.*"}, "no layer whose whole name matches 'block", 2),
    ({"head": "fcc"}, "no head 'fcc'; did you mean 'fc'", 2),
    ({"layouts": {"sten": "b c"}}, "layouts: no layer 'sten'; did you mean 'stem'", 2),
    ({"layouts": {"stem": "b 5x6 c"}}, r"layouts\['stem'\]: the layout 'b 5x6 c' ", 2),
    ({"output": "logits"}, "no output 'logits'", 2),
    ({"output": "dense"}, r"output='dense' needs a map \(b, c, h, w\), got \(2, 4\)", 2),
    ({"images": torch.rand(9, 2, 5, 6)}, "quarter turns need square images, got 5×6; centre-crop or pad first", 0),
    ({"images": pictures(), "group": "shift4"}, "shifts by 1/4 of the height need .* got 6", 0),
    ({"images": pictures(), "group": "rgb"}, "rgb permutes 3 colour channels, got images of 2", 0),
    ({"images": pictures(0)}, "there is no image to measure on; expected at least one", 0),
    ({"images": pictures(3)}, "needs 4 images, got 3; pass more, or null=False", 0),
    ({"images": pictures(1), "group": "flip"}, "needs 2 images, got 1; pass more, or null=False", 0),
    ({"images": pictures(3), "group": "flip", "metrics": ["channelwise_matched"]}, "which needs 4, got 3", 0),
    ({"images": iter(pictures(7)), "group": "D4"}, "needs 8 images, got 7; pass more, or null=False", 0),
    ({"images": np.zeros((9, 8, 8, 3), np.float32)}, r"channels last\? pass images.transpose\(0, 3, 1, 2\)", 0),
    ({"images": Torn(pictures(), range(9))}, "no image could be read; the first: number .: OSError: file . is torn", 0),
    ({"images": "digits/tset"}, "no bundled images, folder or file 'digits/tset'", 0),
]


@pytest.mark.parametrize(("options", "message", "images_seen"), REFUSED, ids=range(len(REFUSED)))
def test_bad_input_is_refused_before_anything_is_measured(options, message, images_seen):
    model = Counts().double()
    before = state_of(model)
    with pytest.raises((ValueError, TypeError), match=message):
        measure(model, **options)
    assert sum(run[0] for run in model.seen) <= images_seen
    assert state_of(model) == before


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (torch.rand(3, 2, 6, 6), TypeError, r"must be a torch\.nn\.Module, got Tensor; the images come second"),
        (
            nn.Sequential(nn.LazyLinear(3)),
            ValueError,
            "0.weight has no values yet; load .*, or run the model on a batch",
        ),
        (Small().to("meta"), ValueError, "stem.weight has no values yet; load the weights"),
    ],
)
def test_what_is_no_model_or_has_no_weights_is_refused(model, error, message):
    with pytest.raises(error, match=message):
        measure(model, pictures().float())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
@pytest.mark.parametrize(("precision", "atol", "on_average"), [("float32", 1e-4, 1e-5), ("bfloat16", 0.1, 0.01)])
def test_cuda_is_near_the_cpu(precision, atol, on_average):
    options = {"metrics": EVERY, "layers": ["act"], "batch_size": 4}
    wanted = measure(small(), **options)
    for home in ("cpu", "cuda"):
        model = Small().to(home)
        found = measure(model, pictures().float().to(home), precision=precision, device="auto", **options)
        assert {parameter.device.type for parameter in model.parameters()} == {home}
        assert found.attrs["device"] == torch.cuda.get_device_name()
        assert found.attrs["data"] == measure(Small()).attrs["data"]
        for name in (*EVERY, *(f"{name}_null" for name in EVERY)):
            np.testing.assert_allclose(found[name], wanted[name], atol=atol, rtol=10 * atol, err_msg=name)
            assert abs(found[name] - wanted[name]).mean() < on_average, name


PEAK = """
import resource, torch, torchvision, eedkit as ek
peaks = []
class Noise(torch.utils.data.Dataset):
    def __len__(self):
        return 96
    def __getitem__(self, i):
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(i)), i % 10
model = torchvision.models.resnet18()
ds = ek.measure(model, Noise(), group="flip", layers="all", batch_size=8, progress=False, device="cpu")
assert ds.sizes["sample"] == 96 and ds.sizes["layer"] > 60 and ds.latent.notnull().all()
print(peaks[40], peaks[-1])
"""


@pytest.mark.slow
def test_memory_stays_flat_from_32_to_96_images_on_resnet18_at_224(tmp_path):
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    after_32, after_96 = map(int, done.stdout.split())
    assert after_96 < 1.1 * after_32, (after_32, after_96)


def test_latent_that_may_be_class_scores_says_so():
    class Shifted(Small):
        def forward(self, x):
            return super().forward(x) - torch.arange(4.0)

    with pytest.warns(UserWarning, match="no classifier was found"):
        ds = measure(Shifted().double(), metrics=["latent"])
    table = ek.summarise(ds)
    assert "measured on the model's output itself" in table[table.layer == "latent"].reason.item()
    assert table[table.layer != "latent"].reason.eq("").all()


def test_a_measurement_within_another_is_refused():
    model = small()
    with pytest.raises(ValueError, match=r"^the images and call= of a measurement cannot start another one"):
        measure(model, call=lambda model, images: measure(model))
    measure(model)
