"""CPU threads: many tiny products are computed on one thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one CPU thread in the block; other libraries have threads of their own. For downstream
    heads: their products are so small that on a busy machine threads wait for each other many times longer than they
    compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
