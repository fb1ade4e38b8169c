"""Tiny notebooks, written here and run once for all tests of the report."""

import contextlib
import io
import os
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from eedkit.report import notebooks

DEFAULTS = """out: str = "../reports"
seeds: int = 2  # how many networks there are of a kind
margin: float = 0.1  # declared beforehand
name: str | None = None
groups: list[str] = ["C4"]"""

STORY = r"""# Is $\hat f$ the orbit mean?

> Does `measure` agree with $\hat{f}(x)=\frac{1}{|K|}\sum_{g\in K} f(gx)$?
> And on which images?

It costs \$5 or $6, never `$HOME`. See [the paper](https://example.org/paper).
"""

# each of the first two waits for the other, so they only end if they run at once
MEETS = """import os, sys, time
from pathlib import Path
Path(out, "{0}.here").write_text(os.environ["OMP_NUM_THREADS"])
end = time.monotonic() + 60
while not Path(out, "{1}.here").exists() and time.monotonic() < end:
    time.sleep(0.05)
print("met", Path(out, "{1}.here").exists())"""

BAR = """from tqdm import tqdm
for _ in tqdm(range(3), desc="training seed", file=sys.stderr):
    pass
print("a warning \\x1b]0;owned\\x07", file=sys.stderr)"""

TABLE = """import pandas as pd
print("seeds", seeds, "margin", margin, "groups", groups, "name", name)
pd.DataFrame({f"metric {i}": [0.1234 * i, 1 / 3] for i in range(24)}, index=["plain", "equivariant"]).round(3)"""

ANSWER = """import matplotlib.pyplot as plt
import eedkit as ek
from IPython.display import Markdown
fig, ax = plt.subplots(figsize=(9, 3.5))
ax.plot([1, 2, 3], range(3), marker="o", label="plain")
ax.set(xlabel="depth", ylabel="EED (1)")
fig.suptitle("EED by depth")
plt.close(fig)
ek.plots.save(fig, f"{out}/figures/00_story_depth")
display(Markdown("**Yes.** It agrees.\\n\\n<details><summary>More</summary>\\n\\n- on *all*\\n\\n</details>"))
fig"""

VERDICTS = """from IPython.display import Markdown
from pathlib import Path
left = sorted(path.name for path in Path(f"{out}/marks").iterdir())
Markdown(f"1. [It is](00_story.html): **supported** by {', '.join(left)}")"""


def write(path: Path, *cells: str, defaults: str = DEFAULTS, tags: dict | None = None, **metadata) -> Path:
    """A notebook of a parameters cell and the cells, those that start with `#` or `>` as text; `tags` are by the cell's number."""
    made = []
    for number, cell in enumerate(cells):
        about = {"tags": [tags[number]]} if number in (tags or {}) else {}
        made.append(new_markdown_cell(cell) if cell[0] in "#>" else new_code_cell(cell, metadata=about))
    made.insert(1, new_code_cell(defaults, metadata={"tags": ["parameters"]}))
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=made, metadata=metadata), path)
    return path


@pytest.fixture(scope="session")
def book():
    """The function that writes a notebook."""
    return write


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """A folder of notebooks (one fine, two that fail, one that reads what they left, two that are none) and two profiles."""
    home = tmp_path_factory.mktemp("home") / "notebooks"
    left = 'Path(f"{out}/marks").mkdir(exist_ok=True)\nPath(f"{out}/marks/00").touch()'
    story = [STORY, MEETS.format("00", "01"), BAR, left, "## What the table says", TABLE, ANSWER, "## Limits"]
    write(home / "00_story.ipynb", *story, tags={6: "answer"})
    write(home / "01_raises.ipynb", "# Broken", MEETS.format("01", "00"), "1 / 0", "# Never read", "print('after')")
    kill = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    write(home / "02_kernel_dies.ipynb", "# Killed", kill, "print('after')", eedkit={"start": "first"})
    write(home / "03_verdicts.ipynb", "# Verdicts", VERDICTS, tags={1: "index"}, eedkit={"start": "last"})
    write(home / "my_notes.ipynb", "# Mine", defaults="x = 1")
    (home / "torn.ipynb").write_text('{"cells": [')
    (home / "profiles").mkdir()
    (home / "profiles" / "quick.yaml").write_text("00_story:\n  seeds: 3\n  groups: [C4, D4]\n")
    (home / "profiles" / "tiny.yaml").write_text("00_story: {seeds: 1}\n")
    return home


@pytest.fixture(autouse=True)
def _here(monkeypatch, home):
    monkeypatch.setattr(notebooks, "folder", lambda: home)


@pytest.fixture(scope="session")
def made(home, tmp_path_factory):
    """The report of them, made once, as if there were four cores, into a folder with braces; with what it wrote to stderr."""
    out = tmp_path_factory.mktemp("out") / "re{port}s"
    log = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(log):
        patch.setattr(notebooks, "folder", lambda: home)
        patch.setattr(os, "cpu_count", lambda: 4)
        patch.delenv("OMP_NUM_THREADS", raising=False)
        # as on a server: figures must be on the pages all the same
        patch.setenv("MPLBACKEND", "agg")
        with pytest.raises(notebooks.NotebooksFailed) as raised:
            notebooks.report(out, parameters={"margin": 1})
    pages = {page.stem: page.read_text(encoding="utf-8") for page in out.glob("*.html")}
    return SimpleNamespace(out=out, log=log.getvalue(), error=raised.value, pages=pages)
