"""A browser, and what it looks at: pages of a report and of a card, made here of small results."""

import shutil
from types import SimpleNamespace

import nbformat
import pytest
import torch
from torch import nn

import eedkit as ek
from eedkit.report import pages
from eedkit.report.kernel import Failure, Run
from eedkit.report.parameters import Parameter

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
    kinds = {"html": "text/html", "markdown": "text/markdown", "svg": "image/svg+xml"}
    return nbformat.v4.new_output("display_data", {kinds[kind]: value for kind, value in data.items()})


@pytest.fixture(scope="session")
def site(measured, tmp_path_factory):
    """The folder of a report of four notebooks: with every kind of output, failed, not run, and one that opens the index."""
    out = tmp_path_factory.mktemp("report")
    figure = ek.plots.depth_profile(measured.results)
    file = ek.plots.save(figure, out / "figures" / "00_depth")
    table = ek.summarise(measured.results)
    results = [
        shown(html=measured.results._repr_html_()),
        shown(html=table._repr_html_()),
        shown(html=table.style.to_html()),
    ]
    drawn = shown(svg=file.read_text())
    drawn.metadata = {"image/svg+xml": {"alt": figure.caption, "file": str(file)}}
    folded = "**It does.**\n\n<details><summary>How far</summary>\n\n- by *0.1*\n\n</details>"
    story = [
        nbformat.v4.new_markdown_cell(STORY),
        nbformat.v4.new_code_cell("ds", outputs=results),
        nbformat.v4.new_code_cell("figure", outputs=[shown(markdown=folded), drawn], metadata={"tags": ["answer"]}),
        nbformat.v4.new_code_cell("print(x)", outputs=[nbformat.v4.new_output("stream", text="a line " * 40)]),
    ]
    headlines = shown(markdown="1. [It is](00_story.html): **supported** (0.50, bounds 0.40 to 0.60)")
    verdicts = [
        nbformat.v4.new_markdown_cell("# Verdicts\n\n> Which?"),
        nbformat.v4.new_code_cell("headlines", outputs=[headlines], metadata={"tags": ["index"]}),
    ]
    broken = [nbformat.v4.new_markdown_cell("# Broken"), nbformat.v4.new_code_cell("1 / 0")]
    failure = Failure(2, "1 / 0", "ZeroDivisionError: division by zero", "Traceback " * 30)
    made = []
    for stem, cells, state in (
        ("00_story", story, "kept"),
        ("01_broken", broken, "failed"),
        ("02_verdicts", verdicts, "done"),
        ("03_later", [nbformat.v4.new_markdown_cell("# Later")], "waiting"),
    ):
        path = out / f"{stem}.ipynb"
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"eedkit": {"code": stem == "00_story"}})
        nbformat.write(notebook, path)
        run = Run(
            source=path,
            notebook=notebook,
            declared={"n": Parameter(16, "int", "how many images there are")},
            executed=path,
            parameters={"n": 16},
            state=state,
            seconds=1.0,
            failure=failure if stem == "01_broken" else None,
            facts=FACTS,
        )
        made.append(pages.page_of(run))
    for page in made:
        pages.write_page(page, made, "tiny")
    pages.write_index(made, out, "tiny", running=False, left_out=["my_notes: no parameters"])
    ek.card(measured.results, measured.images).save(out / "card.html")
    return out
