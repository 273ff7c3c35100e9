"""Fixtures of language models: tiny ones whose weights show mask bugs, small tokenizers, small data and runs."""

import shutil
from pathlib import Path

import pytest
import torch
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


@pytest.fixture(autouse=True, scope="session")
def one_dtype():
    """The dtype `auto` is float32, on a busy processor too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefrec.lm.models._product_seconds", lambda dtype: 1.0)
        yield


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
