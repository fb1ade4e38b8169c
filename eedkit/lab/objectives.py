"""What a network is trained for: labels, agreement of two views of an image, or the turn that an image was given.

Knows networks, losses and actions, never data sets or files. An objective holds the network and the heads that only training
needs; it costs one forward pass per batch, two where views are compared.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eedkit.lab.networks import GroupCNN
from eedkit.theory.actions import Action

PROJECTION = 128
"""Features on which views are compared."""


def augmented(images: Tensor, action: Action, share: float = 1.0) -> Tensor:
    """A share of the images (b, C, H, W), each moved by an element of its own, drawn evenly with torch's random state.

    >>> from eedkit.theory import actions
    >>> augmented(torch.ones(2, 1, 3, 3), actions.spatial("C4")).shape
    torch.Size([2, 1, 3, 3])
    """
    if action.group.order == 1:
        return images
    moved, _ = _moved(images, action, share)
    return moved


def _moved(images: Tensor, action: Action, share: float) -> tuple[Tensor, Tensor]:
    """The moved images, and the element that each was moved by."""
    drawn = torch.randint(action.group.order, (len(images),), device=images.device)
    if share < 1:
        stays = torch.rand(len(images), device=images.device) >= share
        drawn[stays] = 0  # the identity
    moved = torch.empty_like(images)
    for g in range(action.group.order):
        moved[drawn == g] = action(g, images[drawn == g])
    return moved, drawn


def view(
    images: Tensor, *, scale: tuple[float, float] = (0.5, 1.0), jitter: float = 0.4, noise: float = 0.05
) -> Tensor:
    """A random view of every image: a square crop enlarged again, contrast and brightness changed, Gaussian noise.

    The crops and jitters of SimCLR (Chen et al. 2020, appendix A) without its flips, which may belong to the group. Drawn
    image by image in one go, so that a batch costs one resampling.

    `scale` is the part of the area that a crop keeps, at least and at most; `jitter` the largest relative change of contrast,
    and the largest change of brightness; `noise` a standard deviation.

    >>> view(torch.rand(2, 1, 9, 9)).shape
    torch.Size([2, 1, 9, 9])
    """
    b = len(images)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(b, *shape, device=images.device)

    side = between(*scale).sqrt()
    theta = torch.zeros(b, 2, 3, device=images.device)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = (1 - side)[:, None] * between(-1, 1, 2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    # a crop at the edge asks for places beyond the centres of the last pixels: zeros would darken its border
    cropped = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    contrast, brightness = between(1 - jitter, 1 + jitter, 1, 1, 1), between(-jitter, jitter, 1, 1, 1)
    mean = cropped.mean((1, 2, 3), keepdim=True)
    return (cropped - mean) * contrast + mean + brightness + noise * torch.randn_like(cropped)


class Supervised(nn.Module):
    """Cross-entropy of the labels, on images of which a share is moved by random elements of the group.

    Labels (b,) are those of images, (b, H, W) those of pixels; these do not move, so that the group must be C1.
    """

    def __init__(self, network: nn.Module, action: Action, share: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.action = action
        self.share = share

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels -> loss, and which samples were right."""
        if y.dim() > 1 and self.action.group.order > 1:
            raise ValueError(
                f"labels of pixels do not move with images, so these must not be moved by {self.action.group}; pass C1"
            )
        scores = self.network(augmented(x, self.action, self.share))
        return F.cross_entropy(scores, y), scores.argmax(1) == y


class Agreement(nn.Module):
    """Two views of every image, a share of them moved by their own elements of the group, shall be projected alike.

    Labels are not used.
    """

    def __init__(
        self, network: GroupCNN, action: Action, head: nn.Module, criterion: nn.Module, share: float = 1.0
    ) -> None:
        super().__init__()
        self.network = network
        self.action = action
        self.head = head
        self.criterion = criterion
        self.share = share

    def forward(self, x: Tensor, _y: Tensor) -> tuple[Tensor, None]:
        """Images -> loss."""
        one = self._projected_view(x)
        other = self._projected_view(x)
        return self.criterion(one, other), None

    def _projected_view(self, x: Tensor) -> Tensor:
        moved = augmented(view(x), self.action, self.share)
        return self.head(self.network.features(moved))


class Turns(nn.Module):
    """By which element of the group was a view moved? Labels are not used (Gidaris et al. 2018)."""

    def __init__(self, network: GroupCNN, action: Action, share: float = 1.0) -> None:
        super().__init__()
        if action.group.order == 1:
            raise ValueError(
                f"turns needs elements to tell apart, got augment={action.group.name}; name a group such as C4"
            )
        self.network = network
        self.action = action
        self.share = share
        self.which = nn.Linear(network.head.in_features, action.group.order)

    def forward(self, x: Tensor, _y: Tensor) -> tuple[Tensor, Tensor]:
        """Images -> loss, and for which samples the element was told."""
        moved, drawn = _moved(view(x), self.action, self.share)
        scores = self.which(self.network.features(moved))
        return F.cross_entropy(scores, drawn), scores.argmax(-1) == drawn


def _simclr(network: GroupCNN, action: Action, share: float = 1.0) -> Agreement:
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import SimCLRProjectionHead

    features = network.head.in_features
    head = SimCLRProjectionHead(features, features, PROJECTION)
    return Agreement(network, action, head, NTXentLoss(temperature=0.5), share)


def _barlow_twins(network: GroupCNN, action: Action, share: float = 1.0) -> Agreement:
    from lightly.loss import BarlowTwinsLoss
    from lightly.models.modules.heads import BarlowTwinsProjectionHead

    head = BarlowTwinsProjectionHead(network.head.in_features, PROJECTION, PROJECTION)
    return Agreement(network, action, head, BarlowTwinsLoss(), share)


class Predicted(nn.Module):
    """How well each projection is predicted from the other, which counts as fixed (Chen & He 2021, eq. 1 to 4); nothing is contrasted."""

    def __init__(self) -> None:
        super().__init__()
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules.heads import SimSiamPredictionHead

        self.predictor = SimSiamPredictionHead(PROJECTION, PROJECTION // 4, PROJECTION)
        self.likeness = NegativeCosineSimilarity()

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Projections (b, d) of two views -> loss, from −1 (all predicted) to 1."""
        forth = self.likeness(self.predictor(one), other.detach())
        back = self.likeness(self.predictor(other), one.detach())
        return (forth + back) / 2


def _simsiam(network: GroupCNN, action: Action, share: float = 1.0) -> Agreement:
    from lightly.models.modules.heads import SimSiamProjectionHead

    head = SimSiamProjectionHead(network.head.in_features, PROJECTION, PROJECTION)
    return Agreement(network, action, head, Predicted(), share)


def _vicreg(network: GroupCNN, action: Action, share: float = 1.0) -> Agreement:
    from lightly.loss import VICRegLoss
    from lightly.models.modules.heads import VICRegProjectionHead

    head = VICRegProjectionHead(network.head.in_features, PROJECTION, PROJECTION)
    return Agreement(network, action, head, VICRegLoss(), share)


OBJECTIVES: dict[str, Callable[[GroupCNN, Action, float], nn.Module]] = {
    "supervised": Supervised,
    "simclr": _simclr,
    "barlow_twins": _barlow_twins,
    "simsiam": _simsiam,
    "vicreg": _vicreg,
    "turns": Turns,
}
"""What a recipe's `method` may be. All but the first leave the labels to a linear probe."""


def probe(features: Tensor, labels: Tensor, head: nn.Linear, *, decay: float = 1e-3) -> None:
    """Fit a linear classifier to fixed features: multinomial logistic regression, by L-BFGS on standardised features.

    The objective is convex, so that the outcome depends on the features alone. Features that vary by less than float32
    resolves count as constant and get no weight.

    `features` (n, d) and `labels` (n,) replace the weights of `head`; `decay` weighs half the squared weights beside the mean
    cross-entropy.

    >>> head, x = nn.Linear(1, 2), torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> probe(x, torch.tensor([0, 0, 1, 1]), head)
    >>> head(x).argmax(-1)
    tensor([0, 0, 1, 1])
    """
    x = features.double()
    mean, spread = x.mean(0), x.std(0, correction=0)
    spread[spread <= 1e-6 * x.abs().amax(0)] = torch.inf
    x = (x - mean) / spread
    weight = torch.zeros(head.out_features, x.shape[1], dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(head.out_features, dtype=x.dtype, requires_grad=True)
    # the default stops where the loss no longer changes, which is well before the weights
    options = {"max_iter": 200, "max_eval": 400, "tolerance_grad": 1e-7, "tolerance_change": 0}
    optimiser = torch.optim.LBFGS([weight, bias], **options, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        regularised = F.cross_entropy(x @ weight.T + bias, labels) + decay / 2 * weight.square().sum()
        regularised.backward()
        return regularised

    optimiser.step(loss)
    with torch.no_grad():
        head.weight.copy_(weight / spread)
        head.bias.copy_(bias - weight @ (mean / spread))
