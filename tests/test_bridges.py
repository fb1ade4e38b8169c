"""What others report, held against slow loops, against numbers of their own code, and against what must hold."""

import math
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from scipy import ndimage
from torch import nn

import eedkit as ek
from eedkit import bridges
from eedkit.probe.metrics import METRICS, flat
from eedkit.theory import actions

N = 9
QUIET = {"progress": False, "device": "cpu", "layers": "all"}


def small():
    """Two convolutions and a head, in float64."""
    torch.manual_seed(0)
    layers = {
        "first": nn.Conv2d(1, 3, 3, padding=1),
        "act": nn.ReLU(inplace=True),
        "second": nn.Conv2d(3, 2, 3, padding=1, stride=2),
        "mean": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "head": nn.Linear(2, 4),
    }
    return nn.Sequential(OrderedDict(layers)).double()


class Does(nn.Module):
    """What a function says."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


def features(layer, x, model=None):
    """What a layer of the network gives for one image, as numpy arrays."""
    z = torch.as_tensor(x)[None]
    with torch.no_grad():
        for name, module in (model or small()).named_children():
            z = module(z)
            if name == {"latent": "flat"}.get(layer, layer):
                break
    return z[0].numpy()


def pictures(n=N, side=8):
    """Blots in float64."""
    noise = torch.randn(n, 1, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return nn.functional.avg_pool2d(noise, 3, stride=1, padding=1) * 3


def orbit_of(layer):
    """f(gx) of the network up to a layer under C4, (g, n, *z)."""
    return oracles.orbits(lambda x: features(layer, x), pictures().numpy(), "C4")


def measured(model=None, images=None, group="C4", **options):
    return ek.measure(model or small(), pictures() if images is None else images, group=group, **QUIET, **options)


class TestPredictions:
    def test_they_are_the_papers(self):
        model = small()
        with torch.no_grad():
            model.head.weight *= 30
            model.head.bias *= 0
        ds = measured(model)
        consistency = bridges.prediction_consistency(ds).isel(model=0)
        invariance = bridges.effective_invariance(ds).isel(model=0)
        assert invariance.element.values.tolist() == ["r90", "r180", "r270"]
        orbit = oracles.orbits(lambda x: oracles.softmax(features("output", x, model)), pictures().numpy(), "C4")
        for g in range(1, 4):
            for i in range(N):
                p, q = orbit[g, i], orbit[0, i]
                agrees = p.argmax() == q.argmax()
                assert consistency[g - 1, i].item() == agrees
                assert invariance[g - 1, i].item() == pytest.approx(agrees * math.sqrt(p.max() * q.max()), abs=1e-6)
        assert 0 < consistency.mean() < 1

    def test_what_has_no_prediction_counts_nowhere(self):
        ds = measured()
        ds.prediction[0, 1, 2] = -1
        for values in (bridges.prediction_consistency(ds), bridges.effective_invariance(ds)):
            assert np.argwhere(values.isnull().values).tolist() == [[0, 0, 2]]


class TestDecibels:
    def test_they_are_the_psnr_of_moved_maps(self):
        orbit = orbit_of("first")
        elements = oracles.ELEMENTS["C4"][1:]
        errors = [of_gx - oracles.move("C4", g, orbit[0]) for g, of_gx in zip(elements, orbit[1:], strict=True)]
        ds = measured(metrics=["channelwise_rms"]).sel(layer="first")
        for peak, signal in ((2, 4), (None, np.mean(orbit[0] ** 2))):
            wanted = 10 * math.log10(signal / np.mean(np.square(errors)))
            assert bridges.equivariance_psnr(ds, peak=peak).item() == pytest.approx(wanted)

    @pytest.mark.parametrize("turn", [1, -1])
    def test_where_elements_move_nothing_there_are_none_whatever_other_metrics_compare(self, turn):
        in_fields = replace(METRICS["channelwise_rms"], name="in_fields", action=lambda act, _: actions.regular(act))
        model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1)).double()
        metrics = ["channelwise_rms", in_fields][::turn]
        ds = measured(model, pictures().expand(-1, 3, -1, -1), group="rgb", metrics=metrics)
        assert ds.in_fields_kernel_order.sel(layer="0").item() == 1
        decibels = bridges.equivariance_psnr(ds, peak=1)
        assert decibels.isnull().all()
        assert decibels.attrs["nan_reason"] == "where an element moves nothing, f̂(x) is not f(x)"


@pytest.mark.parametrize(
    ("bridge", "part", "message"),
    [
        (bridges.prediction_consistency, lambda ds: ds.drop_vars("prediction"), "this needs predictions"),
        (bridges.prediction_consistency, lambda ds: ds.sel(element=["r90", "r180"]), "keep the element 'e'"),
        (bridges.effective_invariance, lambda ds: ds.sel(element=["e"]), "the identity is the only element"),
        (bridges.equivariance_psnr, lambda ds: ds.sel(element=["e"]), "no image was moved"),
        (bridges.equivariance_psnr, lambda ds: ds.drop_vars("channelwise_rms"), r"metrics=\['channelwise_rms'\]"),
        (bridges.equivariance_psnr, lambda ds: ds[["channelwise_rms"]], "keep channelwise_rms_norm"),
        (lambda ds: bridges.equivariance_psnr(ds, peak=0), lambda ds: ds, "peak must be above 0, .* got 0"),
    ],
)
def test_what_lacks_its_half_is_refused(bridge, part, message):
    with pytest.raises(ValueError, match=message):
        bridge(part(measured(metrics=["channelwise_rms"])))


def ratio_of_deviations(orbit):
    """mean_x std_g / mean_g std_x of an orbit (g, n, *z)."""
    return np.std(orbit, axis=0, ddof=1).mean(axis=0) / np.std(orbit, axis=1, ddof=1).mean(axis=0)


def normalised_variance(model, images=None, group="C4", **options):
    images = pictures() if images is None else images
    return bridges.normalised_variance(model, images, group=group, **QUIET, **options)


class TestNormalisedVariance:
    def test_it_is_what_tmeasures_1_2_11_gives(self):
        images = torch.arange(27.0).reshape(3, 1, 3, 3).sin()
        sines = Does(
            lambda x: torch.sin(3 * x + x.roll(1, -1))
        )  # without weights, so that every machine gives them alike
        found = normalised_variance(nn.Sequential(sines, nn.AdaptiveAvgPool2d(1)), images)
        # tmeasures.pytorch.NormalizedVarianceInvariance on these images and their quarter turns
        wanted = [[0.9444088, 0.9269992, 0.9812517], [0.8748358, 0.4779726, 0.669119], [0.86732, 0.9548384, 0.9777965]]
        np.testing.assert_allclose(found["0"].normalised[:, :, 0], wanted, atol=1e-6)
        np.testing.assert_allclose(found["1"].normalised.item(), 0.9723471, atol=1e-6)

    @pytest.mark.parametrize("batch_size", [1, 3, None])  # with 1 and 3, orbits come in parts
    def test_it_is_a_ratio_of_deviations(self, batch_size):
        found = normalised_variance(small(), batch_size=batch_size)
        for layer in ("first", "second", "latent", "output"):
            wanted = ratio_of_deviations(orbit_of(layer))
            wanted = np.moveaxis(wanted, 0, -1) if wanted.ndim == 3 else wanted[None, None]
            np.testing.assert_allclose(found[layer].normalised, wanted, rtol=1e-9)

    def test_units_of_a_layer_without_a_layout_have_values_in_its_shape(self):
        # three rows of four units that see all pixels: no experiment shows where these lie
        on_second_axis = Does(lambda z: z.movedim(0, 1))
        mixed = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Unflatten(1, (3, 4)), on_second_axis).double()
        with torch.no_grad():
            mixed[1].weight[5] = 0
            mixed[1].bias[5] = 0.5
        orbit = oracles.orbits(lambda x: features("2", x, mixed), pictures().numpy(), "C4")
        found = normalised_variance(mixed)
        for layer in ("2", "3", "output"):
            assert found[layer].normalised.dims == ("axis1", "axis2")
            assert found[layer].normalised.attrs["nan_reason"] == "1 of 12 units never change"
            np.testing.assert_allclose(found[layer].normalised, ratio_of_deviations(orbit), rtol=1e-9)

    def test_a_layer_that_does_not_count_the_images_has_no_value(self):
        halves = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (2, 32)), nn.Flatten(0, 1))
        model = nn.Sequential(halves, nn.Unflatten(0, (-1, 2)), nn.Flatten(), nn.Linear(64, 3)).double()
        found = normalised_variance(model)
        assert not found["0.2"].normalised.size
        assert found["0.2"].normalised.attrs["nan_reason"].startswith("no axis of its output counts the images")
        assert found["output"].normalised.notnull().all()

    def test_an_invariant_unit_has_0_and_one_that_sees_only_the_pose_infinity(self):
        # of three elements, since thirds do not cancel by themselves
        found = normalised_variance(nn.Sequential(nn.AdaptiveMaxPool2d(1)), pictures(side=9), group="shift3")
        assert found["0"].normalised.item() == 0
        images = pictures() * 0 + torch.arange(64.0, dtype=torch.float64).reshape(1, 1, 8, 8)
        assert np.isinf(normalised_variance(nn.Sequential(nn.Identity()), images)["0"].normalised).all()

    def test_a_unit_that_never_changes_has_no_value(self):
        model = small()
        with torch.no_grad():
            model.first.weight[1] = 0
            model.first.bias[1] = -0.77  # nine of which do not cancel by themselves
        found = normalised_variance(model)["first"].normalised
        assert np.isnan(found.sel(channel=1)).all()
        assert np.isfinite(found.sel(channel=[0, 2])).all()
        assert found.attrs["nan_reason"] == "64 of 192 units never change"


def cka_by_grams(x, y):
    """HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)) with the n × n Gram matrices K and L of features (n, d)."""
    centring = np.eye(len(x)) - 1 / len(x)
    k = centring @ (x @ x.T) @ centring
    m = centring @ (y @ y.T) @ centring
    return np.sum(k * m) / math.sqrt(np.sum(k * k) * np.sum(m * m))


def cka(model, images=None, **options):
    return bridges.cka(model, pictures() if images is None else images, group="C4", **QUIET, **options)


class TestCka:
    @pytest.mark.parametrize("batch_size", [1, 3, None])
    def test_it_is_the_alignment_of_gram_matrices(self, batch_size):
        found = cka(small(), batch_size=batch_size)
        for layer in ("first", "second", "latent", "output"):
            orbit = orbit_of(layer)
            vectors = orbit.mean((-2, -1)) if orbit.ndim == 5 else orbit
            wanted = [cka_by_grams(vectors[0], vectors[g]) for g in range(4)]
            np.testing.assert_allclose(found.sel(layer=layer), wanted, rtol=1e-9)

    def test_it_is_1_whatever_permutes_the_features(self):
        # a turn permutes the pixels, and so the features of flattened maps
        found = cka(nn.Sequential(nn.ReLU(), nn.Flatten()), features=flat)
        np.testing.assert_allclose(found.sel(layer="0"), 1, rtol=1e-9)

    def test_features_that_never_change_have_no_value(self):
        model = small()
        with torch.no_grad():
            model.second.weight[:] = 0
        found = cka(model)
        assert found.sel(layer=["second", "latent", "output"]).isnull().all()
        assert found.nan_reason.sel(layer="second") == "the features of all x, or of all gx, are the same"
        assert found.sel(layer="first").notnull().all()

    def test_too_many_features_have_no_value(self, monkeypatch):
        monkeypatch.setattr(bridges, "MOST_FEATURES", 100)
        found = cka(small(), features=flat)
        assert found.sel(layer="first").isnull().all()
        assert "it has 192 features" in found.nan_reason.sel(layer="first").item()
        assert found.sel(layer="second").notnull().all()


def moved(move, x, t):
    """x (C, h, w), turned or slid a little."""
    if move == "rotate":
        return oracles.rotated(x, math.degrees(t))
    shift = (0, t * x.shape[1], 0) if move == "slide" else (0, 0, t * x.shape[2])
    return ndimage.shift(x, shift, order=1, mode="grid-wrap")


def error_by_differences(f, x, move, *, is_map, step=1e-6):
    """The mean square of d/dt T₋ₜ f(Tₜx) at t = 0, by a difference in float64."""
    ends = []
    for t in (step, -step):
        z = f(moved(move, x, t))
        ends.append(moved(move, z, -t) if is_map else z)
    return float(np.mean(((ends[0] - ends[1]) / (2 * step)) ** 2))


def lie_derivative(model, images=None, **options):
    return bridges.lie_derivative(model, pictures() if images is None else images, **QUIET, **options)


class TestLieDerivative:
    @pytest.mark.parametrize("batch_size", [4, None])
    @pytest.mark.parametrize("layer", ["first", "act", "second", "latent", "output"])
    def test_it_is_the_limit_of_small_moves(self, layer, batch_size):
        found = lie_derivative(small(), batch_size=batch_size).sel(layer=layer)

        def f(image):
            z = features(layer, image)
            return oracles.softmax(z) if layer == "output" else z

        for move in bridges.MOVES:
            is_map = layer in ("first", "act", "second")
            wanted = [error_by_differences(f, x, move, is_map=is_map) for x in pictures().numpy()]
            np.testing.assert_allclose(found.lee.sel(move=move), wanted, rtol=1e-4, atol=1e-12)
            powers = [np.mean(f(x) ** 2) for x in pictures().numpy()]
            np.testing.assert_allclose(found.power.sel(move=move), powers, rtol=1e-9)

    def test_attention_has_a_derivative(self):
        torch.manual_seed(0)
        block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        model = nn.Sequential(nn.Flatten(2), block, nn.Flatten(), nn.Linear(24, 3)).double().eval()
        images = pictures().reshape(3, 3, 8, 8)[..., :2, :4]
        found = lie_derivative(model, images, moves="slide across").sel(layer="output", move="slide across")

        def f(image):
            return oracles.softmax(features("output", image, model))

        wanted = [error_by_differences(f, x, "slide across", is_map=False) for x in images.numpy()]
        np.testing.assert_allclose(found.lee, wanted, rtol=1e-4)
        assert min(wanted) > 1e-9
        assert torch.backends.mha.get_fastpath_enabled()

    def test_an_image_without_a_derivative_costs_itself_and_what_ignores_images_has_none(self):
        # values that are not finite, values whose derivative is not, and some that ignore the image
        model = nn.Sequential(nn.Flatten(), Does(lambda x: (x.log(), x.sqrt(), torch.ones_like(x))))
        images = pictures().abs() + 0.5
        images[2] = 0
        images[4, 0, 0, 0] = 0
        for of_zeros in (0, 1):
            found = lie_derivative(model, images, moves="slide", output=of_zeros).sel(layer="output", move="slide")
            assert found.sample[found.lee.isnull()].values.tolist() == [2, 4]
            assert found.nan_reason.item() == "no finite derivative for 2 of 9 images"
        assert (lie_derivative(model, images, output=2).lee.sel(layer="output") == 0).all()


@pytest.mark.parametrize(
    ("bridge", "images", "options", "message"),
    [
        (normalised_variance, pictures(), {"group": "C1"}, "a deviation over elements needs 2 or more, got 1"),
        (normalised_variance, pictures(1), {}, "needs 2 images that can be read, got 1"),
        (cka, pictures(), {"features": lambda z: [one for (one,) in z]}, "too many values to unpack"),
        (cka, pictures(), {"features": lambda z: z}, r"a vector for each of 36 images, \(b, d\), got \(36, 64, 3\)"),
        (cka, pictures(), {"features": lambda z: z.mean(1)[:1]}, r"each of 36 images, \(b, d\), got \(1, 3\)"),
        (lie_derivative, pictures(), {"moves": "rotation"}, "no move 'rotation'; did you mean 'rotate'"),
        (lie_derivative, pictures(), {"moves": []}, "there is no move; name some of rotate, slide, slide across"),
        (lie_derivative, pictures()[..., :4], {}, "rotations need square images, got 8×4"),
        (lie_derivative, pictures(), {"precision": "bfloat16"}, "need float32 or float64, got precision 'bfloat16'"),
    ],
)
def test_what_means_nothing_is_refused(bridge, images, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        bridge(small(), images, **options)


def of_first(found):
    """The values at the layer `first`, and why there are none."""
    if isinstance(found, dict):
        return found["first"].normalised, found["first"].normalised.attrs["nan_reason"]
    values = getattr(found, "lee", found).sel(layer="first")
    return values, values.nan_reason.item()


class TornPictures:
    """Ten pictures, of which one cannot be read."""

    def __len__(self):
        return 10

    def __getitem__(self, i):
        if i == 4:
            raise OSError("torn")
        return pictures(10)[i]


@pytest.mark.parametrize("bridge", [normalised_variance, cka, lie_derivative])
class TestEveryPass:
    def test_an_unreadable_image_is_left_out(self, bridge):
        images = pictures(10)
        of_others, _ = of_first(bridge(small(), torch.cat([images[:4], images[5:]])))
        with pytest.warns(UserWarning, match="1 of 10 images could not be read: .*torn"):
            values, _ = of_first(bridge(small(), TornPictures()))
        if bridge is lie_derivative:
            assert values.sel(sample=4).isnull().all()
            values = values.dropna("sample")
        np.testing.assert_allclose(values, of_others, rtol=1e-9)

    def test_the_model_is_left_as_found_and_measured_by_one_thread_at_a_time(self, bridge):
        model = small().train()
        alone, _ = of_first(bridge(model))
        with ThreadPoolExecutor(4) as threads:
            for found in threads.map(bridge, [model] * 4):
                np.testing.assert_array_equal(of_first(found)[0], alone)
        assert model.training
        assert not model.first._forward_hooks

    def test_features_that_are_not_finite_have_no_value(self, bridge):
        model = small()
        with torch.no_grad():
            model.first.bias[0] = math.inf
        values, reason = of_first(bridge(model))
        assert values.isnull().all()
        assert "finite" in reason

    @pytest.mark.filterwarnings("error")
    def test_only_random_models_are_warned_of(self, bridge):
        assert of_first(bridge(small()))[0].notnull().all()
        dropout = Does(lambda x: nn.functional.dropout(x, 0.5, training=True))
        noisy = nn.Sequential(nn.Flatten(), dropout, nn.Linear(64, 3)).double()
        with pytest.warns(UserWarning, match="other outputs for the same images; '1' is the first module"):
            bridge(noisy)
