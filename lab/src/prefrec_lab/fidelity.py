"""Compare the trainer with the authors': `python -m prefrec_lab.fidelity` writes the tables of docs/reproduce.md.

`lab/fidelity/authors-n*.npz` holds what the trainer of github.com/chenyuxin1999/S-DPO (commit f6dd7e8) computes in
float32 from `problem`: a random Llama and rows of random tokens, both from frozen generators of numpy. Its code is
not part of this repository. `lab/fidelity/trl.npz` holds what trainers of TRL compute (`prefrec_lab.fidelity_trl`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefrec.lm.packing import pack
from prefrec.lm.scoring import choice_logps
from prefrec.losses import softmax_dpo_loss
from prefrec.prompts import ChoiceSet
from prefrec.training import PreferenceDataset, SoftmaxDPOConfig, SoftmaxDPOTrainer
from prefrec.training.adapters import add_reference_adapter, reference_of
from prefrec_lab.losses import simpo_loss
from prefrec_lab.results import ROOT

VECTORS, PAGE = ROOT / "lab" / "fidelity", ROOT / "docs" / "reproduce.md"
TRL_VECTORS = VECTORS / "trl.npz"
BEGIN, BEGIN_TRL, FINISH = "<!-- prefrec_lab.fidelity -->", "<!-- prefrec_lab.fidelity: TRL -->", "<!-- end -->"
NEGATIVES = 3, 7
ROWS, VOCABULARY, PAD, END = 40, 300, 0, 2
BETA, GAMMA = 1.0, 0.5
PAIRS = 8
"""Rows of which TRL's trainers get the chosen and the first rejected answer; `GAMMA` is SimPO's margin."""
STEPS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_steps": 5,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "max_grad_norm": 0.3,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "remove_unused_columns": False,
    "train_sampling_strategy": "sequential",
}
"""Arguments of both trainers: five steps of eight rows, each row once."""

ROUNDING = 32 * 2.0**-17
"""Error that is allowed for a log-probability: 32 steps of float32 between 64 and 128, where the largest ones are.

Kernels of other processors add in another order. The authors' own numbers are up to 23 steps from those in float64.
"""
QUANTITIES = {
    "policy": ("log-probabilities of the policy", ROUNDING),
    "reference": ("log-probabilities of the reference", ROUNDING),
    "losses": ("losses of the rows", 2 * ROUNDING),  # two log-ratios move them, each by at most its own error
    "rewards": ("rewards", 2 * ROUNDING),  # a difference of two log-probabilities
    "gradients": ("gradients of the 42 LoRA matrices", 21 * ROUNDING),  # relative to the largest gradient, 21
    "steps": ("losses of five steps of AdamW", 2 * ROUNDING),
    "weights": ("the 42 LoRA matrices after these steps", 32 * 2.0**-23),  # 32 steps of float32 between 1 and 2
}
"""First word of an array's name → the quantity, and the largest absolute difference that is allowed."""

TRL_QUANTITIES = {"dpo": "`DPOTrainer`", "simpo": '`CPOTrainer`, `loss_type="simpo"`', "sft": "`SFTTrainer`"}
"""First word of an array's name → the trainer of TRL."""
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-3

Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Problem:
    """A model with two adapters, and rows.

    Attributes:
        model: base with the adapter at the start of training, in evaluation mode.
        rows: choice sets, the chosen answer first; answers end with `END`.
    """

    model: PeftModel
    rows: list[ChoiceSet]


def problem(negatives: int) -> Problem:
    """Return the model and the rows for N negatives; the same numbers on every machine."""
    rng = np.random.RandomState(negatives)  # numpy never changes what a RandomState draws
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=3, max_position_embeddings=256, **sizes)
    adapter = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear")
    model = get_peft_model(LlamaForCausalLM(config), adapter).eval()
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            drawn = rng.standard_normal(tuple(weight.shape))
            scale = 0.02 if "lora_B" in name else 3 / np.sqrt(weight.shape[-1])
            weight.copy_(torch.from_numpy(1 + 0.1 * drawn if weight.dim() == 1 else scale * drawn))

    def tokens(least: int, most: int) -> tuple[int, ...]:
        return tuple(rng.randint(3, VOCABULARY, rng.randint(least, most + 1)).tolist())

    answers = (tuple((*tokens(1, 8), END) for _ in range(1 + negatives)) for _ in range(ROWS))
    return Problem(model, [ChoiceSet(tokens(20, 60), row) for row in answers])


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that reads `t5 t17` as the tokens 5 and 17."""
    words = {f"t{i}": i for i in range(VOCABULARY) if i not in (PAD, END)} | {"<pad>": PAD, "<end>": END}
    raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", pad_token="<pad>")


def lora(model: nn.Module, of: str = "default") -> dict[str, torch.Tensor]:
    """Return the 42 matrices of an adapter by name."""
    return {n.removeprefix("base_model.model."): p for n, p in model.named_parameters() if f".{of}." in n}


def moved(model: PeftModel) -> PeftModel:
    """Return the model with the adapter of the authors' five steps for N = 3; its reference stays as it is."""
    weights = stored(3)
    with torch.no_grad():
        for name, weight in lora(model).items():
            weight.copy_(torch.from_numpy(weights[f"weights {name}"]))
    return model


def gradients(matrices: dict[str, torch.Tensor], name: str) -> Arrays:
    """Return the matrices' gradients, with the names of matrices after `name`."""
    return {f"{name} {n}": p.grad.numpy() for n, p in matrices.items() if p.grad is not None}


def pairs() -> list[ChoiceSet]:
    """Return the rows that TRL's trainers get: prompts with the chosen and one rejected answer."""
    return [ChoiceSet(row.prompt, row.answers[:2]) for row in problem(3).rows[:PAIRS]]


def beside_trl(gamma: float = GAMMA) -> Arrays:
    """Return what TRL's trainers are compared with: mean losses of `pairs`, and their gradients."""
    found: Arrays = {}
    for name in TRL_QUANTITIES:
        model = problem(3).model
        add_reference_adapter(model)
        batch = pack(pairs(), pad_id=PAD)
        policy = choice_logps(moved(model), batch)
        lengths = torch.tensor([[len(a) for a in row.answers] for row in pairs()])
        if name == "dpo":
            with torch.no_grad(), reference_of(model):
                reference = choice_logps(model, batch)
            loss = softmax_dpo_loss(policy, reference, BETA).losses.mean()
        elif name == "simpo":
            loss = simpo_loss(policy, None, BETA, lengths=lengths, margin=gamma).losses.mean()
        else:
            loss = -policy[:, 0].sum() / lengths[:, 0].sum()  # a mean over the batch's tokens, as of our `SFTTrainer`
        loss.backward()
        found |= {f"{name} loss": loss.detach().reshape(1).numpy()}
        found |= gradients(lora(model), f"{name} gradients")
    return found


def scored(negatives: int, weights: Arrays, beta: float = BETA) -> Arrays:
    """Return log-probabilities, losses, rewards [40, …] and gradients of the mean loss, at given LoRA matrices."""
    given = problem(negatives)
    add_reference_adapter(given.model)
    matrices = lora(given.model)
    with torch.no_grad():
        for name, weight in matrices.items():
            weight.copy_(torch.from_numpy(weights[f"weights {name}"]))
    batch = pack(given.rows, pad_id=PAD)
    policy = choice_logps(given.model, batch)
    with torch.no_grad(), reference_of(given.model):
        reference = choice_logps(given.model, batch)
    loss = softmax_dpo_loss(policy, reference, beta)
    loss.losses.mean().backward()
    tensors = {"policy": policy, "reference": reference, "losses": loss.losses, "rewards": loss.rewards}
    out = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
    return out | gradients(matrices, "gradients")


def trained(negatives: int) -> Arrays:
    """Return the LoRA matrices and the logged losses of five steps of `SoftmaxDPOTrainer`."""
    given = problem(negatives)
    with tempfile.TemporaryDirectory() as folder:
        config = SoftmaxDPOConfig(output_dir=folder, beta=BETA, max_length=None, **STEPS)
        trainer = SoftmaxDPOTrainer(
            given.model, args=config, train_dataset=PreferenceDataset(given.rows), processing_class=tokenizer()
        )
        trainer.train()
        steps = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    weights = {f"weights {n}": p.detach().numpy() for n, p in lora(given.model).items()}
    return weights | {"steps": np.array(steps, dtype=np.float32)}


def differences(ours: Arrays, theirs: Arrays, keys: Iterable[str] = QUANTITIES) -> dict[str, tuple[float, float]]:
    """Return each beginning of names → largest absolute difference, and their largest absolute value.

    Raise ValueError if the arrays have other names or shapes than theirs.
    """
    if {n: a.shape for n, a in ours.items()} != {n: a.shape for n, a in theirs.items()}:
        raise ValueError("other arrays than theirs")
    out = {}
    for key in keys:
        names = [name for name in theirs if f"{name} ".startswith(f"{key} ")]
        gap = max(float(np.abs(ours[name] - theirs[name]).max()) for name in names)
        out[key] = gap, max(float(np.abs(theirs[name]).max()) for name in names)
    return out


def trl_differences(ours: Arrays, theirs: Arrays) -> dict[str, tuple[float, float]]:
    """Return `differences` of the loss and of the gradients of each trainer of TRL."""
    return differences(ours, theirs, [f"{key} {part}" for key in TRL_QUANTITIES for part in ("loss", "gradients")])


def stored(negatives: int) -> Arrays:
    """Return the numbers of the authors' trainer."""
    with np.load(VECTORS / f"authors-n{negatives}.npz") as file:
        return dict(file)


def stored_trl() -> Arrays:
    """Return the numbers of TRL's trainers."""
    with np.load(TRL_VECTORS) as file:
        return dict(file)


def trl_table(found: dict[str, tuple[float, float]]) -> str:
    """Return the page's table of TRL's trainers, by their differences."""
    columns = [f"{what}, {part}" for what in ("loss", "gradients") for part in ("largest", "difference", "tolerance")]
    head = ["trainer of TRL", *columns]
    lines = [head, ["---"] * len(head)]
    for key, trainer in TRL_QUANTITIES.items():
        cells = [trainer]
        for part, tolerance in (("loss", LOSS_TOLERANCE), ("gradients", GRADIENT_TOLERANCE)):
            gap, largest = found[f"{key} {part}"]
            cells += [f"{largest:.3g}", f"{gap:.2g}", f"{tolerance:g}"]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(found: dict[int, dict[str, tuple[float, float]]]) -> str:
    """Return the rows of the page's table, by the differences for each N."""
    head = ["quantity", *(f"{what}, N = {n}" for n in found for what in ("largest value", "largest difference"))]
    lines = [[*head, "tolerance"], ["---"] * (len(head) + 1)]
    for key, (quantity, tolerance) in QUANTITIES.items():
        values = [
            f"{number:.{digits}g}" for n in found for number, digits in zip(found[n][key][::-1], (3, 2), strict=True)
        ]
        lines.append([quantity, *values, f"{tolerance:.2g}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Compare, and write the page's two tables."""
    found = {}
    for n in NEGATIVES:
        theirs = stored(n)
        found[n] = differences(scored(n, theirs) | trained(n), theirs)
    page = PAGE.read_text(encoding="utf-8")
    for begin, new in ((BEGIN, table(found)), (BEGIN_TRL, trl_table(trl_differences(beside_trl(), stored_trl())))):
        before, mark, rest = page.partition(begin)
        page = f"{before}{mark}\n{new}\n{FINISH}{rest.partition(FINISH)[2]}"
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
