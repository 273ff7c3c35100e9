"""Memory that is given back."""

import platform

import pytest
import torch

from prefrec_lab.bench.memory import give_memory_back, resident_bytes


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to")
def test_memory_that_was_freed_is_given_back():
    """160 MB in small blocks, of which the last keeps the heap from shrinking by itself."""
    blocks = [torch.ones(10_000) for _ in range(4000)]
    last = torch.ones(10_000)
    held = resident_bytes("cpu")
    del blocks
    give_memory_back()
    assert resident_bytes("cpu") < held - (100 << 20)
    assert float(last.sum()) == 10_000
