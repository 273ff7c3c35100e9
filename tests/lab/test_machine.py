"""Memory and cores: the lower of what the machine and a container's limits leave."""

import os
from types import SimpleNamespace

import psutil
import pytest

from prefrec_lab.machine import free_bytes, usable_cores

AVAILABLE = 32000 * 1024
CORES = 16
OWN, ROOT = "memory/docker/x/memory.", "memory/memory."
CONTENTS = {f"{OWN}limit_in_bytes": 1000, f"{OWN}usage_in_bytes": 400, f"{ROOT}usage_in_bytes": 400}
CONTENTS |= {f"{OWN}stat": "inactive_file 1\ntotal_inactive_file 50", f"{ROOT}limit_in_bytes": 9223372036854771712}
CONTENTS |= {"cpu/docker/x/cpu.cfs_quota_us": 250000, "cpu/docker/x/cpu.cfs_period_us": 100000}
CONTENTS |= {"cpu/cpu.cfs_quota_us": -1, "cpu/cpu.cfs_period_us": 100000}
V1 = {"proc/self/cgroup": "4:memory:/docker/x\n1:cpu,cpuacct:/docker/x\n3:cpuset:/\n"}
V1 |= {f"cgroup/{file}": f"{content}\n" for file, content in CONTENTS.items()}
NO_LIMIT = {"cgroup/memory.max": "max\n", "cgroup/memory.current": "5\n", "cgroup/cpu.max": "max 100000\n"}


def _limits(name: str, most: int, used: int, cpu: str) -> dict[str, str]:
    """Files of a control group of version 2."""
    folder = f"cgroup/{name}".rstrip("/")
    files = {"memory.max": most, "memory.current": used, "cpu.max": cpu, "memory.stat": "anon 1\ninactive_file 50\n"}
    return {f"{folder}/{file}": f"{content}\n" for file, content in files.items()}


@pytest.mark.parametrize(
    ("files", "free", "cores"),
    [
        pytest.param({}, AVAILABLE, CORES, id="no groups"),
        pytest.param({"proc/self/cgroup": "0::/\n", **NO_LIMIT}, AVAILABLE, CORES, id="no limit"),
        pytest.param({"proc/self/cgroup": "0::/\n", **_limits("", 1000, 400, "200000 100000")}, 650, 2, id="root"),
        pytest.param(
            {"proc/self/cgroup": "0::/a/b\n", **NO_LIMIT, **_limits("a/b", 1000, 400, "150000 100000")},
            *(650, 2),
            id="own",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/a/b\n"}
            | _limits("a", 1000, 900, "100000 100000")
            | _limits("a/b", 5000, 400, "900000 100000"),
            *(150, 1),
            id="the group above has less",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/\n", **_limits("", 1000, 1200, "max 100000")}, 0, CORES, id="too much"
        ),
        pytest.param(V1, 650, 3, id="version 1"),
    ],
)
def test_the_lower_of_machine_and_container_counts(tmp_path, monkeypatch, files, free, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(CORES)), raising=False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=AVAILABLE))
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert free_bytes(tmp_path / "proc", tmp_path / "cgroup") == free
    assert usable_cores(tmp_path / "proc", tmp_path / "cgroup") == cores
