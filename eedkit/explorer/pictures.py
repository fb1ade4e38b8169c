"""Figures as SVG inside a page, in the colours of the page: dark on light, light on dark. Knows matplotlib and HTML alone."""

import html
import io
import re

import matplotlib as mpl
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from eedkit.plots.style import COLOURS

GREY = re.compile(r"#([0-9a-f]{2})\1\1\b")
"""A colour that is read against the page, but for black and white, which are read against a heat map's cells."""


def svg(figure: Figure) -> str:
    """The figure as an element of a page, as wide as its place: its greys become shades of the page's text colour.

    >>> figure = Figure()
    >>> _ = figure.text(0, 0, "on the page", color="0.5")
    >>> "fill: color-mix(in srgb, currentColor 59%, transparent)" in svg(figure)
    True
    """
    for ax in figure.axes:
        if any(isinstance(drawn, QuadMesh) for drawn in ax.collections):
            for number in ax.texts:
                # a light cell has dark numbers on any page
                number.set_color("white" if mpl.colors.to_rgb(number.get_color())[0] > 0.5 else "black")
    words = figure.get_suptitle() or getattr(figure, "caption", "")
    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": words}):  # names differ from figure to figure
        figure.savefig(file, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    drawn = file.getvalue()
    size = re.search(r'viewBox="[^"]*"', drawn)[0]
    inside = drawn[drawn.index("<defs>") :]
    inside = re.sub(r'<g id="[^"]*"', "<g", inside)  # but for these
    inside = GREY.sub(_shade, inside)
    return f'<svg role="img" aria-label="{html.escape(words, quote=True)}" {size} xmlns:xlink="http://www.w3.org/1999/xlink">{inside}'


def _shade(grey: re.Match) -> str:
    """So much of the text's colour as the grey has of the figures' text, which is 0.15."""
    level = int(grey[1], 16) / 255
    if level in (0, 1) or grey[0] in COLOURS:
        return grey[0]
    share = min(100, round(100 * (1 - level) / 0.85))
    return f"color-mix(in srgb, currentColor {share}%, transparent)"
