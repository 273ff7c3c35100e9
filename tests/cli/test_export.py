"""`prefrec export` by the command line."""

import pytest

from command import succeed
from served_run import write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bpe_tokenizer):
    return write_run(tmp_path_factory.mktemp("exported"), bpe_tokenizer)


def test_the_last_ranker_as_an_adapter(folder, tmp_path):
    assert succeed("export", folder, "--out", tmp_path / "out") == f"{tmp_path}/out\n"
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert "S-DPO" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_named_ranker_merged(folder, tmp_path):
    succeed("export", folder, "--ranker", "sft", "--merged", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
