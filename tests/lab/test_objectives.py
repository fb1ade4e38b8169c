"""Objectives: views, moves and what of them is compared or told apart; the linear probe against scikit-learn's."""

from types import SimpleNamespace

import numpy as np
import oracles
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eedkit.lab import objectives
from eedkit.lab.networks import GroupCNN
from eedkit.lab.objectives import OBJECTIVES, Agreement, Supervised, Turns, augmented, probe, view
from eedkit.theory import actions

PLAIN = {"scale": (1.0, 1.0), "jitter": 0.0, "noise": 0.0}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def elements_of(batch, image, group):
    """By which element of the group every image of a batch was moved from one image, found by comparison."""
    orbit = torch.stack(
        [torch.from_numpy(oracles.move(group, element, image.numpy())) for element in oracles.ELEMENTS[group]]
    )
    same = (batch[:, None] == orbit[None]).flatten(2).all(-1)
    assert (same.sum(1) == 1).all()
    return same.long().argmax(1)


class TestAugmented:
    def test_every_image_is_moved_by_an_element_of_its_own_evenly(self):
        image = torch.arange(9.0).reshape(1, 3, 3)
        batch = augmented(image.expand(4000, 1, 3, 3), actions.spatial("D4"))
        # a binomial count of 500 ± 21; five standard deviations
        assert (elements_of(batch, image, "D4").bincount(minlength=8) - 500).abs().max() < 105

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
    def test_a_share_of_the_images_is_moved(self, share):
        image = torch.arange(9.0).reshape(1, 3, 3)
        batch = augmented(image.expand(4000, 1, 3, 3), actions.spatial("C4"), share)
        counts = elements_of(batch, image, "C4").bincount(minlength=4)
        # one in four of those that are moved gets the identity
        expected = torch.tensor([4000 - 3000 * share, 1000 * share, 1000 * share, 1000 * share])
        assert ((counts - expected).abs() <= 5 * expected.mul(1 - expected / 4000).sqrt()).all()

    def test_all_of_them_are_moved_as_they_were_before_shares(self):
        images = torch.rand(50, 1, 3, 3)
        torch.manual_seed(3)
        drawn = torch.randint(4, (50,))
        torch.manual_seed(3)
        moved = augmented(images, actions.spatial("C4"), 1.0)
        for i in range(50):
            assert torch.equal(moved[i], images[i].rot90(int(drawn[i]), (-2, -1)))

    @pytest.mark.parametrize("method", OBJECTIVES)
    def test_every_objective_moves_its_share(self, method, monkeypatch):
        shares = []
        moved = objectives._moved
        monkeypatch.setattr(objectives, "_moved", lambda *arguments: shares.append(arguments[-1]) or moved(*arguments))
        objective = OBJECTIVES[method](GroupCNN(classes=2, widths=(4,)), actions.spatial("C4"), 0.25)
        objective(torch.rand(4, 1, 5, 5), torch.arange(4) % 2)
        assert set(shares) == {0.25}

    def test_the_trivial_group_changes_nothing_and_draws_nothing(self):
        images, before = torch.rand(3, 1, 5, 5), torch.get_rng_state()
        assert torch.equal(augmented(images, actions.spatial("C1")), images)
        assert torch.equal(torch.get_rng_state(), before)


class TestView:
    def test_the_full_crop_without_jitter_and_noise_is_the_image(self):
        images = torch.rand(4, 3, 7, 9)
        assert (view(images, **PLAIN) - images).abs().max() < 1e-5

    def test_crops_are_squares_inside_the_image_of_evenly_drawn_area(self):
        """On ramps a crop can be read off: the slope is its side, the middle is its place."""
        n, width = 4000, 9
        along = torch.arange(float(width)).expand(width, width)
        crops = view(torch.stack([along, along.T]).expand(n, 2, width, width), **PLAIN | {"scale": (0.5, 1.0)}).double()
        side = torch.stack([crops[:, 0, 4, 5] - crops[:, 0, 4, 3], crops[:, 1, 5, 4] - crops[:, 1, 3, 4]]) / 2
        assert (side[0] - side[1]).abs().max() < 1e-4
        area = side[0] ** 2
        assert 0.5 - 1e-4 < area.min() < 0.51
        assert 0.99 < area.max() < 1 + 1e-4
        assert abs(area.mean() - 0.75) < 5 * 0.5 / (12 * n) ** 0.5
        middle, room = crops[:, :, 4, 4].T - 4, (1 - side) * width / 2
        assert (middle.abs() <= room + 1e-4).all()
        for place in (middle / room)[:, side[0] < 0.95]:
            assert min(place.max(), -place.min()) > 0.98
            assert abs(place.mean()) < 5 / (3 * len(place)) ** 0.5
        assert abs(torch.corrcoef(middle)[0, 1]) < 0.1

    def test_crops_at_the_edge_are_not_darkened(self):
        images = torch.full((500, 1, 7, 7), 0.8)
        assert (view(images, **PLAIN | {"scale": (0.5, 1.0)}) - images).abs().max() < 1e-5

    def test_contrast_and_brightness_change_within_their_bounds_image_by_image(self):
        image = torch.rand(2, 6, 6)
        made = view(image.expand(4000, 2, 6, 6), **PLAIN | {"jitter": 0.3}).flatten(1)
        contrast, brightness = made.std(1) / image.std(), made.mean(1) - image.mean()
        line = (made - made.mean(1, keepdim=True)) / contrast[:, None]
        assert (line - (image - image.mean()).flatten()).abs().max() < 1e-4
        for drawn in (contrast - 1, brightness):
            assert -0.3 - 1e-4 < drawn.min() < -0.29
            assert 0.29 < drawn.max() < 0.3 + 1e-4
            assert abs(drawn.mean()) < 5 * 0.6 / (12 * 4000) ** 0.5
        assert abs(torch.corrcoef(torch.stack([contrast, brightness]))[0, 1]) < 0.1

    def test_noise_is_of_its_standard_deviation_and_another_at_every_pixel(self):
        images = torch.rand(1, 2, 9, 9).expand(500, 2, 9, 9)
        noise = (view(images, **PLAIN | {"noise": 0.1}) - images).flatten(1)
        assert (noise.std(0) - 0.1).abs().max() < 5 * 0.1 / 1000**0.5
        assert noise.mean(0).abs().max() < 5 * 0.1 / 500**0.5
        assert (torch.corrcoef(noise.T) - torch.eye(162)).abs().max() < 0.3

    @pytest.mark.parametrize("element", oracles.ELEMENTS["D4"][1:])
    def test_its_distribution_commutes_with_turns_and_mirrors(self, element):
        n, image = 20000, torch.rand(1, 5, 5) ** 3
        turned = torch.from_numpy(oracles.move("D4", element, image.numpy()).copy())
        before, after = (view(x.expand(n, 1, 5, 5)).double() for x in (turned, image))
        for moment in (1, 2):
            of_turned, of_image = before**moment, after**moment
            moved = torch.from_numpy(oracles.move("D4", element, of_image.mean(0).numpy()).copy())
            error = ((of_turned.var(0) + of_image.var(0).max()) / n).sqrt()
            assert ((of_turned.mean(0) - moved).abs() < 4.5 * error).all()
        assert (before.mean(0) - after.mean(0)).abs().max() > 0.05


class Watched(nn.Module):
    """In place of a network: its features are all pixels, and it keeps the images that it saw."""

    def __init__(self, d):
        super().__init__()
        self.head, self.seen = SimpleNamespace(in_features=d), []

    def features(self, x):
        self.seen.append(x)
        return x.flatten(1)


@pytest.fixture
def unviewed(monkeypatch):
    monkeypatch.setattr(objectives, "view", lambda images: images)


class TestTurns:
    @pytest.mark.parametrize("group", ["C4", "D4", "flip"])
    def test_labels_are_the_elements_that_were_applied(self, unviewed, group):
        image, order = torch.arange(9.0).reshape(1, 3, 3), len(oracles.ELEMENTS[group])
        network = Watched(9)
        objective = Turns(network, actions.spatial(group))

        class Told(nn.Module):
            def forward(self, z):
                return 50 * F.one_hot(elements_of(z.reshape(-1, 1, 3, 3), image, group), order).float()

        assert objective.which.out_features == order
        objective.which = Told()
        loss, right = objective(image.expand(400, 1, 3, 3), None)
        assert loss < 1e-6
        assert right.shape == (400,)
        assert right.all()
        assert len(elements_of(network.seen[0], image, group).unique()) == order

    def test_what_is_moved_is_a_view(self):
        image, network = torch.rand(1, 3, 3), Watched(9)
        Turns(network, actions.spatial("C4"))(image.expand(400, 1, 3, 3), None)
        brightness = network.seen[0].mean((1, 2, 3)) - image.mean()
        assert 0.1 < brightness.std() < 0.4

    def test_a_group_of_one_element_leaves_nothing_to_tell_apart(self):
        with pytest.raises(ValueError, match="elements to tell apart, got augment=C1; name a group such as C4"):
            Turns(GroupCNN(classes=2, widths=(4,)), actions.spatial("C1"))


class TestAgreement:
    def test_the_two_views_are_moved_by_elements_of_their_own(self, unviewed):
        image, network = torch.arange(9.0).reshape(1, 3, 3), Watched(9)
        objective = Agreement(network, actions.spatial("C4"), nn.Identity(), lambda a, b: (a - b).mean())
        objective(image.expand(4000, 1, 3, 3), None)
        a, b = (elements_of(x, image, "C4") for x in network.seen)
        # each of the 16 pairs 250 ± 15 times; five standard deviations
        assert ((4 * a + b).bincount(minlength=16) - 250).abs().max() < 77

    def test_two_independent_views_of_the_same_images_meet_the_criterion_projected(self):
        network, met = Watched(9), []
        head = nn.Linear(9, 2)
        objective = Agreement(network, actions.spatial("C1"), head, lambda a, b: met.append((a, b)) or a.sum())
        x = torch.linspace(-100, 100, 400)[:, None, None, None].expand(400, 1, 3, 3)
        loss, right = objective(x, None)
        views, (projected,) = [seen.flatten(1) for seen in network.seen], met
        assert right is None
        assert torch.equal(loss, projected[0].sum())
        changes = [z.mean(1) - x.flatten(1).mean(1) for z in views]
        assert all(change.abs().max() < 0.6 for change in changes)
        assert abs(torch.corrcoef(torch.stack(changes))[0, 1]) < 0.25
        for z, p in zip(views, projected, strict=True):
            assert torch.equal(p, head(z))


@pytest.mark.parametrize("method", [name for name in OBJECTIVES if name != "supervised"])
def test_labels_are_not_used(method):
    network = GroupCNN(classes=3, widths=(4, 8))
    objective, losses, x = OBJECTIVES[method](network, actions.spatial("C4")), [], torch.rand(6, 1, 9, 9)
    for y in (torch.arange(6) % 3, torch.zeros(6).long(), None):
        torch.manual_seed(1)
        losses.append(objective(x, y)[0].item())
    assert losses[0] == losses[1] == losses[2] != 0
    objective(x, None)[0].backward()
    assert network.head.weight.grad is None
    assert all(value.grad is not None and value.grad.any() for value in network.blocks.parameters())


def test_the_contrastive_loss_is_the_one_of_simclr():
    """Chen et al. 2020, eq. 1, summed in float64 over all ordered pairs of views."""
    criterion = OBJECTIVES["simclr"](GroupCNN(classes=2, widths=(4,)), actions.spatial("C1")).criterion
    a, b = torch.randn(5, 7), torch.randn(5, 7)
    z = torch.cat([a, b]).double().numpy()
    likeness = np.array([[np.exp(oracles.cosine(p, q) / 0.5) for q in z] for p in z])
    losses = [-np.log(likeness[i, (i + 5) % 10] / (likeness[i].sum() - likeness[i, i])) for i in range(10)]
    assert criterion(a, b).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_redundancy_loss_is_the_one_of_barlow_twins():
    """Zbontar et al. 2021, eq. 1 and 2, with their λ."""
    criterion = OBJECTIVES["barlow_twins"](GroupCNN(classes=2, widths=(4,)), actions.spatial("C1")).criterion
    a, b = torch.randn(9, 4), torch.randn(9, 4)
    c = np.corrcoef(a.double().numpy().T, b.double().numpy().T)[:4, 4:]
    expected = sum((1 - c[i, i]) ** 2 if i == j else 5e-3 * c[i, j] ** 2 for i in range(4) for j in range(4))
    assert criterion(a, b).item() == pytest.approx(expected, rel=1e-3)


def test_the_loss_without_contrast_is_the_one_of_simsiam():
    """Chen & He 2021, eq. 2: what is predicted counts as fixed."""
    criterion = OBJECTIVES["simsiam"](GroupCNN(classes=2, widths=(4,)), actions.spatial("C1")).criterion
    a, b = torch.randn(2, 5, objectives.PROJECTION).unbind()
    a.requires_grad_()
    p, q = criterion.predictor(a), criterion.predictor(b)
    pairs = [*zip(p, b, strict=True), *zip(q, a, strict=True)]
    expected = -np.mean([oracles.cosine(x.detach().double().numpy(), y.detach().double().numpy()) for x, y in pairs])
    loss = criterion(a, b)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    # only through what a predicts, not through where it is predicted
    by_prediction = -F.cosine_similarity(p, b).mean() / 2
    (gradient,) = torch.autograd.grad(loss, a)
    (expected_gradient,) = torch.autograd.grad(by_prediction, a)
    torch.testing.assert_close(gradient, expected_gradient)


def test_the_loss_of_vicreg_weighs_agreement_spread_and_redundancy():
    """Bardes et al. 2022, eq. 1 to 6, with their 25, 25 and 1."""
    criterion = OBJECTIVES["vicreg"](GroupCNN(classes=2, widths=(4,)), actions.spatial("C1")).criterion
    a, b = torch.randn(9, 4), 0.5 * torch.randn(9, 4)
    agreement = (a - b).square().mean().item()
    spread = redundancy = 0.0
    for z in (a.double().numpy(), b.double().numpy()):
        covariance = np.cov(z.T)
        spread += np.maximum(0, 1 - np.sqrt(covariance.diagonal() + 1e-4)).mean() / 2
        redundancy += (np.sum(covariance**2) - np.sum(covariance.diagonal() ** 2)) / 4
    assert criterion(a, b).item() == pytest.approx(25 * agreement + 25 * spread + redundancy, rel=1e-4)


def probed(x, y, classes, **options):
    head = nn.Linear(x.shape[1], classes).double()
    probe(x, y, head, **options)
    return head.requires_grad_(False)


@pytest.fixture(params=["random", "separable"])
def features(request):
    y = torch.arange(240) % 4
    if request.param == "random":
        return torch.randn(240, 6), y[torch.randperm(240)]
    return 5 * F.one_hot(y, 6) + torch.rand(240, 6), y


class TestProbe:
    @pytest.mark.parametrize("decay", [1e-3, 1e-1])
    def test_it_is_scikit_learn_s_logistic_regression_on_standardised_features(self, features, decay):
        from sklearn.linear_model import LogisticRegression

        x, y = features[0].double().numpy() * [1, 2, 3, 4, 5, 6] + 7, features[1].numpy()
        mean, spread = x.mean(0), x.std(0)
        found = LogisticRegression(C=1 / (decay * len(x)), tol=1e-10, max_iter=10000).fit((x - mean) / spread, y)
        head = probed(torch.from_numpy(x), features[1], 4, decay=decay)
        weight = head.weight.numpy() * spread
        assert np.abs(weight - found.coef_).max() < 1e-3
        bias = head.bias.numpy() + head.weight.numpy() @ mean
        assert np.abs(bias - found.intercept_).max() < 1e-3
        assert np.abs(weight).max() > 0.1

    def test_scale_and_place_of_a_feature_change_no_score(self, features):
        x, y = features[0].double(), features[1]
        scale, place = torch.tensor([1e-9, 1e-3, 1, 10, -1e4, 1e9]).double(), torch.arange(6.0).double()
        elsewhere = (x + place) * scale
        scores, again = probed(x, y, 4)(x), probed(elsewhere, y, 4)(elsewhere)
        assert (scores - again).abs().max() < 1e-3

    def test_constant_features_get_no_weight_and_change_nothing(self, features):
        x, y = features
        constants = torch.tensor([0.0, 0.1, -1e6]).expand(len(x), 3) * (1 + 1e-7 * torch.randn(len(x), 1))
        head = probed(torch.cat([x, constants], 1), y, 4)
        assert not head.weight[:, 6:].any()
        assert (head.weight[:, :6] - probed(x, y, 4).weight).abs().max() < 1e-6

    def test_what_the_head_held_and_the_random_state_do_not_matter(self, features):
        first = probed(*features, 4)
        torch.manual_seed(9)
        assert torch.equal(probed(*features, 4).weight, first.weight)
        assert torch.is_grad_enabled()
        with torch.no_grad():
            assert torch.equal(probed(*features, 4).weight, first.weight)

    def test_one_sample_and_classes_without_samples_give_finite_scores(self):
        head = probed(torch.tensor([[1.0, 2.0]]), torch.tensor([1]), 3)
        assert head.weight.isfinite().all()
        assert head(torch.tensor([[1.0, 2.0]]).double()).argmax() == 1


class TestSupervised:
    def test_labels_of_pixels_are_scored_pixel_by_pixel(self):
        scores = torch.randn(4, 3, 5, 5)
        labels = torch.randint(3, (4, 5, 5))
        objective = Supervised(nn.Identity(), actions.spatial("C1"))
        loss, right = objective(scores, labels)
        by_hand = -scores.log_softmax(1).gather(1, labels[:, None]).mean()
        torch.testing.assert_close(loss, by_hand)
        assert torch.equal(right, scores.argmax(1) == labels)

    def test_labels_of_pixels_are_not_left_behind_by_moved_images(self):
        objective = Supervised(nn.Identity(), actions.spatial("C4"))
        with pytest.raises(ValueError, match="these must not be moved by C4; pass C1"):
            objective(torch.randn(4, 3, 5, 5), torch.zeros(4, 5, 5, dtype=torch.long))
