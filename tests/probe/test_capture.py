"""Taps: what they see, what they leave behind, which layers and heads are found."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

from eedkit.probe.capture import Layer, evaluating, find_layers, first_tensor, tap

CPU = torch.device("cpu")


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
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.body = nn.Sequential(Residual(), Residual())
        self.unused = nn.Linear(2, 2)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(3, 4)

    def forward(self, x):
        return self.fc(self.drop(self.body(self.stem(x)).mean((-2, -1))))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def x():
    return torch.rand(5, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def names(layers):
    return [layer.name for layer in layers]


def layer(path, call=1, role="module"):
    return Layer(path, call, "any", (), 0.0, role)


def state_of(model):
    """Everything of a model that measuring must leave alone."""
    hooks = [
        {key: dict(value) for key, value in vars(module).items() if "hooks" in key and isinstance(value, dict)}
        for module in model.modules()
    ]
    return {
        "hooks": hooks,
        "modes": [module.training for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "state": copy.deepcopy(model.state_dict()),
        "identities": [id(p) for p in model.parameters()],
    }


def assert_same_state(before, after):
    assert before["state"].keys() == after["state"].keys()
    assert all(torch.equal(value, after["state"][key]) for key, value in before["state"].items())
    for a, b in zip(before["grads"], after["grads"], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    for key in ("hooks", "modes", "requires_grad", "identities"):
        assert before[key] == after[key]


@pytest.fixture
def used(net, x):
    """A network in the middle of training: mixed modes, a frozen layer, gradients, a hook of somebody else's."""
    net.train()
    net.body[1].eval()
    net.stem.requires_grad_(False)
    net.fc.register_forward_hook(lambda *_: None)
    net(x).sum().backward()
    return net


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_exactly_as_found(used, x, fails):
    before = state_of(used)

    def reduce(layer, z):
        if fails and layer.name == "body.1":
            raise RuntimeError("no more")
        return z.shape

    def look():
        with evaluating(used, CPU), tap(used, find_layers(used, x), reduce) as seen:
            assert not any(module.training for module in used.modules())
            used(x)
            assert seen

    if fails:
        with pytest.raises(RuntimeError, match="no more"):
            look()
    else:
        look()
    assert_same_state(before, state_of(used))


def test_the_model_is_left_as_found_when_it_fails_itself(used):
    before = state_of(used)
    with evaluating(used, CPU), pytest.raises(RuntimeError):
        find_layers(used, torch.zeros(1, 7, 6, 6))
    with (
        pytest.raises(AttributeError),
        evaluating(used, CPU),
        tap(used, [layer("stem"), layer("nowhere")], lambda *_: 0),
    ):
        pass
    assert_same_state(before, state_of(used))


def test_reducing_happens_before_an_in_place_relu_overwrites_the_output(net, x):
    net.eval()
    block = net.body[0]
    with torch.no_grad():
        before_relu = block.bn(block.conv(net.stem(x)))
        with tap(net, [layer("body.0.bn")], lambda _, z: z.min().item()) as seen:
            net(x)
        with tap(net, [layer("body.0.bn")], lambda _, z: z) as kept:
            net(x)
    assert before_relu.min() < 0
    assert next(iter(seen.values())) == before_relu.min().item()
    assert next(iter(kept.values())).min() >= 0  # what a reference would have held


def test_a_module_that_runs_twice_is_two_layers(net, x):
    net.eval()
    found = find_layers(net, x, layers=["body.0.relu"])
    assert names(found) == ["body.0.relu", "body.0.relu#2", "latent", "output"]
    with torch.no_grad(), tap(net, found, lambda _, z: z.clone()) as seen:
        net(x)
        net(x)  # calls are counted anew in every forward pass
        block, z = net.body[0], net.stem(x)
        first = block.bn(block.conv(z)).relu()
    torch.testing.assert_close(seen[found[0]], first)
    torch.testing.assert_close(seen[found[1]], (z + first).relu())


def test_latent_is_the_input_of_the_head_and_output_the_model_s(net, x):
    net.eval()
    found = find_layers(net, x, layers=[])
    with torch.no_grad(), tap(net, found, lambda _, z: z.clone()) as seen:
        out = net(x)
        features = net.body(net.stem(x)).mean((-2, -1))
    torch.testing.assert_close(seen[found[0]], features)
    torch.testing.assert_close(seen[found[1]], out)
    assert (found[0].shape, found[1].shape) == ((3,), (4,))


class Odd(nn.Module):
    """Gives its input back inside whatever `wrap` makes of it."""

    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(x)


class Logits:
    def __init__(self, z):
        self.logits, self.other = z, torch.zeros(1)


@pytest.mark.parametrize(
    ("wrap", "unwrap"),
    [
        (lambda z: (z, "aside"), lambda out: out[0]),
        (lambda z: [None, z], lambda out: out[1]),
        (lambda z: {"loss": None, "features": z}, lambda out: out["features"]),
        (Logits, lambda out: out.logits),
    ],
    ids=["tuple", "list", "dict", "object"],
)
def test_outputs_that_hold_a_tensor_are_opened(wrap, unwrap):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.odd, self.fc = Odd(wrap), nn.Linear(3, 2)

        def forward(self, x):
            return wrap(self.fc(unwrap(self.odd(x))))

    model, x = Whole(), torch.rand(4, 3)
    found = find_layers(model, x, layers=["odd"])
    assert [layer.shape for layer in found] == [(3,), (3,), (2,)]
    with tap(model, found, lambda _, z: z.clone()) as seen:
        model(x)
    assert torch.equal(seen[found[0]], x)
    assert torch.equal(seen[found[2]], model.fc(x))


def test_outputs_without_a_tensor_are_refused():
    with pytest.raises(TypeError, match="expected a tensor, or a tuple or dict that holds one, got str"):
        first_tensor("nothing")
    with pytest.raises(TypeError, match="got dict"):
        first_tensor({"loss": 1.0})


def test_only_layers_that_run_are_listed_and_depth_grows_with_execution(net, x):
    found = find_layers(net.eval(), x, layers="all")
    assert names(found) == [
        "stem", "body.0.conv", "body.0.bn", "body.0.relu", "body.0.relu#2", "body.0",
        "body.1.conv", "body.1.bn", "body.1.relu", "body.1.relu#2", "body.1", "drop", "fc", "latent", "output",
    ]  # fmt: skip
    depths = [layer.depth for layer in found if layer.role == "module"]
    leaves = 11
    assert depths == pytest.approx([k / leaves for k in (1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 9, 10, 11)])
    assert found[-2].depth == pytest.approx(10.5 / leaves)
    assert found[-1].depth == 1


def test_blocks_are_the_repeated_composites(net, x):
    assert names(find_layers(net.eval(), x)) == ["body.0", "body.1", "latent", "output"]


def test_layers_by_regular_expression_match_the_whole_name(net, x):
    net.eval()
    assert names(find_layers(net, x, layers=r"body\.\d\.bn")) == ["body.0.bn", "body.1.bn", "latent", "output"]
    assert names(find_layers(net, x, layers=r".*relu#2")) == ["body.0.relu#2", "body.1.relu#2", "latent", "output"]
    with pytest.raises(ValueError, match=r"no layer whose whole name matches 'bn' \(all 14: stem, body.0.conv"):
        find_layers(net, x, layers="bn")


def test_layers_by_list_come_in_the_order_of_execution(net, x):
    found = find_layers(net.eval(), x, layers=["fc", "body.0.relu#2", "stem"])
    assert names(found) == ["stem", "body.0.relu#2", "fc", "latent", "output"]


def test_unknown_layers_are_refused_with_near_names(net, x):
    with pytest.raises(ValueError, match=r"no layer 'body.2'; did you mean 'body.\d' or 'body.\d'\? \(all 14: stem"):
        find_layers(net.eval(), x, layers=["body.2"])
    with pytest.raises(ValueError, match="no layer 'stm'; did you mean 'stem'"):
        find_layers(net.eval(), x, layers=["stm"])


def test_a_module_that_never_runs_is_refused_saying_so(net, x):
    with pytest.raises(ValueError, match=r"no layer 'unused'.*; that module exists but does not run"):
        find_layers(net.eval(), x, layers=["unused"])
    with pytest.raises(ValueError, match="the head 'unused' does not run in a forward pass; name one that does"):
        find_layers(net.eval(), x, head="unused")


def test_the_head_may_be_named_and_unknown_ones_are_refused(net, x):
    found = find_layers(net.eval(), x, head="body.1", layers=[])
    assert (found[0].path, found[0].shape, found[0].role) == ("body.1", (3, 6, 6), "latent")
    with pytest.raises(ValueError, match="no head 'fcc'; did you mean 'fc'"):
        find_layers(net, x, head="fcc")


def test_without_a_head_the_error_says_what_to_pass():
    features = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    with pytest.raises(ValueError, match=r"found no head.*Pass head='path of the classifier'") as error:
        find_layers(features, torch.zeros(1, 1, 3, 3))
    assert "measure nn.Sequential(model, nn.Identity()) with head='1'" in str(error.value)
    found = find_layers(nn.Sequential(features, nn.Identity()), torch.zeros(1, 1, 3, 3), head="1")
    assert found[-2].shape == (2,)


def test_a_module_called_latent_is_refused():
    model = nn.ModuleDict({"latent": nn.Linear(2, 2)})
    model.forward = lambda x: model["latent"](x)
    with pytest.raises(ValueError, match=r"the model has a module called 'latent'.*rename or wrap it"):
        find_layers(model, torch.zeros(1, 2))


def test_a_network_whose_leaves_never_run_as_modules_has_depths_too():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Module()
            self.inner.weights = nn.Linear(2, 2)
            self.inner.forward = lambda x: nn.functional.linear(x, self.inner.weights.weight)

        def forward(self, x):
            return self.inner(x)

    found = find_layers(Functional(), torch.zeros(1, 2), layers=["inner"], head="inner")
    assert names(found) == ["inner", "latent", "output"]


@pytest.mark.parametrize(
    ("make", "size", "blocks", "head", "width"),
    [
        (torchvision.models.resnet18, 32, [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)], "fc", 512),
        (
            lambda: torchvision.models.VisionTransformer(32, 16, 3, 2, 24, 48, num_classes=5),
            32, [f"encoder.layers.encoder_layer_{i}" for i in range(3)], "heads.head", 24,
        ),
        (
            lambda: timm.create_model("resnet18", pretrained=False),
            32, [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)], "fc", 512,
        ),
        (
            lambda: timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=32, depth=4),
            32, [f"blocks.{i}" for i in range(4)], "head", 192,
        ),
        (
            lambda: torchvision.models.SwinTransformer([4, 4], 24, [2, 2], [2, 2], [4, 4], num_classes=7),
            32, [f"features.{i}.{j}" for i in (1, 3) for j in (0, 1)], "head", 48,
        ),
    ],
    ids=["resnet18", "vit", "timm-resnet18", "timm-vit_tiny", "swin"],
)  # fmt: skip
def test_blocks_and_heads_of_known_architectures(make, size, blocks, head, width):
    model = make().eval()
    with torch.no_grad():
        found = find_layers(model, torch.zeros(1, 3, size, size))
    assert [name for name in names(found) if name in blocks] == blocks
    if "Swin" not in type(model).__name__:
        assert names(found) == [*blocks, "latent", "output"]
    assert (found[-2].path, found[-2].shape) == (head, (width,))
    depths = [layer.depth for layer in found]
    assert depths == sorted(depths)


def test_vit_b_16_has_twelve_blocks_and_its_classifier():
    with torch.device("meta"):
        model = torchvision.models.vit_b_16(image_size=32).eval()
    found = find_layers(model, torch.zeros(1, 3, 32, 32, device="meta"))
    assert names(found)[:-2] == [f"encoder.layers.encoder_layer_{i}" for i in range(12)]
    assert found[-2].path == "heads.head"
    assert found[0].shape == (5, 768)


def test_a_network_without_blocks_gives_its_leaves_and_vgg_its_last_linear():
    with torch.device("meta"):
        model = torchvision.models.vgg11().eval()
    found = find_layers(model, torch.zeros(1, 3, 32, 32, device="meta"))
    assert names(found)[:3] == ["features.0", "features.1", "features.2"]
    assert len(found) == 21 + 1 + 7 + 2
    assert (found[-2].path, found[-2].shape) == ("classifier.6", (4096,))


def test_a_network_that_ends_in_a_convolution_has_no_head_to_be_found():
    model = torchvision.models.squeezenet1_1().eval()
    with torch.no_grad(), pytest.raises(ValueError, match="found no head"):
        find_layers(model, torch.zeros(1, 3, 64, 64))


def test_a_linear_that_does_not_give_the_output_is_no_head():
    gated = nn.Sequential(nn.Linear(2, 3), nn.Unflatten(1, (3, 1)), nn.Conv1d(3, 5, 1), nn.Flatten())
    with pytest.raises(ValueError, match="found no head: no last Linear gives the model's output"):
        find_layers(gated, torch.zeros(1, 2))


def test_timm_without_classifier_gives_its_features_as_latent():
    model = timm.create_model("resnet18", pretrained=False, num_classes=0).eval()
    with torch.no_grad():
        found = find_layers(model, torch.zeros(1, 3, 32, 32), layers=[])
    assert found[0].shape == (512,)
