"""The two trainers on tiny models: what they learn, what they leave alone, and that they can be resumed."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch._dynamo import OptimizedModule
from torch.testing import assert_close
from transformers import OPTConfig, OPTForCausalLM, PhiConfig, PhiForCausalLM, TrainerCallback

from loss_cases import ALL_LOSSES
from prefrec.errors import ConfigError, ModelError
from prefrec.lm.packing import pack
from prefrec.lm.scoring import choice_logps
from prefrec.losses import PreferenceLoss, softmax_dpo_loss, softmax_loss
from prefrec.prompts import ChoiceSet
from prefrec.training import PreferenceDataset, SoftmaxDPOConfig, SoftmaxDPOTrainer, load_adapter, lora_config
from prefrec.training.adapters import add_reference_adapter, reference_of
from prefrec.training.datasets import encode_preferences
from prefrec.training.softmax_dpo import preference_metrics
from tiny import VOCABULARY, broken, tiny_llama
from tiny_run import write_model
from tiny_training import PREFERENCES, adapted_model, draw_adapters, losses, settings, small_model, trainable


def test_sft_learns_the_answers(sft):
    trainer = sft(max_steps=40, train=True)
    assert losses(trainer)[-1] < losses(trainer)[0] - 2


def test_an_adapter_leaves_the_base_alone(sft):
    trainer = sft(peft_config=lora_config(4), train=True)
    assert all("lora" in n for n in trainable(trainer.model))
    assert_close(dict(trainer.model.unload().state_dict()), dict(small_model().state_dict()), rtol=0, atol=0)


def _mean_loss(model, sets):
    """Minus the mean log-probability of an answer's token, one row at a time."""
    with torch.no_grad():
        total = sum(choice_logps(model, pack([c], pad_id=0)).item() for c in sets)
    return -total / sum(len(c.answers[0]) for c in sets)


def test_sft_loss_is_the_mean_over_answer_tokens(sft):
    trainer = sft(max_steps=1, per_device_train_batch_size=8, train=True)
    assert losses(trainer)[0] == pytest.approx(_mean_loss(small_model(), trainer.train_dataset.choice_sets), abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_eval_loss_is_the_mean_over_all_answer_tokens(sft, batch_size):
    rows = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in PREFERENCES]
    trainer = sft(evaluate=rows, per_device_eval_batch_size=batch_size)
    found, sets = trainer.evaluate(), trainer.eval_dataset.choice_sets
    assert len({len(c.answers[0]) for c in sets}) > 1
    assert found["eval_loss"] == pytest.approx(_mean_loss(trainer.model, sets), abs=1e-5)
    assert trainer.state.log_history[-1]["eval_loss"] == found["eval_loss"]


@pytest.mark.parametrize("batch_size", [2, 7])
def test_metrics_of_held_out_rows_are_means_over_the_rows(sdpo, batch_size):
    """Seven rows: the last batch may be smaller than the others."""
    trainer = sdpo(evaluate=PREFERENCES[:7], per_device_eval_batch_size=batch_size, precompute_ref_log_probs=False)
    trainer.train()
    found = trainer.evaluate()
    batch = pack(trainer.eval_dataset.choice_sets, pad_id=0)
    with torch.no_grad():
        logps = choice_logps(trainer.model, batch)
        with reference_of(trainer.model) as reference:
            out = softmax_dpo_loss(logps, choice_logps(reference, batch), trainer.args.beta)
    assert out.losses.std() > 0.01
    assert found["eval_loss"] == pytest.approx(float(out.losses.mean()), abs=1e-5)
    assert found["eval_logps/chosen"] == pytest.approx(float(logps[:, 0].mean()), abs=1e-4)
    assert found["eval_rewards/chosen"] == pytest.approx(float(out.rewards[:, 0].mean()), abs=1e-4)


def test_trl_style_rows_train_in_ten_lines(tmp_path, bpe_tokenizer):
    trainer = SoftmaxDPOTrainer(
        model=str(write_model(tmp_path / "model", bpe_tokenizer)),
        args=SoftmaxDPOConfig(**settings(tmp_path, max_steps=20, beta=0.5)),
        train_dataset=Dataset.from_list(PREFERENCES),
        peft_config=lora_config(4),
    )
    trainer.train()
    first, *_, last = (h for h in trainer.state.log_history if "loss" in h)
    assert first["loss"] == pytest.approx(math.log(4), abs=1e-4)
    assert last["rewards/accuracies"] > first["rewards/accuracies"]
    assert last["rewards/margins"] > 0
    for name in ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected", "negatives/effective"):
        assert math.isfinite(last[name])
    assert first["negatives/effective"] == pytest.approx(3, abs=1e-3)


SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
DROPS = {**SIZES, "attention_dropout": 0.3}
DROPPING = {
    "opt": lambda: OPTForCausalLM(OPTConfig(**DROPS, ffn_dim=64, word_embed_proj_dim=32, dropout=0.3, layerdrop=0.3)),
    "llama": lambda: tiny_llama(attention_dropout=0.3),
    "phi": lambda: PhiForCausalLM(PhiConfig(**DROPS, intermediate_size=64, resid_pdrop=0.3, embd_pdrop=0.3)),
}


@pytest.mark.parametrize("family", DROPPING)
def test_no_dropout_is_left(sdpo, family):
    """The policy is then at first the reference, whose passes have none."""
    torch.manual_seed(0)
    trainer = sdpo(DROPPING[family](), max_steps=1, peft_config=lora_config(4), train=True)
    assert losses(trainer)[0] == pytest.approx(math.log(4), abs=1e-4)


@pytest.mark.parametrize(("precompute", "bf16"), [(True, False), (False, True)])
def test_policy_leaves_the_reference_which_stays(sdpo, precompute, bf16):
    """An autocast that keeps stale casts of the adapter would leave the loss at ln(1+N)."""
    trainer = sdpo(precompute_ref_log_probs=precompute, bf16=bf16, max_steps=40)
    before = _adapter(trainer.model, "ref")
    trainer.train()
    assert before
    assert_close(_adapter(trainer.model, "ref"), before, rtol=0, atol=0)
    batch = pack(trainer.train_dataset.choice_sets, pad_id=0)
    with torch.no_grad():
        with reference_of(trainer.model) as reference:
            ref_logps = choice_logps(reference, batch)
        policy_logps = choice_logps(trainer.model, batch)
    assert softmax_dpo_loss(policy_logps, ref_logps, trainer.args.beta).losses.mean() < math.log(4) - 0.1


def test_a_compiled_policy_has_the_same_reference(sdpo):
    how = {"torch_compile": True, "torch_compile_backend": "eager"}
    trainer = sdpo(precompute_ref_log_probs=False, max_steps=1, **how)
    with torch.compiler.set_stance("force_eager"):  # wrapped as ever, and not compiled
        trainer.train()
    assert isinstance(trainer.model_wrapped, OptimizedModule)
    assert losses(trainer)[0] == pytest.approx(math.log(4), abs=1e-5)


def _adapter(model, name):
    return {n: p.detach().clone() for n, p in get_peft_model_state_dict(model, adapter_name=name).items()}


@pytest.mark.parametrize("shared", [False, True])
def test_reference_cache_is_read_only_under_its_own_key(sdpo, tmp_path, shared):
    place = tmp_path / ("shared" if shared else "own")
    folder = {"reference_folder": str(place)} if shared else {}

    def reference_after(model=None, **changes):
        trainer = sdpo(model, folder=tmp_path / "own", max_steps=1, **folder, **changes, train=True)
        return trainer.train_dataset.ref_logps, {p.name: p.stat().st_mtime_ns for p in place.glob("reference-*")}

    first, stamps = reference_after()
    again, same_stamps = reference_after()
    assert len(stamps) == 1
    assert same_stamps == stamps
    assert (first == again).all()
    redrawn, scaled = adapted_model(), adapted_model()
    draw_adapters(redrawn, 0.04)
    scaled.peft_config["default"].lora_alpha *= 2
    for changes in ({"model": redrawn}, {"model": scaled}, {"bf16": True}, {"layout": "separate"}):
        before = stamps
        changed, stamps = reference_after(**changes)
        assert stamps.items() > before.items()
        assert "layout" in changes or not (first == changed).all()


@pytest.mark.parametrize("precompute", [True, False])
def test_a_given_reference_is_used_and_none_is_computed(sdpo, tmp_path, precompute):
    sets = encode_preferences(PREFERENCES, sdpo().encoder)
    rng = np.random.default_rng(0)
    given = [rng.normal(size=len(row.answers)).tolist() for row in sets]
    rows, held_out = (PreferenceDataset(sets, ref_logps=given) for _ in range(2))
    trainer = sdpo(rows=rows, evaluate=held_out, max_steps=1, precompute_ref_log_probs=precompute)
    with torch.no_grad():
        policy = torch.nn.utils.rnn.pad_sequence(
            [trainer.scorer.score([row])[0] for row in sets], batch_first=True, padding_value=-math.inf
        )
    expected = [
        softmax_dpo_loss(own[None, : len(ref)], torch.tensor([ref]), trainer.args.beta).losses
        for own, ref in zip(policy, given, strict=True)
    ]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(torch.cat(expected).mean().item(), abs=1e-4)
    trainer.train()
    for row, own in zip(rows.ref_logps, given, strict=True):
        np.testing.assert_allclose(row[: len(own)], own, rtol=1e-6)
    assert not [*tmp_path.glob("**/reference-*")]


@pytest.mark.parametrize("damage", [lambda b: b[:-8], lambda b: b[:-1] + bytes([b[-1] ^ 1])])
def test_a_damaged_reference_cache_is_computed_again(sdpo, tmp_path, damage, capsys):
    def reference():
        return sdpo(max_steps=1, train=True).train_dataset.ref_logps

    want = reference()
    (cache,) = tmp_path.glob("reference-*")
    cache.write_bytes(damage(cache.read_bytes()))
    assert (reference() == want).all()
    assert "computed again" in capsys.readouterr().err
    assert (reference() == want).all(), "the new file is read"
    assert "computed again" not in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["a gradient", "a weight"])
def test_numbers_that_are_not_finite_end_training_at_once(sdpo, tmp_path, fault):
    trainer = sdpo(save_strategy="steps", save_steps=1)
    weight = next(p for n, p in trainer.model.named_parameters() if "lora_B.default" in n)

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


@pytest.mark.parametrize("stage", ["sft", pytest.param("fixed", marks=pytest.mark.long), "per_epoch"])
def test_resumed_run_ends_with_the_same_weights(sft, sdpo, tmp_path, stage):
    changes = {"max_steps": -1, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 5}

    def trainer():
        if stage == "sft":
            model = get_peft_model(small_model(), lora_config(4, dropout=0.1))
            return sft(model, disable_dropout=False, **changes)
        return sdpo(num_negatives=2, negatives=stage, **changes)

    torch.manual_seed(5)
    whole = trainer()
    whole.train()
    torch.manual_seed(5)
    trainer()  # the same construction as above draws the same random numbers
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert_close(trainable(resumed.model), trainable(whole.model), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["sft", "sdpo"])
def test_accumulation_equals_a_large_batch(request, tmp_path, kind):
    def run(per_device):
        changes = {"per_device_train_batch_size": per_device, "global_batch_size": 8, "max_steps": 3}
        trainer = request.getfixturevalue(kind)(adapted_model(), folder=tmp_path / str(per_device), **changes)
        trainer.train()
        assert trainer.global_batch == 8
        return trainable(trainer.model), losses(trainer)

    (large, large_losses), (small, small_losses) = run(8), run(2)
    assert small_losses == pytest.approx(large_losses, abs=1e-5)
    assert_close(small, large, rtol=0, atol=2e-5)


def test_rows_that_another_process_packs_train_the_same(sdpo):
    """As on a GPU. Its copy of the rows has the negatives of the epoch, and passes survive the way."""

    def run(workers):
        changes = {"negatives": "per_epoch", "max_tokens_per_pass": 40, "dataloader_num_workers": workers}
        trainer = sdpo(num_negatives=2, **changes, train=True)
        assert trainer.train_dataset.epoch == 1
        return trainable(trainer.model)

    assert_close(run(1), run(0), rtol=0, atol=0)


def test_a_model_that_breaks_packed_rows_trains_all_the_same(sdpo, tmp_path, capsys):
    model = adapted_model()
    broken(model.get_base_model())
    whole, other = sdpo(folder=tmp_path / "whole", train=True), sdpo(model, folder=tmp_path / "broken", train=True)
    assert (whole.scorer.layout, other.scorer.layout) == ("packed", "separate")
    assert "model type 'llama': the packed layout differs from separate rows" in capsys.readouterr().err
    assert_close(trainable(whole.model), trainable(other.model), rtol=0, atol=2e-5)


SCORED = [{**row, "scores": [5.0, 1.0, 2.0, 1.0]} for row in PREFERENCES]


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_every_loss_trains_and_reports_on_held_out_rows(sdpo, loss):
    changes = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2}
    trainer = sdpo(rows=SCORED, evaluate=SCORED[:3], loss_type=ALL_LOSSES[loss], **changes, train=True)
    evaluated = [h for h in trainer.state.log_history if "eval_loss" in h]
    assert len(evaluated) == 2
    assert evaluated[-1]["eval_loss"] < evaluated[0]["eval_loss"] + 1e-6
    assert "eval_rewards/accuracies" in evaluated[-1]


def test_a_loss_without_its_scores_is_an_error(sdpo):
    with pytest.raises(ConfigError, match="loss softmax_logq needs `scores` in each row: one number per answer"):
        sdpo(rows=[*SCORED, PREFERENCES[0]], loss_type="softmax_logq")


def test_scores_may_be_arrays(sdpo):
    rows = [row | {"scores": np.array(row["scores"])} for row in SCORED]
    lists, arrays = (sdpo(rows=scored, loss_type="softmax_logq").train_dataset for scored in (SCORED, rows))
    assert [[*scores] for scores in arrays.scores] == lists.scores


def test_settings_of_a_loss_reach_it(sdpo, tmp_path):
    """Lengths are numbers of tokens, the end token included."""
    simpo = ALL_LOSSES["simpo"]
    trainer = sdpo(precompute_ref_log_probs=False, loss_type=simpo, beta=0.7, margin=0.4)
    rows, sets = [trainer.train_dataset[i] for i in range(8)], trainer.train_dataset.choice_sets
    loss = trainer.training_step(trainer.model, trainer.collate(rows), torch.tensor(8))
    logps, lengths = trainer.scorer.score(sets), torch.tensor([[len(a) for a in c.answers] for c in sets])
    want = simpo(logps, None, 0.7, lengths=lengths, margin=0.4).losses.mean()
    assert_close(loss, want, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="loss_type: loss dpo_loss has no margin: remove this setting"):
        SoftmaxDPOConfig(**settings(tmp_path, loss_type="dpo", margin=0.4))


def test_a_loss_may_be_a_function(sdpo, tmp_path):
    by_name = sdpo(folder=tmp_path / "name", loss_type="softmax", max_steps=2, train=True)
    given = sdpo(folder=tmp_path / "function", loss_type=softmax_loss, max_steps=2, train=True)
    assert json.loads(given.args.to_json_string())
    assert_close(trainable(by_name.model), trainable(given.model))


def test_all_weights_without_a_stored_reference_are_refused(sdpo):
    with pytest.raises(ConfigError, match="precompute_ref_log_probs=True"):
        sdpo(small_model(), precompute_ref_log_probs=False).train()


def test_all_weights_keep_the_reference_of_before_the_first_step(sdpo):
    trainer = sdpo(small_model(), evaluate=PREFERENCES[:3], learning_rate=5e-4)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(math.log(4), abs=1e-5)
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(math.log(4), abs=1e-5)
    kept = trainer.train_dataset.ref_logps.copy(), trainer.eval_dataset.ref_logps.copy()
    trainer.train()
    assert (trainer.train_dataset.ref_logps == kept[0]).all()
    assert (trainer.eval_dataset.ref_logps == kept[1]).all()
    assert trainer.evaluate()["eval_loss"] < math.log(4) - 0.01
    with pytest.raises(ConfigError, match="log-probabilities under the reference are not stored"):
        trainer.evaluate(trainer.build_dataset(PREFERENCES[3:]))


def test_all_weights_train_by_a_loss_without_a_reference(sdpo):
    trainer = sdpo(small_model(), loss_type="softmax", learning_rate=5e-4, per_device_train_batch_size=8, train=True)
    assert losses(trainer)[-1] < losses(trainer)[0]


RAGGED = [
    {**row, "rejected": row["rejected"][: 1 + i % 3], "scores": [5.0, 2.0, 5.0, 1.0][: 2 + i % 3]}
    for i, row in enumerate(PREFERENCES)
]
"""Rows with one to three rejected answers."""


@pytest.mark.parametrize(
    ("loss", "changes"),
    [
        *((loss, {}) for loss in ("softmax_dpo", "dpo", "dmpo", "bpr", "simpo", "mult_dpo")),
        ("softmax_dpo", {"max_tokens_per_pass": 24}),
        ("dmpo", {"precompute_ref_log_probs": False}),
    ],
)
def test_rows_with_different_numbers_of_rejected_answers_count_as_each_alone(sdpo, loss, changes, capsys):
    """The slow twin scores one row per batch, whose table of answers has no gaps."""

    def step(trainer, rows):
        trainer.model.zero_grad()
        inputs, logs = trainer.collate([trainer.train_dataset[i] for i in rows]), {"loss": 0.0}
        value = trainer.training_step(trainer.model, inputs, torch.tensor(len(RAGGED)))
        grads = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
        trainer.log(logs)
        return value, grads, logs

    together, alone = (sdpo(rows=RAGGED, loss_type=ALL_LOSSES[loss], beta=0.7, **changes) for _ in range(2))
    for trainer in (together, alone):
        torch.manual_seed(1)
        draw_adapters(trainer.model, 0.06, "lora_B.default")  # away from the reference
    told = " ".join(capsys.readouterr().err.split())
    assert "8 training examples, N = 1 to 3 rejected titles per example, layout packed" in told
    value, grads, logs = step(together, range(len(RAGGED)))
    apart = [step(alone, [i]) for i in range(len(RAGGED))]
    assert_close(value, sum(v for v, _, _ in apart), rtol=0, atol=1e-5)
    assert grads
    assert_close(grads, {name: sum(g[name] for _, g, _ in apart) for name in grads}, rtol=0, atol=1e-5)
    assert {"rewards/margins", "rewards/accuracies", "logps/rejected", "negatives/effective"} < logs.keys()
    for name, mean in logs.items():
        assert mean == pytest.approx(sum(log[name] for _, _, log in apart) / len(RAGGED), abs=1e-4), name


def test_a_stored_reference_is_the_live_one(sdpo, tmp_path):
    """Of rows of different sizes, for training and for evaluation."""
    of = {"rows": RAGGED, "evaluate": RAGGED[:3], "train": True}
    stored = sdpo(**of, folder=tmp_path / "stored", precompute_ref_log_probs=True)
    live = sdpo(**of, folder=tmp_path / "live", precompute_ref_log_probs=False)
    assert stored.evaluate()["eval_loss"] == pytest.approx(live.evaluate()["eval_loss"], abs=1e-5)
    assert_close(trainable(stored.model), trainable(live.model), rtol=0, atol=2e-5)


def test_a_dataset_keeps_nothing_of_a_trainer_that_used_it(sdpo, tmp_path):
    """Its log-probabilities under one reference would be those of the next trainer's reference."""
    rows = PreferenceDataset(encode_preferences(PREFERENCES, sdpo().encoder))
    sdpo(rows=rows, folder=tmp_path / "1", train=True)
    assert rows.ref_logps is None
    for precompute in (True, False):
        model, new = tiny_llama(seed=5), lora_config(4)
        of = {"rows": rows, "evaluate": rows, "peft_config": new, "precompute_ref_log_probs": precompute}
        second = sdpo(model, folder=tmp_path / "2", **of)
        assert second.evaluate()["eval_loss"] == pytest.approx(math.log(4), abs=1e-5)
        second.train()
        assert losses(second)[0] == pytest.approx(math.log(4), abs=1e-5)


def test_an_alignment_of_an_adapter_with_a_rank_per_layer_is_resumed(sdpo, tmp_path):
    """Such a configuration would be refused in a folder from elsewhere."""

    def model():
        ranks = {"rank_pattern": {"q_proj": 8}, "target_modules": ["q_proj", "v_proj"]}
        return get_peft_model(small_model(), LoraConfig(r=4, task_type="CAUSAL_LM", **ranks))

    torch.manual_seed(5)
    whole = sdpo(model(), save_strategy="steps", save_steps=3, train=True)
    shutil.rmtree(tmp_path / "checkpoint-6")
    resumed = sdpo(model())
    resumed.train(resume_from_checkpoint=True)
    assert_close(trainable(resumed.model), trainable(whole.model), rtol=0, atol=1e-6)


PISSA = LoraConfig(r=4, init_lora_weights="pissa", target_modules=["q_proj", "v_proj"])


@pytest.mark.parametrize("config", [PISSA, LoraConfig(r=4, bias="all", target_modules=["q_proj"])])
def test_adapters_that_change_the_reference_are_refused(sdpo, sft, config):
    with pytest.raises(ConfigError, match="so the reference would change with the policy: use LoRA with bias='none'"):
        sdpo(small_model(), peft_config=config)
    sft(peft_config=config)
    sdpo(small_model(), peft_config=config, loss_type="softmax")  # it has no reference


def test_negatives_of_a_dataset_and_of_the_settings_may_not_differ(sdpo):
    rows = PreferenceDataset(encode_preferences(PREFERENCES, sdpo().encoder))
    with pytest.raises(ConfigError, match=r"num_negatives is 1, but the PreferenceDataset has 3 .* to the dataset"):
        sdpo(rows=rows, num_negatives=1)


def test_rows_may_be_a_generator(sdpo):
    assert len(sdpo(rows=(row for row in PREFERENCES)).train_dataset) == len(PREFERENCES)


def test_a_second_alignment_starts_from_the_end_of_the_first(sdpo, tmp_path):
    first = sdpo(folder=tmp_path / "1", train=True)
    ended = _adapter(first.model, "default")
    second = sdpo(first.model, folder=tmp_path / "2", train=True)
    assert losses(second)[0] == pytest.approx(math.log(4), abs=1e-5)
    assert_close(_adapter(second.model, "ref"), ended, rtol=0, atol=0)
    assert not all(torch.equal(value, ended[name]) for name, value in _adapter(second.model, "default").items())


@pytest.mark.parametrize(("precompute", "latest"), [(True, True), (False, False)])
def test_a_resumed_alignment_from_its_own_adapter_goes_on_as_the_whole_one(sdpo, tmp_path, precompute, latest):
    """The model is given as the checkpoint has it: its weights are not the reference, the checkpoint's `ref` is."""
    changes = {"save_strategy": "steps", "save_steps": 3, "precompute_ref_log_probs": precompute}
    changes |= {"evaluate": PREFERENCES[:3], "eval_strategy": "steps", "eval_steps": 3}
    whole = sdpo(**changes, train=True)
    checkpoint = tmp_path / "checkpoint-3"
    if latest:
        shutil.rmtree(tmp_path / "checkpoint-6")
    resumed = sdpo(load_adapter(small_model(), checkpoint, is_trainable=True), **changes)
    resumed.train(resume_from_checkpoint=True if latest else str(checkpoint))
    assert losses(whole)[3:] != pytest.approx([math.log(4)] * 3, abs=1e-3)
    assert losses(resumed) == pytest.approx(losses(whole), abs=1e-6)
    held_out = [[h["eval_loss"] for h in t.state.log_history if "eval_loss" in h] for t in (whole, resumed)]
    assert held_out[1] == pytest.approx(held_out[0], abs=1e-6)
    if precompute:
        assert (resumed.train_dataset.ref_logps == whole.train_dataset.ref_logps).all()
        assert len(list(tmp_path.glob("reference-*"))) == 2, "the stored one was found"
    assert_close(trainable(resumed.model), trainable(whole.model), rtol=0, atol=1e-6)


def test_a_resumed_alignment_names_a_broken_reference(sdpo, tmp_path):
    sdpo(save_strategy="steps", save_steps=3).train()
    weights = tmp_path / "checkpoint-3" / "ref" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"the adapter in .*ref cannot be read"):
        sdpo(save_strategy="steps", save_steps=3).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_the_reference_of_a_training_model_has_no_dropout():
    model = get_peft_model(small_model(), lora_config(4, dropout=0.5))
    draw_adapters(model, 0.1)
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


def test_flex_attention_is_not_trained_on_a_cpu(sft):
    model = small_model()
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ConfigError, match="flex_attention has no gradients on a CPU: load the model with sdpa"):
        sft(model)
