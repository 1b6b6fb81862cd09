"""A document as JSON: its data."""

from __future__ import annotations

import json
from typing import Any

from benchbd.report.document import Document


def write(document: Document) -> str:
    """One JSON document that ends with a newline."""
    return json_text(document.data)


def json_text(data: Any) -> str:
    """One JSON document that ends with a newline; unprintable characters are escaped, other letters stay unchanged."""
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text) + "\n"
