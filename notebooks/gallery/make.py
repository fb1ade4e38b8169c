"""`make gallery`: `ek.example()`, README.md's picture with its sentence, and the pictures of the gallery.

Trains 16 small networks on the bundled digits where they are not cached, which takes some minutes on two cores.
"""

import ast
import gzip
import io
import re
import subprocess
import tempfile
from pathlib import Path

import pandas as pd
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import eedkit as ek
from eedkit.machine import processor_name
from eedkit.results import example
from eedkit.results.intervals import mean_interval

HERE = Path(__file__).parent
SEEDS = 5
KINDS = ["plain", "augmented", "equivariant"]
DPI = 144
COLOURS = 128
"""Of a picture; a line's smooth edge has no need of more."""
EXAMPLE = {kind: f"recipe:{kind}?seed=0" for kind in [*KINDS, "random"]}
EXAMPLE_IMAGES = "digits/test?per_class=6"
EXAMPLE_METRICS = ["channelwise", "channelwise_matched", "latent", "softmax_js", "softmax_reverse"]
SHOWN = re.compile(r"```python\n(?P<code>.*?)```\n+!\[[^\]]*\]\((?P<picture>[^)]+)\)", re.S)
"""A block of the gallery's README.md, and the picture that it draws."""


def measured(**study) -> xr.Dataset:
    """The results of a study under quarter turns, whose store is not kept."""
    with tempfile.TemporaryDirectory() as folder:
        return ek.Study(groups=["C4"], store=folder, **study).run().load()


def save(figure: Figure, picture: str) -> None:
    """Write a figure small enough for a page that shows many; the file says in words what is seen."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    image = Image.open(drawn).convert("RGB").quantize(COLOURS)
    words = PngInfo()
    words.add_itxt("Description", figure.caption)
    image.save(HERE / picture, optimize=True, dpi=(DPI, DPI), pnginfo=words)


def store_example(made_by: str) -> None:
    """Measure what `ek.example` gives and write it into the package."""
    ds = measured(models=EXAMPLE, data=[EXAMPLE_IMAGES], metrics=EXAMPLE_METRICS)
    ds.attrs["made_by"] = f"recipes of eedkit.lab, seed 0. {made_by}"
    netcdf = bytes(ds.to_netcdf(engine="scipy"))
    # without a time, so that the same values are the same bytes
    example.STORED.write_bytes(gzip.compress(netcdf, mtime=0))


def draw_first_picture(made_by: str) -> None:
    """README.md's picture, and the sentence below it."""
    models = ek.lab.models.pool(KINDS, seeds=SEEDS)
    ds = measured(models=models, data=["digits/test"], metrics=["channelwise_matched", "latent"])
    figure = ek.plots.depth_profile(
        ds,
        metric=["channelwise_matched", "latent"],
        title="Does training with turned images make layers that turn?",
    )
    for ax, question in zip(figure.axes, ["Do the maps turn?", "Do the features stay?"], strict=True):
        ax.title.set_text(question)
    save(figure, "maps_and_features.png")

    table = ek.summarise(ds, full=True)
    features = table[(table.metric == "latent") & (table.layer == "latent")]
    maps = table[(table.metric == "channelwise_matched") & (table.layer == "blocks.4")]
    sentence = (
        "Training with turned digits takes the relative deviation of the features from "
        f"{mean_over_seeds(features, 'plain')} to {mean_over_seeds(features, 'augmented')}, "
        "that of the last block's maps from "
        f"{mean_over_seeds(maps, 'plain')} to {mean_over_seeds(maps, 'augmented')}: "
        f"means over {SEEDS} seeds with 95 % intervals, {ds.sizes['sample']} images."
    )
    result = HERE / "result.md"
    readme = HERE.parents[1] / "README.md"
    earlier = result.read_text(encoding="utf-8").strip()
    result.write_text(f"{sentence} {made_by}\n", encoding="utf-8")
    text = readme.read_text(encoding="utf-8").replace(earlier, f"{sentence} {made_by}")
    readme.write_text(text, encoding="utf-8")


def mean_over_seeds(table: pd.DataFrame, recipe: str) -> str:
    """Mean of the relative values with its 95 % interval."""
    mean, low, high = mean_interval(table[table.recipe == recipe].relative)
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def draw_gallery() -> None:
    """The picture below each block of code in README.md, drawn by that code: its last line is the figure."""
    page = (HERE / "README.md").read_text(encoding="utf-8")
    for block in SHOWN.finditer(page):
        names = {"ek": ek}
        *lines, last = ast.parse(block["code"]).body
        exec(compile(ast.Module(lines, []), "README.md", "exec"), names)
        save(eval(compile(ast.Expression(last.value), "README.md", "eval"), names), block["picture"])


if __name__ == "__main__":
    # before anything here changes
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=True
    )
    made_by = f"Made by `make gallery` at commit {commit.stdout.strip()} on {processor_name()}."
    store_example(made_by)
    draw_first_picture(made_by)
    draw_gallery()
