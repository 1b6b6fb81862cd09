"""Text that is safe to show.

What plugins and data sets call themselves, and what records say, comes from strangers: every writer passes it through
`plain`, or through a function that does.
"""

from __future__ import annotations


def plain(text: str) -> str:
    """Text on one line that steers no terminal: whitespace becomes spaces, what cannot be printed its escape in Python.

    That is control characters, and those that only format, as marks that turn the direction of reading.
    """
    return text if text.isprintable() else "".join(map(_plain, text))


def _plain(char: str) -> str:
    return char if char.isprintable() else " " if char.isspace() else ascii(char)[1:-1]


def paragraphs(text: str) -> str:
    """`plain` text that keeps its lines."""
    return "\n".join(map(plain, text.splitlines()))
