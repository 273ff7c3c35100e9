"""The trainers as users of transformers and TRL know them: arguments passed on, metrics, uploads, rankings."""

from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import transformers
import yaml
from peft import PeftConfig, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback

from prefrec.console import console
from prefrec.errors import ConfigError
from prefrec.lm.names import EMBEDDED, EMBEDDED_HUB_ID
from prefrec.losses import softmax_dpo_loss
from prefrec.prompts import PromptEncoder, TrajectoryEncoder, load_template
from prefrec.training import (
    ChoiceDataset,
    SFTConfig,
    SFTTrainer,
    SoftmaxDPOConfig,
    SoftmaxDPOTrainer,
    TrajectoryDataset,
    load_adapter,
    lora_config,
)
from prefrec.training.datasets import encode_preferences
from slow import slow_logps
from tiny_run import write_model
from tiny_training import COMPLETIONS, PREFERENCES, adapted_model, losses, settings, small_model, trainable

RAGGED = [{**row, "rejected": row["rejected"][: 1 + i % 3]} for i, row in enumerate(PREFERENCES[:5])]
SFT, SDPO = (SFTTrainer, SFTConfig, COMPLETIONS), (SoftmaxDPOTrainer, SoftmaxDPOConfig, PREFERENCES)
each_kind = pytest.mark.parametrize(("kind", "config", "rows"), [SFT, SDPO])


@pytest.fixture
def name(tmp_path, bpe_tokenizer):
    return str(write_model(tmp_path / "films", bpe_tokenizer))


@each_kind
def test_settings_may_be_left_out(name, tmp_path, monkeypatch, kind, config, rows):
    monkeypatch.chdir(tmp_path)
    trainer = kind(name, train_dataset=rows, peft_config=lora_config(4))
    assert type(trainer.args) is config
    assert trainer.args.output_dir == f"films-{kind.description}"


def test_a_model_by_name_is_loaded_with_model_init_kwargs(name, tmp_path, bpe_tokenizer):
    args = SFTConfig(**settings(tmp_path), model_init_kwargs={"layers": 1, "dtype": "bfloat16"})
    trainer = SFTTrainer(name, args, train_dataset=COMPLETIONS)
    assert (trainer.model.config.num_hidden_layers, trainer.model.dtype) == (1, torch.bfloat16)
    with pytest.raises(ConfigError, match="model_init_kwargs are for a model that is given by its name"):
        SFTTrainer(small_model(), args, train_dataset=COMPLETIONS, processing_class=bpe_tokenizer)


def _saved(folder):
    small_model().save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_what_is_missing_is_said(tmp_path, bpe_tokenizer):
    message = "give train_dataset, and either a model, or model_init with its tokenizer"
    for given in ({"model_init": small_model, "train_dataset": COMPLETIONS}, {"model": small_model()}):
        with pytest.raises(ConfigError, match=message):
            SFTTrainer(args=SFTConfig(**settings(tmp_path)), **given)


@pytest.mark.parametrize("batch_size", [2, 5])
@each_kind
def test_compute_metrics_gets_the_answers_log_probabilities(tmp_path, bpe_tokenizer, kind, config, rows, batch_size):
    asked = []

    def metrics(outcome):
        asked.append(outcome)
        return {"hr@1": float((outcome.predictions.argmax(axis=1) == outcome.label_ids).mean())}

    args = config(**settings(tmp_path, per_device_eval_batch_size=batch_size))
    held_out = COMPLETIONS[:5] if kind is SFTTrainer else RAGGED
    of = {"args": args, "train_dataset": rows, "eval_dataset": held_out, "processing_class": bpe_tokenizer}
    trainer = kind(adapted_model(), compute_metrics=metrics, **of)
    trainer.train()
    found, model = trainer.evaluate(), trainer.model.eval()
    slow = [slow_logps(model, choices).detach() for choices in trainer.eval_dataset.choice_sets]
    want = pad_sequence(slow, True, -np.inf).numpy()
    np.testing.assert_allclose(asked[0].predictions, want, rtol=1e-4)
    assert asked[0].label_ids.tolist() == [0] * 5
    assert found["eval_hr@1"] == np.mean(want.argmax(axis=1) == 0)
    plain = kind(adapted_model(), **of)
    plain.train()
    assert found["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-5)


@pytest.mark.parametrize(("kind", "config", "rows", "r"), [(*SFT, None), (*SDPO, 4)])
def test_model_init_gives_each_training_a_new_model(tmp_path, bpe_tokenizer, kind, config, rows, r):
    args = config(**settings(tmp_path / "a"))
    of = {"train_dataset": rows, "processing_class": bpe_tokenizer, "peft_config": lora_config(r) if r else None}
    given = kind(small_model(), args=args, **of)
    torch.manual_seed(args.seed)
    made = kind(None, args=config(**settings(tmp_path / "b")), model_init=small_model, **of)
    given.train()
    first = trainable(made.model)
    for _ in range(2):
        made.train()
        assert losses(made)[0] == pytest.approx(losses(given)[0], rel=1e-5)
        assert any(not torch.equal(p, first[n]) for n, p in trainable(made.model).items())
        ended = trainable(made.model)
    made.train()
    torch.testing.assert_close(trainable(made.model), ended)
    assert made.scorer.model is made.model


def test_a_trained_model_ranks_answers(sdpo, bpe_tokenizer):
    trainer = sdpo(small_model(), peft_config=lora_config(4), train=True)
    text, answers = "Seen Heat. Next:", ["Babe", "Emma", "Toy Story"]
    for prompt, chat in ((text, False), ([{"role": "user", "content": text}], True)):
        choices = PromptEncoder(bpe_tokenizer, chat=chat).encode_text(text, answers)
        want = dict(zip(answers, slow_logps(trainer.model, choices).tolist(), strict=True))
        ranked = trainer.rank(prompt, answers)
        assert [a for a, _ in ranked] == sorted(answers, key=lambda a: -want[a])
        assert dict(ranked) == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("peft_config", [None, lora_config(4)])
def test_the_hub_gets_weights_and_the_card_of_transformers(sdpo, tmp_path, monkeypatch, peft_config):
    upload = Mock(return_value="sent")
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: SimpleNamespace(upload_folder=upload), raising=False)
    monkeypatch.setattr(transformers.trainer, "upload_folder", upload, raising=False)
    trainer = sdpo(_saved(tmp_path / "films"), folder=tmp_path / "out", peft_config=peft_config, train=True)
    trainer.hub_model_id = "me/films"
    assert trainer.push_to_hub(tags="movies", license="mit") == "sent"
    pushed = upload.call_args.kwargs
    assert (pushed["repo_id"], pushed["folder_path"]) == ("me/films", str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---\n")[1])
    assert str(tmp_path) not in card
    assert "movies" in header["tags"]
    assert header["license"] == "mit"
    weights = "adapter_model.safetensors" if peft_config else "model.safetensors"
    assert (tmp_path / "out" / weights).is_file()


def test_an_adapter_names_its_base_as_others_know_it(sft, tmp_path):
    trainer = sft(_saved(tmp_path / f"{EMBEDDED}-0123456789ab"), peft_config=lora_config(4))
    trainer.save_model(tmp_path / "adapter")
    assert PeftConfig.from_pretrained(tmp_path / "adapter").base_model_name_or_path == EMBEDDED_HUB_ID
    assert not (tmp_path / "adapter" / "README.md").exists()  # PEFT's has the path on this machine


def test_a_card_of_ones_own_is_kept(sft, tmp_path):
    trainer = sft(peft_config=lora_config(4))
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    trainer.save_model()
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "mine"


def test_the_reference_in_a_saved_folder_names_its_base_as_others_know_it(sdpo, tmp_path):
    model = get_peft_model(_saved(tmp_path / f"{EMBEDDED}-0123456789ab"), lora_config(4))
    sdpo(model).save_model(tmp_path / "out")
    assert PeftConfig.from_pretrained(tmp_path / "out" / "ref").base_model_name_or_path == EMBEDDED_HUB_ID


def test_a_local_function_as_loss_is_saved_by_its_name(sdpo, tmp_path):
    """It cannot be pickled, as transformers pickles the settings beside weights."""
    trainer = sdpo(loss_type=lambda policy_logps, ref_logps, beta: softmax_dpo_loss(policy_logps, ref_logps, beta))
    trainer.save_model(tmp_path / "out")
    assert callable(trainer.args.loss_type)
    saved = torch.load(tmp_path / "out" / "training_args.bin", weights_only=False)
    assert "<lambda>" in saved.loss_type


@each_kind
def test_an_evaluation_by_another_name_has_its_own_metrics_and_leaves_the_next_alone(sdpo, sft, kind, config, rows):
    make = sft if kind is SFTTrainer else sdpo
    one, other = COMPLETIONS if kind is SFTTrainer else RAGGED, rows[2:4]
    trainer = make(evaluate=one, train=True)
    first = trainer.evaluate()
    found = trainer.evaluate(other, metric_key_prefix="test")
    again = trainer.evaluate()
    compared = {"loss", "logps/chosen"} | ({"rewards/margins"} if kind is SoftmaxDPOTrainer else set())
    want = trainer.evaluate(other)
    for name in compared:
        assert again[f"eval_{name}"] == pytest.approx(first[f"eval_{name}"], abs=1e-6)
        assert found[f"test_{name}"] == pytest.approx(want[f"eval_{name}"], abs=1e-6)
        assert found[f"test_{name}"] != pytest.approx(first[f"eval_{name}"], abs=1e-4)


@each_kind
def test_predictions_are_in_the_order_of_the_rows(sdpo, sft, bpe_tokenizer, kind, config, rows):
    trainer = (sft if kind is SFTTrainer else sdpo)(per_device_eval_batch_size=2)
    asked = COMPLETIONS[:5] if kind is SFTTrainer else RAGGED
    out = trainer.predict(asked)
    sets = trainer.build_dataset(asked).choice_sets
    slow = [slow_logps(trainer.model.eval(), choices).detach() for choices in sets]
    np.testing.assert_allclose(out.predictions, pad_sequence(slow, True, -np.inf).numpy(), rtol=1e-4)
    assert out.metrics["test_loss"] > 0


def test_what_is_no_evaluation_data_is_said(sft, sdpo, bpe_tokenizer):
    message = "eval_dataset is a dictionary of a, b: give one of them, and evaluate further ones by"
    with pytest.raises(ConfigError, match=message):
        sdpo(evaluate={"a": PREFERENCES, "b": RAGGED})
    with pytest.raises(ConfigError, match="train_dataset is a dictionary of train: give one of them"):
        sft(rows={"train": COMPLETIONS})
    encoder = TrajectoryEncoder(load_template("history"), PromptEncoder(bpe_tokenizer))
    histories = TrajectoryDataset([["Heat", "Babe", "Emma"]] * 4, [encoder], titles=4)
    with pytest.raises(ConfigError, match="a TrajectoryDataset is for training: evaluate rows, or a ChoiceDataset"):
        sft(rows=histories, evaluate=histories)


def test_answers_after_the_first_are_no_targets_of_sft(sft):
    sets = encode_preferences(PREFERENCES, sft().encoder)
    with pytest.raises(ConfigError, match="train_dataset: example 0 has several answers, but SFT trains on one"):
        sft(rows=ChoiceDataset(sets))
    assert "eval_ndcg@10" in sft(evaluate=ChoiceDataset(sets)).evaluate()


def test_a_model_without_weights_to_train_is_refused(sft, tmp_path):
    adapted_model().save_pretrained(tmp_path / "adapter")
    with pytest.raises(ConfigError, match=r"no weights that can be trained: .*load_adapter\(model, folder, is_train"):
        sft(load_adapter(small_model(), tmp_path / "adapter"))


def test_settings_of_another_kind_are_refused(tmp_path, bpe_tokenizer):
    of = {"train_dataset": PREFERENCES, "processing_class": bpe_tokenizer}
    with pytest.raises(ConfigError, match=r"args is a SFTConfig: write args=SoftmaxDPOConfig\(…\)"):
        SoftmaxDPOTrainer(small_model(), args=SFTConfig(**settings(tmp_path)), **of)
    with pytest.raises(ConfigError, match="label_smoothing_factor is not supported: remove it"):
        SFTConfig(**settings(tmp_path, label_smoothing_factor=0.1))
    with pytest.raises(ConfigError, match="the trainer has no argument compute_loss_func"):
        SFTTrainer(small_model(), train_dataset=COMPLETIONS, compute_loss_func=print)


def test_the_bar_is_gone_after_an_error(sft, monkeypatch):
    monkeypatch.setattr(console, "_force_terminal", True)
    trainer = sft()

    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            assert trainer._progress.bar is not None
            raise KeyboardInterrupt

    trainer.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer._progress.bar is None
