"""Memory since a moment, and what Linux says of the processor."""

import subprocess
import sys

from prefrec.resources import memory_bytes, processor_says

COME_AND_GO = """
import torch
from prefrec.resources import peak_bytes, reset_peak

torch.ones(1).sum()
reset_peak("cpu")
before = peak_bytes("cpu")
block = torch.ones(1 << 26)
assert float(block.sum()) == 1 << 26
del block
with_it = peak_bytes("cpu")
reset_peak("cpu")
print(before, with_it, peak_bytes("cpu"))
"""


def test_the_peak_is_that_since_the_reset():
    """256 MiB that come and go show in the peak, until it is reset.

    Under pressure the system takes some MiB of mapped libraries from the process meanwhile.
    """
    done = subprocess.run([sys.executable, "-c", COME_AND_GO], capture_output=True, text=True, check=True)
    before, with_it, after = map(int, done.stdout.split())
    assert with_it >= before + (128 << 20)
    if sys.platform == "linux":
        assert after < before + (128 << 20)


def test_the_first_processor_tells(tmp_path):
    (tmp_path / "cpuinfo").write_text("model name\t: A: 7\nflags\t\t: avx2 fma\n\nmodel name\t: B\n")
    for names, told in ((("model name",), "A: 7"), (("Features", "flags"), "avx2 fma"), (("vendor_id",), "")):
        assert processor_says(*names, proc=tmp_path) == told
    assert processor_says("flags", proc=tmp_path / "elsewhere") == ""


def test_a_container_has_the_memory_of_its_limit(tmp_path):
    whole = memory_bytes(limits=())
    assert whole > 1 << 28
    limit, none, missing = tmp_path / "memory.max", tmp_path / "none", tmp_path / "missing"
    limit.write_text("134217728\n")
    none.write_text("max\n")
    assert memory_bytes((none, missing, limit)) == 134_217_728
    assert memory_bytes((none, missing)) == whole
