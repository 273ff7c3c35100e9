"""TRL's DPO and SFT on the same rows, where TRL is installed."""

import pytest
import torch

from prefrec.lm.packing import pack
from prefrec.lm.scoring import choice_logps
from prefrec.losses import softmax_dpo_loss
from prefrec.prompts import ChoiceSet
from prefrec.training.adapters import add_reference_adapter, reference_of

trl = pytest.importorskip("trl")
ROWS = 8


def words(tokens):
    return " ".join(f"t{i}" for i in tokens)


@pytest.fixture(scope="module")
def rows(script):
    """Prompts with the chosen and one rejected answer."""
    return [ChoiceSet(row.prompt, row.answers[:2]) for row in script.problem(3).rows[:ROWS]]


def arguments(folder):
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "max_length": None,
        "gradient_checkpointing": False,
    }


def batch_of(trainer):
    return trainer.data_collator([trainer.train_dataset[i] for i in range(ROWS)])


def dataset(rows, *columns):
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    texts = ([words(row.prompt), *(f" {words(a[:-1])}" for a in row.answers)] for row in rows)
    return Dataset.from_list([dict(zip(("prompt", *columns), text, strict=False)) for text in texts])


def moved(script, model):
    """The model with the adapter after the authors' five steps; its reference stays."""
    with torch.no_grad():
        for name, weight in script.lora(model).items():
            weight.copy_(torch.from_numpy(script.stored(3)[f"weights {name}"]))
    return model


@pytest.mark.filterwarnings("ignore")
def test_dpo(script, rows, tmp_path):
    trainer = trl.DPOTrainer(
        script.problem(3).model,
        args=trl.DPOConfig(**arguments(tmp_path), beta=1.0),
        train_dataset=dataset(rows, "chosen", "rejected"),
        processing_class=script.tokenizer(),
    )
    theirs = moved(script, trainer.model.train())
    want = trainer.compute_loss(theirs, batch_of(trainer))
    want.backward()
    ours = script.problem(3).model
    add_reference_adapter(ours)
    batch = pack(rows, pad_id=script.PAD)
    logps = choice_logps(moved(script, ours), batch)
    with torch.no_grad(), reference_of(ours):
        reference = choice_logps(ours, batch)
    got = softmax_dpo_loss(logps, reference, 1.0).losses.mean()
    got.backward()
    assert float(got) == pytest.approx(float(want), abs=1e-6)
    gradients = [{n: p.grad for n, p in script.lora(m).items() if p.grad is not None} for m in (ours, theirs)]
    assert len(gradients[0]) == 42
    assert max(float(g.abs().max()) for g in gradients[0].values()) > 2
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_sft(script, rows, tmp_path):
    trainer = trl.SFTTrainer(
        script.problem(3).model,
        args=trl.SFTConfig(**arguments(tmp_path)),
        train_dataset=dataset(rows, "completion"),
        processing_class=script.tokenizer(),
    )
    want = trainer.compute_loss(trainer.model, batch_of(trainer))
    chosen = [ChoiceSet(row.prompt, row.answers[:1]) for row in rows]
    logps = choice_logps(script.problem(3).model, pack(chosen, pad_id=script.PAD))
    got = -logps.sum() / sum(len(row.answers[0]) for row in chosen)
    assert float(got) == pytest.approx(float(want), abs=1e-5)
