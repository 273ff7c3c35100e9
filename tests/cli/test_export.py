"""`prefrec export` by the command line."""

from command import succeed


def test_the_last_ranker_as_an_adapter(adapted_run, tmp_path):
    assert succeed("export", adapted_run, "--out", tmp_path / "out") == f"{tmp_path}/out\n"
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert "S-DPO" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_named_ranker_merged(adapted_run, tmp_path):
    succeed("export", adapted_run, "--ranker", "sft", "--merged", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
