"""Freed memory stays in the process while a training holds the heap, and goes back afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

from panda_fusion.heap import _glibc

pytestmark = pytest.mark.skipif(_glibc() is None, reason="no glibc, or its parameters are set in the environment")

PROGRAM = """
import resource, sys
import torch
from panda_fusion.heap import kept_heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16_000_000)  # 64 MB, above what glibc would keep by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

faults()
start = resident()
without = faults()
with kept_heap(), kept_heap():
    faults()
    held = faults()
    grown = resident() - start
after = resident() - start
print(without, held, grown, after)
"""


def test_blocks_are_kept_inside_and_given_back_at_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    without, held, grown, after = map(int, done.stdout.split())
    assert held * 20 < without, "the blocks were mapped anew inside"
    assert grown > 30_000_000, "nothing was kept"
    assert after < 30_000_000, "nothing was given back"
