"""What others report, held against slow loops, against numbers of their own code, and against what must hold."""

import math
import pickle

import numpy as np
import oracles
import pytest
import torch
from scipy import ndimage
from torch import nn

import eedkit as ek
from eedkit import bridges
from eedkit.probe.metrics import flat

N = 9
QUIET = {"progress": False, "device": "cpu"}


class Corner(nn.Module):
    """Two classes: is the upper left pixel above one half?"""

    def forward(self, x):
        above = x[:, 0, 0, 0] - 0.5
        return torch.stack([-above, above], dim=1)


class Small(nn.Module):
    """Two convolutions and a head."""

    def __init__(self, padding_mode="zeros"):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 3, 3, padding=1, padding_mode=padding_mode)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(3, 2, 3, padding=1, stride=2, padding_mode=padding_mode)
        self.head = nn.Linear(2, 4)

    def forward(self, x):
        return self.head(self.second(self.act(self.first(x))).mean((2, 3)))

    def trace(self, x):
        """What the layers give for one image, as numpy arrays."""
        with torch.no_grad():
            first = self.first(torch.as_tensor(x)[None])
            act = first.clone().relu()
            second = self.second(act)
            output = self.head(second.mean((2, 3)))
        latent = second.mean((2, 3))
        values = {"first": first, "act": act, "second": second, "latent": latent, "output": output}
        return {name: value[0].numpy() for name, value in values.items()}


def pictures(n=N, side=8):
    """Blots in float64."""
    noise = torch.randn(n, 1, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return nn.functional.avg_pool2d(noise, 3, stride=1, padding=1) * 3


def small(**options):
    return Small(**options).double()


def orbit_of(model, layer, group="C4"):
    return oracles.orbits(lambda x: model.trace(x)[layer], pictures().numpy(), group)


def of_double(**options):
    return {"precision": "float64", "layers": "all", **QUIET, **options}


class TestPredictions:
    def corner(self):
        images = torch.zeros(4, 1, 3, 3)
        images[0, 0, 0, 0] = 1.0
        images[1, 0] = 1.0
        return ek.measure(Corner(), images, group="C4", name="corner", output="scores", **QUIET)

    def test_consistency_counts_equal_predictions(self):
        # the first image changes its class under all three turns, the others never do
        found = bridges.prediction_consistency(self.corner())
        assert found.dims == ("model", "element", "sample")
        assert found.element.values.tolist() == ["r90", "r180", "r270"]
        assert found.isel(model=0, element=0).values.tolist() == [0, 1, 1, 1]

    def test_effective_invariance_is_equation_1(self):
        images = pictures()
        model = small()
        with torch.no_grad():
            model.head.weight *= 30
            model.head.bias *= 0
        ds = ek.measure(model, images, group="C4", **of_double())
        probabilities = oracles.orbits(lambda x: oracles.softmax(model.trace(x)["output"]), images.numpy(), "C4")
        found = bridges.effective_invariance(ds).isel(model=0)
        for g in range(1, 4):
            for i in range(N):
                p, q = probabilities[g, i], probabilities[0, i]
                wanted = math.sqrt(p.max() * q.max()) if p.argmax() == q.argmax() else 0.0
                assert found[g - 1, i].item() == pytest.approx(wanted, abs=1e-6)
        assert 0 < (found == 0).mean() < 1

    def test_what_has_no_prediction_counts_nowhere(self):
        ds = self.corner()
        ds.prediction[0, 1, 2] = -1
        for statistic in (bridges.prediction_consistency, bridges.effective_invariance):
            values = statistic(ds)
            assert values.isnull().sum() == 1
            assert np.isnan(values.sel(element="r90")[0, 2])

    def test_without_predictions_there_are_none_to_compare(self):
        ds = self.corner()
        with pytest.raises(ValueError, match="this needs predictions"):
            bridges.prediction_consistency(ds.drop_vars("prediction"))
        with pytest.raises(ValueError, match="predictions for unmoved images; keep the element 'e'"):
            bridges.prediction_consistency(ds.sel(element=["r90", "r180"]))
        with pytest.raises(ValueError, match="the identity is the only element"):
            bridges.effective_invariance(ds.sel(element=["e"]))


class TestDecibels:
    def measured(self, group="C4", model=None):
        options = of_double(metrics=["channelwise_rms"])
        return ek.measure(model or small(), pictures(), group=group, **options)

    def test_they_are_the_psnr_of_moved_maps(self):
        orbit = orbit_of(small(), "first")
        squares = []
        for g, element in enumerate(oracles.ELEMENTS["C4"][1:], start=1):
            for i in range(N):
                squares.append((orbit[g, i] - oracles.move("C4", element, orbit[0, i])) ** 2)
        ds = self.measured()
        wanted = 10 * math.log10(4 / np.mean(squares))
        assert bridges.equivariance_psnr(ds, peak=2).sel(layer="first").item() == pytest.approx(wanted, abs=1e-4)
        wanted = 10 * math.log10(np.mean(orbit[0] ** 2) / np.mean(squares))
        assert bridges.equivariance_psnr(ds).sel(layer="first").item() == pytest.approx(wanted, abs=1e-4)

    def test_in_a_circle_they_are_those_of_the_circle(self):
        images = oracles.move("C8", "e", pictures().numpy())
        inside = oracles.circle(8)
        errors, powers = [], []
        for x in images:
            z = small().trace(x)["first"]
            powers.append(z[:, inside] ** 2)
            for element in oracles.ELEMENTS["C8"][1:]:
                of_moved = small().trace(oracles.move("C8", element, x))["first"]
                errors.append((of_moved - oracles.move("C8", element, z))[:, inside] ** 2)
        wanted = 10 * math.log10(np.mean(powers) / np.mean(errors))
        found = bridges.equivariance_psnr(self.measured("C8"))
        assert found.sel(layer="first").item() == pytest.approx(wanted, abs=1e-4)

    def test_an_exact_action_has_no_noise(self):
        net = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))
        ds = self.measured("shift4", net)
        assert bridges.equivariance_psnr(ds, peak=1).sel(layer=["0", "1"]).values.tolist() == [[math.inf, math.inf]]

    def test_a_layer_without_maps_has_no_decibels(self):
        for peak in (1, None):
            found = bridges.equivariance_psnr(self.measured(), peak=peak).sel(layer="head", model="Small")
            assert math.isnan(found.item())
            assert "its output has one position" in found.channelwise_rms_nan_reason.item()

    def test_what_cannot_be_given_in_decibels_is_refused(self):
        ds = self.measured()
        with pytest.raises(ValueError, match=r"peak must be above 0, .* got 0"):
            bridges.equivariance_psnr(ds, peak=0)
        with pytest.raises(ValueError, match=r"measure with metrics=\['channelwise_rms'\]"):
            bridges.equivariance_psnr(ds.drop_vars("channelwise_rms"))
        with pytest.raises(ValueError, match="no image was moved"):
            bridges.equivariance_psnr(ds.sel(element=["e"]))


class Sines(nn.Module):
    """Maps without weights, which every machine gives alike."""

    def forward(self, x):
        return torch.sin(3 * x + x.roll(1, -1))


class Means(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


class TestNormalisedVariance:
    def measured(self, model, images=None, group="C4", **options):
        images = pictures() if images is None else images
        return bridges.normalised_variance(model, images, group=group, **of_double(**options))

    def test_it_is_what_tmeasures_1_2_11_gives(self):
        images = torch.arange(27.0).reshape(3, 1, 3, 3).sin()
        found = self.measured(nn.Sequential(Sines(), Means()), images, precision="float32")
        # tmeasures.pytorch.NormalizedVarianceInvariance on these images and their quarter turns
        wanted = [[0.9444088, 0.9269992, 0.9812517], [0.8748358, 0.4779726, 0.669119], [0.86732, 0.9548384, 0.9777965]]
        np.testing.assert_allclose(found["0"].normalised[:, :, 0], wanted, atol=1e-6)
        np.testing.assert_allclose(found["1"].normalised.item(), 0.9723471, atol=1e-6)

    @pytest.mark.parametrize("batch_size", [1, 40, None])
    def test_it_is_a_ratio_of_deviations(self, batch_size):
        found = self.measured(small(), batch_size=batch_size)
        for layer in ("first", "second", "latent", "output"):
            orbit = orbit_of(small(), layer)
            over_elements = np.mean(np.std(orbit, axis=0, ddof=1), axis=0)
            over_samples = np.mean(np.std(orbit, axis=1, ddof=1), axis=0)
            wanted = over_elements / over_samples
            wanted = np.moveaxis(wanted, 0, -1) if wanted.ndim == 3 else wanted[None, None]
            np.testing.assert_allclose(found[layer].normalised, wanted, rtol=1e-9)

    def test_an_invariant_unit_has_none(self):
        # of three elements, since thirds do not cancel by themselves
        model = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())
        found = self.measured(model, pictures(side=9), group="shift3")
        assert found["1"].normalised.item() == 0

    def test_a_unit_that_sees_only_the_pose_has_infinitely_much(self):
        images = pictures() * 0 + torch.arange(64.0, dtype=torch.float64).reshape(1, 1, 8, 8)
        found = self.measured(nn.Sequential(nn.Identity(), nn.Flatten()), images)
        assert np.isinf(found["0"].normalised).all()

    def test_a_unit_that_never_changes_has_no_value(self):
        model = small()
        with torch.no_grad():
            model.first.weight[1] = 0
            model.first.bias[1] = 0.3
        of_first = self.measured(model)["first"].normalised
        assert np.isnan(of_first.sel(channel=1)).all()
        assert np.isfinite(of_first.sel(channel=[0, 2])).all()
        assert of_first.attrs["nan_reason"] == "64 of 192 units never change"

    def test_an_offset_of_all_images_changes_nothing(self):
        model = small()
        wanted = self.measured(model)["first"].normalised
        with torch.no_grad():
            model.first.bias += 1e7
        np.testing.assert_allclose(self.measured(model)["first"].normalised, wanted, rtol=1e-6)

    def test_fewer_than_two_of_anything_are_refused(self):
        with pytest.raises(ValueError, match="a deviation over elements needs 2 or more, got 1"):
            self.measured(small(), group="C1")
        with pytest.raises(ValueError, match="needs 2 images that can be read, got 1"):
            self.measured(small(), pictures(1))


def cka_by_grams(x, y):
    """HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)) with the n × n Gram matrices K and L of features (n, d)."""
    n = len(x)
    centring = np.eye(n) - 1 / n
    k = centring @ (x @ x.T) @ centring
    m = centring @ (y @ y.T) @ centring
    return np.sum(k * m) / math.sqrt(np.sum(k * k) * np.sum(m * m))


class TestCka:
    def measured(self, model, images=None, **options):
        return bridges.cka(model, pictures() if images is None else images, group="C4", **of_double(**options))

    @pytest.mark.parametrize("batch_size", [1, 40, None])
    def test_it_is_the_alignment_of_gram_matrices(self, batch_size):
        found = self.measured(small(), batch_size=batch_size)
        for layer in ("first", "second", "latent", "output"):
            orbit = orbit_of(small(), layer)
            vectors = orbit.mean((-2, -1)) if orbit.ndim == 5 else orbit
            wanted = [cka_by_grams(vectors[0], vectors[g]) for g in range(4)]
            np.testing.assert_allclose(found.sel(layer=layer), wanted, rtol=1e-9)

    def test_it_is_1_whatever_permutes_the_features(self):
        # a turn permutes the pixels, and so the features of flattened maps
        found = self.measured(nn.Sequential(nn.ReLU(), nn.Flatten()), features=flat)
        np.testing.assert_allclose(found.sel(layer="0"), 1, rtol=1e-9)

    def test_features_of_unrelated_images_are_not_aligned(self):
        # one pixel of noise, in whose place a turn puts another
        noise = torch.randn(400, 1, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False)).double()
        with torch.no_grad():
            model[1].weight[:] = torch.tensor([[1.0, 0, 0, 0]])
        found = self.measured(model, noise)
        assert found.sel(layer="1", element="e") == pytest.approx(1)
        assert (found.sel(layer="1", element=["r90", "r180", "r270"]) < 0.05).all()

    def test_memory_does_not_grow_with_the_samples(self):
        products = bridges._Products(torch.randn(2, 5, 4, dtype=torch.float64))
        kept = []
        for _ in range(3):
            products.take(torch.randn(2, 5, 4, dtype=torch.float64))
            kept.append(len(pickle.dumps(products)))
        assert kept[0] == kept[-1] < 5000

    def test_features_that_never_change_have_no_value(self):
        model = small()
        with torch.no_grad():
            model.second.weight[:] = 0
        found = self.measured(model)
        assert found.sel(layer=["second", "latent", "output"]).isnull().all()
        assert found.nan_reason.sel(layer="second") == "the features of all x, or of all gx, are the same"
        assert found.sel(layer="first").notnull().all()

    def test_too_many_features_have_no_value(self, monkeypatch):
        monkeypatch.setattr(bridges, "MOST_FEATURES", 100)
        found = self.measured(small(), features=flat)
        assert found.sel(layer="first").isnull().all()
        assert "it has 192 features" in found.nan_reason.sel(layer="first").item()
        assert found.sel(layer="second").notnull().all()


def turned(x, radians):
    return oracles.rotated(x, math.degrees(radians))


def slid(axis):
    def slide(x, part):
        shift = [0] * x.ndim
        shift[axis] = part * x.shape[axis]
        return ndimage.shift(x, shift, order=1, mode="grid-wrap")

    return slide


MOVED_BY = {"rotate": turned, "slide": slid(-2), "slide across": slid(-1)}


def error_by_differences(f, x, move, *, equivariant, step=1e-6):
    """The mean square of d/dt T₋ₜ f(Tₜx) at t = 0, by a difference in float64."""
    ends = []
    for t in (step, -step):
        z = f(move(x, t))
        ends.append(move(z, -t) if equivariant else z)
    return float(np.mean(((ends[0] - ends[1]) / (2 * step)) ** 2))


class TestLieDerivative:
    def measured(self, model, images=None, **options):
        return bridges.lie_derivative(model, pictures() if images is None else images, **of_double(**options))

    @pytest.mark.parametrize("move", MOVED_BY)
    @pytest.mark.parametrize("batch_size", [4, None])
    def test_it_is_the_limit_of_small_moves(self, move, batch_size):
        found = self.measured(small(), batch_size=batch_size)
        for layer in ("first", "act", "second", "latent", "output"):
            is_map = layer in ("first", "act", "second")
            wanted = []
            for x in pictures().numpy():

                def f(image, layer=layer):
                    z = small().trace(image)[layer]
                    return oracles.softmax(z) if layer == "output" else z

                wanted.append(error_by_differences(f, x, MOVED_BY[move], equivariant=is_map))
            np.testing.assert_allclose(found.lee.sel(move=move, layer=layer), wanted, rtol=1e-4, atol=1e-12)

    def test_the_power_is_that_of_the_features(self):
        found = self.measured(small(), moves="slide")
        wanted = np.mean(orbit_of(small(), "first")[0] ** 2, axis=(1, 2, 3))
        np.testing.assert_allclose(found.power.sel(move="slide", layer="first"), wanted, rtol=1e-9)

    def test_a_circular_convolution_slides_exactly(self):
        found = self.measured(small(padding_mode="circular"), moves=["slide", "slide across"])
        relative = found.lee / found.power
        assert (relative.sel(layer="first") < 1e-24).all()
        # a kink and every second pixel do not
        assert (relative.sel(layer=["act", "second"]) > 1e-3).all()

    def test_what_ignores_its_input_has_none(self):
        model = small()
        with torch.no_grad():
            model.second.weight[:] = 0
        assert (self.measured(model).lee.sel(layer=["latent", "output"]) == 0).all()

    def test_attention_has_a_derivative(self):
        torch.manual_seed(0)
        block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        model = nn.Sequential(nn.Flatten(2), block, nn.Flatten(), nn.Linear(24, 3)).double().eval()
        images = pictures(9).reshape(3, 3, 8, 8)[..., :2, :4]
        found = self.measured(model, images, moves="slide across")

        def f(image):
            with torch.no_grad():
                return oracles.softmax(model(torch.as_tensor(image)[None])[0].numpy())

        wanted = [error_by_differences(f, x, MOVED_BY["slide across"], equivariant=False) for x in images.numpy()]
        np.testing.assert_allclose(found.lee.sel(layer="output", move="slide across"), wanted, rtol=1e-4)
        assert min(wanted) > 1e-9
        assert torch.backends.mha.get_fastpath_enabled()

    def test_moves_are_checked(self):
        with pytest.raises(ValueError, match="no move 'rotation'; did you mean 'rotate'"):
            self.measured(small(), moves="rotation")
        with pytest.raises(ValueError, match="rotations need square images, got 8×4"):
            self.measured(small(), pictures()[..., :4])
        with pytest.raises(ValueError, match="half precisions have no forward derivatives, got 'bfloat16'"):
            self.measured(Small(), pictures().float(), precision="bfloat16")


def of_one_layer(statistic, model, images, layer="first", **options):
    """A statistic of one layer."""
    options = {"layers": "all", **QUIET, **options}
    if statistic == "normalised_variance":
        return bridges.normalised_variance(model, images, group="C4", **options)[layer].normalised
    if statistic == "cka":
        return bridges.cka(model, images, group="C4", **options).sel(layer=layer)
    return bridges.lie_derivative(model, images, **options).lee.sel(layer=layer)


STATISTICS = ("normalised_variance", "cka", "lie_derivative")


class TornAt4(torch.utils.data.Dataset):
    """The pictures, and between them one that cannot be read."""

    def __len__(self):
        return N + 1

    def __getitem__(self, i):
        if i == 4:
            raise OSError("torn")
        return pictures().float()[i - (i > 4)]


@pytest.mark.parametrize("statistic", STATISTICS)
class TestEveryPass:
    def test_an_unreadable_image_is_left_out(self, statistic):
        of_all = of_one_layer(statistic, Small(), pictures().float())
        with pytest.warns(UserWarning, match="1 of 10 images could not be read: .*torn"):
            of_readable = of_one_layer(statistic, Small(), TornAt4())
        if statistic == "lie_derivative":
            assert of_readable.sel(sample=4).isnull().all()
            of_readable = of_readable.dropna("sample")
            np.testing.assert_array_equal(of_readable.sample, [0, 1, 2, 3, 5, 6, 7, 8, 9])
            of_all = of_all.sortby("sample")
            of_readable = of_readable.sortby("sample")
        np.testing.assert_allclose(of_readable, of_all, rtol=1e-4)

    def test_the_model_is_left_as_found(self, statistic):
        model = Small().train()
        of_one_layer(statistic, model, pictures().float())
        assert model.training
        assert not model.first._forward_hooks

    def test_features_that_are_not_finite_have_no_value(self, statistic):
        model = Small()
        with torch.no_grad():
            model.first.bias[0] = math.inf
        values = of_one_layer(statistic, model, pictures().float())
        assert values.isnull().all()


class Root(nn.Module):
    """√: no finite derivative at 0, no finite value below."""

    def forward(self, x):
        return x.sqrt()


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_an_image_without_a_derivative_costs_itself(value):
    images = torch.rand(6, 1, 5, 5) + 0.5
    images[2] = value
    net = nn.Sequential(Root(), nn.Flatten(), nn.Linear(25, 3))
    found = bridges.lie_derivative(net, images, moves="slide", layers="all", **QUIET)
    assert found.sample[found.lee.sel(layer="0", move="slide").isnull()].values.tolist() == [2]
    assert found.nan_reason.sel(layer="0").item() == "no finite derivative for 1 of 6 images"


class Sometimes(Small):
    """Its activation does not run on dark images."""

    def forward(self, x):
        z = self.first(x)
        return self.head(self.second(z if x.mean() < -1 else self.act(z)).mean((2, 3)))


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_layer_that_does_not_always_run_has_no_value(statistic):
    images = pictures().float()
    images[oracles.seeded_order(N, 0)[-1]] -= 5
    found = of_one_layer(statistic, Sometimes(), images, layers=["act"], layer="act", batch_size=1)
    assert found.isnull().all()
    assert "it does not run in every forward pass" in (found.attrs.get("nan_reason") or found.nan_reason.item())


@pytest.mark.filterwarnings("error")
def test_models_that_repeat_themselves_are_no_cause_for_a_warning():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(18, 3))
    assert ek.bridges.cka(net, torch.rand(6, 1, 5, 5), group="C4", progress=False).notnull().all()


def test_random_models_are_named_here_too():
    class Noisy(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x, 0.5, training=True)

    net = nn.Sequential(Noisy(), nn.Flatten(), nn.Linear(25, 3))
    with pytest.warns(UserWarning, match="gives other outputs for the same images"):
        ek.bridges.cka(net, torch.rand(6, 1, 5, 5), group="C4", progress=False)


@pytest.mark.parametrize("call", [ek.bridges.cka, ek.bridges.normalised_variance])
def test_options_that_mean_nothing_are_refused(call):
    net = nn.Sequential(nn.Flatten(), nn.Linear(25, 3))
    with pytest.raises(TypeError, match="no option 'null'"):
        call(net, torch.rand(6, 1, 5, 5), group="C4", null=False, progress=False)


@pytest.mark.parametrize("others", [[], ["channelwise_regular"]])
@pytest.mark.parametrize("turned", [1, -1])
def test_decibels_have_no_value_where_elements_move_nothing(others, turned):
    # as regular fields of the group the same maps move
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1))
    metrics = ["channelwise_rms", *others][::turned]
    ds = ek.measure(net, torch.rand(6, 3, 5, 5), group="rgb", metrics=metrics, progress=False)
    decibels = ek.bridges.equivariance_psnr(ds, peak=1)
    assert decibels.isnull().all()
    assert decibels.attrs["nan_reason"] == "where an element moves nothing, f̂(x) is not f(x)"
    with pytest.raises(ValueError, match="keep channelwise_rms_norm"):
        ek.bridges.equivariance_psnr(ds[["channelwise_rms"]])


@pytest.mark.parametrize("statistic", STATISTICS)
def test_models_may_want_more_than_images(statistic):
    class Scaled(Small):
        def forward(self, x, factor):
            return super().forward(x * factor)

    images = pictures().float()
    model = Scaled()
    found = of_one_layer(statistic, model, images, call=lambda model, x: model(x, 0.5))
    wanted = of_one_layer(statistic, Small(), 0.5 * images)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


class Scrambled(nn.Module):
    """The pixels as tokens in an order that does not show where they lie."""

    def forward(self, x):
        pixels = x.flatten(2).mT
        return pixels[:, torch.randperm(pixels.shape[1], generator=torch.Generator().manual_seed(0))].repeat(1, 1, 3)


def test_only_what_moves_maps_needs_to_know_where_positions_lie():
    model = nn.Sequential(Scrambled(), nn.AdaptiveAvgPool2d((1, 3)), nn.Flatten(), nn.Linear(3, 4))
    images = pictures().float()
    variance = bridges.normalised_variance(model, images, group="C4", layers=["0"], **QUIET)["0"]
    assert dict(variance.sizes) == {"row": 64, "column": 1, "channel": 3}
    pixels = bridges.normalised_variance(
        nn.Sequential(nn.Identity(), nn.Flatten()), images, group="C4", layers=["0"], **QUIET
    )
    np.testing.assert_allclose(np.sort(variance.normalised[:, 0, 0]), np.sort(pixels["0"].normalised.values.ravel()))
    assert bridges.cka(model, images, group="C4", layers=["0"], **QUIET).sel(layer="0").notnull().all()
    lee = bridges.lie_derivative(model, images, layers=["0"], **QUIET).lee.sel(layer="0")
    assert lee.isnull().all()
    assert "where the 64 tokens of its output (b, 64, 3) lie did not show" in lee.nan_reason.item()


def test_features_of_cka_are_vectors():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1))
    with pytest.raises(TypeError, match=r"\(b, d\), got \(24, 25, 2\)"):
        ek.bridges.cka(net, torch.rand(6, 1, 5, 5), group="C4", features=lambda z: z, progress=False)
