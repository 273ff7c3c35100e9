"""Compare the memory of training with `prefrec_lab.forecast`.

`python -m prefrec_lab.trials.memory_forecast` prints the table of lab/results/56-memory-forecast.json.

Each measurement is two steps of `SoftmaxDPOTrainer` in its own process, on a random Llama and random examples, with
torch's linear layers. Memory is the peak of the process minus its memory before the model is made; on a GPU, it is
the peak that torch allocates. `python -m prefrec_lab.trials.memory_forecast card` measures Llama-2-7B on a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from prefrec.lm.models import DTYPES
from prefrec.resources import peak_bytes, reset_peak
from prefrec.training import PreferenceDataset, SoftmaxDPOConfig, SoftmaxDPOTrainer, lora_config
from prefrec_lab.bench.memory import resident_bytes
from prefrec_lab.forecast import cost, some_rows

CASES: tuple[tuple[int, int, int, int, str], ...] = (
    (512, 8, 4, 3, "float32"),
    (512, 8, 4, 15, "float32"),
    (768, 4, 2, 63, "float32"),
    (512, 8, 8, 7, "bfloat16"),
    (1024, 4, 4, 15, "bfloat16"),
)
"""Width, layers, rows per pass, N and dtype."""
CARD_CASES = ((4096, 32, 4, 15, "bfloat16"), (4096, 32, 8, 3, "bfloat16"))
WHERE = {"": ("cpu", CASES), "trial": ("cpu", ((64, 3, 2, 3, "float32"),)), "card": ("cuda", CARD_CASES)}
"""Argument → the device, and what is trained there."""
RANK = 16
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""Settings of glibc: freed memory goes back to the system at once, so the process holds what is in use."""


def llama(width: int, layers: int) -> LlamaConfig:
    """Return the shape of a Llama with the vocabulary of Llama 2."""
    sizes = {"hidden_size": width, "intermediate_size": width * 43 // 16, "num_hidden_layers": layers}
    heads = width // (64 if width < 2048 else 128)
    return LlamaConfig(vocab_size=32_000, num_attention_heads=heads, num_key_value_heads=heads, **sizes)


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer, of which a training on token ids only needs the end."""
    raw = Tokenizer(models.WordLevel({"<end>": 0}, unk_token="<end>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", pad_token="<end>")


def train(device: str, width: int, layers: int, rows: int, negatives: int, dtype: str, steps: int = 2) -> None:
    """Make two steps on random rows."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(llama(width, layers), dtype=DTYPES[dtype])
    with tempfile.TemporaryDirectory() as folder:
        args: dict[str, Any] = {"output_dir": folder, "max_steps": steps, "save_strategy": "no", "max_length": None}
        args |= {"use_cpu": device == "cpu", "bf16": dtype == "bfloat16", "per_device_train_batch_size": rows}
        data = PreferenceDataset(some_rows(rows, negatives))
        config = SoftmaxDPOConfig(**args)
        given = {"train_dataset": data, "processing_class": tokenizer(), "peft_config": lora_config(RANK)}
        SoftmaxDPOTrainer(model, args=config, **given).train()


def measure(device: str, width: int, layers: int, rows: int, negatives: int, dtype: str) -> int:
    """Return the bytes that a training takes, in this process, after a tiny one that loads what every one needs."""
    train(device, 64, 2, 1, 1, dtype, steps=1)
    before = resident_bytes(device)
    reset_peak(device)
    train(device, width, layers, rows, negatives, dtype)
    return peak_bytes(device) - before


def compare(device: str, width: int, layers: int, rows: int, negatives: int, dtype: str) -> list[str]:
    """Return a line of the table, by a training in another process."""
    case = [str(value) for value in (width, layers, rows, negatives, dtype)]
    run = [sys.executable, "-m", "prefrec_lab.trials.memory_forecast", "one", device, *case]
    where = {**os.environ, **ALLOCATOR, "PREFREC_LINEAR": "torch"}
    found = int(subprocess.run(run, env=where, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])
    told = cost(llama(width, layers), rows, negatives=negatives, rank=RANK, dtype=dtype).peak
    mib = [f"{number / 2**20:,.0f}" for number in (told, found)]
    return [f"{width} × {layers}", *case[2:], *mib, f"{told / found:.2f}"]


def main() -> None:
    """Print JSON: each line is width × layers, rows, N, dtype, MiB predicted and measured, and their quotient."""
    if sys.argv[1:2] == ["one"]:
        device, width, layers, rows, negatives, dtype = sys.argv[2:]
        used = measure(device, int(width), int(layers), int(rows), int(negatives), dtype)
        sys.stdout.write(f"{used}\n")
        return
    device, cases = WHERE[" ".join(sys.argv[1:])]
    for case in cases:
        sys.stdout.write(json.dumps(compare(device, *case), ensure_ascii=False) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
