"""What several tests need: tiny models whose weights show mask bugs, small tokenizers, small data."""

import gc
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported

import pytest
import torch
from hypothesis import Phase, settings
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import tiny
from study_base import base as base
from tiny import CORPUS, tiny_llama
from tiny_run import data as data
from tiny_run import rated as rated
from tiny_run import rated_recipe as rated_recipe
from tiny_run import recipe as recipe
from workplace import place as place

torch.set_num_threads(1)
# A mutant is noticed by the first example that fails; to make that one small takes a minute.
settings.register_profile("mutants", settings.get_profile("ci"), phases=(Phase.explicit, Phase.generate))
settings.load_profile("ci")  # the same examples on every machine; `make soak` draws new ones

SHARED_DATA = Path(os.environ.get("PREFREC_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


SLOW = ("cli", "fidelity", "lab", "pipeline", "reliability", "runs", "server", "stages", "systems", "training")
"""Folders whose tests train models, run commands or start servers."""


FAST = ("test_errors.py", "test_losses.py", "test_resources.py")
"""The other files beside this one are slow, too."""


def is_slow(path: Path) -> bool:
    first, *more = path.relative_to(Path(__file__).parent).parts
    return first in SLOW if more or path.is_dir() else first not in FAST


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import what `make check` leaves out."""
    here = Path(__file__).parent
    asked = config.option.markexpr == "not slow" and collection_path != here
    return True if asked and is_slow(collection_path) else None


LONGEST = ("test_processes.py", "test_examples.py", "test_docs.py", "test_nothing_lost.py")
"""Files of a minute and more. They come first, so that no process works on them when the others have ended."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make check` leaves out as slow, and put the longest files first."""
    for item in items:
        if is_slow(item.path) or any(map(item.get_closest_marker, ("real_model", "shared_data"))):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish() -> None:
    """Keep what the libraries hold out of garbage collections, of which each training makes one: a quarter second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def no_plots():
    """No plots in the reports of runs: they take a second each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefrec.report.svg.find_spec", lambda name: None)
        yield


@pytest.fixture(scope="module")
def plots(no_plots):
    """With plots, for the tests that look at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefrec.report.svg.find_spec", find_spec)
        yield


@pytest.fixture(autouse=True, scope="session")
def one_dtype():
    """The dtype `auto` is float32, on a busy processor too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefrec.lm.models._product_seconds", lambda dtype: 1.0)
        yield


@pytest.fixture(autouse=True, scope="session")
def own_titles(tmp_path_factory):
    """Vectors of titles are kept for this session alone."""
    folder = tmp_path_factory.mktemp("titles")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefrec.towers.title_store.cache_dir", lambda: folder)
        yield


@pytest.fixture
def shared_data() -> Path:
    """Folder of the public data sets; skips where it is absent."""
    if not SHARED_DATA.is_dir():
        where = "the folder that PREFREC_SHARED_DATA names (default: ../shared/data)"
        pytest.skip(f"needs the public data sets in {where}; there is no {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def model() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture(scope="session")
def adapter(recipe, data, tmp_path_factory) -> Path:
    """The folder of an adapter after a few steps of SFT on `recipe`; to be read only."""
    from prefrec.stages.inputs import RunInputs
    from prefrec.stages.train import train_sft  # imports PEFT, too

    return train_sft(RunInputs(data, "", recipe.model, recipe.lora, 0), recipe.sft, tmp_path_factory.mktemp("sft"))


@pytest.fixture(scope="session")
def adapted_run(tmp_path_factory, bpe_tokenizer) -> Path:
    """A run with random adapters; to be read only."""
    from served_run import write_run  # PEFT, which it imports, takes a second

    return write_run(tmp_path_factory.mktemp("adapted"), bpe_tokenizer)


@pytest.fixture(scope="session")
def run_with_rankers(adapted_run, tmp_path_factory) -> Path:
    """A copy of it with a fusion and a retriever; to be read only."""
    from served_run import add_rankers

    return add_rankers(shutil.copytree(adapted_run, tmp_path_factory.mktemp("rankers") / "run"))


@pytest.fixture(scope="session")
def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2, Llama 3 and SmolLM use it."""
    return tiny.bpe_tokenizer()


@pytest.fixture(scope="session")
def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece-like BPE with ▁ for spaces and byte fallback, as Llama 2 and Mistral use it."""
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    first, last = [decoders.Replace("▁", " "), decoders.ByteFallback()], [decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    raw.decoder = decoders.Sequence(first + last)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=special, show_progress=False)
    raw.train_from_iterator([f"▁{word}" for line in CORPUS for word in line.split()], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", bos_token="<s>", unk_token="<unk>")
