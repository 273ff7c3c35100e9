"""A reference that is given, arguments and settings as TRL names them, sums of losses, metrics of each column."""

from copy import deepcopy

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaForCausalLM

from prefrec.errors import ConfigError
from prefrec.losses import dpo_loss, sft_loss
from prefrec.training import SFTConfig, SFTTrainer, SoftmaxDPOConfig, SoftmaxDPOTrainer, lora_config
from tiny import tiny_llama
from tiny_training import COMPLETIONS, PREFERENCES, adapted_model, draw_adapters, losses, settings, small_model


@pytest.fixture
def given(bpe_tokenizer):
    return {"train_dataset": PREFERENCES, "processing_class": bpe_tokenizer}


def other_model() -> LlamaForCausalLM:
    model = small_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    return model


@pytest.mark.parametrize("precompute", [True, False])
def test_a_given_model_is_the_reference(tmp_path, given, precompute):
    reference = other_model()
    before = {n: p.clone() for n, p in reference.state_dict().items()}
    config = SoftmaxDPOConfig(**settings(tmp_path, max_steps=2, precompute_ref_log_probs=precompute))
    trainer = SoftmaxDPOTrainer(small_model(), reference, config, **given)
    trainer.train()
    # The policy begins elsewhere, so that the first loss is not log(1 + N). A twin: its own scores of each row.
    twin = SoftmaxDPOTrainer(small_model(), None, config, **given)
    sets, sampled = twin.train_dataset.choice_sets, [*twin._get_train_sampler()][:2]
    policy = twin.scorer.score([sets[i] for i in sampled])
    ref = twin.scorer.under(reference).score([sets[i] for i in sampled])
    want = torch.logsumexp((policy - ref) - (policy - ref)[:, :1], dim=1).mean().item()
    assert losses(trainer)[0] == pytest.approx(want, abs=1e-5)
    assert abs(want - torch.tensor(4.0).log().item()) > 1e-3
    assert all(torch.equal(p, before[n]) for n, p in reference.state_dict().items())
    assert not any(p.requires_grad for p in reference.parameters())


def test_an_adapter_of_the_model_is_the_reference_by_its_name(tmp_path, given):
    model = adapted_model()
    model.add_adapter("sft", lora_config(4))
    draw_adapters(model, 0.02, "lora_B.sft")
    merged = deepcopy(model)
    merged.set_adapter("sft")
    alone = merged.merge_and_unload()
    config = SoftmaxDPOConfig(**settings(tmp_path / "a", max_steps=1))
    by_name = SoftmaxDPOTrainer(model, "sft", config, **given)
    by_name.train()
    given_model = SoftmaxDPOTrainer(
        adapted_model(), alone, SoftmaxDPOConfig(**settings(tmp_path / "b", max_steps=1)), **given
    )
    given_model.train()
    torch.testing.assert_close(
        by_name.train_dataset.ref_logps, given_model.train_dataset.ref_logps, atol=1e-4, rtol=0
    )
    assert losses(by_name)[0] == pytest.approx(losses(given_model)[0], abs=1e-4)
    assert model.active_adapter == "default"


def test_references_that_do_not_fit_are_refused(tmp_path, given):
    config = SoftmaxDPOConfig(**settings(tmp_path))
    adapted, model = adapted_model(), small_model()
    for policy, reference, says in (
        (adapted, "sft", "the model has no adapter 'sft', only default"),
        (small_model(), "sft", "the model has no adapter: pass a loaded model"),
        (model, model, "remove it; the model's current weights are the reference"),
        (small_model(), get_peft_model(small_model(), lora_config(4)), "give its name, ref_model='sft'"),
        (small_model(), tiny_llama(vocab_size=77), "ref_model has 77 tokens"),
        (small_model(), config, r"as in TRL: write args=SoftmaxDPOConfig\(…\)"),
    ):
        with pytest.raises(ConfigError, match=says):
            SoftmaxDPOTrainer(policy, reference, config, **given)


def test_arguments_of_trl_are_answered_with_what_to_write(bpe_tokenizer):
    for options, says in (
        ({"tokenizer": bpe_tokenizer}, "use processing_class"),
        ({"beta": 0.1}, r"beta is a field of SoftmaxDPOConfig: write args=SoftmaxDPOConfig\(beta=…\)"),
        ({"max_prompt_length": 3}, "use max_length"),
        ({"loss_type": "ipo"}, r"loss_type is a field of SoftmaxDPOConfig"),
        ({"data_collator": None}, "the trainer collates choice sets itself; remove this argument"),
        ({"learn": 1}, "no argument learn: expected one of .*compute_metrics"),
    ):
        with pytest.raises(ConfigError, match=says):
            SoftmaxDPOTrainer(small_model(), train_dataset=PREFERENCES, **options)
    with pytest.raises(ConfigError, match="no argument beta: expected one of"):
        SFTTrainer(small_model(), train_dataset=COMPLETIONS, beta=1)
    for config in (SFTConfig, SoftmaxDPOConfig):
        with pytest.raises(ConfigError, match="no field max_prompt_length: use max_length"):
            config(max_prompt_length=512)


def test_losses_of_trl_by_its_names_and_as_a_list(tmp_path):
    assert SoftmaxDPOConfig(str(tmp_path), loss_type="sigmoid").loss() is dpo_loss
    for wrong, says in (
        ({"loss_type": ["sigmoid"]}, "is a list: give one name, or a weight per loss in loss_weights"),
        ({"loss_type": ["dpo", "sft"], "loss_weights": [1.0]}, "a weight per loss in loss_weights"),
        ({"loss_weights": [1.0]}, "loss_weights are for a list of losses"),
        ({"loss_type": ["dpo", "sft"], "loss_weights": [1.0, 1.0], "margin": 2.0}, "none of the losses has margin"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, "label_smoothing must be at least 0 and below 0.5"),
    ):
        with pytest.raises(ConfigError, match=says):
            SoftmaxDPOConfig(str(tmp_path), **wrong)


def test_a_weighted_sum_of_losses_trains(tmp_path, given):
    weights = {"loss_type": ["dpo", "sft"], "loss_weights": [0.8, 0.2]}
    config = SoftmaxDPOConfig(**settings(tmp_path, max_steps=1, log_rejected=True, **weights))
    trainer = SoftmaxDPOTrainer(adapted_model(), args=config, **given)
    assert trainer.description == "DPO+SFT"
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["loss"] == pytest.approx(0.8 * torch.tensor(2.0).log().item() - 0.2 * log["logps/chosen"], abs=1e-4)
    policy, ref = torch.randn(3, 4), torch.randn(3, 4)
    out = config.loss()(policy, ref, 0.5)
    want = 0.8 * dpo_loss(policy, ref, 0.5).losses + 0.2 * sft_loss(policy).losses
    torch.testing.assert_close(out.losses, want)
    torch.testing.assert_close(out.rewards, 0.5 * (policy - ref))


def test_metrics_of_each_rejected_column_on_request(tmp_path, given):
    rows = [*PREFERENCES[:3], {**PREFERENCES[3], "rejected": PREFERENCES[3]["rejected"][:1]}]
    changes = {"max_steps": 1, "per_device_train_batch_size": 4, "log_rejected": True}
    config = SoftmaxDPOConfig(**settings(tmp_path, **changes))
    trainer = SoftmaxDPOTrainer(adapted_model(), args=config, **{**given, "train_dataset": rows})
    scores = trainer.scorer.score(trainer.train_dataset.choice_sets)
    trainer.train()
    log = trainer.state.log_history[0]
    for column, count in ((1, 4), (2, 3), (3, 3)):
        want = scores[:count, column].mean().item()
        assert log[f"logps/rejected_{column}"] == pytest.approx(want, abs=1e-4)
        assert log[f"rewards/rejected_{column}"] == pytest.approx(0.0, abs=1e-5)
