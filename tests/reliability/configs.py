"""Hostile settings of models, tokenizers and adapters: each is read, or refused in a line, soon, in little memory."""

import json
import random
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model

from prefrec.errors import PrefrecError
from prefrec.files import read_json
from prefrec.lm.items import add_items, load_item_model, save_item_model
from prefrec.lm.models import load_model, load_tokenizer
from prefrec.training import lora_config
from prefrec.training.adapters import load_adapter
from reliability.limits import Hung, within
from tiny import bpe_tokenizer, tiny_llama

LIMIT_S, LIMIT_BYTES = 60.0, 8 << 30
"""Seconds (on a busy machine) and bytes of memory for one configuration."""

LEAST = 12
"""Configurations that are tried, however long they take: some of them are refused."""

VALUES: tuple[Any, ...] = (
    *(0, -1, 1, 3, 500, 1 << 16, 10**6, 2**31, 2**63, 10**400, 0.5, -1e308, float("nan"), float("inf")),
    *("", "x", "x" * 100_000, "(.*)*!", "(a+)+$", "../../../etc/passwd", "os.system", "\x00\ud800", "auto", "nf4"),
    *("{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}", "{{ ''.__class__ }}"),
    *(None, True, False, [], [1], [0] * 5000, ["x"] * 5000, {}, {"": {}}, {"rope_type": "yarn", "factor": 1e30}),
    *({"quant_method": "gptq", "bits": 2}, {"AutoModelForCausalLM": "evil.Model"}),
)
"""What a field may hold."""

FIELDS: dict[str, tuple[str, ...]] = {
    "config.json": (
        *("auto_map", "quantization_config", "rope_scaling", "rope_parameters", "layer_types", "sliding_window"),
        *("num_experts", "num_local_experts", "head_dim", "_attn_implementation", "architectures", "model_type"),
        *("torch_dtype", "dtype", "tie_word_embeddings", "pad_token_id", "text_config", "is_encoder_decoder"),
    ),
    "tokenizer_config.json": ("auto_map", "tokenizer_class", "chat_template", "added_tokens_decoder", "extra"),
    "tokenizer.json": ("model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder"),
    "generation_config.json": ("max_length", "transformers_version", "_from_model_config"),
    "adapter_config.json": (
        *("loftq_config", "modules_to_save", "target_modules", "layers_to_transform", "rank_pattern", "auto_mapping"),
        *("alpha_pattern", "megatron_config", "trainable_token_indices", "exclude_modules", "layer_replication"),
        *("corda_config", "eva_config", "runtime_config", "target_parameters", "peft_type"),
    ),
    "items.json": (),
}
"""Fields of a file that are dangerous, beside those that it has."""


def make_folders(folder: Path) -> dict[str, Path]:
    """Write a tiny model with its tokenizer, an adapter of it, and a model with item tokens."""
    model, tokenizer = tiny_llama(), bpe_tokenizer()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    get_peft_model(tiny_llama(), lora_config(r=2)).save_pretrained(folder / "adapter")
    with_items = tiny_llama()
    add_items(with_items, [f"i{n}" for n in range(9)], torch.randn(9, 4))
    save_item_model(with_items, folder / "items")
    return {name: folder / name for name in ("model", "adapter", "items")}


def _read(whole: dict[str, Path]) -> dict[str, Callable[[Path], object]]:
    return {
        "model": lambda copy: (load_model(str(copy), dtype="float32"), load_tokenizer(str(copy))),
        "adapter": lambda copy: load_adapter(load_model(str(whole["model"]), dtype="float32"), copy),
        "items": lambda copy: load_item_model(copy, dtype="float32"),
    }


def try_configs(folder: Path, seed: int, seconds: float) -> tuple[int, list[str], int]:
    """Try hostile configurations in a process whose memory this limits: how many, what is wrong, how many refused.

    The file `case` in `folder` holds the last one, for a process that ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole, rng, wrong = make_folders(folder), random.Random(seed), []
    readers, ends, tried, refused = _read(whole), time.monotonic() + seconds, 0, 0
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + LIMIT_BYTES, resource.RLIM_INFINITY))
    while time.monotonic() < ends or tried < LEAST:
        kind = rng.choice(list(whole))
        file = rng.choice([name for name in FIELDS if (whole[kind] / name).exists()])
        text = _hostile(whole[kind] / file, rng)
        (folder / "case").write_text(f"{kind}/{file}: {text}", encoding="utf-8", errors="replace")
        copy = Path(shutil.copytree(whole[kind], folder / "copy"))
        (copy / file).write_text(text, encoding="utf-8", errors="surrogatepass")
        told = _told(readers[kind], copy)
        tried, refused = tried + 1, refused + (told == "refused")
        wrong += [f"{kind}/{file}: {told}: {text[:300]}"] if told not in ("read", "refused") else []
        shutil.rmtree(copy)
    return tried, wrong, refused


def _hostile(file: Path, rng: random.Random) -> str:
    """The content of a file with other values for one to three of its fields, or as a whole."""
    good = read_json(file)
    if not good or rng.random() < 0.05:
        return rng.choice((json.dumps(rng.choice(VALUES)), "[" * 100_000, '{"a": ' * 100_000, "\x00", ""))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        place = good
        field = rng.choice([*place, *FIELDS[file.name]])
        while isinstance(place.get(field), dict) and place[field] and rng.random() < 0.6:
            place = place[field]
            field = rng.choice(list(place))
        place[field] = rng.choice(VALUES)
    return json.dumps(good)


def _told(read: Callable[[Path], object], copy: Path) -> str:
    start = time.monotonic()
    try:
        with within(LIMIT_S):
            read(copy)
        return "read"
    except PrefrecError as e:
        text = str(e)
        if "\n" in text or len(text) > 1500:
            return f"a long message ({text[:200]})"
        return f"memory ({text})" if "allocate" in text else "refused"
    except (Exception, Hung) as e:  # noqa: BLE001
        return f"{type(e).__name__} escaped after {time.monotonic() - start:.0f} s ({str(e)[:200]})"
