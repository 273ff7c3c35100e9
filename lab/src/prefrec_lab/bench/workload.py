"""The input of all methods: the same examples, and the same model with the same new adapter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase

from prefrec.cpu.linear import restore_linear, use_onednn
from prefrec.data import Catalogue, PreparedData, RankingExample, read_prepared
from prefrec.errors import ConfigError, DataError
from prefrec.intake import PrepareConfig, prepare
from prefrec.lm.models import DTYPES, load_model, load_tokenizer
from prefrec.lm.names import EMBEDDED, resolve
from prefrec.prompts import ChoiceSet, PromptEncoder, PromptTemplate, load_template
from prefrec_lab.bench.settings import BenchSettings

RANDOM = "random:"
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
    },
    "small": {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 8192,
    },
    "llama-2-7b": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
    },
}
"""Llama configurations for `random:SHAPE`; the vocabulary is at least the tokenizer's."""

POOL = 400
"""Training rows, drawn at random, among which rows of typical length are chosen."""


@dataclass(frozen=True)
class Workload:
    """B rows of one N, with the chosen title first among the 1 + N answers."""

    texts: tuple[dict[str, Any], ...]  # `prompt`, `chosen`, `rejected`, as `SoftmaxDPOTrainer` takes them
    choice_sets: tuple[ChoiceSet, ...]  # the same as token ids
    examples: tuple[RankingExample, ...]  # the questions behind them, with the titles shown as candidates
    catalogue: Catalogue
    template: PromptTemplate


def device_of(settings: BenchSettings) -> str:
    """Return `cuda` if there is a GPU and the settings allow it, else `cpu`."""
    return "cuda" if torch.cuda.is_available() and not settings.cpu else "cpu"


@cache
def make_workload(settings: BenchSettings, negatives: int) -> Workload:
    """Return B training rows with N negatives, those whose prompts are nearest to the median length.

    Raises:
        ConfigError: the data's candidate sets are too small for N, or for the titles to show.
        DataError: the data have too few examples.
    """
    size = max(20, negatives + 1, settings.shown or 0)
    data = _data(settings, size)
    rng = np.random.default_rng(settings.seed)
    pool = [data.train[i] for i in rng.permutation(len(data.train))[:POOL]]
    if len(pool) < settings.batch_size:
        raise DataError(f"{settings.batch_size} rows a batch, but the data has {len(pool)} training rows")
    least = min(len(e.candidates) for e in pool)
    if least < max(negatives + 1, settings.shown or 0):
        raise ConfigError(
            f"{negatives} negatives need lists of {negatives + 1} titles, but the data has one of {least}: "
            "prepare longer lists (--candidates.size), or measure fewer negatives"
        )
    template = load_template(settings.template, domain=data.domain)
    encoder = PromptEncoder(tokenizer_of(settings))
    rows = [_row(e, data.catalogue, template, encoder, negatives, settings.shown) for e in pool]
    lengths = np.array([len(choices.prompt) for _, choices, _ in rows])
    typical = np.argsort(np.abs(lengths - np.median(lengths)), kind="stable")[: settings.batch_size]
    texts, sets, examples = zip(*(rows[i] for i in typical), strict=True)
    # A new template: after rendering it holds objects that cannot be sent to another process.
    return Workload(texts, sets, examples, data.catalogue, replace(template))


def catalogue_workload(settings: BenchSettings) -> Workload:
    """Return one row of typical length whose answers are all titles of the catalogue, in its order."""
    work = make_workload(settings, 1)
    encoder = PromptEncoder(tokenizer_of(settings))
    every = encoder.encode_text(work.texts[0]["prompt"], list(work.catalogue.titles.values()))
    return replace(work, choice_sets=(every,))


def tokenizer_of(settings: BenchSettings) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer; random models have one of bytes (tiny, small) or the embedded model's."""
    shape = _shape(settings.model)
    if shape in ("tiny", "small"):
        return _byte_tokenizer()
    return load_tokenizer(EMBEDDED if shape else settings.model)


def config_of(settings: BenchSettings) -> PretrainedConfig:
    """Return the model's configuration."""
    shape = _shape(settings.model)
    if shape is None:
        return AutoConfig.from_pretrained(resolve(settings.model))
    sizes = dict(SHAPES[shape])
    sizes["vocab_size"] = max(sizes.get("vocab_size", 0), len(tokenizer_of(settings)))
    return AutoConfig.for_model("llama", **sizes)


def base_model(settings: BenchSettings) -> Any:
    """Return a freshly loaded (or randomly initialised) base model on the device, in evaluation mode.

    Random weights are drawn on the device and in their final type: nothing is downloaded, and the machine's memory
    holds no copy.
    """
    device, dtype = device_of(settings), DTYPES[settings.dtype]
    if _shape(settings.model) is None:
        model: Any = load_model(settings.model, dtype=settings.dtype).to(device)
    else:
        torch.manual_seed(settings.seed)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config_of(settings), dtype=dtype)
        use_onednn(model)
    return model.eval()


def plain_model(settings: BenchSettings) -> Any:
    """Return `base_model` as transformers loads it, with torch's linear layers."""
    model = base_model(settings)
    restore_linear(model)
    return model


def _shape(model: str) -> str | None:
    """Return the shape that `random:SHAPE` names; None for a model with weights."""
    if not model.startswith(RANDOM):
        return None
    shape = model.removeprefix(RANDOM)
    if shape not in SHAPES:
        raise ConfigError(f"model {model!r}: expected {' or '.join(RANDOM + s for s in SHAPES)}")
    return shape


def _data(settings: BenchSettings, size: int) -> PreparedData:
    if settings.data is not None:
        return read_prepared(Path(settings.data))
    return prepare(PrepareConfig.model_validate({"candidates": {"size": size}, "seed": settings.seed}))


def _row(
    example: RankingExample,
    catalogue: Catalogue,
    template: PromptTemplate,
    encoder: PromptEncoder,
    negatives: int,
    shown: int | None,
) -> tuple[dict[str, Any], ChoiceSet, RankingExample]:
    """Return the row as text, as token ids, and as the question with the titles shown."""
    rejected = [c for c in example.candidates if c != example.target]
    kept = {example.target, *rejected[: shown - 1 if shown else None]}
    candidates = tuple(c for c in example.candidates if c in kept)
    question = RankingExample(example.user_id, example.history, candidates, example.target)
    prompt = template.render(catalogue.titles_of(question.history), catalogue.titles_of(question.candidates))
    chosen, *others = catalogue.titles_of([example.target, *rejected[:negatives]])
    text = {"prompt": prompt, "chosen": chosen, "rejected": others}
    return text, encoder.encode_text(prompt, [chosen, *others]), question


def _byte_tokenizer() -> PreTrainedTokenizerBase:
    from transformers import PreTrainedTokenizerFast

    end = "<|end|>"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([end, *alphabet])}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=end, pad_token=end)
