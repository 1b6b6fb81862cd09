"""What a method is in a board, beside what it does."""

from __future__ import annotations

CONTROL = "-control"  # how the name of an attack that is another's control ends: it is never gated

FLOOR = "none"  # as attack and as defense: the clean encoder, whose ACC is CA and whose ASR is ASR-B

SCRATCH = "scratch"  # the defense that never saw the encoder: what the clean images alone are worth
