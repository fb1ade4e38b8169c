"""Every figure is readable at one and at two columns of a paper, and can be told apart by all readers."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import eedkit as ek
from eedkit import plots
from eedkit.paper import verdicts
from eedkit.plots import style

DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
"""Linear RGB as seen by readers with deuteranopia (Machado et al. 2009)."""
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = np.array([0.95047, 1.0, 1.08883])


def lab(colours, *, deuteranopia):
    """CIE L*a*b* of colours."""
    rgb = np.array([mpl.colors.to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    if deuteranopia:
        linear = np.clip(linear @ DEUTERANOPIA.T, 0, 1)
    xyz = linear @ TO_XYZ.T / WHITE
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize("deuteranopia", [False, True])
@pytest.mark.parametrize("names", [list("abcdefghij"), ["plain", "augmented", "equivariant", "random", *"abcdef"]])
def test_any_two_of_ten_series_can_be_told_apart(names, deuteranopia):
    colours = [look["color"] for look in style.looks(names).values()]
    points = lab(colours, deuteranopia=deuteranopia)
    distances = np.linalg.norm(points[:, None] - points, axis=-1)
    assert distances[np.triu_indices(len(names), 1)].min() >= 10


def test_numbers_have_an_ordered_scale():
    shades = style.looks([0.5, 0.01, 1.0])
    lightness = lab([shades[share]["color"] for share in (0.01, 0.5, 1.0)], deuteranopia=True)[:, 0]
    assert (np.diff(lightness) > 10).all()


def test_more_names_than_colours_and_markers_are_all_drawn():
    for names in (list(range(30)), [f"m{k}" for k in range(30)]):
        assert len({look["color"] for look in style.looks(names).values()}) == 30


def test_the_bundled_recipes_look_the_same_in_every_figure():
    assert len(set(style.KNOWN.values())) == len(style.KNOWN)
    for names in (["mine", "simclr"], ["simclr", "plain", "turns"]):
        looks = style.looks(names)
        assert tuple(looks["simclr"].values()) == style.KNOWN["simclr"]
        assert len({tuple(look.values()) for look in looks.values()}) == len(names)


@pytest.fixture(scope="module")
def results():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(196, 10)).eval()
    measured = []
    for name in ("plain", "a_recipe_of_my_own"):
        measured.append(ek.measure(net, images(), group="D4", labels=list(range(10)) * 2, name=name, progress=False))
    return ek.concat(measured, recipe=["plain", "a_recipe_of_my_own"], seed=[0, 0])


def images():
    return torch.randn(20, 1, 7, 7, generator=torch.Generator().manual_seed(0))


def table():
    rng = np.random.default_rng(0)
    rows = []
    for domain in ("digits", "letters", "natural patches"):
        for seed in range(3):
            rows.append({"recipe": "plain", "domain": domain, "seed": seed, "relative": rng.uniform(), "x": seed + 1})
    return pd.DataFrame(rows)


def effect_rows():
    return pd.DataFrame(
        {
            "decided_by": "",
            "conclusion": ["1", "2"],
            "test": ["what augmentation removes from the best map over what it removes from features", "b"],
            "claim": "above",
            "verdict": [verdicts.SUPPORTED, verdicts.INCONCLUSIVE],
            "effect": [90.0, 1.0],
            "low": [80.0, 0.5],
            "high": [100.0, 1.5],
            "margin": 1.0,
        }
    )


def dose_rows():
    return pd.DataFrame(
        {"share": [0.1, 1.0], "what": "features", "effect": [0.2, 0.9], "low": 0.1, "high": 0.95, "n": 5}
    )


FIGURES = {
    "depth": lambda ds: plots.depth_profile(ds, metric="latent"),
    "rose": plots.orbit_rose,
    "histogram": plots.histogram,
    "classes": plots.class_heatmap,
    "calibration": plots.calibration,
    "worst": lambda ds: plots.worst(ds, images(), model="plain"),
    "lines": lambda ds: plots.lines(
        table(), x="x", y="relative", panel="domain", title="Who is invariant far from home?"
    ),
    "points": lambda ds: plots.lines(table(), x="domain", y="relative"),
    "cloud": lambda ds: plots.cloud(table(), x="x", y="relative", title="A question that takes more than a line " * 2),
    "effects": lambda ds: plots.effects(
        effect_rows(), labels={"1": "A conclusion of so many words that it takes two lines"}
    ),
    "dose": lambda ds: plots.dose_response(dose_rows(), title="How many turned images does it take?"),
    "pictures": lambda ds: plots.pictures({"blur": images()[:5].sigmoid()}, columns=range(5), title="Corrupted"),
}


def boxes(figure):
    """Where axes with their labels, title, legends and the small line are, in points of the screen."""
    figure.draw_without_rendering()
    found = [ax.get_tightbbox() for ax in figure.axes if ax.get_visible() and ax.get_tightbbox() is not None]
    others = [*figure.legends, *figure.texts]
    return found, [artist.get_window_extent() for artist in others if getattr(artist, "get_text", lambda: "legend")()]


@pytest.mark.parametrize("width", style.WIDTHS)
@pytest.mark.parametrize("name", FIGURES)
def test_everything_is_readable_inside_and_apart(results, name, width):
    with plots.width(width):
        figure = FIGURES[name](results)
    of_axes, others = boxes(figure)
    assert figure.get_figwidth() == style.WIDTHS[width]
    for box in (*of_axes, *others):
        assert box.x0 > -1
        assert box.y0 > -1
        assert box.x1 < figure.bbox.x1 + 1
        assert box.y1 < figure.bbox.y1 + 1
    for k, box in enumerate(others):
        for other in (*of_axes, *others[k + 1 :]):
            across = min(box.x1, other.x1) - max(box.x0, other.x0)
            down = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert min(across, down) < 3
    texts = [text for text in figure.findobj(mpl.text.Text) if text.get_text().strip()]
    assert min(text.get_fontsize() for text in texts) >= 6.5


def test_a_saved_figure_is_as_wide_as_its_column(results, tmp_path):
    with plots.width("column"):
        file = plots.save(plots.orbit_rose(results), tmp_path / "rose", "png")
    assert Image.open(file).width == round(3.5 * 200)
    with pytest.raises(ValueError, match="no width of a figure 'nips'"), plots.width("nips"):
        pass


def test_fonts_are_embedded(results, tmp_path):
    pdf = plots.save(plots.orbit_rose(results), tmp_path / "rose", "pdf").read_bytes()
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf


def test_a_legend_stays_whole_where_jupyter_cuts_the_margins_off(results, tmp_path):
    figure = plots.histogram(results)
    whole, cut = tmp_path / "whole.png", tmp_path / "cut.png"
    figure.savefig(whole, dpi=100)
    figure.savefig(cut, dpi=100, bbox_inches="tight")
    ink = [int((np.asarray(Image.open(file).convert("L")) < 200).sum()) for file in (whole, cut)]
    assert ink[1] == pytest.approx(ink[0], rel=0.02)
