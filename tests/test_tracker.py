"""Measuring while a model trains changes nothing about the training."""

import copy
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import eedkit as ek

IMAGES = torch.rand(16, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 3)
    )


def tracked(net=None, images=IMAGES, **options):
    return ek.Tracker(net or network(), images, **{"group": "C4", "metrics": ["latent"], **options})


def trained(tracker_of=None):
    """Weights after five steps with dropout, measured after each or not."""
    net = network()
    tracker = tracker_of(net) if tracker_of else None
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    torch.manual_seed(1)
    for step in range(5):
        loss = net(IMAGES + 0.1 * torch.randn_like(IMAGES)).square().mean()
        loss.backward()
        if tracker:
            tracker.step(step)
        optimiser.step()
        optimiser.zero_grad()
    return copy.deepcopy(net.state_dict()), net.training


def test_training_is_the_same_bit_for_bit():
    plain, _ = trained()
    with_steps, in_training = trained(lambda net: ek.Tracker(net, IMAGES, group="C4"))
    assert in_training
    assert all(torch.equal(plain[name], with_steps[name]) for name in plain)


def test_a_model_that_draws_numbers_leaves_the_random_state():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    net = nn.Sequential(Noisy(), nn.Flatten(), nn.Linear(36, 3))
    before = torch.get_rng_state()
    tracker = tracked(net)
    with pytest.warns(UserWarning, match="gives other outputs for the same images"):
        tracker.step(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_each_step_is_what_measure_gives_then():
    net = network()
    tracker = tracked(net, iter(IMAGES))
    for step in (0, 10):
        expected = ek.measure(net, IMAGES, group="C4", metrics=["latent"], progress=False)
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


def test_a_step_cannot_be_measured_twice():
    tracker = tracked()
    with pytest.raises(ValueError, match="nothing was measured yet"):
        _ = tracker.results
    tracker.step(3)
    with pytest.raises(ValueError, match="step 3 was measured already"):
        tracker.step(3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"group": "C_4"}, ValueError, "no group 'C_4'; did you mean 'C4'"),
        ({"metric": ["latent"]}, TypeError, "no option 'metric'; did you mean 'metrics'"),
        ({"layers": ["8"]}, ValueError, "no layer '8'"),
        ({"layers": "nope"}, ValueError, "no layer whose whole name matches 'nope'"),
        ({"head": "fc"}, ValueError, "no head 'fc'"),
        ({"output": "nope"}, ValueError, "no output 'nope'"),
        ({"output": "dense"}, ValueError, "output='dense' needs a map"),
        ({"layouts": {"nope": "b c"}}, ValueError, "layouts: no layer 'nope'"),
        ({"layouts": {"output": "b c h"}}, ValueError, "must name the 2 axes"),
        ({"call": lambda model, images: model(images, 1)}, ValueError, "the model does not run on two images"),
        (
            {"net": nn.Sequential(nn.Flatten(), nn.Linear(36, 3, device="meta"))},
            ValueError,
            "1.weight has no values yet",
        ),
        ({"layers": ["8"], "precision": "float64"}, ValueError, "no layer '8'"),
        ({"labels": [1, 2]}, ValueError, "expected one label for each of 16 images, got 2"),
        ({"images": IMAGES[:3]}, ValueError, "needs 4 images, got 3"),
        ({"images": IMAGES[..., :5]}, ValueError, "need square images, got 6×5"),
        ({"images": "digits/test"}, TypeError, "open it first"),
        ({"net": "resnet18"}, TypeError, "model must be a torch.nn.Module, got str"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_training(options, error, message):
    with pytest.raises(error, match=message):
        tracked(**options)


class Log(dict):
    """What loggers were told: the scalars by step. Each method has the signature of the real one."""

    def mlflow(self, metrics, step=None, synchronous=None, run_id=None, timestamp=None, model_id=None, dataset=None):
        self.setdefault(step, {}).update(metrics)

    def wandb(self, data, step=None, commit=None):
        self.setdefault(step, {}).update(data)

    def tensorboard(self, tag, scalar_value, global_step=None, walltime=None, new_style=False, double_precision=False):
        self.setdefault(global_step, {})[tag] = scalar_value


@pytest.mark.parametrize(
    "logger_of",
    [
        lambda log: log.wandb,
        lambda log: SimpleNamespace(log=log.wandb),
        lambda log: SimpleNamespace(log_metrics=log.mlflow, log_metric=None),
        lambda log: SimpleNamespace(add_scalar=log.tensorboard, log_dir=""),
    ],
    ids=["function", "wandb", "mlflow", "tensorboard"],
)
def test_a_logger_takes_every_step(logger_of):
    log = Log()
    tracker = tracked(logger=logger_of(log), metrics=["latent", "softmax"])
    for step in (3, 5):
        tracker.step(step)
    assert list(log) == [3, 5]
    rows = tracker.table.query("step == 5").set_index(["metric", "layer"])
    expected = {}
    for metric, layer in (("latent", "latent"), ("softmax", "output")):
        for column in ("relative", "estimate", "null"):
            expected[f"eed/C4/{layer}/{metric}_{column}"] = rows.loc[(metric, layer), column]
    assert log[5] == expected


def test_lightnings_csv_holds_the_steps(tmp_path):
    loggers = pytest.importorskip("lightning.pytorch.loggers")
    logger = loggers.CSVLogger(tmp_path, name="", version="")
    tracker = tracked(logger=logger)
    tracker.step(10)
    tracker.step(20)
    logger.save()
    written = pd.read_csv(tmp_path / "metrics.csv").set_index("step")
    of_features = tracker.table.query("layer == 'latent'").set_index("step")
    assert written["eed/C4/latent/latent_relative"].to_dict() == of_features.relative.to_dict()


def test_what_logs_nothing_is_refused():
    with pytest.raises(TypeError, match="logger must be callable or have log_metrics, log or add_scalar, got str"):
        tracked(logger="wandb")


def training_of(net):
    lightning = pytest.importorskip("lightning")

    class Training(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net

        def training_step(self, batch):
            return self.net(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Training()


def fit(training, *callbacks, epochs=1, **options):
    """Train by Lightning; gives what was logged."""
    lightning = pytest.importorskip("lightning")
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=list(callbacks), **quiet, **options)
    trainer.fit(training, torch.utils.data.DataLoader(IMAGES.to(next(training.parameters()).dtype), batch_size=8))
    assert trainer.current_epoch == epochs
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


def test_the_callback_measures_and_logs_by_epoch():
    net = network()
    tracker = ek.Tracker(net, IMAGES, group="C4")
    logged = fit(training_of(net), tracker.callback(every=2), epochs=4)
    assert tracker.table.step.unique().tolist() == [2, 4]
    last = tracker.table.query("step == 4")
    for metric, layer in (("latent", "latent"), ("softmax", "output")):
        row = last.query("metric == @metric and layer == @layer").iloc[0]
        for column in ("relative", "estimate", "null"):
            assert logged[f"eed/C4/{layer}/{metric}_{column}"] == pytest.approx(row[column])
    assert len(logged) == 6


def test_another_trainer_goes_on_counting():
    net = network()
    tracker = tracked(net)
    for _ in range(2):
        fit(training_of(net), tracker.callback(every=2), epochs=5)
    assert tracker.table.step.unique().tolist() == [2, 4, 6, 8]


@pytest.mark.parametrize(("precision", "dtype"), [("64-true", "float64"), ("bf16-true", "bfloat16")])
def test_a_model_is_measured_in_its_own_type(precision, dtype):
    net = network()
    tracker = tracked(net)
    logged = fit(training_of(net), tracker.callback(), precision=precision)
    assert tracker.results.attrs["precision"] == dtype
    assert 0 < logged["eed/C4/latent/latent_relative"] < 2


def test_trackers_in_one_trainer_share_no_key():
    net = network()
    trackers = {
        "C4": tracked(net),
        "flip": tracked(net, group="flip"),
        "C4/all layers": tracked(net, name="all layers"),
        "SO_2__n_4": tracked(net, group="SO(2)?n=4"),
    }
    logged = fit(training_of(net), *[tracker.callback() for tracker in trackers.values()])
    for name, tracker in trackers.items():
        relative = tracker.table.query("layer == 'latent'").relative.item()
        assert logged[f"eed/{name}/latent/latent_relative"] == pytest.approx(relative)
    with pytest.raises(ValueError, match="two trackers would log as 'C4'; give one of them another name="):
        fit(training_of(net), tracked(net).callback(), tracked(net, seed=1).callback())


def test_a_measurement_that_fails_ends_no_training():
    net = network()
    tracker = tracked(net, name="one")
    tracker.images = IMAGES[:3]
    with pytest.warns(
        UserWarning, match="C4/one was not measured after epoch 2: ValueError: the null .* needs 4 images"
    ):
        assert fit(training_of(net), tracker.callback(), epochs=2) == {}
    assert tracker.table.empty
    with pytest.raises(ValueError, match="needs 4 images, got 3"):
        tracker.step(1)
    with pytest.raises(ValueError, match="every must be at least 1 epoch, got 0"):
        tracker.callback(every=0)
