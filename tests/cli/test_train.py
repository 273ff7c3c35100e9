"""`prefrec sft` and `prefrec align`: their losses step by step, batches, options, and what they refuse."""

import json
import math
import os
import shutil
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from command import prefrec, succeed
from prefrec.cli._options import option
from prefrec.pipeline import plan as pipeline
from tiny_run import TRAINING, adapter_weights, write_recipe

TRAJECTORY = json.loads((Path(__file__).parent / "loss_trajectory.json").read_text())
"""Losses that the tiny runs of `conftest.place` logged when they were known to be right; after a change that is
meant to alter training, the new values are what the failing test prints."""


def _losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads((folder / "log.json").read_text()) if "loss" in entry]


@pytest.mark.parametrize("stage", ["sft", "s_dpo"])
def test_losses_follow_the_committed_trajectory(place, stage):
    losses = _losses(getattr(place, stage))
    assert losses == pytest.approx(TRAJECTORY[stage], abs=1e-3), [round(loss, 6) for loss in losses]


def test_the_trajectories_are_those_of_learning():
    for losses in TRAJECTORY.values():
        assert losses == sorted(losses, reverse=True)
    assert TRAJECTORY["sft"][0] == pytest.approx(math.log(60), abs=0.1)
    assert TRAJECTORY["s_dpo"][0] == pytest.approx(math.log(4), abs=0.1)
    assert TRAJECTORY["s_dpo"][-1] < math.log(4) - 0.1


@pytest.mark.parametrize("verb", ["sft", "align"])
def test_accumulation_equals_a_large_batch(place, tmp_path, verb):
    start = (
        ("--adapter", place.sft / "adapter", "--negatives-from", "list", "--num-negatives", 3)
        if verb == "align"
        else ()
    )
    options = (*start, *place.asked, *TRAINING, "--epochs", 2)
    for size in (8, 2):
        succeed(verb, place.data, tmp_path / str(size), *options, "--per-device-batch-size", size)
    assert _losses(tmp_path / "2") == pytest.approx(_losses(tmp_path / "8"), abs=1e-5)
    large, small = (adapter_weights(tmp_path / str(size) / "adapter") for size in (8, 2))
    for name, value in large.items():
        torch.testing.assert_close(small[name], value, rtol=0, atol=5e-5)


def test_the_global_batch_is_printed(place, tmp_path):
    few = ("--rows", 8, "--epochs", 1, "--per-device-batch-size", 2)
    done = prefrec("sft", place.data, tmp_path / "sft", *place.asked, *TRAINING, *few)
    assert "Global batch 8 rows = 2 per device × 1 process × 4 accumulation steps; 8 training rows" in done.err
    assert done.out == f"Adapter: {tmp_path}/sft/adapter\n"


def test_options_reach_the_adapter(place, tmp_path):
    prompt = ("--model.chat", "--model.templates", "movies/2")
    options = ("--rows", 8, "--epochs", 1, "--lora.r", 3, *prompt, "--seed", 4)
    succeed("sft", place.data, tmp_path / "sft", *place.asked, *TRAINING, *options)
    assert json.loads((tmp_path / "sft" / "adapter" / "adapter_config.json").read_text())["r"] == 3


def test_an_adapter_to_go_on_from_keeps_its_rank(place, tmp_path):
    """Another one is refused; its own changes nothing."""
    own = ("--adapter", place.sft / "adapter", *place.asked, "--rows", 8, "--global-batch-size", 8)
    for verb in ("sft", "align"):
        done = prefrec(verb, place.data, tmp_path / verb, *own, "--lora.r", 3)
        assert (done.code, done.out) == (1, "")
        assert "--lora.r 3: the adapter in" in done.err
        assert "has 4 and keeps it; leave --lora.r out, or --adapter to train a new one" in done.err
        succeed(verb, place.data, tmp_path / verb, *own)
        again = prefrec(verb, place.data, tmp_path / verb, *own, "--lora.r", 4)
        assert again.err.splitlines()[0].endswith(": unchanged")


@pytest.mark.parametrize("verb", ["sft", "align"])
def test_all_weights_of_a_whole_model_go_on(place, tmp_path, verb):
    """An adapter on such a model would need a base that no record names."""
    few = ("--rows", 8, "--global-batch-size", 8, "--learning-rate", 0.01, "--epochs", 3)
    own = ("--adapter", place.model, *place.asked, *few)
    done = prefrec(verb, place.data, tmp_path / verb, *own, "--lora.r", 3)
    assert (done.code, done.out) == (1, "")
    assert "--lora.r: " in done.err
    assert "is a whole model, all of whose weights are trained; leave --lora.r out" in " ".join(done.err.split())
    succeed(verb, place.data, tmp_path / verb, *own)
    found, before = (load_file(p / "model.safetensors") for p in (tmp_path / verb / "adapter", place.model))
    assert not all(torch.equal(found[name], before[name]) for name in before)


def test_alignment_asks_an_adapter_as_it_was_trained(place, tmp_path):
    """Without an option the base, template, chat and dtype are those in the record of the adapter's training."""
    few = ("--rows", 8, "--epochs", 1, "--global-batch-size", 8)
    told = (*place.with_histories, "--model.chat", "--model.templates", "movies/2")
    succeed("sft", place.data, tmp_path / "sft", *told, *few, "--lora.r", 4)
    start = ("--adapter", tmp_path / "sft" / "adapter", "--num-negatives", 2, *few)
    for name, options in (("bare", ()), ("told", told)):
        done = prefrec("align", place.data, tmp_path / name, *start, *options)
        assert (done.code, "was trained with" in done.err) == (0, False)
    models = [
        json.loads((tmp_path / name / "stage.json").read_text())["made_with"]["model"] for name in ("bare", "told")
    ]
    assert models[0] == models[1]
    own = {"name": str(place.model), "templates": ["movies/2"], "chat": True, "dtype": "float32"}
    assert own.items() <= models[0].items()
    bare, same = (adapter_weights(tmp_path / name / "adapter") for name in ("bare", "told"))
    assert all(torch.equal(bare[n], same[n]) for n in bare)
    other = prefrec("align", place.data, tmp_path / "other", *start, "--model.templates", "movies/1")
    assert "--model.templates ['movies/1']: " in " ".join(other.err.split())


@pytest.mark.parametrize("loss", ["dpo", "dmpo", "bpr", "softmax"])
def test_every_loss_by_name(place, tmp_path, loss):
    few = ("--rows", 8, "--epochs", 5, "--num-negatives", 2, "--negatives", "per_epoch")
    succeed("align", place.data, tmp_path / loss, *place.asked, *TRAINING, *few, "--loss", loss)
    assert len(_losses(tmp_path / loss)) == 1


@pytest.mark.parametrize(
    ("verb", "options", "message"),
    [
        (
            "align",
            ("--negatives-from", "list", "--num-negatives", 6),
            "num_negatives is 6, but row 0 has only 5 rejected answers",
        ),
        ("align", ("--num-negatives", 0), "--num-negatives: Input should be greater than or equal to 1 (given: '0')"),
        ("align", ("--loss", "ipo"), "loss 'ipo' is unknown: expected one of softmax_dpo, dpo, dmpo, bpr, softmax"),
        ("align", ("--beta", 0), "--beta: Input should be greater than 0 (given: '0')"),
        (
            "align",
            ("--negatives", "some"),
            "--negatives: Input should be 'fixed', 'per_epoch' or 'policy' (given: 'some')",
        ),
        ("align", ("--adapter", "/nowhere"), "no adapter in /nowhere: expected a folder with adapter_config.json"),
        (
            "sft",
            ("--model.name", "/nowhere/model"),
            "no model at '/nowhere/model': expected a local folder",
        ),
        (
            "sft",
            ("--model.dtype", "int3"),
            "--model.dtype: Input should be 'auto', 'float32', 'bfloat16' or 'float16' (given: 'int3')",
        ),
        (
            "sft",
            ("--model.templates", "poems/1"),
            "no template 'poems/1': expected a path to a jinja2 file or one of books/1",
        ),
        ("sft", ("--model.max-length", 30), "max_length is 30: show fewer candidates, raise max_length"),
        ("sft", ("--skip-rows", 1000), "error: --skip-rows: 1000, but there are only"),
        ("align", ("--skip-rows", 90, "--latest-per-user", 2), "only 80 rows (--latest-per-user: 2): lower it"),
        ("sft", ("--global-batch-size", 6), "global_batch_size 6 is not a multiple of per_device_train_batch_size 4"),
        ("sft", ("--lora.r", 0), "--lora.r: Input should be greater than or equal to 1 (given: '0')"),
        ("sft", ("--rows", "many"), "--rows: Input should be a valid integer, unable to parse string as an integer"),
    ],
)
def test_what_is_refused(place, tmp_path, verb, options, message):
    done = prefrec(verb, place.data, tmp_path / "out", *place.asked, *TRAINING, *options)
    assert done.code == 1
    assert done.out == ""
    assert message in done.err
    assert "error: " in done.err
    assert "Traceback" not in done.err


def test_a_tokenizer_without_end_token(place, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for file in place.model.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    done = prefrec("sft", place.data, tmp_path / "out", *place.asked, "--model.name", model)
    assert done.code == 1
    assert "error: the tokenizer has no end token, which closes answers" in done.err


def test_data_that_was_not_prepared(place, tmp_path):
    for verb in ("sft", "align"):
        done = prefrec(verb, tmp_path / "none", tmp_path / "out", *place.asked)
        assert (done.code, done.out) == (1, "")
        assert f"error: {tmp_path}/none: no such folder; `prefrec prepare {tmp_path}/none` makes one" in done.err
    assert not (tmp_path / "out").exists()


def test_the_same_settings_are_not_trained_again_and_others_do_not_overwrite(place, tmp_path):
    out = tmp_path / "sft"
    options = ("--rows", 8, "--epochs", 1)
    succeed("sft", place.data, out, *place.asked, *TRAINING, *options)
    before = (out / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    again = prefrec("sft", place.data, out, *place.asked, *TRAINING, *options)
    assert "sft: unchanged" in again.err
    assert (out / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == before
    succeed("sft", place.data, out, *place.asked, *TRAINING, *options, "--lora.r", 3)
    kept = tmp_path / "sft.previous-1" / "adapter" / "adapter_model.safetensors"
    assert kept.stat().st_mtime_ns == before
    assert json.loads((out / "adapter" / "adapter_config.json").read_text())["r"] == 3


def test_other_rows_under_the_same_protocol_are_trained_again(place, tmp_path):
    data, out = tmp_path / "data", tmp_path / "sft"
    shutil.copytree(place.data, data)
    asked = ("sft", data, out, *place.asked, *TRAINING, "--rows", 8, "--epochs", 1)
    succeed(*asked)
    rows = pl.read_parquet(data / "train.parquet")
    rows.reverse().write_parquet(data / "train.parquet")
    assert "unchanged" not in prefrec(*asked).err


def test_a_folder_of_other_things_is_left_alone(place, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "log.csv").write_text("a,b\n")
    done = prefrec("sft", place.data, tmp_path / "mine", *place.asked, "--rows", 8)
    assert (done.code, done.out) == (1, "")
    assert "mine cannot be made: it exists and is not from prefrec (no stage.json in it)" in done.err
    assert sorted(p.name for p in tmp_path.iterdir()) == [".mine.lock", "mine"]
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["log.csv"]


@pytest.mark.parametrize("verb", ["sft", "align"])
def test_of_two_at_once_in_one_folder_the_second_is_told_and_ends(place, tmp_path, monkeypatch, verb):
    """Also while the first moves an older result of the folder aside, and the folder with it."""
    out, refused = tmp_path / "out", []
    shutil.copytree(place.sft, out)
    asked = (verb, place.data, out, *place.asked, *TRAINING, "--rows", 8, "--epochs", 1)
    train = getattr(pipeline, f"train_{verb}")

    def second_at_once(*arguments, **more):
        refused.append(prefrec(*asked, "--seed", 1))
        return train(*arguments, **more)

    monkeypatch.setattr(pipeline, f"train_{verb}", second_at_once)
    succeed(*asked)
    (second,) = refused
    assert (second.code, second.out) == (1, "")
    assert f"{out}: another run (process {os.getpid()}, host " in second.err
    assert "is running here; wait until it has finished, stop it, or name another output folder" in second.err
    assert (tmp_path / "out.previous-1" / "stage.json").read_bytes() == (place.sft / "stage.json").read_bytes()
    assert not (tmp_path / "out.previous-2").exists()
    monkeypatch.undo()
    assert "unchanged" in prefrec(*asked).err


def test_the_verbs_train_the_weights_of_a_recipe(place, tmp_path):
    """The same fields are set in both, and all others have their defaults."""
    few = {"rows": 16, "global_batch_size": 4}
    recipe = write_recipe(tmp_path, place.recipe, sft=few, align=[few])
    succeed("run", recipe, "--out", tmp_path / "run", "--until", "align")
    data, fields = tmp_path / "run" / "data", [w for field, value in few.items() for w in (option(field), value)]
    succeed("sft", data, tmp_path / "sft", *place.asked, *fields, "--lora.r", 4)
    start = ("--adapter", tmp_path / "sft" / "adapter")
    succeed("align", data, tmp_path / "s-dpo", *start, *place.asked, *fields)
    for of_verb, of_run in (("sft", "sft"), ("s-dpo", "align/s-dpo")):
        found, want = (adapter_weights(tmp_path / at / "adapter") for at in (of_verb, f"run/{of_run}"))
        assert found.keys() == want.keys()
        assert [name for name in want if not torch.equal(found[name], want[name])] == []


def test_histories_are_read_where_the_prompt_shows_no_candidates(place, tmp_path):
    """By default; the same rows, and then alignment from the adapter."""
    read, tuned, aligned = (tmp_path / name for name in ("read", "tuned", "aligned"))
    few = ("--rows", 40, "--epochs", 2, "--learning-rate", 5e-3, "--global-batch-size", 8)
    done = prefrec("sft", place.data, read, *place.with_histories, *few, "--lora.r", 4)
    assert "40 training rows" in done.err
    assert json.loads((read / "stage.json").read_text())["made_with"]["model"]["templates"] == ["history"]
    succeed("sft", place.data, tuned, "--adapter", read / "adapter", *place.with_histories, *few)
    succeed("align", place.data, aligned, "--adapter", tuned / "adapter", *place.with_histories, *few)
    weights = [adapter_weights(folder / "adapter") for folder in (read, tuned, aligned)]
    for before, after in pairwise(weights):
        assert before.keys() == after.keys()
        assert any(not torch.equal(before[n], after[n]) for n in before)
