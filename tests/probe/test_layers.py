"""Which layers and outputs there are, which module is the head, and what taps see and leave behind."""

import copy
import types
import warnings
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eedkit.errors import Undefined
from eedkit.probe.layers import Layer, Output, find_layers, first_noisy_module, tap
from eedkit.probe.measure import warn_of_silent_blocks

SCORES_WITHOUT_HEAD = "no module was found whose output they are; pass head='path of the classifier'"


def pictures(n=2, side=6, channels=2):
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(1))


class Whole(nn.Module):
    """A model whose output is `function` of a map, a feature vector (b, 6) and the modules."""

    def __init__(self, function, *modules):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.body = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        for module in modules:
            for parameter in module.parameters():
                nn.init.normal_(parameter)
        self.parts = nn.ModuleList(modules)
        self.function = function

    def forward(self, x):
        z = self.conv(x)
        return self.function(z, self.body(z), *self.parts)


def found_in(function, *modules, images=None, **options):
    """What is found in such a model, without any warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Whole(function, *modules).eval()
        return find_layers(model, pictures() if images is None else images, **{"layers": []} | options)


def output_of(found):
    (layer,) = [layer for layer in found.layers if layer.role == "output"]
    return layer.output


# which entry is read


@dataclass(slots=True)
class Pair:
    first: Any
    second: Any


def knot(**parts):
    """An object that holds itself."""
    made = types.SimpleNamespace(**parts)
    made.itself = made
    return made


NamedPair = namedtuple("NamedPair", "first second")
HOLDERS = {
    "dict": (lambda a, b: {"first": a, "second": b}, "first", "second"),
    "list": (lambda a, b: [a, b], "0", "1"),
    "tuple": (lambda a, b: (a, b), "0", "1"),
    "named tuple": (NamedPair, "first", "second"),
    "dataclass": (Pair, "first", "second"),
    "object": (lambda a, b: knot(first=a, second=b), "first", "second"),
    "nested": (lambda a, b: {"loss": None, "maps": [{"a.b": a}, {"a.b": b}]}, "maps.0.a.b", "maps.1.a.b"),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_the_first_of_two_maps_is_read_in_whatever_holds_them(holder):
    hold, first, second = HOLDERS[holder]
    model = Whole(lambda z, _: hold(z, z[:, :2]))
    with pytest.warns(UserWarning, match=rf"{first!r} is measured, and not {second!r}.* output={second!r}"):
        automatic = find_layers(model, pictures())
    named = find_layers(model, pictures(), output=second)
    for found, entry, channels in ((automatic, first, 6), (named, second, 2)):
        assert (output_of(found).entry, output_of(found).kind) == (entry, "dense")
        assert found.layers[-1].channels == channels
        torch.testing.assert_close(found.example, output_of(found).select(model(pictures())))


def test_outputs_of_another_form_are_named_as_well_unless_known_by_name():
    assert output_of(found_in(lambda z, v, fc: {"out": fc(v), "scores": z}, nn.Linear(6, 3))).entry == "out"
    with pytest.raises(UserWarning, match="of the model's outputs '0' is measured, and not '1'"):
        found_in(lambda z, v: (z, v))


def heads(z, v, fc, classify):
    return {
        "cls": fc(v),
        "mask": classify(z),
        "embeddings": v,
        "logits": fc(v) / 0.1,
        "tokens": z[:, :4].flatten(2).mT,
        "one": v[:, :1, None],
    }


def test_several_heads_are_outputs_in_one_pass():
    found = found_in(heads, nn.Linear(6, 3), nn.Conv2d(6, 1, 1), output={"mask": "independent", "cls": "scores"})
    assert [layer.name for layer in found.layers] == ["latent", "output", "output[cls]"]
    assert [layer.output.kind for layer in found.layers[1:]] == ["independent", "scores"]
    assert [str(layer.layout) for layer in found.layers] == ["b c", "b 1 h w", "b c"]
    assert found.head == "parts.0"
    model, seen = Whole(heads, nn.Linear(6, 3), nn.Conv2d(6, 1, 1)), []
    with tap(model, found.layers, lambda layer, z: seen.append(layer.name)):  # outputs are for others to select
        model(pictures())
    assert seen == ["latent"]


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (
            "logit",
            r"no output 'logit'; did you mean 'logits'.*\['cls', 'mask', 'embeddings', 'logits', 'tokens', 'one'\]",
        ),
        (7, "no output '7'"),
        (True, "output must be the name or number of an entry, what it is .*got True"),
        ({}, "output must be"),
        ({"cls": "score"}, "no kind of output 'score'; did you mean 'scores'"),
        ({"cls": "scores", "logits": "scores"}, "names two entries of one kind"),
        ({"mask": "scores"}, r"output='scores' needs class scores \(b, k\) with k ≥ 2, got \(2, 1, 6, 6\)"),
        ({"cls": "dense"}, r"output='dense' needs a map"),
        ({"one": "scores"}, r"output='scores' needs class scores .* got \(2, 1, 1\)"),
        ({"tokens": "independent"}, r"output='independent' needs .* \(b, h, w\) .*, got \(2, 36, 4\) with 4 channels"),
    ],
)
def test_unknown_and_unfit_outputs_are_refused(output, said):
    with pytest.raises(ValueError, match=said):
        found_in(heads, nn.Linear(6, 3), nn.Conv2d(6, 1, 1), output=output)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda z, v: "text", "the model's output, str, holds no tensor of floats"),
        (
            lambda z, v: v.argmax(1),
            r"the model's output must have floats for each image, got torch.int64 of shape (2,)",
        ),
        (lambda z, v: v.mean(), "the model's output must have floats for each image, got torch.float32 of shape ()"),
        (lambda z, v: [{"boxes": row[None]} for row in v], "the model's output is a list with a dict for every image"),
    ],
)
def test_an_output_that_cannot_be_read_says_so(function, reason):
    found = found_in(function)
    assert all(layer.layout is None and layer.reason.startswith(reason) for layer in found.layers)
    assert found.example is None


def test_a_list_of_two_dicts_is_no_detector():
    found = found_in(lambda z, v, fc: [{"logits": fc(v)}, {"aux": z}], nn.Linear(6, 3))
    assert (output_of(found).entry, output_of(found).kind, found.head) == ("0.logits", "scores", "parts.0")


def test_an_output_that_another_pass_does_not_have_is_undefined():
    with pytest.raises(Undefined, match=r"no tensor of floats at 'b\.0' in every forward pass"):
        Output("b.0").select({"b": [torch.zeros(1, dtype=torch.int64)]})


# the head


class LowRank(nn.Module):
    """A classifier with a low-rank update, as peft makes it."""

    def __init__(self, between=None):
        super().__init__()
        self.base_layer = nn.Linear(6, 3)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(6, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 3, bias=False)})
        self.between = between or nn.Identity()

    def forward(self, z):
        return self.base_layer(z) + 2 * self.lora_B["default"](self.between(self.lora_A["default"](z)))


class Cosine(nn.Linear):
    """Cosines to a vector for each class."""

    def forward(self, z):
        return F.linear(F.normalize(z), F.normalize(self.weight))


def kinds(z, v, fc):
    return {"logits": fc(v), "scores": fc(v), "aux": {"x": v}}


FC, ONE = [nn.Linear(6, 3)], [nn.Linear(6, 1)]
HEADS = nn.Linear(6, 3), nn.Conv2d(6, 1, 1)
PARAMETRISED = nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 3, 1))
AS_SQUEEZENET = nn.Sequential(nn.Dropout(), PARAMETRISED, nn.ReLU(), nn.AdaptiveAvgPool2d(1))
WRAPPED = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Linear(6, 3)))
FOUND = {  # what the model gives, its modules, options; entry, kind and head
    "scores by name": (lambda z, v, fc: {"box": v, "cls": fc(v)}, FC, {}, "cls", "scores", "parts.0"),
    "logits before others": (lambda z, v, fc: {"out": v, "a": {"Logits": fc(v)}}, FC, {}, "a.Logits", "scores", "parts.0"),
    "scores before features": (lambda z, v, fc: {"image_embeds": v, "a_logits": fc(v)}, FC, {}, "a_logits", "scores", "parts.0"),
    "features by name": (lambda z, v: {"x": v, "pooler_output": v}, (), {}, "pooler_output", "features", ""),
    "scores without a head": (lambda z, v: {"logits_per_image": F.normalize(v)}, (), {}, "logits_per_image", "scores", ""),
    "numbers are no names": (lambda z, v, fc: {"x": v, "logits": (None, fc(v))}, FC, {}, "logits.1", "scores", "parts.0"),
    "what counts images": (lambda z, v, fc: {"logit": v.sum(), "t": v.T, "i": fc(v)}, FC, {}, "i", "scores", "parts.0"),
    "one number for each image": (lambda z, v, fc: 3 * fc(v)[:, 0], ONE, {}, "", "features", "parts.0"),
    "an entry": (heads, HEADS, {"output": "mask"}, "mask", "dense", ""),
    "a kind": (heads, HEADS, {"output": "dense"}, "mask", "dense", ""),
    "features before scores": (heads, HEADS, {"output": "features"}, "embeddings", "features", ""),
    "entry and kind": (heads, HEADS, {"output": {"cls": "independent"}}, "cls", "independent", "parts.0"),
    "probabilities": (heads, HEADS, {"output": {"cls": "probabilities"}}, "cls", "probabilities", "parts.0"),
    "the usual form first": (lambda z, v, fc: {"a": z, "b": fc(v)}, FC, {"output": "probabilities"}, "b", "probabilities", "parts.0"),
    "an entry called scores": (kinds, FC, {"output": "scores"}, "scores", "scores", "parts.0"),
    "what holds one": (kinds, FC, {"output": {"aux": "features"}}, "aux.x", "features", ""),
    "plain": (lambda z, v, fc: fc(v), FC, {}, "", "scores", "parts.0"),
    "temperature": (lambda z, v, fc: fc(v) / 1.7, FC, {}, "", "scores", "parts.0"),
    "offset": (lambda z, v, fc: fc(v) - fc(v).amax(1, keepdim=True), FC, {}, "", "scores", "parts.0"),
    "softmax": (lambda z, v, fc: fc(v).softmax(1), FC, {}, "", "probabilities", "parts.0"),
    "soft softmax": (lambda z, v, fc: (fc(v) / 9).softmax(1), FC, {}, "", "probabilities", "parts.0"),
    "log-softmax": (lambda z, v, fc: (fc(v) / 0.2).log_softmax(1), FC, {}, "", "scores", "parts.0"),
    "squeezed": (lambda z, v, conv: conv(v[..., None, None])[..., 0, 0], [nn.Conv2d(6, 3, 1)], {}, "", "scores", "parts.0"),
    "cosine": (lambda z, v, fc: 16 * fc(v), [Cosine(6, 3)], {}, "", "scores", "parts.0"),
    "low rank": (lambda z, v, fc: fc(v) / 0.1, [LowRank()], {}, "", "scores", "parts.0"),
    "weights in one place": (lambda z, v, fc: fc(z).flatten(1), [AS_SQUEEZENET], {}, "", "scores", "parts.0"),
    "innermost": (lambda z, v, fc: fc(v), [WRAPPED], {}, "", "scores", "parts.0.1.0"),
    "sigmoid": (lambda z, v, fc: fc(v).sigmoid(), FC, {"output": "independent"}, "", "independent", "parts.0"),
    "a sigmoid": (lambda z, v, fc: fc(v)[:, 0].sigmoid(), ONE, {"output": "independent"}, "", "independent", "parts.0"),
    "a head that was named": (lambda z, v, fc: fc(v) ** 3, FC, {"head": "parts.0"}, "", "scores", "parts.0"),
    "images are no latent": (lambda z, v: z[:, :, 0, 0], (), {"output": "scores"}, "", "scores", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
@pytest.mark.filterwarnings("ignore:of the model's outputs")
def test_the_entry_that_is_read_what_it_is_and_the_head(case):
    function, modules, options, entry, kind, head = FOUND[case]
    found = find_layers(Whole(function, *modules).eval(), pictures(side=1 if "images" in case else 6), **options)
    assert (output_of(found).entry, output_of(found).kind, found.head) == (entry, kind, head)
    (latent,) = [layer for layer in found.layers if layer.role == "latent"]
    if head:
        assert (latent.path, latent.side, latent.channels, latent.reason) == (head, "in", 6, "")
    elif kind == "scores":
        assert SCORES_WITHOUT_HEAD in latent.reason
    else:
        assert latent.channels == found.layers[-1].channels


ONE_POSITION = {
    "b c 1 1": lambda z: z[..., None, None],
    "b 1 c": lambda z: z[:, None],
    "b c 1": lambda z: z[..., None],
    "1 b c": lambda z: z[None],
}


@pytest.mark.parametrize("output", ["auto", "scores", "independent"])
@pytest.mark.parametrize("form", ONE_POSITION)
def test_scores_with_one_position_are_those_of_their_flattened_form(form, output):
    found = found_in(lambda z, v, fc: ONE_POSITION[form](fc(v)), nn.Linear(6, 3), output=output)
    flat = found_in(lambda z, v, fc: fc(v), nn.Linear(6, 3), output=output)
    assert (found.head, output_of(found).kind) == (flat.head, output_of(flat).kind)
    assert [str(layer.layout) for layer in found.layers] == ["b c", "b c"]
    torch.testing.assert_close(found.example, flat.example)
    with pytest.warns(UserWarning, match="`latent` is measured on the output itself"):
        find_layers(Whole(lambda z, v: ONE_POSITION[form](v)), pictures())


def test_one_channel_of_places_in_a_line_is_no_vector():
    found = found_in(lambda z, v, conv: conv(z).mean(3, keepdim=True), nn.Conv2d(6, 1, 1))
    assert (output_of(found).kind, found.layers[-1].grid, found.head) == ("dense", (6, 1), "")


WITHOUT_HEAD = {
    "pooled": (lambda z, v: v,),
    "normed": (lambda z, v, norm: norm(v), nn.LayerNorm(6)),
    "residual": (lambda z, v, mlp: v + mlp(v), nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))),
    "bent": (lambda z, v, fc: fc(v), LowRank(nn.ReLU())),
    "negative": (lambda z, v, fc: -fc(v), nn.Linear(6, 3)),
    "unit length": (lambda z, v, fc: F.normalize(fc(v)), nn.Linear(6, 3)),
    "one with an offset": (lambda z, v, fc: fc(v) + 5, nn.Linear(6, 1)),
    "by function": (lambda z, v, fc: F.linear(v, fc.weight), nn.Linear(6, 3)),
}


@pytest.mark.parametrize("case", WITHOUT_HEAD)
def test_where_no_module_gives_the_output_it_is_features_with_a_warning(case):
    images = pictures()
    with pytest.warns(
        UserWarning, match="`latent` is measured on the output itself. If it is features, pass output='fea"
    ):
        found = find_layers(Whole(*WITHOUT_HEAD[case]).eval(), images, layers=[])
    latent, output = found.layers
    assert (found.head, output.output.kind, latent.output.entry) == ("", "features", "")
    assert str(latent.layout) == str(output.layout)
    silenced = found_in(*WITHOUT_HEAD[case], output="features")
    assert "the model ends in features (output='features')" in output_of(silenced).reason
    if output.channels > 1:
        assert "output='scores', and head=" in output.output.reason
        with pytest.warns(UserWarning, match="if not, output={'first': 'scores'} and head="):
            find_layers(Whole(lambda *z: {"first": WITHOUT_HEAD[case][0](*z)}, *WITHOUT_HEAD[case][1:]), images)
        assert SCORES_WITHOUT_HEAD in found_in(*WITHOUT_HEAD[case], output="scores").layers[0].reason


def test_a_head_may_be_named():
    for options, call in (({}, 1), ({"head": "parts.0"}, 2)):  # the call that gives the output, or the last
        assert found_in(lambda z, v, fc: (fc(v), fc(-v))[0], nn.Linear(6, 3), **options).layers[0].call == call
    for head, said in (
        ("parts.9", "did you mean 'parts.0'"),
        ("parts.1", "exists but is not called"),
        (3, "no head 3"),
    ):
        with pytest.raises(ValueError, match=said):
            found_in(lambda z, v, fc, unused: fc(v), nn.Linear(6, 3), nn.Linear(6, 3), head=head)


@pytest.mark.filterwarnings("ignore:no classifier was found")
def test_blank_images_tell_no_factor():
    """Two numbers that are the same for both images are anything's up to a factor; the head must give them as they are."""
    for function, head in (
        (lambda z, v, fc, gate: (gate(v), fc(v))[1], "parts.0"),
        (lambda z, v, fc, gate: 2 * fc(v), ""),
    ):
        model = Whole(function, nn.Linear(6, 1), nn.Sequential(nn.Identity(), nn.Linear(6, 1)))
        assert find_layers(model, torch.zeros(2, 2, 6, 6)).head == head


def test_a_network_that_ends_in_nan_still_has_its_head():
    model = Whole(lambda z, v, fc: fc(v), nn.Linear(6, 3))
    model.parts[0].bias.data[1] = torch.nan
    assert find_layers(model, pictures()).head == "parts.0"


@pytest.mark.filterwarnings("ignore")
def test_a_dequantise_stub_hides_no_head_and_quantised_layers_are_read():
    quantization = pytest.importorskip("torch.ao.quantization")
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this torch has no quantised kernels")
    torch.backends.quantized.engine = "fbgemm"
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    net = quantization.QuantWrapper(net)
    net.qconfig = quantization.get_default_qconfig("fbgemm")
    prepared = quantization.prepare(net)
    prepared(pictures(8))
    found = find_layers(quantization.convert(prepared), pictures(), layers=["module.0", "module.3"])
    assert (found.head, [str(layer.layout) for layer in found.layers]) == ("module.4", ["b c h w", "b c", "b c", "b c"])


# which layers there are


class Residual(nn.Module):
    """A residual block whose one in-place ReLU runs twice and overwrites what `bn` put out."""

    def __init__(self, width=3):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(x + self.relu(self.bn(self.conv(x))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.body = nn.Sequential(Residual(), Residual())
        self.unused = nn.Linear(2, 2)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(3, 4)

    def forward(self, x):
        return self.fc(self.drop(self.body(self.stem(x)).mean((-2, -1))))


@pytest.fixture
def net():
    return Net().eval()


@pytest.fixture
def x():
    return pictures()


def names(model, x, **options):
    return [layer.name for layer in find_layers(model, x, **options).layers]


def test_layers_come_in_order_and_depth_grows_with_execution(net, x):
    layers = find_layers(net, x, layers="all").layers
    assert [layer.name for layer in layers] == [
        "stem", "body.0.conv", "body.0.bn", "body.0.relu", "body.0.relu#2", "body.0",
        "body.1.conv", "body.1.bn", "body.1.relu", "body.1.relu#2", "body.1", "drop", "fc", "latent", "output",
    ]  # fmt: skip
    leaves = 11
    depths = [layer.depth * leaves for layer in layers]
    assert depths == pytest.approx([1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 9, 10, 11, 10.5, 11])


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        ("blocks", ["body.0", "body.1"]),
        (r"body\.\d\.bn", ["body.0.bn", "body.1.bn"]),
        (r".*relu#2", ["body.0.relu#2", "body.1.relu#2"]),
        (("fc", "body.0.relu#2", "stem"), ["stem", "body.0.relu#2", "fc"]),
        (["body.0.relu"], ["body.0.relu", "body.0.relu#2"]),
        ([], []),
    ],
)
def test_layers_are_chosen_by_rule_pattern_or_name(net, x, layers, chosen):
    assert names(net, x, layers=layers) == [*chosen, "latent", "output"]


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("bn", r"no layer whose whole name matches 'bn' \(all \d+: stem, body.0.conv"),
        ("(", "is no regular expression"),
        (["stm"], "no layer 'stm'; did you mean 'stem'"),
        (["unused"], r"no layer 'unused'.*; that module exists but is not called"),
    ],
)
def test_unknown_layers_are_refused_with_near_names(net, x, layers, said):
    with pytest.raises(ValueError, match=said):
        names(net, x, layers=layers)


def test_blocks_of_a_flat_network_are_its_leaves(x):
    flat = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Sequential(nn.ReLU(), nn.Flatten()), nn.Linear(48, 2))
    assert names(flat, x) == ["0", "1.0", "1.1", "2", "latent", "output"]


@pytest.mark.filterwarnings("ignore")
def test_blocks_whose_weights_are_quantised_in_passing_are_leaves(x):
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this torch has no quantised kernels")
    torch.backends.quantized.engine = "fbgemm"
    flat = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(48, 4), nn.Linear(4, 2))
    quantised = torch.ao.quantization.quantize_dynamic(flat, {nn.Linear})
    assert names(quantised, x) == ["0", "1", "2", "3", "latent", "output"]


def test_what_makes_weights_is_no_layer(x):
    weight_norm = nn.utils.parametrizations.weight_norm
    flat = nn.Sequential(weight_norm(nn.Conv2d(2, 3, 3)), nn.Flatten(), weight_norm(nn.Linear(48, 4)))
    for layers in ("blocks", "all"):
        found = find_layers(flat, x, layers=layers).layers
        assert [layer.name for layer in found] == ["0", "1", "2", "latent", "output"]
        assert [layer.depth for layer in found] == pytest.approx([1 / 3, 2 / 3, 1, 5 / 6, 1])
    with pytest.raises(ValueError, match=r"no layer '0\.parametrizations\.weight\.0'"):
        names(flat, x, layers=["0.parametrizations.weight.0"])


def test_blocks_called_by_forward_are_silent(net, x):
    net.body.forward = lambda z: net.body[1].forward(net.body[0](z))
    found = find_layers(net, x)
    assert (found.silent_blocks, [layer.name for layer in found.layers]) == (["body.1"], ["body.0", "latent", "output"])
    with pytest.warns(
        UserWarning, match=r"blocks that no forward pass calls are not measured, 1 in all: body\.1 \(a hook"
    ):
        warn_of_silent_blocks(found.silent_blocks)


def test_modules_that_give_no_floats_have_a_row_with_a_reason(net, x):
    class Speaking(nn.Module):
        def forward(self, z):
            return "text", z.argmax(1)

    net.drop = Speaking()
    net.forward = lambda x: net.fc((net.drop(x), net.body(net.stem(x)))[1].mean((-2, -1)))
    layer = find_layers(net, x, layers=["drop"]).layers[0]
    assert (layer.name, layer.layout, layer.reason) == ("drop", None, "what it gives is no tensor of floats")


def test_complex_numbers_are_two_channels(x):
    model = Whole(lambda z, v, conv, fc: fc(conv(torch.fft.fft2(z)).abs().mean((2, 3))), nn.Identity(), nn.Linear(6, 3))
    layer = find_layers(model, x, layers=["parts.0"]).layers[0]
    assert (str(layer.layout), layer.channels) == ("b c h w c", 12)
    spectrum = torch.fft.fft2(model.conv(x))
    read = []
    with tap(model, [layer], lambda layer, z: read.append(layer.read(z))):
        model(x)
    torch.testing.assert_close(read[0][:, :, 1::2].mT.unflatten(-1, (6, 6)), spectrum.imag)


def test_modules_called_latent_and_output_keep_a_name_of_their_own(x):
    model = nn.Sequential(OrderedDict(latent=nn.Conv2d(2, 3, 3), output=nn.Flatten(), fc=nn.Linear(48, 3)))
    assert names(model, x) == ["latent#1", "output#1", "fc", "latent", "output"]
    assert names(model, x, layers=["latent"]) == ["latent#1", "latent", "output"]


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("how", ["script", "export"])
def test_of_script_modules_and_exported_ones_the_output_is_read(how, x):
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)).eval()
    batch = torch.export.Dim("batch", min=1, max=8)
    sealed = torch.jit.script(net)
    if how == "export":
        sealed = torch.export.export(net, (x,), dynamic_shapes=({0: batch},)).module()
    found = find_layers(sealed, x)
    assert [(layer.name, str(layer.layout)) for layer in found.layers] == [("latent", "None"), ("output", "b c")]
    assert (output_of(found).kind, found.silent_blocks) == ("scores", [])
    assert "measure the module that it was made from" in found.layers[0].reason
    with pytest.raises(ValueError, match=r"no layer '0'.*measure the module that it was made from"):
        names(sealed, x, layers=["0"])


# how the model is called


class Captioned(Net):
    def forward(self, x, text, more):
        return super().forward(x) + text + more


def test_call_may_use_another_method_of_the_model(x):
    model = Captioned().eval()
    found = find_layers(model, x, layers=["stem"], call=lambda model, images: Net.forward(model, images))
    assert (found.head, [layer.name for layer in found.layers]) == ("fc", ["stem", "latent", "output"])
    torch.testing.assert_close(found.example, Net.forward(model, x))


def test_calls_are_counted_anew_from_begin_whatever_method_is_called(net, x):
    seen = []
    layers = [Layer("body.0.relu", call, "ReLU", 0.0) for call in (1, 2)]
    with torch.no_grad(), tap(net, layers, lambda layer, z: seen.append((layer.name, z.clone()))) as begin:
        for _ in range(2):
            begin()
            net.body(net.stem(x))
        block, z = net.body[0], net.stem(x)
        first = block.bn(block.conv(z)).relu()
    assert [name for name, _ in seen] == ["body.0.relu", "body.0.relu#2"] * 2
    torch.testing.assert_close(seen[2][1], first)
    torch.testing.assert_close(seen[3][1], (z + first).relu())


# memory formats, noise, and what is left behind


def test_models_that_view_convolutions_get_contiguous_images(net, x):
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3)

        def forward(self, x):
            z = self.conv(x)
            return z.view(len(z), -1)

    assert not find_layers(Viewing(), x, output="features").channels_last
    assert find_layers(net, x).channels_last


def test_a_model_that_works_in_place_does_not_change_the_images():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(36, 2))
    x = pictures(channels=1)  # the same in every memory format
    before = x.clone()
    find_layers(model, x, layers="all")
    assert torch.equal(x, before)


def test_the_first_module_with_noise_is_named(net, x):
    assert first_noisy_module(net, x) is None
    net.drop.train()
    assert first_noisy_module(net, x) == "drop"
    assert first_noisy_module(net.eval(), x, lambda model, x: {"a": [model(x) + torch.rand(1)]}) == ""


def test_reducing_happens_before_an_in_place_relu_overwrites(net, x):
    block = net.body[0]
    reduced, kept = [], []
    layer = Layer("body.0.bn", 1, "BatchNorm2d", 0.0)
    with torch.no_grad():
        before_relu = block.bn(block.conv(net.stem(x)))
        for reduce in (lambda _, z: reduced.append(z.min().item()), lambda _, z: kept.append(z)):
            with tap(net, [layer], reduce):
                net(x)
    assert reduced == [before_relu.min().item()]
    assert reduced[0] < 0 <= kept[0].min()  # what a reference would have held


def state_of(model):
    """Everything of a model that must be left alone."""
    hooks = []
    for module in model.modules():
        hooks.append({key: dict(value) for key, value in vars(module).items() if "hooks" in key and value})
    modes = [module.training for module in model.modules()]
    return hooks, modes, copy.deepcopy(model.state_dict())


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_is_left_as_found(net, x, fails):
    net.body[1].eval()
    net.fc.register_forward_hook(lambda *_: None)
    hooks, modes, weights = state_of(net)

    def fail(_layer, _z):
        raise RuntimeError("no more")

    if fails:
        with pytest.raises(ValueError, match=r"does not run on two images of 7 × .* RuntimeError: .* call=lambda"):
            find_layers(net, pictures(channels=7))
        with pytest.raises(RuntimeError, match="no more"), tap(net, [Layer("stem", 1, "Conv2d", 0.0)], fail):
            net(x)
        with pytest.raises(AttributeError), tap(net, [Layer("nowhere", 1, "Conv2d", 0.0)], fail):
            pass
    else:
        find_layers(net, x, layers="all")
    assert (hooks, modes) == state_of(net)[:2]
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in weights.items())
