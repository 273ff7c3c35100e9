"""A job for `accelerate launch`: trains and ranks in small, and writes what came out of it to a folder.

    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 tests/support/in_processes.py FOLDER

FOLDER/tokenizer holds the tokenizer. With a second argument, the name of a file that shares out the weights, it makes
two trainings in bfloat16.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate.state import DistributedType, PartialState
from safetensors.torch import save_file
from transformers import AutoTokenizer

from prefrec.data import RankingExample
from prefrec.processes import _group, count, index, is_first, leave
from prefrec.prompts import load_template
from prefrec.rankers import CatalogueRanker, LMRanker
from prefrec.stages.train import train_to_weights
from prefrec.training import SFTConfig, SFTTrainer, SoftmaxDPOConfig, SoftmaxDPOTrainer
from tiny_lists import CATALOGUE, IDS
from tiny_training import adapted_model, many_negatives, settings, trainable

ROWS = many_negatives(7, 8) + many_negatives(7, 8)[::-1]
JOBS: dict[str, dict[str, Any]] = {
    "sft": {},
    "live": {"num_negatives": 5, "negatives": "per_epoch", "precompute_ref_log_probs": False},
    "parts": {"max_tokens_per_pass": 60},
}
"""Trainings by name, and what each sets."""


def main(folder: Path) -> None:
    """Carry out all jobs; a global batch of 8 rows, passes of 2."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    out = folder / f"{count()}"
    for name, changes in JOBS.items():
        trainer = _trainer(name, changes, tokenizer, out / name)
        trainer.train()
        if is_first():
            save_file(trainable(trainer.model), out / name / "weights.safetensors")
            (out / name / "log.json").write_text(json.dumps(trainer.state.log_history))
    scores, texts, tries = _rank(tokenizer)
    np.savez(out / f"ranked-{index()}.npz", scores=scores, texts=np.array(texts), tries=tries)
    if count() > 1:
        groups = [group._get_backend(torch.device("cpu")) for group in (dist.group.WORLD, _group())]
        (out / f"patience-{index()}.txt").write_text("; ".join(str(g.options._timeout) for g in groups))
    leave()


def main_sharded(folder: Path, by: str) -> None:
    """S-DPO with a reference in every step, and in passes, on weights that FSDP or DeepSpeed shares out."""
    _accelerate_on_the_cpu()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    for name in ("live", "parts"):
        given = {**JOBS[name], "use_cpu": False, "bf16": True}
        trainer = _trainer(name, given, tokenizer, folder / by / name)
        for parameter_name, parameter in trainer.model.named_parameters():
            if "lora" not in parameter_name:
                parameter.data = parameter.data.bfloat16()
        assert trainer.is_deepspeed_enabled == by.startswith("deepspeed")
        assert trainer.is_sharded
        train_to_weights(trainer, folder / by / name)
    leave()  # without this, a process that imported DeepSpeed does not end


def _accelerate_on_the_cpu() -> None:
    """accelerate shares out weights on accelerators alone: let it take the CPU for one. PyTorch itself does both."""
    made_up: Any = PartialState
    made_up._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
    made_up.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    SoftmaxDPOConfig._validate_args = lambda self: None  # which finds no GPU for bfloat16


def _trainer(name: str, changes: dict[str, Any], tokenizer: Any, out: Path) -> Any:
    shared = settings(out, max_steps=-1, num_train_epochs=2, global_batch_size=8, eval_strategy="epoch", **changes)
    # Seven rows, two a device: two processes read one of them twice.
    shared["per_device_eval_batch_size"] = 2
    kind, config, rows = SoftmaxDPOTrainer, SoftmaxDPOConfig, ROWS
    if name == "sft":
        kind, config = SFTTrainer, SFTConfig
        rows = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in ROWS]
    given = {"args": config(**shared), "train_dataset": rows, "eval_dataset": rows[:7]}
    return kind(adapted_model(), **given, processing_class=tokenizer)


def _rank(tokenizer: Any) -> tuple[np.ndarray, list[str], np.ndarray]:
    examples = [RankingExample(str(i), tuple(IDS[: 1 + i]), tuple(IDS[20 : 26 - i % 2]), IDS[20]) for i in range(7)]
    given = {"template": load_template("movies/1"), "batch_size": 2, "objective": "tokens"}
    ranker = LMRanker("lm", adapted_model(), tokenizer, CATALOGUE, **given)
    return ranker.score(examples), ranker.generate(examples), CatalogueRanker(ranker).score(examples)


if __name__ == "__main__":
    main_sharded(Path(sys.argv[1]), sys.argv[2]) if sys.argv[2:] else main(Path(sys.argv[1]))
