"""A browser, and what it looks at: pages of a report and of a card, made here of small results."""

import shutil
from types import SimpleNamespace

import nbformat
import pytest
import torch
from torch import nn

import eedkit as ek
from eedkit.report import pages

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FACTS = {
    "profile": "tiny",
    "date": "2026-01-01 00:00 UTC",
    "device": "CPU",
    "processor": "a processor, 2 cores",
    "threads": "1",
    "eedkit": "0.1.0",
    "torch": "2.15.0",
}
STORY = r"""# Is $\hat f$ the orbit mean?

> Does `measure` agree with the formula?

$$\mathcal{E}(f, G) = \frac{1}{|D||G|} \sum_{x \in D} \sum_{g \in G} m\left(f(gx),\, g\hat{f}(x)\right)$$

## What a table looks like

| one | another | a third | a fourth | a fifth | a sixth | a seventh | an eighth |
|---|---|---|---|---|---|---|---|
| 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 |

## What code looks like

```python
ds = ek.measure(model, images, group="D4", layers="blocks", metrics=["channelwise", "latent", "softmax"], progress=False)
```

## What results look like
"""


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium, without a window."""
    if not CHROMIUM:
        pytest.skip("there is no chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def measured():
    """Sixteen images of four classes and what a small network makes of them."""
    torch.manual_seed(0)
    images = torch.rand(16, 1, 6, 6)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    results = ek.measure(net, images, group="C4", labels=[0, 1, 2, 3] * 4, name="net", progress=False)
    return SimpleNamespace(images=images, results=results)


def shown(**data):
    kinds = {"html": "text/html", "markdown": "text/markdown", "png": "image/png"}
    return nbformat.v4.new_output("display_data", {kinds[kind]: value for kind, value in data.items()})


@pytest.fixture(scope="session")
def site(measured, tmp_path_factory):
    """The folder of a report of three notebooks: one with every kind of output, one that opens the index, one that failed."""
    out = tmp_path_factory.mktemp("report")
    ek.plots.save(ek.plots.depth_profile(measured.results), out / "figures" / "00_depth")
    table = ek.summarise(measured.results)
    told = [
        shown(html=measured.results._repr_html_()),
        shown(html=table._repr_html_()),
        shown(html=table.style.to_html()),
    ]
    drawn = 'figure = ek.plots.depth_profile(ds)\nek.plots.save(figure, f"{out}/figures/00_depth")\nfigure'
    story = [
        nbformat.v4.new_markdown_cell(STORY),
        nbformat.v4.new_code_cell("ds", outputs=told),
        nbformat.v4.new_code_cell(drawn, outputs=[shown(png="")]),
        nbformat.v4.new_code_cell("print(x)", outputs=[nbformat.v4.new_output("stream", text="a line " * 40)]),
    ]
    headlines = shown(markdown="1. [It is](00_story.html): **supported** (0.50, bounds 0.40 to 0.60)")
    verdicts = [
        nbformat.v4.new_markdown_cell("# Verdicts\n\n> Which?"),
        nbformat.v4.new_code_cell("headlines", outputs=[headlines], metadata={"tags": ["index"]}),
    ]
    tagged = nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["parameters"]})
    broken = [nbformat.v4.new_markdown_cell("# Broken"), tagged, nbformat.v4.new_code_cell("1 / 0")]
    runs = []
    for stem, cells in (("00_story", story), ("01_broken", broken), ("02_verdicts", verdicts)):
        path = out / f"{stem}.ipynb"
        metadata = {"eedkit": {"key_figure": "00_depth"}} if stem == "00_story" else {}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
        failure = pages.Failure(2, 3, "1 / 0", "ZeroDivisionError: division by zero", "Traceback " * 30)
        runs.append(pages.Run(path, path, {"n": 16}, 1.0, failure=failure if stem == "01_broken" else None))
    for run in runs:
        pages.write_page(run, runs, out, FACTS, code=run.stem == "00_story")
    pages.write_index(runs, out, FACTS, opening=runs[-1].source)
    ek.card(measured.results, measured.images).save(out / "card.html")
    return out
