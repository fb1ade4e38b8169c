"""Tiny notebooks, written here and run once for all tests of the report."""

import os
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

DEFAULTS = (
    'out: str = "../reports"\nseeds: int = 2\nmargin: float = 0.1\nname: str | None = None\ngroups: list[str] = ["C4"]'
)

STORY = r"""# Is $\hat f$ the orbit mean?

> Does `measure` agree with $\hat{f}(x)=\frac{1}{|K|}\sum_{g\in K} f(gx)$?
> And on which images?

It costs \$5 or $6, never `$HOME`; the set $\{x \mid x<1\}$ is open.

$$
\mathrm{EED} = \mathbb{E}_{x \sim X}\, m\bigl(f(gx), g\hat f(x)\bigr)

\ge 0
$$

```
cost = "$$not math$$"
```

A formula nobody can convert: $\frac{1}{$. See [the paper](https://example.org/paper).
"""

DRAW = """import sys
import matplotlib.pyplot as plt
from tqdm import tqdm
for _ in tqdm(range(3), desc="training seed", file=sys.stderr):
    pass
fig, ax = plt.subplots(figsize=(9, 3.5))
ax.plot([1, 2, 3], range(3), marker="o", label="plain")
ax.set(title="Does it fall with depth?", xlabel="depth", ylabel="EED (1)")
fig.savefig(f"{out}/figures/00_story_depth.png")
fig.savefig(f"{out}/figures/00_story_depth.svg")
plt.show()"""

TABLE = """import pandas as pd
print("seeds", seeds, "margin", margin, "groups", groups, "name", name)
pd.DataFrame({f"metric {i}": [0.1234 * i, 1 / 3] for i in range(24)}, index=["plain", "equivariant"]).round(3)"""


def write(path: Path, *cells: str, defaults: str = DEFAULTS, **metadata) -> Path:
    """A notebook of a parameters cell and the cells, those that start with `#` or `>` as text."""
    cells = [new_markdown_cell(c) if c[0] in "#>" else new_code_cell(c) for c in cells]
    cells.insert(1, new_code_cell(defaults, metadata={"tags": ["parameters"]}))
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata=metadata), path)
    return path


@pytest.fixture(scope="session")
def book():
    """The function that writes a notebook."""
    return write


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """A folder of three notebooks (one fine, one that raises, one whose kernel dies) and two profiles."""
    home = tmp_path_factory.mktemp("home") / "notebooks"
    write(
        home / "00_story.ipynb", STORY, DRAW, "## What the table says", TABLE, eedkit={"key_figure": "00_story_depth"}
    )
    write(home / "01_raises.ipynb", "# Broken", "print('before')", "1 / 0", "# Never read", "print('after')")
    write(
        home / "02_dies.ipynb", "# Killed", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "print('after')"
    )
    (home / "profiles").mkdir()
    (home / "profiles" / "quick.yaml").write_text("00_story:\n  seeds: 3\n  groups: [C4, D4]\n")
    (home / "profiles" / "tiny.yaml").write_text("00_story: {seeds: 1}\n")
    return home


@pytest.fixture(scope="session")
def made(home, tmp_path_factory):
    """The report of the three, made once, into a folder with braces; with what it wrote to stderr."""
    import contextlib
    import io

    from eedkit.report import notebooks

    out = tmp_path_factory.mktemp("out") / "re{port}s"
    log = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(log):
        patch.setattr(notebooks, "folder", lambda: home)
        # as on a server: figures must be on the pages all the same, and the shell's choice be left as found
        patch.setenv("MPLBACKEND", "agg")
        with pytest.raises(notebooks.NotebooksFailed) as raised:
            notebooks.report(out, parameters={"margin": 1})
        assert os.environ["MPLBACKEND"] == "agg"
    pages = {page.stem: page.read_text(encoding="utf-8") for page in out.glob("*.html")}
    return SimpleNamespace(out=out, log=log.getvalue(), error=raised.value, pages=pages)
