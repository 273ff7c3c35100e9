"""prefrec.lm.names: the models that names stand for, and what is unpacked for the embedded one."""

import pytest

from prefrec.errors import ModelError
from prefrec.lm import names
from prefrec.lm.names import EMBEDDED, resolve
from tiny_run import write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bpe_tokenizer):
    return write_model(tmp_path_factory.mktemp("models") / "model", bpe_tokenizer)


def test_home_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert resolve("~/model") == str(folder)


def test_unpacking_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(gguf, folder):
        (folder / "half").write_text("x")
        raise OSError("disk full")

    (tmp_path / "model.gguf").write_text("x")
    monkeypatch.setenv("PREFREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(names, "embedded_gguf", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(names, "_unpack_gguf", fail)
    with pytest.raises(OSError, match="disk full"):
        resolve(EMBEDDED)
    assert list((tmp_path / "cache" / "models").iterdir()) == []


NEAR = {"smolm2-135m": "smollm2-135m", "all-MiniLM-L6-v3": "all-minilm-l6-v2"}


@pytest.mark.parametrize(("given", "near"), NEAR.items())
def test_a_name_that_is_nearly_one_of_ours(given, near):
    with pytest.raises(ModelError, match=f"no model is called '{given}'; did you mean {near}"):
        names.check_name(given)


def test_a_model_of_the_hub_is_downloaded_once_its_weights_are_in_the_cache(folder, tmp_path, monkeypatch):
    config = tmp_path / "snapshots" / "abc" / "config.json"
    config.parent.mkdir(parents=True)
    cached = {("owner/here", "config.json"): str(config)}
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *asked: cached.get(asked))
    assert names.is_downloaded(str(folder))
    assert not names.is_downloaded("owner/elsewhere")
    assert not names.is_downloaded("owner/here")  # its digest needs the configuration alone
    (config.parent / "model-00001-of-00002.safetensors").touch()
    assert names.is_downloaded("owner/here")
