"""JupyterLab as a user meets it: a notebook runs, nothing stands in a red box, and the explorer's controls move its figures."""

import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest

from eedkit.report import notebooks

pytestmark = [pytest.mark.browser, pytest.mark.slow]

FIGURES = ".jupyter-widgets svg.eedkit-figure"
DARK = "jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})"
RUN_ALL = "jupyterapp.commands.execute('notebook:run-all-cells')"
OUTPUTS = """jupyterapp.shell.currentWidget.content.model.toJSON().cells
    .filter(cell => cell.cell_type == 'code').map(cell => cell.outputs)"""


@pytest.fixture
def lab(tmp_path):
    """Address of a JupyterLab that shows a small copy of the first notebook, which ends in the explorer."""
    notebook = nbformat.read(notebooks.folder() / "00_start_here.ipynb", 4)
    tagged = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    small = {"n: int = 397": "n: int = 24", "epochs: int = 10": "epochs: int = 1"}
    for usual, tiny in small.items():
        assert usual in tagged.source
        tagged.source = tagged.source.replace(usual, tiny)
    notebook.cells.append(nbformat.v4.new_code_cell("ek.explore(ds, digits, n=2)"))
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook, tmp_path / "notebooks" / "00_start_here.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex()
    own = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"),
            *("--ip=127.0.0.1", f"--port={port}", f"--IdentityProvider.token={token}", "notebooks"),
        ],
        cwd=tmp_path,
        env=os.environ | own | {"EEDKIT_CACHE": str(tmp_path / "cache")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/api?token={token}", server)
        yield f"http://127.0.0.1:{port}/lab/tree/00_start_here.ipynb?token={token}"
    finally:
        server.terminate()
        server.wait(timeout=30)


def wait_for(url, server):
    for _ in range(240):
        assert server.poll() is None, "JupyterLab ended"
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail("JupyterLab did not answer within two minutes")


def pictures(page):
    return [drawing.inner_html() for drawing in page.locator(FIGURES).all()]


def test_the_first_notebook_runs_and_its_explorer_moves(lab, browser, tmp_path):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(240_000)
    page.goto(lab)
    page.wait_for_function("window.jupyterapp && jupyterapp.shell.currentWidget?.context?.sessionContext?.session")
    assert page.evaluate(RUN_ALL)
    outputs = [output for cell in page.evaluate(OUTPUTS) for output in cell]
    # what is written to stderr stands in a red box
    boxes = [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert boxes == []
    assert sum("image/svg+xml" in output.get("data", {}) for output in outputs) >= 3
    # its figures stand where `make report` writes them
    assert (tmp_path / "reports" / "figures" / "00_start_here_depth.svg").is_file()

    page.locator(FIGURES).first.scroll_into_view_if_needed()
    before = pictures(page)
    assert len(before) == 5
    page.get_by_label("metric", exact=True).select_option("softmax")
    page.wait_for_function(
        "([figures, before]) => document.querySelector(figures).innerHTML != before", arg=[FIGURES, before[0]]
    )
    after = pictures(page)
    assert after
    assert not set(before) & set(after)

    page.evaluate(DARK)
    white = "figures => getComputedStyle(document.querySelector(figures)).color == 'rgb(255, 255, 255)'"
    page.wait_for_function(white, arg=FIGURES)
    page.close()
