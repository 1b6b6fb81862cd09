"""Text that is safe to show.

Names of plugins and data sets, and texts in records, come from strangers: every writer passes them through
`plain`, or through a function that does.
"""

from __future__ import annotations


def plain(text: str) -> str:
    """Text on one line without terminal control: whitespace becomes spaces, an unprintable character its Python escape.

    Unprintable are control characters and format characters, such as those that change the direction of reading.
    """
    return text if text.isprintable() else "".join(map(_plain, text))


def _plain(char: str) -> str:
    return char if char.isprintable() else " " if char.isspace() else ascii(char)[1:-1]


def paragraphs(text: str) -> str:
    """`plain` text that keeps its lines."""
    return "\n".join(map(plain, text.splitlines()))
