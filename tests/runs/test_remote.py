"""Runs at addresses are copied into the cache, and answer as the run does."""

import errno
import json
import subprocess
import sys
import urllib.request
from unittest.mock import patch

import fsspec
import pytest

from command import refused, succeed
from prefrec.errors import DataError, StorageError
from prefrec.pipeline.opened import open_run
from prefrec.recommender import Recommender
from prefrec.runs import remote
from prefrec.runs.remote import address_of, local_run
from servers import free_port, serving

HISTORY = [{"item_id": "i1"}]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "runs"


@pytest.fixture
def address(adapted_run):
    """The address of a run in memory."""
    system = fsspec.filesystem("memory")
    system.put(f"{adapted_run}/", "/bucket/shop", recursive=True)
    system.pipe("/bucket/shop/sft/checkpoint-3/optimizer.pt", b"large")
    yield "memory://bucket/shop"
    system.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    ("place", "address"),
    [
        ("s3://bucket/runs/shop", "s3://bucket/runs/shop"),
        ("s3:/bucket/runs/shop", "s3://bucket/runs/shop"),  # as a path writes it
        ("runs/shop", None),
        ("/runs/a:b/c", None),
        ("C:/runs/shop", None),
    ],
)
def test_an_address_is_told_from_a_path(place, address):
    assert address_of(place) == address


def test_a_run_is_copied_once_and_again_when_it_changes(address, adapted_run, cache):
    first = local_run(address)
    assert first.name == "shop"
    wanted = {p.relative_to(adapted_run) for p in adapted_run.rglob("*") if p.is_file()}
    assert {p.relative_to(first) for p in first.rglob("*") if p.is_file()} == {
        p for p in wanted if not any(part.startswith(".") for part in p.parts)
    }
    with patch.object(remote, "say", side_effect=AssertionError):
        assert local_run(address) == first
    fsspec.filesystem("memory").pipe("/bucket/shop/environment.json", b"{}")
    second = local_run(address)
    assert second != first
    assert first.is_dir()
    assert not list(cache.rglob("*.tmp"))


def test_a_run_at_an_address_answers_as_the_run(address, adapted_run):
    want = Recommender.from_run(adapted_run, "s-dpo").recommend(["i1"], 5)
    rec = Recommender.from_run(address, "s-dpo")
    assert rec.recommend(["i1"], 5) == want
    assert rec.__reduce__()[1][0].args == (address, "s-dpo")  # a pickle opens it on any machine
    out = succeed("recommend", address, "--ranker", "s-dpo", "--history", "i1", "--k", "5", "--json")
    assert [row["item_id"] for row in json.loads(out)] == [row.item_id for row in want]


def test_what_was_damaged_on_the_way_is_refused(address):
    system = fsspec.filesystem("memory")
    weights = "/bucket/shop/sft/adapter/adapter_model.safetensors"
    system.pipe(weights, system.cat(weights)[:-100])
    with pytest.raises(DataError, match="sft is damaged"):
        open_run(address).stage("sft")


def test_an_interrupted_copy_is_no_run(address, cache):
    with (
        patch.object(fsspec.filesystem("memory"), "get", side_effect=OSError("connection lost")),
        pytest.raises(DataError, match=r"memory://bucket/shop cannot be read \(connection lost\); check the address"),
    ):
        local_run(address)
    assert not list(cache.glob("*/*"))


def test_a_refusal_of_the_address_does_not_name_the_cache(address):
    refusal = PermissionError(errno.EACCES, "Access Denied")
    with (
        patch.object(fsspec.filesystem("memory"), "get", side_effect=refusal),
        pytest.raises(DataError, match=r"memory://bucket/shop cannot be read \(.*Access Denied\); check the address"),
    ):
        local_run(address)


def test_a_full_disk_is_not_a_fault_of_the_address(address, cache):
    with (
        patch.object(fsspec.filesystem("memory"), "get", side_effect=OSError(errno.ENOSPC, "full")),
        pytest.raises(StorageError, match=rf"^{cache}.* cannot be written: No space left on device; free some space"),
    ):
        local_run(address)


def test_what_is_no_run_or_no_file_system_is_said(address):
    asked = ("--history", "i1")
    nothing = refused("recommend", "memory://bucket", *asked)
    assert "memory://bucket: there is no run (no recipe.yaml)" in nothing
    assert "cannot be read" not in nothing
    assert "nowhere://a/b cannot be read (Protocol not known" in refused("recommend", "nowhere://a/b", *asked)
    assert "copy the run to a folder first" in refused("update", address)


def test_names_that_lead_out_of_the_folder_are_not_copied():
    assert remote._is_wanted("sft/adapter/x.json")
    for name in ("../x", "a/../../x", "/etc/x", ".lock", "sft/checkpoint-2/x", ""):
        assert not remote._is_wanted(name)


def test_s3(adapted_run, tmp_path, monkeypatch):
    """A server of its own that speaks the protocol of S3."""
    pytest.importorskip("s3fs", reason="needs s3fs and moto: pip install s3fs 'moto[server]'")
    pytest.importorskip("moto", reason="needs s3fs and moto: pip install s3fs 'moto[server]'")
    port = free_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    server = [sys.executable, "-m", "moto.server", "-p", str(port)]
    with serving(server, port, tmp_path / "s3.log", seconds=60, probe="/moto-api/"):
        system = fsspec.filesystem("s3")
        system.mkdir("bucket")
        system.put(f"{adapted_run}/", "bucket/runs/shop", recursive=True)
        want = Recommender.from_run(adapted_run, "s-dpo").recommend(["i1"], 5)
        assert Recommender.from_run("s3://bucket/runs/shop", "s-dpo").recommend(["i1"], 5) == want
        address = ["s3://bucket/runs/shop", "--ranker", "s-dpo", "--port", "0"]
        process = subprocess.Popen(
            [sys.executable, "-m", "prefrec", "serve", *address], stderr=subprocess.PIPE, text=True
        )
        try:
            url = next(line.rpartition(" at ")[2].strip() for line in process.stderr if "Serving" in line)
            asked = urllib.request.Request(
                f"{url}/v1/recommend",
                json.dumps({"history": HISTORY, "k": 5}).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(asked, timeout=60) as answer:
                assert [row["item_id"] for row in json.load(answer)["ranking"]] == [row.item_id for row in want]
        finally:
            process.kill()
            process.wait()
            process.stderr.close()
