"""Memory since a moment, and what Linux says of the processor."""

import sys

import psutil
import torch

from prefrec.resources import peak_bytes, processor_says, reset_peak


def test_the_peak_is_that_since_the_reset():
    """64 MiB that come and go show in the peak, until it is reset."""
    reset_peak("cpu")
    before = psutil.Process().memory_info().rss
    block = torch.ones(1 << 24)
    assert float(block.sum()) == 1 << 24
    del block
    assert peak_bytes("cpu") >= before + (60 << 20)
    if sys.platform == "linux":
        reset_peak("cpu")
        assert peak_bytes("cpu") < before + (60 << 20)


def test_the_first_processor_tells(tmp_path):
    (tmp_path / "cpuinfo").write_text("model name\t: A: 7\nflags\t\t: avx2 fma\n\nmodel name\t: B\n")
    assert processor_says("model name", proc=tmp_path) == "A: 7"
    assert processor_says("Features", "flags", proc=tmp_path) == "avx2 fma"
    assert processor_says("vendor_id", proc=tmp_path) == ""
    assert processor_says("flags", proc=tmp_path / "elsewhere") == ""
