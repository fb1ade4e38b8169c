"""Measuring while a model trains changes nothing about the training."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import eedkit as ek


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 3)
    )


@pytest.fixture
def images():
    return torch.rand(16, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def trained(images, tracker_of=None):
    """Weights after five steps with dropout, measured after each or not."""
    net = network()
    tracker = tracker_of(net) if tracker_of else None
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    torch.manual_seed(1)
    for step in range(5):
        loss = net(images + 0.1 * torch.randn_like(images)).square().mean()
        loss.backward()
        if tracker:
            tracker.step(step)
        optimiser.step()
        optimiser.zero_grad()
    return copy.deepcopy(net.state_dict()), net.training


def test_training_is_the_same_bit_for_bit(images):
    plain, _ = trained(images)
    tracked, in_training = trained(images, lambda net: ek.Tracker(net, images, group="C4"))
    assert in_training
    assert all(torch.equal(plain[name], tracked[name]) for name in plain)


def test_each_step_is_what_measure_gives_then(images):
    net = network()
    tracker = ek.Tracker(net, images, group="C4", metrics=["latent"])
    for step in (0, 10):
        expected = ek.measure(net, images, group="C4", metrics=["latent"], progress=False)
        table = tracker.step(step)
        np.testing.assert_array_equal(tracker.results.latent.sel(step=step), expected.latent)
        wanted = ek.summarise(expected)
        np.testing.assert_array_equal(table.estimate, wanted.estimate)
        np.testing.assert_array_equal(ek.summarise(tracker.results.sel(step=step)).relative, wanted.relative)
        with torch.no_grad():
            net[-1].weight.mul_(2)
            net[0].weight.add_(0.1)
    assert tracker.table.step.unique().tolist() == [0, 10]
    assert (tracker.table.seconds > 0).all()


def test_steps_are_drawn_as_lines(images):
    tracker = ek.Tracker(network(), images, group="C4", metrics=["latent"])
    for step in range(3):
        tracker.step(step)
    figure = ek.plots.lines(tracker.table, x="step", y="relative", by="layer")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(tracker.table.layer.unique())


def test_a_step_cannot_be_measured_twice(images):
    tracker = ek.Tracker(network(), images, group="C4")
    with pytest.raises(ValueError, match="nothing was measured yet"):
        _ = tracker.results
    tracker.step(3)
    with pytest.raises(ValueError, match="step 3 was measured already"):
        tracker.step(3)


def test_the_callback_measures_and_logs_by_epoch(images):
    lightning = pytest.importorskip("lightning")

    class Training(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch):
            return self.net(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    training = Training()
    tracker = ek.Tracker(training.net, images, group="C4")
    trainer = lightning.Trainer(
        max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[tracker.callback(every=2)],
    )  # fmt: skip
    trainer.fit(training, torch.utils.data.DataLoader(images, batch_size=8))
    assert tracker.table.step.unique().tolist() == [2, 4]
    last = tracker.table.query("step == 4 and metric == 'latent' and layer == 'latent'").relative.item()
    assert float(trainer.callback_metrics["eed/latent_relative"]) == pytest.approx(last)
