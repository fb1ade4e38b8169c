"""Makes the pictures of README.md again, and the sentence below the first of them: `make gallery`.

Trains 40 small networks on the bundled digits where they are not cached, which takes some minutes on two cores.
"""

import subprocess
import tempfile
from pathlib import Path

import pandas as pd

import eedkit as ek
from eedkit.machine import processor_name
from eedkit.results.intervals import mean_interval

HERE = Path(__file__).parent
SEEDS = 20
DATA = "digits/test"
SHOWN = {"channelwise": "Do the maps turn?", "latent": "Do the features stay?"}


def mean(rows: pd.DataFrame) -> str:
    """Mean of the relative values over seeds, with its 95 % interval."""
    middle, low, high = mean_interval(rows.relative)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


# before the pictures change
commit = subprocess.run(
    ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=True
)
models = ek.lab.models.pool(["plain", "augmented"], seeds=SEEDS)
with tempfile.TemporaryDirectory() as folder:
    study = ek.Study(models=models, data=[DATA], groups=["C4"], metrics=list(SHOWN), store=folder)
    results = study.run().load()
table = ek.summarise(results, full=True)
table["shown"] = table.metric.map(SHOWN)
table["block"] = table.layer.str.removeprefix("blocks.").replace("latent", "head")
blocks = [block for block in dict.fromkeys(table.block) if block != "head"]
table["block"] = pd.Categorical(table.block, categories=[*blocks, "head"], ordered=True)

figure = ek.plots.lines(
    table.dropna(subset="relative"),
    x="block",
    y="relative",
    panel="shown",
    title="Does training with turned images make layers that turn?",
    xlabel="block of the network",
    ylabel="relative EED",
)
ek.plots.save(figure, HERE / "maps_and_features", formats=["png"])

augmented = ek.lab.models.pool("augmented", seeds=1)[0]
images = ek.lab.images.load(DATA, **ek.lab.models.load(augmented).wants)
figure = ek.plots.worst(results, images, model=augmented, title="On which digits does learned invariance fail?")
ek.plots.save(figure, HERE / "worst", formats=["png"])

of_features = table[(table.metric == "latent") & (table.layer == "latent")].set_index("recipe")
of_maps = table[(table.metric == "channelwise") & (table.layer == "blocks.4")].set_index("recipe")
sentence = (
    f"Training with turned digits takes the relative deviation of the features from {mean(of_features.loc['plain'])} to "
    f"{mean(of_features.loc['augmented'])}, that of the last block's maps from {mean(of_maps.loc['plain'])} to "
    f"{mean(of_maps.loc['augmented'])}: means over {SEEDS} seeds with 95 % intervals, {results.sizes['sample']} images."
)
made_by = f"Made by `make gallery` at commit {commit.stdout.strip()} on {processor_name()}."
(HERE / "result.md").write_text(f"{sentence} {made_by}\n", encoding="utf-8")
