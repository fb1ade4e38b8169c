"""Wrong inputs as a user sees them: what was expected, what came, what to do; those that no room's own tests have."""

import numpy as np
import pytest
import torch
from torch import nn

import eedkit as ek

IMAGES = torch.rand(8, 1, 5, 5, generator=torch.Generator().manual_seed(0))


def measured(images=IMAGES, group="C4", **options):
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(50, 3))
    return ek.measure(net, images, group=group, progress=False, **options)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"group": "SO(2)?m=4"}, ["'m=4'", "n (how many parts), seed and jitter", "as in SO(2)?n=16&seed=1"]),
        ({"group": "C4*flip"}, ["is no direct product", "D4"]),
        ({"group": "SO(2)?n=4*flip"}, ["is no direct product", "D4 and O(2) have turns and mirrors together"]),
        ({"images": (IMAGES * 255).long()}, ["must be floats, or uint8", "got torch.int64", "convert them first"]),
        ({"images": [IMAGES[0], torch.rand(1, 7, 7)] * 2}, ["must have one size", "1×7×7", "resize or crop first"]),
        (
            {"images": [np.ones((3, 5, 3), np.float32)] * 8},
            ["shape (3, 5, 3) does not show", "a torch tensor (C, H, W)"],
        ),
        ({"layers": ["4"]}, ["no layer '4'", "all 4: 0, 1, 2, 3"]),
        ({"output": "logits"}, ["no output 'logits'", "scores, probabilities, independent", "gives none with a name"]),
    ],
)
def test_arguments_of_measure_that_do_not_fit(options, parts):
    with pytest.raises((ValueError, TypeError)) as raised:
        measured(**options)
    assert [part for part in parts if part not in str(raised.value)] == []


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("nowhere:thing", r"no nowhere:thing .*No module named 'nowhere'.* PYTHONPATH"),
        ("math:pi", r"groups: math:pi must be Group or Action, got 3\.14159"),
    ],
)
def test_modules_that_a_study_cannot_find_are_refused_before_it_computes(tmp_path, group, message):
    study = ek.Study(models=["recipe:random"], data=["digits/test"], groups=[group], store=tmp_path / "a.study")
    with pytest.raises(ValueError, match=message):
        study.run(progress=False)
    assert not (tmp_path / "a.study").exists()
