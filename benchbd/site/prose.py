"""Markdown of pages and notes as HTML that fetches nothing and runs nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from benchbd.report.writers.safe import paragraphs

_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")

_SCROLLED = {"table_open": '<div class="scroll" tabindex="0" role="region" aria-label="table">', "table_close": ""}


def html(text: str, level: int = 3) -> Markup:
    """Markdown as HTML. level: of the first headings. Of links, only those to other sites remain; HTML is text."""
    tokens = _MARKDOWN.parse(paragraphs(text))
    top = min((int(token.tag[1]) for token in tokens if token.type == "heading_open"), default=level)
    for token in tokens:
        if token.type.startswith("heading_"):
            token.tag = f"h{min(6, int(token.tag[1]) - top + level)}"
        if token.type in ("th_open", "td_open"):
            token.attrs = {"scope": "col"} if token.tag == "th" else {}  # no style attributes
        if token.children:
            token.children = list(_linked(token.children))
    shown = _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {})
    shown = shown.replace("<table>", f"{_SCROLLED['table_open']}<table>").replace("</table>", "</table></div>")
    return Markup(shown.replace("<pre>", '<pre tabindex="0">'))


def chapters(text: str, names: Iterable[str]) -> Markup:
    """The sections of a page with these headings, in this order, as HTML. KeyError if one is missing."""
    found = dict(re.findall(r"^## (.+)\n((?:.*\n)*?)(?=^## |\Z)", text, re.MULTILINE))
    return Markup("\n").join(html(f"## {name}\n{found[name]}", 2) for name in names)


def _linked(tokens: Sequence[Token]) -> Iterable[Token]:
    """Tokens of a line without links that do not lead to another site."""
    dropped = False
    for token in tokens:
        if token.type == "link_open":
            dropped = not re.match(r"https?://", str(token.attrGet("href")))
            token.attrs = {"href": str(token.attrGet("href")), "rel": "nofollow noopener noreferrer"}
        if not (dropped and token.type in ("link_open", "link_close")):
            yield token
