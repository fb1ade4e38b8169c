"""Markdown with formulas to HTML with MathML, which browsers draw without a script.

Knows text alone. Costs milliseconds per formula, when the page is built.
"""

import html
import re

from latex2mathml.converter import convert
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath, MathInlineParser

# Pandoc's rule for a single dollar: nothing blank inside the fences, no digit behind, so that "$5 and $6" stays prose. No
# backtick inside, so that a price before a code span does not open a formula.
_INLINE_MATH = r"\$(?![\s$])(?P<math_inline_tex>(?:\\.|[^\\$`\n]|\n(?!\s*\n))+?)(?<!\s)\$(?![\d$])"
# \sim is a relation, not the letter ~; and a hat that stretches stands too high.
_BETTER = {"<mi>&#x0007E;</mi>": "<mo>&#x0223C;</mo>", "<mo>&#x0005E;</mo>": '<mo stretchy="false">&#x002C6;</mo>'}
_NOT_CONVERTED = re.compile(r"<m[io][^>]*>(?:\\[A-Za-z]+|&|[{}])</m[io]>")


def markdown(source: str, attachments: dict | None = None) -> str:
    """Markdown to HTML, its formulas (`$…$`, `$$…$$`) to MathML; a dollar in code stays a dollar."""
    renderer = _Renderer(escape=False, exclude_anchor_links=True, attachments=attachments or {})
    return MarkdownWithMath(renderer, inline=_Inline(hard_wrap=False)).render(source)


def mathml(tex: str, *, block: bool = False) -> str:
    """A formula as MathML; as code, readable, where it cannot be converted."""
    try:
        math = convert(tex.strip(), display="block" if block else "inline")
    except Exception:
        # latex2mathml raises a dozen unrelated types, IndexError among them; the formula is shown as it was written
        math = ""
    if not math or _NOT_CONVERTED.search(math):
        fence = "$$" if block else "$"
        return f'<code class="formula">{html.escape(fence + tex + fence, quote=False)}</code>'
    for wrong, right in _BETTER.items():
        math = math.replace(wrong, right)
    return f'<span class="formula" tabindex="0">{math}</span>' if block else math


class _Renderer(IPythonRenderer):
    def table(self, text: str) -> str:
        return f'<div class="scroll" tabindex="0"><table>\n{text}</table></div>\n'

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def block_math(self, body: str) -> str:
        return mathml(body, block=True)


class _Inline(MathInlineParser):
    SPECIFICATION = MathInlineParser.SPECIFICATION | {"inline_math_tex": _INLINE_MATH}
