"""Memory that a process frees: kept for the next array of up to 32 MB, or given back."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest
import torch

from benchbd.base.memory import reuse_arrays

MB = 2**20


def faults(megabytes: int, rounds: int) -> float:
    """The pages that the system had to clear per page of an array, over arrays made and freed one after the other."""
    reuse_arrays()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.empty(megabytes * MB, dtype=torch.uint8).fill_(1)
    cleared = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return cleared * resource.getpagesize() / (megabytes * MB)


def faults_alone(megabytes: int, rounds: int) -> float:
    """``faults`` in a process of its own: what a process freed before may serve a larger array."""
    program = f"from tests.base.test_memory import faults; print(faults({megabytes}, rounds={rounds}))"
    return float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc has the setting")
def test_arrays_of_a_batch_use_the_same_pages_again() -> None:
    """An array of 20 MB takes its pages once, not twenty times."""
    assert faults_alone(20, rounds=20) < 10


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc has the setting")
def test_larger_arrays_go_back_to_the_system() -> None:
    """Each array of 80 MB takes new pages: the last one has gone back."""
    assert faults_alone(80, rounds=5) == pytest.approx(5, abs=0.5)
