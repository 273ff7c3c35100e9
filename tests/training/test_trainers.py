"""The two trainers on tiny models: what they learn, what they leave alone, and that they can be resumed."""

import copy
import json
import math
import shutil

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch._dynamo import OptimizedModule
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    TrainerCallback,
)

from prefrec.errors import ConfigError, ModelError
from prefrec.lm.packing import pack
from prefrec.lm.scoring import choice_logps
from prefrec.losses import LOSSES, PreferenceLoss, softmax_dpo_loss, softmax_loss
from prefrec.prompts import ChoiceSet
from prefrec.training import SFTConfig, SFTTrainer, SoftmaxDPOConfig, SoftmaxDPOTrainer, load_adapter, lora_config
from prefrec.training.adapters import add_reference_adapter, reference_of
from prefrec.training.softmax_dpo import preference_metrics
from tiny import VOCABULARY, broken, tiny_llama
from tiny_training import COMPLETIONS, PREFERENCES, adapted_model, losses, settings, small_model, trainable


def test_sft_learns_the_answers(tmp_path, bpe_tokenizer):
    config = SFTConfig(**settings(tmp_path, max_steps=40))
    trainer = SFTTrainer(small_model(), config, train_dataset=COMPLETIONS, processing_class=bpe_tokenizer)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] - 2


def test_an_adapter_leaves_the_base_alone(tmp_path, bpe_tokenizer):
    trainer = SFTTrainer(
        small_model(),
        SFTConfig(**settings(tmp_path)),
        train_dataset=COMPLETIONS,
        processing_class=bpe_tokenizer,
        peft_config=lora_config(4),
    )
    before = small_model().state_dict()
    trainer.train()
    assert all("lora" in n for n in trainable(trainer.model))
    after = trainer.model.unload().state_dict()
    assert all(torch.equal(after[n], before[n]) for n in before)


def test_sft_loss_is_the_mean_over_answer_tokens(tmp_path, bpe_tokenizer):
    model = small_model()
    trainer = SFTTrainer(
        copy.deepcopy(model),
        SFTConfig(**settings(tmp_path, max_steps=1, per_device_train_batch_size=8)),
        train_dataset=COMPLETIONS,
        processing_class=bpe_tokenizer,
    )
    trainer.train()
    sets = trainer.train_dataset.choice_sets
    with torch.no_grad():
        total = sum(choice_logps(model, pack([c], pad_id=0)).item() for c in sets)
    assert losses(trainer)[0] == pytest.approx(-total / sum(len(c.answers[0]) for c in sets), abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_eval_loss_is_the_mean_over_all_answer_tokens(tmp_path, bpe_tokenizer, batch_size):
    config = SFTConfig(**settings(tmp_path, per_device_eval_batch_size=batch_size))
    trainer = SFTTrainer(
        small_model(), config, train_dataset=COMPLETIONS, eval_dataset=COMPLETIONS, processing_class=bpe_tokenizer
    )
    found = trainer.evaluate()
    sets = trainer.eval_dataset.choice_sets
    assert len({len(c.answers[0]) for c in sets}) > 1
    with torch.no_grad():
        total = sum(choice_logps(trainer.model, pack([c], pad_id=0)).item() for c in sets)
    assert found["eval_loss"] == pytest.approx(-total / sum(len(c.answers[0]) for c in sets), abs=1e-5)
    assert trainer.state.log_history[-1]["eval_loss"] == found["eval_loss"]


@pytest.mark.parametrize("batch_size", [2, 3, 7])
def test_metrics_of_held_out_rows_are_means_over_the_rows(tmp_path, bpe_tokenizer, batch_size):
    """Seven rows: the last batch is smaller than the others."""
    changes = {"per_device_eval_batch_size": batch_size, "precompute_ref_log_probs": False}
    config = SoftmaxDPOConfig(**settings(tmp_path, **changes))
    trainer = SoftmaxDPOTrainer(
        adapted_model(),
        args=config,
        train_dataset=PREFERENCES,
        eval_dataset=PREFERENCES[:7],
        processing_class=bpe_tokenizer,
    )
    trainer.train()
    found = trainer.evaluate()
    batch = pack(trainer.eval_dataset.choice_sets, pad_id=0)
    with torch.no_grad():
        logps = choice_logps(trainer.model, batch)
        with reference_of(trainer.model) as reference:
            out = softmax_dpo_loss(logps, choice_logps(reference, batch), config.beta)
    assert out.losses.std() > 0.01
    assert found["eval_loss"] == pytest.approx(float(out.losses.mean()), abs=1e-5)
    assert found["eval_logps/chosen"] == pytest.approx(float(logps[:, 0].mean()), abs=1e-4)
    assert found["eval_rewards/chosen"] == pytest.approx(float(out.rewards[:, 0].mean()), abs=1e-4)


def test_trl_style_rows_train_in_ten_lines(tmp_path, bpe_tokenizer):
    small_model().save_pretrained(tmp_path / "model")
    bpe_tokenizer.save_pretrained(tmp_path / "model")
    trainer = SoftmaxDPOTrainer(
        model=str(tmp_path / "model"),
        args=SoftmaxDPOConfig(**settings(tmp_path, max_steps=20, beta=0.5)),
        train_dataset=Dataset.from_list(PREFERENCES),
        peft_config=lora_config(4),
    )
    trainer.train()
    first, last = (
        next(h for h in it if "loss" in h) for it in (trainer.state.log_history, trainer.state.log_history[::-1])
    )
    assert first["loss"] == pytest.approx(math.log(4), abs=1e-4)
    assert last["rewards/accuracies"] > first["rewards/accuracies"]
    assert last["rewards/margins"] > 0
    for name in ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected", "negatives/effective"):
        assert math.isfinite(last[name])
    assert first["negatives/effective"] == pytest.approx(3, abs=1e-3)


SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
DROPPING = {
    "opt": lambda: OPTForCausalLM(
        OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=32, dropout=0.3, attention_dropout=0.3, layerdrop=0.3)
    ),
    "llama": lambda: tiny_llama(attention_dropout=0.3),
    "falcon": lambda: FalconForCausalLM(
        FalconConfig(**SIZES, parallel_attn=False, attention_dropout=0.3, hidden_dropout=0.3)
    ),
    "phi": lambda: PhiForCausalLM(
        PhiConfig(**SIZES, intermediate_size=64, resid_pdrop=0.3, embd_pdrop=0.3, attention_dropout=0.3)
    ),
}


@pytest.mark.parametrize("family", DROPPING)
def test_no_dropout_is_left(tmp_path, bpe_tokenizer, family):
    """The policy is then at first the reference, whose passes have none."""
    torch.manual_seed(0)
    config = SoftmaxDPOConfig(**settings(tmp_path, max_steps=1))
    trainer = SoftmaxDPOTrainer(
        DROPPING[family](),
        args=config,
        train_dataset=PREFERENCES,
        processing_class=bpe_tokenizer,
        peft_config=lora_config(4),
    )
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(math.log(4), abs=1e-4)


@pytest.mark.parametrize("precompute", [True, False])
@pytest.mark.parametrize("bf16", [True, False])
def test_policy_leaves_the_reference_which_stays(tmp_path, bpe_tokenizer, precompute, bf16):
    """An autocast that keeps stale casts of the adapter would leave the loss at ln(1+N)."""
    config = SoftmaxDPOConfig(**settings(tmp_path, precompute_ref_log_probs=precompute, bf16=bf16, max_steps=40))
    trainer = SoftmaxDPOTrainer(
        adapted_model(), args=config, train_dataset=PREFERENCES, processing_class=bpe_tokenizer
    )
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if ".ref." in n}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert before
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    batch = pack(trainer.train_dataset.choice_sets, pad_id=0)
    with torch.no_grad(), reference_of(trainer.model) as reference:
        ref_logps = choice_logps(reference, batch)
    with torch.no_grad():
        policy_logps = choice_logps(trainer.model, batch)
    assert softmax_dpo_loss(policy_logps, ref_logps, config.beta).losses.mean() < math.log(4) - 0.1


def test_cached_and_live_reference_train_alike(tmp_path, bpe_tokenizer):
    weights = []
    for precompute in (True, False):
        config = SoftmaxDPOConfig(**settings(tmp_path / str(precompute), precompute_ref_log_probs=precompute))
        trainer = SoftmaxDPOTrainer(
            adapted_model(), args=config, train_dataset=PREFERENCES, processing_class=bpe_tokenizer
        )
        trainer.train()
        weights.append(trainable(trainer.model))
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=0, atol=2e-5)


def test_a_compiled_policy_has_the_same_reference(tmp_path, bpe_tokenizer):
    changes = {"precompute_ref_log_probs": False, "torch_compile": True, "torch_compile_backend": "eager"}
    config = SoftmaxDPOConfig(**settings(tmp_path, max_steps=1, **changes))
    trainer = SoftmaxDPOTrainer(
        adapted_model(), args=config, train_dataset=PREFERENCES, processing_class=bpe_tokenizer
    )
    with torch.compiler.set_stance("force_eager"):  # wrapped as ever, and not compiled
        trainer.train()
    assert isinstance(trainer.model_wrapped, OptimizedModule)
    assert losses(trainer)[0] == pytest.approx(math.log(4), abs=1e-5)


def _other_weights():
    model = adapted_model()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.mul_(2)
    return model


def _other_scaling():
    model = adapted_model()
    model.peft_config["default"].lora_alpha *= 2
    return model


@pytest.mark.parametrize("shared", [False, True])
def test_reference_cache_is_read_only_under_its_own_key(tmp_path, bpe_tokenizer, shared):
    place = tmp_path / ("shared" if shared else "own")
    folder = {"reference_folder": str(place)} if shared else {}

    def reference_after(model, **changes):
        config = SoftmaxDPOConfig(**settings(tmp_path / "own", max_steps=1, **folder, **changes))
        trainer = SoftmaxDPOTrainer(model, args=config, train_dataset=PREFERENCES, processing_class=bpe_tokenizer)
        trainer.train()
        return trainer.train_dataset.ref_logps, {p.name: p.stat().st_mtime_ns for p in place.glob("reference-*")}

    first, stamps = reference_after(adapted_model())
    again, same_stamps = reference_after(adapted_model())
    assert len(stamps) == 1
    assert same_stamps == stamps
    assert (first == again).all()
    for model, changes in (
        (_other_weights(), {}),
        (_other_scaling(), {}),
        (adapted_model(), {"bf16": True}),
        (adapted_model(), {"layout": "separate"}),
    ):
        before = stamps
        changed, stamps = reference_after(model, **changes)
        assert stamps.items() > before.items()
        assert "layout" in changes or not (first == changed).all()


@pytest.mark.parametrize(
    "damage",
    [lambda b: b"", lambda b: b[:-8], lambda b: b"x" + b[1:], lambda b: b[:-1] + bytes([b[-1] ^ 1])],
)
def test_a_damaged_reference_cache_is_computed_again(tmp_path, bpe_tokenizer, damage, capsys):
    def reference():
        config = SoftmaxDPOConfig(**settings(tmp_path, max_steps=1))
        trainer = SoftmaxDPOTrainer(
            adapted_model(), args=config, train_dataset=PREFERENCES, processing_class=bpe_tokenizer
        )
        trainer.train()
        return trainer.train_dataset.ref_logps

    want = reference()
    (cache,) = tmp_path.glob("reference-*")
    whole = cache.read_bytes()
    cache.write_bytes(damage(whole))
    assert (reference() == want).all()
    assert "computed again" in capsys.readouterr().err
    assert (reference() == want).all(), "the new file is read"
    assert "computed again" not in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["a gradient", "a weight"])
def test_numbers_that_are_not_finite_end_training_at_once(tmp_path, bpe_tokenizer, fault):
    model = adapted_model()
    config = SoftmaxDPOConfig(**settings(tmp_path, save_strategy="steps", save_steps=1))
    trainer = SoftmaxDPOTrainer(model, args=config, train_dataset=PREFERENCES, processing_class=bpe_tokenizer)
    weight = next(p for n, p in model.named_parameters() if "lora_B.default" in n)

    class Fault(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2 and fault == "a gradient":
                weight.register_hook(lambda grad: grad * torch.inf)

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3 and fault == "a weight":
                weight.data[0] = torch.nan

    trainer.add_callback(Fault())
    with pytest.raises(ModelError, match=r"S-DPO: .* not finite at step [34] of 6 \(peak learning rate 0.005\)"):
        trainer.train()
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*"))[-1] == "checkpoint-2"


def test_a_rate_that_is_far_too_high_ends_training(tmp_path, bpe_tokenizer):
    config = SoftmaxDPOConfig(**settings(tmp_path, learning_rate=1e30))
    with pytest.raises(ModelError, match="not finite at step"):
        SoftmaxDPOTrainer(
            adapted_model(), args=config, train_dataset=PREFERENCES, processing_class=bpe_tokenizer
        ).train()


@pytest.mark.parametrize("stage", ["sft", "fixed", "per_epoch"])
def test_resumed_run_ends_with_the_same_weights(tmp_path, bpe_tokenizer, stage):
    def trainer(folder, **changes):
        changes = {"max_steps": -1, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 5, **changes}
        if stage == "sft":
            model = get_peft_model(small_model(), lora_config(4, dropout=0.1))
            config = SFTConfig(**settings(folder, disable_dropout=False, **changes))
            return SFTTrainer(model, config, train_dataset=COMPLETIONS, processing_class=bpe_tokenizer)
        config = SoftmaxDPOConfig(**settings(folder, num_negatives=2, negatives=stage, **changes))
        return SoftmaxDPOTrainer(
            adapted_model(), args=config, train_dataset=PREFERENCES, processing_class=bpe_tokenizer
        )

    torch.manual_seed(5)
    whole = trainer(tmp_path / "whole")
    whole.train()
    torch.manual_seed(5)
    trainer(tmp_path / "whole")  # the same construction as above draws the same random numbers
    resumed = trainer(tmp_path / "whole")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    want = trainable(whole.model)
    for name, value in trainable(resumed.model).items():
        torch.testing.assert_close(value, want[name], rtol=0, atol=0)


def test_accumulation_equals_a_large_batch(tmp_path, bpe_tokenizer):
    def run(per_device, folder, kind):
        changes = {"per_device_train_batch_size": per_device, "global_batch_size": 8, "max_steps": 3}
        if kind == "sft":
            trainer = SFTTrainer(
                adapted_model(),
                SFTConfig(**settings(folder, **changes)),
                train_dataset=COMPLETIONS,
                processing_class=bpe_tokenizer,
            )
        else:
            config = SoftmaxDPOConfig(**settings(folder, **changes))
            trainer = SoftmaxDPOTrainer(
                adapted_model(), args=config, train_dataset=PREFERENCES, processing_class=bpe_tokenizer
            )
        trainer.train()
        assert trainer.global_batch == 8
        return trainable(trainer.model), losses(trainer)

    for kind in ("sft", "s-dpo"):
        (large, large_losses), (small, small_losses) = (run(n, tmp_path / f"{kind}{n}", kind) for n in (8, 2))
        assert small_losses == pytest.approx(large_losses, abs=1e-5)
        for name, value in large.items():
            torch.testing.assert_close(value, small[name], rtol=0, atol=2e-5)


def test_rows_that_another_process_packs_train_the_same(tmp_path, bpe_tokenizer):
    """As on a GPU. Its copy of the rows has the negatives of the epoch, and passes survive the way."""

    def run(workers):
        changes = {"num_negatives": 2, "negatives": "per_epoch", "max_tokens_per_pass": 40, "max_steps": 6}
        changes["dataloader_num_workers"] = workers
        config = SoftmaxDPOConfig(**settings(tmp_path, **changes))
        trainer = SoftmaxDPOTrainer(
            adapted_model(), args=config, train_dataset=PREFERENCES, processing_class=bpe_tokenizer
        )
        trainer.train()
        assert trainer.train_dataset.epoch == 1
        return trainable(trainer.model)

    want, got = run(0), run(1)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=0)


def test_both_layouts_train_alike(tmp_path, bpe_tokenizer):
    weights = []
    for layout in ("packed", "separate"):
        config = SoftmaxDPOConfig(**settings(tmp_path / layout, layout=layout))
        trainer = SoftmaxDPOTrainer(
            adapted_model(), args=config, train_dataset=PREFERENCES, processing_class=bpe_tokenizer
        )
        trainer.train()
        weights.append(trainable(trainer.model))
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=0, atol=2e-5)


def test_a_model_that_breaks_packed_rows_trains_all_the_same(tmp_path, bpe_tokenizer, capsys):
    weights, layouts = [], []
    for breaks in (False, True):
        model = adapted_model()
        if breaks:
            broken(model.get_base_model())
        config = SoftmaxDPOConfig(**settings(tmp_path / str(breaks)))
        trainer = SoftmaxDPOTrainer(model, args=config, train_dataset=PREFERENCES, processing_class=bpe_tokenizer)
        trainer.train()
        weights.append(trainable(trainer.model))
        layouts.append(trainer.scorer.layout)
    assert layouts == ["packed", "separate"]
    assert "model type 'llama': the packed layout differs from separate rows" in capsys.readouterr().err
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=0, atol=2e-5)


SCORED = [{**row, "scores": [5.0, 1.0, 2.0, 1.0]} for row in PREFERENCES]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_and_reports_on_held_out_rows(tmp_path, bpe_tokenizer, loss):
    config = SoftmaxDPOConfig(**settings(tmp_path, loss_type=loss, max_steps=4, eval_strategy="steps", eval_steps=2))
    trainer = SoftmaxDPOTrainer(
        adapted_model(), args=config, train_dataset=SCORED, eval_dataset=SCORED[:3], processing_class=bpe_tokenizer
    )
    trainer.train()
    evaluated = [h for h in trainer.state.log_history if "eval_loss" in h]
    assert len(evaluated) == 2
    assert evaluated[-1]["eval_loss"] < evaluated[0]["eval_loss"] + 1e-6
    assert "eval_rewards/accuracies" in evaluated[-1]


def test_a_loss_without_its_scores_is_an_error(tmp_path, bpe_tokenizer):
    config = SoftmaxDPOConfig(**settings(tmp_path, loss_type="recpo"))
    with pytest.raises(ConfigError, match="loss recpo needs `scores` in each row: one number per answer"):
        SoftmaxDPOTrainer(
            adapted_model(), args=config, train_dataset=[*SCORED, PREFERENCES[0]], processing_class=bpe_tokenizer
        )


def test_settings_of_a_loss_reach_it(tmp_path, bpe_tokenizer):
    """Lengths are numbers of tokens, the end token included."""
    changes = {"loss_type": "simpo", "beta": 0.7, "margin": 0.4, "sft_weight": 0.2, "precompute_ref_log_probs": False}
    trainer = SoftmaxDPOTrainer(
        adapted_model(),
        args=SoftmaxDPOConfig(**settings(tmp_path, **changes)),
        train_dataset=PREFERENCES,
        processing_class=bpe_tokenizer,
    )
    rows = [trainer.train_dataset[i] for i in range(8)]
    loss = trainer.training_step(trainer.model, trainer.collate(rows), torch.tensor(8))
    sets = [row["choices"] for row in rows]
    logps, lengths = trainer.scorer.score(sets), torch.tensor([[len(a) for a in c.answers] for c in sets])
    want = LOSSES["simpo"](logps, None, 0.7, lengths=lengths, margin=0.4, sft_weight=0.2).losses.mean()
    torch.testing.assert_close(loss, want, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="loss_type: loss dpo_loss has no margin: remove this setting"):
        SoftmaxDPOConfig(**settings(tmp_path, loss_type="dpo", margin=0.4))


@pytest.mark.parametrize("checkpoint", [4, 6])
def test_negatives_of_the_policy_are_chosen_each_epoch_and_survive_a_resume(tmp_path, bpe_tokenizer, checkpoint):
    """Epochs of four steps: a checkpoint after one and a half, with weights that have moved, and after one."""
    changes = {"negatives": "policy", "num_negatives": 1, "max_steps": 12, "save_strategy": "steps", "save_steps": 2}

    def trainer():
        config = SoftmaxDPOConfig(**settings(tmp_path, learning_rate=0.05, **changes))
        return SoftmaxDPOTrainer(
            adapted_model(), args=config, train_dataset=PREFERENCES, processing_class=bpe_tokenizer
        )

    whole = trainer()
    used = []
    begin = whole.begin_epoch

    def begin_epoch(epoch):
        with whole._autocast():
            want = whole.scorer.score(whole.train_dataset.choice_sets).numpy()
        begin(epoch)
        used.append(whole.train_dataset.policy_logps)
        torch.testing.assert_close(torch.tensor(used[-1]), torch.tensor(want))

    whole.begin_epoch = begin_epoch
    whole.train()
    assert len(used) == 3
    assert (used[0].argsort() != used[2].argsort()).any()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{checkpoint}"))
    assert losses(resumed) == pytest.approx(losses(whole), abs=1e-6)
    for name, value in trainable(resumed.model).items():
        torch.testing.assert_close(value, trainable(whole.model)[name], rtol=0, atol=1e-6)


def test_a_loss_may_be_a_function(tmp_path, bpe_tokenizer):
    weights = []
    for loss in ("softmax", softmax_loss):
        config = SoftmaxDPOConfig(**settings(tmp_path / str(callable(loss)), loss_type=loss, max_steps=2))
        json.loads(config.to_json_string())
        trainer = SoftmaxDPOTrainer(
            adapted_model(), args=config, train_dataset=PREFERENCES, processing_class=bpe_tokenizer
        )
        trainer.train()
        weights.append(trainable(trainer.model))
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name])


def test_all_weights_can_be_trained_against_a_stored_reference(tmp_path, bpe_tokenizer):
    config = SoftmaxDPOConfig(**settings(tmp_path, learning_rate=5e-4, max_steps=8))
    trainer = SoftmaxDPOTrainer(small_model(), args=config, train_dataset=PREFERENCES, processing_class=bpe_tokenizer)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]


def test_all_weights_without_a_stored_reference_are_refused(tmp_path, bpe_tokenizer):
    config = SoftmaxDPOConfig(**settings(tmp_path, precompute_ref_log_probs=False))
    with pytest.raises(ConfigError, match="precompute_ref_log_probs=True"):
        SoftmaxDPOTrainer(
            small_model(), args=config, train_dataset=PREFERENCES, processing_class=bpe_tokenizer
        ).train()


def test_all_weights_keep_the_reference_of_before_the_first_step(tmp_path, bpe_tokenizer):
    config = SoftmaxDPOConfig(**settings(tmp_path, learning_rate=5e-4))
    trainer = SoftmaxDPOTrainer(
        small_model(),
        args=config,
        train_dataset=PREFERENCES,
        eval_dataset=PREFERENCES[:3],
        processing_class=bpe_tokenizer,
    )
    with pytest.raises(ConfigError, match="log-probabilities under the reference are not stored"):
        trainer.evaluate()
    trainer.train()
    kept = trainer.train_dataset.ref_logps.copy(), trainer.eval_dataset.ref_logps.copy()
    trainer.train()
    assert (trainer.train_dataset.ref_logps == kept[0]).all()
    assert (trainer.eval_dataset.ref_logps == kept[1]).all()
    assert trainer.evaluate()["eval_loss"] < math.log(4) - 0.01
    with pytest.raises(ConfigError, match="log-probabilities under the reference are not stored"):
        trainer.evaluate(trainer.build_dataset(PREFERENCES[3:]))


RAGGED = [
    {**row, "rejected": row["rejected"][: 1 + i % 3], "scores": [5.0, 2.0, 5.0, 1.0][: 2 + i % 3]}
    for i, row in enumerate(PREFERENCES)
]
"""Rows with one to three rejected answers."""


def test_all_weights_train_on_pools_of_different_sizes(tmp_path, bpe_tokenizer):
    rows = [{**row, "rejected": row["rejected"][: 2 + i % 2]} for i, row in enumerate(PREFERENCES)]
    config = SoftmaxDPOConfig(**settings(tmp_path, num_negatives=1, negatives="per_epoch", learning_rate=5e-4))
    trainer = SoftmaxDPOTrainer(small_model(), args=config, train_dataset=rows, processing_class=bpe_tokenizer)
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses(trainer)[-1] != losses(trainer)[0]


def _moved(trainer):
    """The trainer, its policy away from the reference."""
    with torch.no_grad():
        for name, p in trainer.model.named_parameters():
            if "lora_B.default" in name:
                p.mul_(3)
    return trainer


@pytest.mark.parametrize("loss", ["softmax_dpo", "dpo", "dmpo", "bpr", "simpo", "mult_dpo"])
@pytest.mark.parametrize("changes", [{}, {"max_tokens_per_pass": 24}, {"precompute_ref_log_probs": False}])
def test_rows_with_different_numbers_of_rejected_answers_count_as_each_alone(
    tmp_path, bpe_tokenizer, loss, changes, capsys
):
    """The slow twin scores one row per batch, whose table of answers has no gaps."""

    def trainer(rows):
        config = SoftmaxDPOConfig(**settings(tmp_path, loss_type=loss, beta=0.7, **changes))
        return _moved(
            SoftmaxDPOTrainer(adapted_model(), args=config, train_dataset=rows, processing_class=bpe_tokenizer)
        )

    def step(trainer, rows):
        for p in trainer.model.parameters():
            p.grad = None
        inputs = trainer.collate([trainer.train_dataset[i] for i in rows])
        value = trainer.training_step(trainer.model, inputs, torch.tensor(len(RAGGED)))
        grads = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
        logs = {}
        trainer.log(logs)
        return value, grads, logs

    together, alone = trainer(RAGGED), trainer(RAGGED)
    assert "8 training examples, N = 1 to 3 rejected titles per example, layout packed" in " ".join(
        capsys.readouterr().err.split()
    )
    value, grads, logs = step(together, range(len(RAGGED)))
    apart = [step(alone, [i]) for i in range(len(RAGGED))]
    torch.testing.assert_close(value, sum(v for v, _, _ in apart), rtol=0, atol=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, sum(g[name] for _, g, _ in apart), rtol=0, atol=1e-5)
    assert grads
    assert {"rewards/margins", "rewards/accuracies", "logps/rejected", "negatives/effective"} < logs.keys()
    for name, mean in logs.items():
        assert mean == pytest.approx(sum(log[name] for _, _, log in apart) / len(RAGGED), abs=1e-4), name


def test_a_stored_reference_of_rows_of_different_sizes_is_the_live_one(tmp_path, bpe_tokenizer):
    weights = []
    for precompute in (True, False):
        config = SoftmaxDPOConfig(**settings(tmp_path / str(precompute), precompute_ref_log_probs=precompute))
        trainer = SoftmaxDPOTrainer(
            adapted_model(),
            args=config,
            train_dataset=RAGGED,
            eval_dataset=RAGGED[:3],
            processing_class=bpe_tokenizer,
        )
        trainer.train()
        weights.append((trainable(trainer.model), trainer.evaluate()["eval_loss"]))
    assert weights[0][1] == pytest.approx(weights[1][1], abs=1e-5)
    for name, value in weights[0][0].items():
        torch.testing.assert_close(value, weights[1][0][name], rtol=0, atol=2e-5)


@pytest.mark.parametrize("loss", ["bpr", "softmax"])
def test_all_weights_train_by_a_loss_without_a_reference(tmp_path, bpe_tokenizer, loss):
    changes = {"learning_rate": 5e-4, "per_device_train_batch_size": 8, "max_steps": 8}
    config = SoftmaxDPOConfig(**settings(tmp_path, loss_type=loss, **changes))
    trainer = SoftmaxDPOTrainer(small_model(), args=config, train_dataset=PREFERENCES, processing_class=bpe_tokenizer)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]


def _adapter(model, name):
    return {n: p.detach().clone() for n, p in get_peft_model_state_dict(model, adapter_name=name).items()}


def test_a_second_alignment_starts_from_the_end_of_the_first(tmp_path, bpe_tokenizer):
    def trainer(model, folder):
        return SoftmaxDPOTrainer(
            model,
            args=SoftmaxDPOConfig(**settings(folder)),
            train_dataset=PREFERENCES,
            processing_class=bpe_tokenizer,
        )

    first = trainer(adapted_model(), tmp_path / "1")
    first.train()
    ended = _adapter(first.model, "default")
    second = trainer(first.model, tmp_path / "2")
    second.train()
    assert losses(second)[0] == pytest.approx(math.log(4), abs=1e-5)
    assert all(torch.equal(value, ended[name]) for name, value in _adapter(second.model, "ref").items())
    assert not all(torch.equal(value, ended[name]) for name, value in _adapter(second.model, "default").items())


def test_a_resumed_alignment_has_the_reference_that_it_started_with(tmp_path, bpe_tokenizer):
    def trainer():
        config = SoftmaxDPOConfig(**settings(tmp_path, save_strategy="steps", save_steps=3))
        return SoftmaxDPOTrainer(
            adapted_model(), args=config, train_dataset=PREFERENCES, processing_class=bpe_tokenizer
        )

    trainer().train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    start = _adapter(adapted_model(), "default")
    assert all(torch.equal(value, start[name]) for name, value in _adapter(resumed.model, "ref").items())


@pytest.mark.parametrize("precompute", [True, False])
@pytest.mark.parametrize("latest", [True, False])
def test_a_resumed_alignment_from_its_own_adapter_goes_on_as_the_whole_one(
    tmp_path, bpe_tokenizer, precompute, latest
):
    """The model is given as the checkpoint has it: its weights are not the reference, the checkpoint's `ref` is."""

    def trainer(model):
        changes = {"save_strategy": "steps", "save_steps": 3, "precompute_ref_log_probs": precompute}
        config = SoftmaxDPOConfig(**settings(tmp_path, eval_strategy="steps", eval_steps=3, **changes))
        return SoftmaxDPOTrainer(
            model,
            args=config,
            train_dataset=PREFERENCES,
            eval_dataset=PREFERENCES[:3],
            processing_class=bpe_tokenizer,
        )

    whole = trainer(adapted_model())
    whole.train()
    checkpoint = tmp_path / "checkpoint-3"
    if latest:
        shutil.rmtree(tmp_path / "checkpoint-6")
    resumed = trainer(load_adapter(small_model(), checkpoint, is_trainable=True))
    resumed.train(resume_from_checkpoint=True if latest else str(checkpoint))
    assert losses(whole)[3:] != pytest.approx([math.log(4)] * 3, abs=1e-3)
    assert losses(resumed) == pytest.approx(losses(whole), abs=1e-6)
    held_out = [[h["eval_loss"] for h in t.state.log_history if "eval_loss" in h] for t in (whole, resumed)]
    assert held_out[1] == pytest.approx(held_out[0], abs=1e-6)
    if precompute:
        assert (resumed.train_dataset.ref_logps == whole.train_dataset.ref_logps).all()
        assert len(list(tmp_path.glob("reference-*"))) == 2, "the stored one was found"
    want = trainable(whole.model)
    for name, value in trainable(resumed.model).items():
        torch.testing.assert_close(value, want[name], rtol=0, atol=1e-6)


def test_a_resumed_alignment_names_a_broken_reference(tmp_path, bpe_tokenizer):
    config = SoftmaxDPOConfig(**settings(tmp_path, save_strategy="steps", save_steps=3))
    SoftmaxDPOTrainer(adapted_model(), args=config, train_dataset=PREFERENCES, processing_class=bpe_tokenizer).train()
    weights = tmp_path / "checkpoint-3" / "ref" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    resumed = SoftmaxDPOTrainer(
        adapted_model(), args=config, train_dataset=PREFERENCES, processing_class=bpe_tokenizer
    )
    with pytest.raises(ModelError, match=r"the adapter in .*ref cannot be read"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_reference_adapter_is_frozen_and_made_once():
    model = adapted_model()
    add_reference_adapter(model)
    add_reference_adapter(model)
    assert set(model.peft_config) == {"default", "ref"}
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".ref." in n)
    assert any(p.requires_grad for n, p in model.named_parameters() if ".default." in n)
    assert model.active_adapter == "default"

    def layers():
        return {name for m in model.modules() if isinstance(m, BaseTunerLayer) for name in m.active_adapters}

    assert layers() == {"default"}
    with reference_of(model):
        assert layers() == {"ref"}
        assert any(p.requires_grad for n, p in model.named_parameters() if ".default." in n)
    assert layers() == {"default"}
    assert any(p.requires_grad for n, p in model.named_parameters() if ".default." in n)


def test_the_reference_of_a_training_model_has_no_dropout():
    model = get_peft_model(small_model(), lora_config(4, dropout=0.5))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
    add_reference_adapter(model)
    batch = pack([ChoiceSet((3, 4, 5), ((6, 7), (8, 9, 10)))], pad_id=0)
    with torch.no_grad():
        with reference_of(model.eval()):
            want = choice_logps(model, batch)
        assert not torch.allclose(choice_logps(model.train(), batch), want)
        with reference_of(model):
            assert torch.equal(choice_logps(model, batch), want)
    assert model.training


def test_metrics_of_preferences_are_those_of_the_best_and_the_mean_rejected_answer():
    """The chosen reward of the first row is above the mean of the others, and below the highest."""
    rewards = torch.tensor([[1.0, 2.0, -3.0, 0.5], [3.0, 2.0, 0.0, -torch.inf]])
    found = preference_metrics(PreferenceLoss(torch.zeros(2), rewards), rewards * 10)
    assert found["rewards/accuracies"].tolist() == [0.0, 1.0]
    assert found["rewards/rejected"].tolist() == pytest.approx([-0.5 / 3, 1.0])
    assert found["rewards/margins"].tolist() == pytest.approx([1 + 0.5 / 3, 2.0])
    assert found["logps/rejected"].tolist() == pytest.approx([-5 / 3, 10.0])


def test_saved_policy_loads_as_one_adapter(tmp_path, bpe_tokenizer):
    trainer = SoftmaxDPOTrainer(
        adapted_model(),
        args=SoftmaxDPOConfig(**settings(tmp_path)),
        train_dataset=PREFERENCES,
        processing_class=bpe_tokenizer,
    )
    trainer.train()
    trainer.model.save_pretrained(str(tmp_path / "out"), selected_adapters=["default"])
    loaded = PeftModel.from_pretrained(small_model(), str(tmp_path / "out"))
    batch = pack(trainer.train_dataset.choice_sets, pad_id=0)
    with torch.no_grad():
        torch.testing.assert_close(choice_logps(loaded.eval(), batch), choice_logps(trainer.model.eval(), batch))


def test_flex_attention_is_not_trained_on_a_cpu(tmp_path, bpe_tokenizer):
    model = small_model()
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ConfigError, match="flex_attention has no gradients on a CPU: load the model with sdpa"):
        SFTTrainer(model, SFTConfig(**settings(tmp_path)), train_dataset=COMPLETIONS, processing_class=bpe_tokenizer)
