"""The training stages on prepared rows: which rows, what is left behind, and going on after a stop."""

import json
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from prefrec.errors import ConfigError, DataError, ModelError
from prefrec.lm.packing import pack_passes
from prefrec.prompts import ChoiceSet
from prefrec.runs.stage import last_checkpoint
from prefrec.sections import AlignSection, ItemsSection, SFTSection
from prefrec.stages.inputs import RunInputs
from prefrec.stages.language_model import lm_ranker
from prefrec.stages.train import batch_sizes, sft_trainer, train_align, train_sft, trained_items
from prefrec.stages.training_rows import alignment_rows, is_packed, training_rows, validation_rows
from prefrec.training.keep_best import KeepBest, read_best, save_weights
from tiny import tiny_llama
from tiny_run import adapter_weights


@pytest.fixture
def sft(recipe, data):
    def run(out, *, seed=0, model=None, lora=recipe.lora, start=None, **changes):
        section = SFTSection.model_validate(recipe.sft.model_dump() | changes)
        return train_sft(RunInputs(data, "", model or recipe.model, lora, seed), section, out, start)

    return run


@pytest.fixture
def align(recipe, data):
    def run(out, start=None, *, seed=0, model=None, lora=recipe.lora, **changes):
        section = AlignSection.model_validate(recipe.align[1].model_dump() | changes)
        return train_align(RunInputs(data, "", model or recipe.model, lora, seed), section, start, out)

    return run


@pytest.fixture
def on_histories(recipe):
    """The model of the recipe, asked by a prompt that shows no candidates."""
    return recipe.model.model_copy(update={"templates": ["history"]})


def _weights(folder):
    whole = folder / "model.safetensors"
    return load_file(whole) if whole.is_file() else adapter_weights(folder)


def _equal(a, b):
    a, b = _weights(a), _weights(b)
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def _log(folder, name):
    log = json.loads((folder / "log.json").read_text())
    return [(entry["step"], entry[name]) for entry in log if name in entry]


def _losses(folder):
    return [loss for _, loss in _log(folder, "loss")]


def test_rows_of_two_stages_do_not_overlap(data):
    first = training_rows(data, SFTSection(rows=30), seed=0)
    second = training_rows(data, SFTSection(rows=30, skip_rows=30), seed=0)
    everything = training_rows(data, SFTSection(), seed=0)
    assert (first + second, len(everything)) == (everything[:60], len(data.train))
    assert {(e.user_id, e.target) for e in everything} == {(e.user_id, e.target) for e in data.train}
    assert first == training_rows(data, SFTSection(rows=30), seed=0)
    assert first != training_rows(data, SFTSection(rows=30), seed=1)


@pytest.mark.parametrize("most", [1, 3])
def test_the_latest_rows_of_each_user(data, most):
    of_user = {user: [row for row in data.train if row.user_id == user] for user in {e.user_id for e in data.train}}
    expected = [row for rows in of_user.values() for row in rows[-most:]]
    found = training_rows(data, SFTSection(latest_per_user=most), seed=0)
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    assert found != expected  # in an order of their own, of which stages take their parts
    assert training_rows(data, SFTSection(latest_per_user=most, skip_rows=5, rows=7), seed=0) == found[5:12]


UNEVEN = "global_batch_size 6 is not a multiple"


@pytest.mark.parametrize(
    ("stage", "changes", "error", "message"),
    [
        ("sft", {"skip_rows": 10_000}, DataError, "the dataset has no examples; give at least one"),
        ("sft", {"global_batch_size": 6}, ConfigError, f"{UNEVEN} of per_device_train_batch_size 4"),
        ("align", {"num_negatives": 6}, ConfigError, "num_negatives is 6, but example 0 has only 5 rejected answers"),
        ("align", {"start": Path("none")}, ModelError, "no adapter in none: expected a folder"),
    ],
)
def test_what_cannot_be_trained_is_named(request, tmp_path, stage, changes, error, message):
    with pytest.raises(error, match=message):
        request.getfixturevalue(stage)(tmp_path / "out", **changes)


@pytest.mark.parametrize("templates", [["history"], ["1"]])
def test_sft_leaves_an_adapter_and_a_log(sft, recipe, tmp_path, templates):
    """On histories, and on questions where the first prompt shows candidates."""
    adapter = sft(tmp_path, model=recipe.model.model_copy(update={"templates": templates}))
    assert adapter == tmp_path / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == 4
    assert any(w.abs().max() > 0 for name, w in adapter_weights(adapter).items() if "lora_B" in name)
    steps = {name: [step for step, _ in _log(tmp_path, name)] for name in ("loss", "eval_loss", "eval_ndcg@10")}
    assert steps == {"loss": [5], "eval_loss": [4, 8], "eval_ndcg@10": [4, 8]}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "checkpoint-8", "log.json"]


def test_all_weights_are_trained_without_lora(sft, align, recipe, on_histories, tmp_path):
    whole = sft(tmp_path / "sft", model=on_histories, lora=None, learning_rate=1e-3)
    before = load_file(recipe.model.name + "/model.safetensors")
    assert not (whole / "adapter_config.json").exists()
    assert _weights(whole).keys() == before.keys()
    assert all(not torch.equal(w, before[name]) for name, w in _weights(whole).items() if "layers" in name)
    kept = (whole / "model.safetensors").read_bytes()
    aligned = align(tmp_path / "s-dpo", whole, model=on_histories, lora=None, learning_rate=1e-3)
    assert (whole / "model.safetensors").read_bytes() == kept
    assert _weights(aligned).keys() == before.keys()
    assert not _equal(whole, aligned)
    adapted = align(tmp_path / "adapted", whole, model=on_histories)
    assert json.loads((adapted / "adapter_config.json").read_text())["r"] == 4


def test_the_log_goes_to_tensorboard_too(align, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    align(tmp_path, report_to="tensorboard", epochs=2)
    events = EventAccumulator(str(next((tmp_path / "runs").iterdir())))
    events.Reload()
    logged = dict(_log(tmp_path, "loss"))
    assert logged
    assert {e.step: e.value for e in events.Scalars("train/loss")} == pytest.approx(logged)


def test_a_title_of_the_log_competes_with_those_of_the_log(sft, on_histories, data, tmp_path):
    """Before the first step all titles are about as likely; what was never taken is not held against a title."""
    sft(tmp_path, model=on_histories, rows=8, learning_rate=1e-9)
    sft(tmp_path / "tokens", model=on_histories.model_copy(update={"objective": "tokens"}), rows=8)
    (_, within), (_, among_all) = (_log(f, "eval_logps/chosen")[0] for f in (tmp_path, tmp_path / "tokens"))
    assert within == pytest.approx(-np.log(len(data.catalogue)), abs=1.5)
    assert among_all < 2 * within


def _titles_in(softmax):
    return int((np.diff(softmax.trie.child_starts) == 0).sum())


def test_items_outside_the_training_log_compete_in_evaluations_alone(recipe, data, on_histories, tmp_path):
    """Three of the 60 items, one of them a target of validation."""
    target = data.validation[0].target
    gone = {target, *[i for i in data.catalogue.ids if i != target][:2]}
    fewer = replace(data, train_interactions=data.train_interactions.filter(~pl.col("item_id").is_in(gone)))
    assert trained_items(fewer) == [i for i in data.catalogue.ids if i not in gone]
    inputs = RunInputs(fewer, "", on_histories, recipe.lora, 0)
    trainer = sft_trainer(inputs, recipe.sft, tmp_path)
    assert (_titles_in(trainer.train_dataset.within), _titles_in(trainer.eval_dataset.within)) == (57, 60)


@pytest.fixture
def scripted(tmp_path):
    """Let evaluations report given values in place of the measured ones, and keep the weights of each.

    Which epoch is best would otherwise depend on how a processor rounds.
    """

    @contextmanager
    def script(metric, values):
        reported = iter(values)

        def on_evaluate(keep, args, state, control, metrics, **more):
            assert metric in metrics
            save_weights(keep.trainer, tmp_path / f"epoch-{state.epoch:g}")
            KeepBest.on_evaluate(keep, args, state, control, metrics | {metric: next(reported)}, **more)

        keeper = type("Scripted", (KeepBest,), {"on_evaluate": on_evaluate})
        with mock.patch("prefrec.stages.train.KeepBest", keeper):
            yield

    return script


def test_the_kept_weights_have_the_highest_ndcg_of_the_log(sft, on_histories, data, tmp_path):
    kept = sft(tmp_path, model=on_histories, epochs=6, patience=6, learning_rate=0.05, eval_rows=20)
    found = [value for _, value in _log(tmp_path, "eval_ndcg@10")]
    assert len(found) == 6
    rows = data.examples("validation", 20)
    scores = lm_ranker("sft", kept, data, on_histories).score(rows)
    ranks = [sum(s >= row[e.target_index] for s in row) for row, e in zip(scores, rows, strict=True)]
    assert np.mean([1 / np.log2(rank + 1) for rank in ranks]) == pytest.approx(max(found), abs=1e-6)


@pytest.mark.parametrize(
    ("stage", "metric", "values"),
    [
        ("sft", "eval_ndcg@10", (0.1, 0.5, 0.2)),
        ("sft", "eval_loss", (3.0, 2.0, 2.5)),
        ("align", "eval_loss", (3.0, 2.0, 2.5)),
    ],
)
def test_the_best_epoch_is_kept(request, scripted, on_histories, tmp_path, stage, metric, values):
    settings = {"epochs": 3, "eval_rows": 12, "learning_rate": 0.03}
    if stage == "align":
        settings |= {"rows": 16, "load_best_model_at_end": True}
    else:
        settings |= {"model": on_histories, "patience": 3}
        settings |= {"metric_for_best_model": "loss"} if metric == "eval_loss" else {}
    with scripted(metric, values):
        kept = request.getfixturevalue(stage)(tmp_path / "out", **settings)
    assert read_best(kept)["epoch"] == 2
    assert _equal(kept, tmp_path / "epoch-2")
    assert not _equal(kept, tmp_path / "epoch-3")
    # Only targets are scored if the loss decides.
    assert bool(_log(tmp_path / "out", "eval_ndcg@10")) == (metric == "eval_ndcg@10")


@pytest.mark.parametrize(
    ("stage", "patience", "losses", "best"),
    [("sft", 9, (3.0, 2.0, 2.5), 2), ("sft", 1, (2.0, 2.5, 1.5), 1), ("align", None, (3.0, 2.0, 2.5), 2)],
)
def test_the_best_epoch_stays_after_a_kill_at_the_end(
    request, scripted, on_histories, tmp_path, stage, patience, losses, best
):
    """Once the weights are in place, `stage.json` may not have been written yet. Training then counts as done."""
    settings = {"epochs": 3, "eval_rows": 12, "learning_rate": 0.03, "rows": 16, "save_steps": 2}
    if stage == "align":
        settings |= {"load_best_model_at_end": True}
    else:
        settings |= {"model": on_histories, "patience": patience, "metric_for_best_model": "loss"}
    run, out = request.getfixturevalue(stage), tmp_path / "out"
    with scripted("eval_loss", losses):
        kept = run(out, **settings)
        evaluations = _log(out, "eval_loss")
        assert run(out, **settings) == kept
    assert read_best(kept)["epoch"] == best
    assert _equal(kept, tmp_path / f"epoch-{best}")
    assert _log(out, "eval_loss") == evaluations


def test_weights_of_a_damaged_result_do_not_count_as_chosen(sft, stop_after, on_histories, tmp_path):
    """The stage runs again from the start, and is interrupted after a checkpoint but before an evaluation."""
    settings = {"model": on_histories, "epochs": 2, "eval_rows": 8, "save_steps": 1}
    kept = sft(tmp_path / "out", **settings)
    for left in tmp_path.glob("out/checkpoint-*"):
        shutil.rmtree(left)
    weights = kept / "adapter_model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    with stop_after(2):
        sft(tmp_path / "out", **settings)
    assert last_checkpoint(tmp_path / "out").name == "checkpoint-1"
    assert (sft(tmp_path / "out", **settings) / "adapter_model.safetensors").read_bytes() == before


def test_the_last_epoch_is_kept_where_no_best_is_asked_for(align, tmp_path):
    settings = {"rows": 16, "epochs": 3, "eval_rows": 12, "learning_rate": 0.03}
    assert read_best(align(tmp_path / "last", **settings)) is None


@pytest.mark.parametrize("best", [False, True])
def test_without_validation_examples_an_alignment_keeps_the_last_epoch(recipe, data, tmp_path, best):
    changes = {"rows": 8, "eval_rows": 12, "eval_steps": 1, "load_best_model_at_end": best}
    section = AlignSection.model_validate(recipe.align[1].model_dump() | changes)
    inputs = RunInputs(replace(data, validation=[]), "", recipe.model, recipe.lora, 0)
    kept = train_align(inputs, section, None, tmp_path)
    assert read_best(kept) is None
    assert _log(tmp_path, "eval_loss") == []


def test_training_ends_after_epochs_without_a_new_best(sft, scripted, on_histories, tmp_path):
    with scripted("eval_ndcg@10", (0.3, 0.4, 0.2)):
        ended = sft(tmp_path / "out", model=on_histories, epochs=6, patience=1, eval_rows=20)
    assert len(_log(tmp_path / "out", "eval_ndcg@10")) == 3
    assert _equal(ended, tmp_path / "epoch-2")
    assert not (ended.parent / "best").exists()


def test_the_same_seed_gives_the_same_adapter_whatever_was_drawn_before(sft, tmp_path):
    one = sft(tmp_path / "one", rows=8)
    torch.rand(7)
    assert _equal(one, sft(tmp_path / "two", rows=8))
    assert not _equal(one, sft(tmp_path / "other", rows=8, seed=1))


@pytest.mark.parametrize(
    ("template", "changes"),
    [
        pytest.param("history", {}, id="history"),
        pytest.param("1", {"eval_rows": 0}, id="listed", marks=pytest.mark.long),
        pytest.param("history", {"lora": None, "learning_rate": 1e-3}, id="all weights", marks=pytest.mark.long),
    ],
)
def test_interrupted_sft_ends_with_the_same_weights(sft, recipe, stop_after, tmp_path, template, changes):
    """Stopped before the first checkpoint, and again after the second."""
    model = recipe.model.model_copy(update={"templates": [template]})
    changes = {"model": model, "epochs": 4, "save_steps": 5, "eval_rows": 8, "patience": 9} | changes
    whole, stopped = sft(tmp_path / "whole", **changes), tmp_path / "stopped"
    for step, checkpoint in ((1, None), (12, 10)):
        with stop_after(step):
            sft(stopped, **changes)
        assert last_checkpoint(stopped) == (stopped / f"checkpoint-{checkpoint}" if checkpoint else None)
        assert not (stopped / "adapter").exists()
    assert _equal(whole, sft(stopped, **changes))
    assert _losses(stopped) == _losses(tmp_path / "whole")
    assert _log(stopped, "eval_loss") == _log(tmp_path / "whole", "eval_loss")
    assert sorted(p.name for p in stopped.iterdir()) == ["adapter", "checkpoint-16", "log.json"]


@pytest.mark.parametrize(
    ("changes", "stopped_at"),
    [({"save_steps": 4}, 2), pytest.param({"epochs": 3.5, "save_steps": 99}, 4, marks=pytest.mark.long)],
)
def test_an_evaluation_that_was_interrupted_is_made_again(sft, on_histories, tmp_path, changes, stopped_at):
    """At the end of an epoch, or of all; it may be that of the best epoch."""
    changes = {"model": on_histories, "epochs": 4, "patience": 9, "learning_rate": 0.05, "eval_rows": 20} | changes
    whole, asked = sft(tmp_path / "whole", **changes), []

    def stop(*args, **kwargs):
        asked.append(args)
        if len(asked) == stopped_at:
            raise KeyboardInterrupt
        return KeepBest.on_evaluate(*args, **kwargs)

    stopping = type("Stopping", (KeepBest,), {"on_evaluate": stop})
    with mock.patch("prefrec.stages.train.KeepBest", stopping), pytest.raises(KeyboardInterrupt):
        sft(tmp_path / "stopped", **changes)
    assert _equal(whole, sft(tmp_path / "stopped", **changes))
    for name in ("eval_ndcg@10", "eval_loss"):
        assert _log(tmp_path / "stopped", name) == _log(tmp_path / "whole", name)


@pytest.mark.parametrize(
    ("negatives", "keeps"),
    [
        ("fixed", {"eval_rows": 8, "load_best_model_at_end": True, "learning_rate": 0.03}),
        pytest.param("per_epoch", {}, marks=pytest.mark.long),
    ],
)
def test_interrupted_alignment_ends_with_the_same_weights(sft, align, stop_after, tmp_path, negatives, keeps):
    changes = {"negatives": negatives, "epochs": 2, "rows": 16, "save_steps": 3} | keeps
    start = sft(tmp_path / "sft", rows=8)
    whole, stopped = align(tmp_path / "whole", start, **changes), tmp_path / "stopped"
    with stop_after(4):
        align(stopped, start, **changes)
    assert last_checkpoint(stopped) == stopped / "checkpoint-3"
    assert _equal(whole, align(stopped, start, **changes))


def test_alignment_starts_at_the_sft_adapter_and_leaves_it(sft, align, tmp_path):
    start = sft(tmp_path / "sft")
    before = (start / "adapter_model.safetensors").read_bytes()
    aligned = align(tmp_path / "s-dpo", start, epochs=2)
    log = json.loads((tmp_path / "s-dpo" / "log.json").read_text())
    assert (start / "adapter_model.safetensors").read_bytes() == before
    assert adapter_weights(aligned).keys() == adapter_weights(start).keys()
    assert not _equal(start, aligned)
    assert not (aligned / "ref").exists()
    assert {"rewards/margins", "negatives/effective", "logps/chosen"} <= log[0].keys()


def test_validation_lists_grow_with_the_negatives_that_are_drawn(align, data, tmp_path):
    section = {"num_negatives": 9, "negatives_from": "in-batch", "eval_rows": 4, "eval_steps": 1, "rows": 16}
    align(tmp_path, **section)
    log = json.loads((tmp_path / "log.json").read_text())
    assert [e["eval_negatives/effective"] > 5 for e in log if "eval_loss" in e] == [True, True]
    found = validation_rows(data, AlignSection.model_validate(section), 0)
    kept = [(e.user_id, e.history, e.target) for e in data.validation[:4]]
    assert [(e.user_id, e.history, e.target) for e in found] == kept
    assert [len(set(e.candidates)) for e in found] == [10] * 4
    for how, negatives in (("list", 9), ("in-batch", 3)):  # not to be drawn, or long enough
        stays = AlignSection(eval_rows=4, negatives_from=how, num_negatives=negatives)
        assert validation_rows(data, stays, 0) == list(data.validation[:4])


def test_bfloat16_base_trains_float32_adapters(sft, recipe, tmp_path):
    adapter = sft(tmp_path, model=recipe.model.model_copy(update={"dtype": "bfloat16"}))
    assert {w.dtype for w in adapter_weights(adapter).values()} == {torch.float32}
    assert _losses(tmp_path)[-1] < 6


def test_histories_that_are_shortened_are_told(sft, recipe, tmp_path, capsys):
    sft(tmp_path, rows=8, model=recipe.model.model_copy(update={"max_length": 85}))
    assert "histories were shortened to fit 85 tokens" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{"templates": ["history"]}, {"answers": "items"}])
def test_trajectories_train_as_their_rows_do(align, recipe, tmp_path, monkeypatch, changes):
    """In one pass or one by one: the same losses and weights."""
    changes |= {"items": ItemsSection(vectors="tfidf"), "objective": "catalogue"}
    model = recipe.model.model_copy(update=changes)
    settings = {"trajectories": True, "rows": 24, "global_batch_size": 8, "per_device_batch_size": 8}
    rows, found = {True: [], False: []}, []
    for share in rows:

        def packed(sets, together=share, **kwargs):
            passes = pack_passes(sets, **kwargs | {"share": together})
            rows[together] += [len(p.input_ids) for p in passes]
            return passes

        monkeypatch.setattr("prefrec.lm.scorer.pack_passes", packed)
        align(tmp_path / str(share), model=model, lora=None, **settings)
        found.append((_weights(tmp_path / str(share) / "adapter"), _losses(tmp_path / str(share))))
    assert sum(rows[True]) < sum(rows[False]) / 1.5
    (one, losses), (other, other_losses) = found
    assert losses == pytest.approx(other_losses, abs=1e-4)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=2e-4)


@pytest.mark.parametrize(("settings", "pieces"), [({}, True), ({"rows": 9}, False), ({"latest_per_user": 2}, False)])
def test_all_rows_come_in_pieces(data, settings, pieces):
    section = AlignSection(**settings)
    assert is_packed(data, section) is pieces
    assert ("trajectories" in section.idle_settings()) is not pieces
    assert not is_packed(replace(data, train=list(data.train)), section)


def test_trajectories_need_a_row_at_each_place(data):
    with pytest.raises(ConfigError, match=r"align\.s-dpo\.trajectories needs an example at every position"):
        alignment_rows(data, AlignSection(trajectories=True, latest_per_user=2), seed=0)


@pytest.mark.parametrize(("given", "rows"), [({}, 16), ({"per_device_batch_size": 2}, 2)], ids=["open", "given"])
def test_a_gpu_gets_more_rows_where_the_recipe_leaves_them_open(given, rows, monkeypatch):
    section, model = SFTSection(global_batch_size=16, **given), tiny_llama()
    data = SimpleNamespace(choice_sets=[ChoiceSet((1,) * 20, ((2, 3),))] * 30)
    asked = [batch_sizes(section, model, data)["per_device_train_batch_size"]]
    monkeypatch.setattr("prefrec.stages.train.default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (80 << 30, 80 << 30))
    sizes = batch_sizes(section, model, data)
    assert sizes == {"per_device_train_batch_size": rows, "per_device_eval_batch_size": 2 * rows}
    assert asked == [section.per_device_batch_size], "a CPU has no use for them"
