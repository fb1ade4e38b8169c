"""The training loop: which images it takes, which steps it makes, what it tells of them, and what it leaves behind."""

import os
from contextlib import suppress

import pytest
import torch
from torch import nn

from eedkit.lab.training import fit

OPTIONS = {"epochs": 2, "batch_size": 4, "rate": 0.1, "seed": 0}


class Watched(nn.Module):
    """The loss is the images' mean (or what `line` makes of it); keeps the batches that it was given."""

    def __init__(self, accuracy=True):
        super().__init__()
        self.line, self.batches, self.accuracy = nn.Linear(1, 1, bias=False), [], accuracy

    def forward(self, x, y):
        self.batches.append(x.detach().flatten().tolist())
        return x.mean() + 0 * self.line.weight.sum(), (y == 1 if self.accuracy else None)


def numbered(n):
    """Images of one pixel, whose value is their number, and labels 0 but for a 1 in every third."""
    return torch.arange(float(n)).reshape(n, 1, 1, 1), (torch.arange(n) % 3 == 0).long()


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [(8, 4, [4, 4]), (10, 4, [4, 4, 2]), (9, 4, [4, 4]), (5, 4, [4]), (4, 8, [4]), (1, 4, [1]), (3, 1, [1, 1, 1])],
)
def test_only_a_last_batch_of_one_image_is_left_out(n, batch_size, sizes):
    objective = Watched()
    fit(objective, *numbered(n), **OPTIONS | {"batch_size": batch_size})
    assert [len(batch) for batch in objective.batches] == 2 * sizes
    for epoch in (objective.batches[: len(sizes)], objective.batches[len(sizes) :]):
        seen = [image for batch in epoch for image in batch]
        assert len(set(seen)) == len(seen) == sum(sizes)


def test_the_order_is_the_seed_s_and_another_in_every_epoch():
    first, again, other = Watched(), Watched(), Watched()
    for objective, seed in ((first, 0), (again, 0), (other, 1)):
        torch.rand(3)
        fit(objective, *numbered(8), **OPTIONS | {"seed": seed})
    assert first.batches == again.batches != other.batches
    assert first.batches[:2] != first.batches[2:]


def test_rows_tell_the_mean_over_an_epoch_s_images_not_over_batches():
    class Worse(Watched):
        def forward(self, x, y):
            loss, right = super().forward(x, y)
            later = len(self.batches) > 3  # three batches are an epoch
            return loss + 10 * later, right & (not later)

    assert fit(Worse(), *numbered(10), **OPTIONS) == [
        {"epoch": 1, "loss": pytest.approx(4.5), "accuracy": pytest.approx(0.4)},
        {"epoch": 2, "loss": pytest.approx(14.5), "accuracy": 0},
    ]
    assert [sorted(row) for row in fit(Watched(accuracy=False), *numbered(10), **OPTIONS)] == 2 * [["epoch", "loss"]]


def test_steps_are_those_of_adamw_under_one_cycle():
    class Squares(Watched):
        def forward(self, x, y):
            self.batches.append((x, y))
            return (self.line(x).flatten() - y).square().mean(), None

    objective, by_hand = Squares(), nn.Linear(1, 1, bias=False)
    by_hand.load_state_dict(objective.line.state_dict())
    fit(objective, *numbered(10), **OPTIONS)
    # moments, decay and rates of Loshchilov & Hutter 2019 (alg. 2) and Smith & Topin 2018, written out
    weight, first, second = by_hand.weight.item(), 0.0, 0.0
    for t, (x, y) in enumerate(objective.batches):
        x, y = x.flatten().double(), y.double()
        gradient = (2 * x * (weight * x - y)).mean().item()
        up, peak = 0.3 * 6 - 1, 0.1  # 30 % of six steps go up from a 25th of the peak; then down to a 250,000th
        low, high, part = (peak / 25, peak, t / up) if t <= up else (peak, peak / 25e4, (t - up) / (5 - up))
        rate = high + (low - high) * (1 + torch.cos(torch.tensor(torch.pi * part, dtype=torch.float64)).item()) / 2
        momentum = 0.95 - 0.1 * (rate - low) / (high - low) if t <= up else 0.85 + 0.1 * (low - rate) / (low - high)
        first = momentum * first + (1 - momentum) * gradient
        second = 0.999 * second + 0.001 * gradient**2
        weight *= 1 - rate * 0.01
        weight -= rate * first / (1 - momentum ** (t + 1)) / ((second / (1 - 0.999 ** (t + 1))) ** 0.5 + 1e-8)
    assert objective.line.weight.item() == pytest.approx(weight, abs=1e-5)


class Breaks(Watched):
    def forward(self, x, y):
        raise ZeroDivisionError


@pytest.mark.parametrize("objective", [Watched, Breaks])
@pytest.mark.parametrize("workspace", [None, ":16:8"])
def test_the_process_is_left_as_found_in_silence(objective, workspace, monkeypatch, tmp_path, capfd, recwarn):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    if workspace is None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        before = dict(os.environ)
        with suppress(ZeroDivisionError), torch.no_grad():
            fit(objective(), *numbered(8), **OPTIONS)
        assert dict(os.environ) == before
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []
    assert not any(tmp_path.iterdir())


def test_operations_without_a_deterministic_form_are_errors():
    seen = []

    class Asks(Watched):
        def forward(self, x, y):
            seen.append(
                torch.are_deterministic_algorithms_enabled()
                and not torch.is_deterministic_algorithms_warn_only_enabled()
            )
            return super().forward(x, y)

    fit(Asks(), *numbered(8), **OPTIONS)
    assert seen == 4 * [True]


def test_a_function_is_called_after_every_epoch():
    ends = []
    fit(Watched(), *numbered(10), **OPTIONS | {"epochs": 3}, after_epoch=ends.append)
    assert ends == [1, 2, 3]
