"""A reference that is given, arguments and settings as TRL names them, sums of losses, metrics of each column."""

import math
from copy import deepcopy

import pytest
import torch
from peft import get_peft_model

from prefrec.errors import ConfigError
from prefrec.losses import dpo_loss, sft_loss
from prefrec.training import SFTTrainer, SoftmaxDPOConfig, SoftmaxDPOTrainer, lora_config
from tiny import tiny_llama
from tiny_training import COMPLETIONS, PREFERENCES, adapted_model, draw_adapters, losses, settings, small_model


@pytest.fixture
def make(tmp_path, bpe_tokenizer):
    def trainer(policy, reference=None, *, rows=PREFERENCES, folder="out", **changes):
        config = SoftmaxDPOConfig(**settings(tmp_path / folder, **changes))
        return SoftmaxDPOTrainer(policy, reference, config, train_dataset=rows, processing_class=bpe_tokenizer)

    return trainer


@pytest.mark.parametrize("precompute", [True, False])
def test_a_given_model_is_the_reference(make, precompute):
    reference = small_model()
    with torch.no_grad():
        reference.lm_head.weight.mul_(1.5)
    before = {n: p.clone() for n, p in reference.state_dict().items()}
    # The policy begins elsewhere, so that the first loss is not log(1 + N). A twin: its own scores of each row.
    how = {"max_steps": 2, "precompute_ref_log_probs": precompute}
    trainer, twin = (make(small_model(), ref, **how) for ref in (reference, None))
    trainer.train()
    sampled = [twin.train_dataset.choice_sets[i] for i in [*twin._get_train_sampler()][:2]]
    gap = twin.scorer.score(sampled) - twin.scorer.under(reference).score(sampled)
    want = torch.logsumexp(gap - gap[:, :1], dim=1).mean().item()
    assert losses(trainer)[0] == pytest.approx(want, abs=1e-5)
    assert abs(want - math.log(4)) > 1e-3
    assert all(torch.equal(p, before[n]) for n, p in reference.state_dict().items())
    assert not any(p.requires_grad for p in reference.parameters())


def test_an_adapter_of_the_model_is_the_reference_by_its_name(make):
    model = adapted_model()
    model.add_adapter("sft", lora_config(4))
    draw_adapters(model, 0.02, "lora_B.sft")
    merged = deepcopy(model)
    merged.set_adapter("sft")
    by_name = make(model, "sft", folder="by name", max_steps=1)
    given = make(adapted_model(), merged.merge_and_unload(), folder="given", max_steps=1)
    for trainer in (by_name, given):
        trainer.train()
    ref_logps = [trainer.train_dataset.ref_logps for trainer in (by_name, given)]
    torch.testing.assert_close(*ref_logps, atol=1e-4, rtol=0)
    assert losses(by_name)[0] == pytest.approx(losses(given)[0], abs=1e-4)
    assert model.active_adapter == "default"


def test_references_that_do_not_fit_are_refused(make):
    adapted, model = adapted_model(), small_model()
    for policy, reference, says in (
        (adapted, "sft", "the model has no adapter 'sft', only default"),
        (small_model(), "sft", "the model has no adapter: pass a loaded model"),
        (model, model, "remove it; the model's current weights are the reference"),
        (small_model(), get_peft_model(small_model(), lora_config(4)), "give its name, ref_model='sft'"),
        (small_model(), tiny_llama(vocab_size=77), "ref_model has 77 tokens"),
        (small_model(), SoftmaxDPOConfig(use_cpu=True), r"as in TRL: write args=SoftmaxDPOConfig\(…\)"),
    ):
        with pytest.raises(ConfigError, match=says):
            make(policy, reference)


def test_unknown_arguments_of_the_trainers_are_refused(bpe_tokenizer):
    for options, says in (
        ({"tokenizer": bpe_tokenizer}, "no argument tokenizer: expected one of .*processing_class"),
        ({"beta": 0.1}, r"beta is a field of SoftmaxDPOConfig: write args=SoftmaxDPOConfig\(beta=…\)"),
        ({"loss_type": "ipo"}, r"loss_type is a field of SoftmaxDPOConfig"),
        ({"data_collator": None}, "no argument data_collator: expected one of"),
        ({"learn": 1}, "no argument learn: expected one of .*compute_metrics"),
    ):
        with pytest.raises(ConfigError, match=says):
            SoftmaxDPOTrainer(small_model(), train_dataset=PREFERENCES, **options)
    with pytest.raises(ConfigError, match="no argument beta: expected one of"):
        SFTTrainer(small_model(), train_dataset=COMPLETIONS, beta=1)


def test_losses_of_trl_by_its_names_and_as_a_list(tmp_path):
    assert SoftmaxDPOConfig(str(tmp_path), loss_type="sigmoid").loss() is dpo_loss
    for wrong, says in (
        ({"loss_type": ["sigmoid"]}, "is a list: give one name, or a weight per loss in loss_weights"),
        ({"loss_type": ["dpo", "sft"], "loss_weights": [1.0]}, "a weight per loss in loss_weights"),
        ({"loss_weights": [1.0]}, "loss_weights are for a list of losses"),
        ({"loss_type": ["dpo", "sft"], "loss_weights": [1.0, 1.0], "margin": 2.0}, "none of the losses has margin"),
    ):
        with pytest.raises(ConfigError, match=says):
            SoftmaxDPOConfig(str(tmp_path), **wrong)


def test_a_weighted_sum_of_losses_trains(make):
    weights = {"loss_type": ["dpo", "sft"], "loss_weights": [0.8, 0.2]}
    trainer = make(adapted_model(), max_steps=1, log_rejected=True, **weights)
    assert trainer.description == "DPO+SFT"
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["loss"] == pytest.approx(0.8 * math.log(2) - 0.2 * log["logps/chosen"], abs=1e-4)
    policy, ref = torch.randn(3, 4), torch.randn(3, 4)
    out = trainer.args.loss()(policy, ref, 0.5)
    torch.testing.assert_close(out.losses, 0.8 * dpo_loss(policy, ref, 0.5).losses + 0.2 * sft_loss(policy).losses)
    torch.testing.assert_close(out.rewards, 0.5 * (policy - ref))


def test_metrics_of_each_rejected_column_on_request(make):
    rows = [*PREFERENCES[:3], {**PREFERENCES[3], "rejected": PREFERENCES[3]["rejected"][:1]}]
    trainer = make(adapted_model(), rows=rows, max_steps=1, per_device_train_batch_size=4, log_rejected=True)
    scores = trainer.scorer.score(trainer.train_dataset.choice_sets)
    trainer.train()
    log = trainer.state.log_history[0]
    for column, count in ((1, 4), (2, 3), (3, 3)):
        assert log[f"logps/rejected_{column}"] == pytest.approx(scores[:count, column].mean().item(), abs=1e-4)
        assert log[f"rewards/rejected_{column}"] == pytest.approx(0.0, abs=1e-5)
