"""Figures as a part of a page, in the page's own colours, light or dark. Knows matplotlib and never results."""

import html
import io
import re

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from eedkit.plots.style import COLOURS

INK = "var(--jp-content-font-color1, CanvasText)"
"""The colour of text: that of JupyterLab's theme, elsewhere that of the browser's scheme."""
REM = 8
"""Of the page for an inch of a figure, at most: its text is then as large as the page's."""
GREY_OF_DATA = next(colour for colour in COLOURS if len(set(colour[1::2])) == len(set(colour[2::2])) == 1)
GREY = re.compile(rf"#(?!{GREY_OF_DATA[1:]})([0-9a-f]{{2}})\1\1\b")
NO_METADATA: dict = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def inline_svg(figure: Figure, says: str) -> str:
    """A figure as SVG without a background, whose greys are mixed from the colour of the page's text.

    So white paper becomes none at all, and black lines are white on a dark page. Data keep their colours.

    Parameters
    ----------
    figure : Figure
        As `ek.plots` makes it.
    says : str
        What is seen, for those who do not see it.
    """
    for ax in figure.axes:
        if any(isinstance(artist, QuadMesh) for artist in ax.collections):
            _keep_colours_of_numbers(ax)
    file = io.StringIO()
    # identifiers that are the same every time, and no other figure's on the page
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": says}):
        figure.savefig(file, format="svg", dpi=200, metadata=NO_METADATA)
    drawing = file.getvalue().partition("<svg ")[2]
    width, height = 72 * figure.get_size_inches()
    size = f'viewBox="0 0 {width:g} {height:g}"'
    inside = drawing.partition(">")[2].replace("*{stroke-linejoin", ".eedkit-figure *{stroke-linejoin")
    inside = re.sub(r'<g id="[^"]*"', "<g", inside)  # which every figure has
    label = html.escape(says, quote=True)
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" class="eedkit-figure" role="img" aria-label="{label}" {size}'
    return f'{opening} style="width: 100%; max-width: {width / 72 * REM:g}rem; color: {INK}">{GREY.sub(_ink, inside)}'


def _keep_colours_of_numbers(ax: Axes) -> None:
    """Numbers on coloured cells are not on the page: a grey that is none by one step stays as it is."""
    for text in ax.texts:
        red, green, blue = to_rgb(text.get_color())
        text.set_color((red, green, blue - 1 / 255 if blue > 0.5 else blue + 1 / 255))


def _ink(grey: re.Match) -> str:
    part = 1 - int(grey[1], 16) / 255
    return f"color-mix(in srgb, currentColor {part:.0%}, transparent)"
