"""Derive seeds of random streams from the seed of a run. This module does not import torch."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *names: str) -> int:
    """A seed below 2**63 that depends on ``seed`` and every name: sha256, so that no two streams are related."""
    digest = hashlib.sha256("/".join((str(seed), *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
