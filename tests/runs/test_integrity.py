"""Whatever is read of a run is what its stages wrote, or an error: in Python, by verbs, and in the report."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from prefrec import Recommender
from prefrec.errors import ConfigError, DataError
from prefrec.evaluation import Evaluation, evaluate_predictions, predict
from prefrec.evaluation.best import choose
from prefrec.export.ranker import export_ranker
from prefrec.files import SEAL, read_json
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.update import start_stage
from prefrec.rankers import PopularityRanker
from prefrec.recipe import Recipe
from prefrec.runs.contents import read_run
from prefrec.runs.results import BEST, METRICS, Results, write_results
from prefrec.runs.stage import STAGE_FILE, damaged, is_finished, stage
from prefrec.stages.inputs import adapter_key
from reliability import damage
from sealed import flip
from served_run import write_run
from verdicts import NONE

PIPE = "a pipe"
UNSEALED = {"missing": None, PIPE: PIPE, "cut": '{"key": "k", "fini', **damage.UNSEALED}
UNREAD = ("missing", PIPE, "without files", "no file", "unfinished")
"""The kinds of these that readers tell apart."""


@pytest.fixture
def run(adapted_run, tmp_path):
    return shutil.copytree(adapted_run, tmp_path / "run")


def put(path, content):
    path.unlink()
    if content == PIPE:
        os.mkfifo(path)
    elif content is not None:
        path.write_text(content)


@pytest.mark.parametrize("kind", UNREAD)
def test_a_stage_that_vouches_for_nothing_is_damaged_for_every_reader(run, tmp_path, kind):
    flip(run / "sft/adapter/adapter_model.safetensors")
    put(run / "sft" / STAGE_FILE, UNSEALED[kind])
    assert damaged(run / "sft") == [STAGE_FILE]
    for ask in (
        lambda: Recommender.from_run(run, "sft"),
        lambda: export_ranker(open_run(run), "sft", tmp_path / "out"),
        lambda: open_run(run).ranker("sft"),
    ):
        with pytest.raises(DataError, match=r"sft is (unfinished|damaged \(stage.json\)): run the recipe again"):
            ask()
    assert any(m.startswith("sft/ is ") for m in read_run(run).missing)


@pytest.mark.parametrize("content", UNSEALED.values(), ids=UNSEALED)
def test_such_a_stage_is_made_again_by_a_run(tmp_path, content):
    folder = tmp_path / "sft"
    for made in ("first", "again"):
        assert not is_finished(folder, "k")
        with stage(folder, "k", "sft", {}):
            (folder / "log.json").write_text(made)
        assert is_finished(folder, "k")
        if made == "first":
            put(folder / STAGE_FILE, content)
    assert (folder / "log.json").read_text() == "again"


def test_an_update_of_a_damaged_run_does_not_start(run):
    recipe = Recipe.model_validate(open_run(run).recipe.model_dump(mode="json") | {"update": {"run": str(run)}})
    data = open_run(run).data
    start = start_stage(recipe, data, run)
    # The key of SFT has the base model itself, so that earlier updates need no new training.
    assert start.key == adapter_key(run / "sft/adapter", data)
    flip(run / "sft/adapter/adapter_model.safetensors")
    with pytest.raises(DataError, match="sft is damaged"):
        start_stage(recipe, data, run)


@pytest.mark.parametrize("file", ["held_out.parquet", "protocol.json", STAGE_FILE])
@pytest.mark.parametrize("how", ["lost", "of another run", PIPE])
def test_data_are_checked_when_a_run_is_opened(run, file, how):
    put(run / "data" / file, {"lost": None, PIPE: PIPE}.get(how, "{}"))
    with pytest.raises(DataError, match=rf"data is damaged or unfinished \({file}\)"):
        open_run(run)
    assert read_run(run).data is None


def test_a_part_of_all_users_that_changed_is_made_again(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("prefrec.recommender.QUICK_CHUNK", 15)
    out, rec = tmp_path / "top.parquet", Recommender.from_run(run, "popularity")
    want = rec.recommend_all(k=2)
    monkeypatch.setattr("prefrec.recommender.shutil.rmtree", lambda *_, **__: None)
    rec.recommend_all(out, k=2)
    parts = sorted(tmp_path.glob(".top.parquet.parts/*.parquet"))
    assert len(parts) == 3
    for place in (0, parts[0].stat().st_size // 2, parts[0].stat().st_size - 1):
        flip(parts[0], place)
        assert rec.recommend_all(out, k=2).equals(want) == pl.read_parquet(out).equals(want) is True
        assert f"{parts[0].name} is damaged and will be computed again" in capsys.readouterr().err.replace("\n", "")


def test_the_name_of_a_file_of_answers_says_its_form(run, tmp_path):
    rec = Recommender.from_run(run, "popularity")
    want = rec.recommend_all(tmp_path / "top.parquet", k=2)
    rec.recommend_all(tmp_path / "top.csv", k=2)
    assert pl.read_csv(tmp_path / "top.csv").equals(want) == pl.read_parquet(tmp_path / "top.parquet").equals(want)
    assert (tmp_path / "top.csv").read_text().startswith("user_id,rank,item_id,title,score\n")
    with pytest.raises(ConfigError, match=r"top.json: answers are written as Parquet or CSV"):
        rec.recommend_all(tmp_path / "top.json", k=2)


def test_no_name_of_a_recipe_leads_out_of_the_folder(run, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "log.json").write_text('[{"step": 1, "loss": 0.5}]')
    raw = open_run(run).recipe.model_dump(mode="json")
    before = [stage.name for stage in read_run(run).stages]
    raw["align"].append(raw["align"][0] | {"name": "s-dpo/../../../outside"})
    (run / "recipe.yaml").write_text(yaml.safe_dump(raw))
    assert [stage.name for stage in read_run(run).stages] == before


@pytest.fixture
def evaluated(run):
    """A run with results of popularity."""
    data = open_run(run).data
    ranker = PopularityRanker.fit(data.train_interactions)
    predictions = predict(ranker, data.test[:20], data.catalogue, generate=False)
    result = evaluate_predictions(predictions, compare=[], audit=NONE)
    write_results(run, Results(evaluation=result, predictions=predictions))
    return run


def test_a_digit_of_the_metrics_reaches_no_table_and_no_card(evaluated, tmp_path):
    contents = read_run(evaluated)
    assert contents.results.evaluation is not None
    assert contents.results.predictions is not None
    text = (evaluated / METRICS).read_text()
    place = text.index('"mean": 0.') + len('"mean": ')
    put(evaluated / METRICS, f"{text[:place]}9{text[place + 1 :]}")
    contents = read_run(evaluated)
    assert contents.results.evaluation is None
    assert any(m.startswith("metrics.json cannot be read: metrics.json is damaged") for m in contents.missing)
    card = export_ranker(open_run(evaluated), "sft", tmp_path / "out") / "README.md"
    assert "9." not in card.read_text().partition("## Results")[2]


def test_predictions_of_another_evaluation_are_refused(evaluated):
    path = evaluated / "predictions.parquet"
    pl.read_parquet(path).with_columns(rank=pl.lit(1, pl.UInt32)).write_parquet(path)
    assert read_run(evaluated).results.predictions is None
    with pytest.raises(DataError, match=r"predictions.parquet is missing, damaged or of an evaluation"):
        open_run(evaluated).predictions()
    (evaluated / "seal.json").unlink()
    assert read_run(evaluated).results.evaluation is None


DAMAGES = {
    "lost": None,
    "a pipe": PIPE,
    "a folder": Path.mkdir,
    "empty": b"",
    "cut in half": lambda old: old[: len(old) // 2],
    "cut by a byte": lambda old: old[:-1],
    "more after it": lambda old: old + old,
    "the first byte flipped": lambda old: bytes([old[0] ^ 1]) + old[1:],
    "a byte flipped": lambda old: old[: len(old) // 2] + bytes([old[len(old) // 2] ^ 1]) + old[len(old) // 2 + 1 :],
    "the last byte flipped": lambda old: old[:-1] + bytes([old[-1] ^ 1]),
    "an empty object": b"{}",
    "a list": b"[]",
    "null": b"null",
    "NaN": b'{"files": NaN, "evaluation": NaN, "values": NaN, "leads": NaN}',
    "of another run": b'{"files": {}, "evaluation": {}, "values": {"a": 1.0}, "leads": {"a": 0.0}, "ranker": "a"}',
    "no UTF-8": b"\xff\xfe\x00",
    "nested": b"[" * 100_000,
}


@pytest.mark.parametrize("file", [METRICS, BEST, SEAL])
@pytest.mark.parametrize("way", DAMAGES)
def test_damaged_results_count_as_missing_and_the_default_says_so(evaluated, capsys, file, way):
    """The default falls back with a warning: a run whose evaluation is damaged still answers."""
    best = choose({"popularity": np.ones(4), "sft": np.zeros(4)})
    write_results(evaluated, replace(read_run(evaluated).results, best=best))
    whole = read_run(evaluated).results
    assert (whole.best, open_run(evaluated).default()) == (best, "popularity")
    assert (told := capsys.readouterr().err) == "", told
    path, change = evaluated / file, DAMAGES[way]
    old = path.read_bytes()
    path.unlink()
    if change == PIPE:
        os.mkfifo(path)
    elif change == Path.mkdir:
        path.mkdir()
    elif change is not None:
        path.write_bytes(change if isinstance(change, bytes) else change(old))
    contents, default = read_run(evaluated), open_run(evaluated).default()
    parts = {METRICS: contents.results.evaluation is None, BEST: contents.results.best is None}
    # A flipped byte of the seal may be one of a digest: then the file of this digest counts as damaged.
    assert parts[file] if file in parts else all(parts.values()) or way == "a byte flipped"
    assert contents.results.evaluation in (None, whole.evaluation)
    assert contents.results.best in (None, best)
    assert default == ("popularity" if contents.results.best else "s-dpo")
    is_told = "the best ranker is not known" in " ".join(capsys.readouterr().err.split())
    assert is_told == (contents.results.best is None)


@pytest.mark.parametrize(("metric", "difference"), [(9.08, -0.5), (-0.1, -0.5), (0.5, -1.5)])
def test_results_outside_their_range_are_refused(evaluated, metric, difference):
    raw = read_json(evaluated / METRICS)["evaluation"]
    gap = {"ranker": "a", "against": "b", "metric": "hr@1", "low": -1.0, "high": 0, "n": 1, "users": 1}
    raw["comparisons"] = [gap | {"mean": -0.5}]
    assert Evaluation.from_json(raw).comparisons[0].mean == -0.5
    raw["metrics"]["popularity"]["hr@1"]["mean"] = metric
    raw["comparisons"] = [gap | {"mean": difference}]
    with pytest.raises(ValueError, match=r"outside the range of a metric, (0|-1) to 1"):
        Evaluation.from_json(raw)


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("items.parquet", flip, "items.parquet"),
        ("prompt.jinja2", Path.unlink, "prompt.jinja2"),
        ("adapter_model.safetensors", flip, "adapter_model.safetensors"),
        ("prefrec.json", lambda path: path.write_text(path.read_text().replace("400", "401")), "prefrec.json"),
        ("seal.json", lambda path: path.write_text("{}"), "items.parquet, prefrec.json"),
    ],
)
def test_an_export_that_changed_is_refused(run, tmp_path, file, change, named):
    out = export_ranker(open_run(run), "sft", tmp_path / "out")
    (out / "README.md").write_text("a card of my own")
    (out / ".gitattributes").write_text("as the hub adds it")
    assert Recommender.from_pretrained(out).items is not None
    change(out / file)
    with pytest.raises(DataError, match=rf"is damaged: export the ranker again .*{named}"):
        Recommender.from_pretrained(out)


@pytest.mark.parametrize("weights", ["model/model.safetensors", "run/sft/adapter/adapter_model.safetensors"])
def test_a_loaded_model_does_not_change_with_its_files(tmp_path, bpe_tokenizer, weights):
    path, asked = tmp_path / weights, (["i1", "i2"], ["i3", "i4", "i5"])
    rec = Recommender.from_run(write_run(tmp_path, bpe_tokenizer), "sft")
    want, content = rec.rank(*asked), path.read_bytes()
    with path.open("r+b") as file:  # in place: the file that may be mapped
        file.seek(len(content) // 2)
        file.write(content[len(content) // 2 :][::-1])
    assert rec.rank(*asked) == want
    with path.open("r+b") as file:
        file.truncate(0)
    assert rec.rank(*asked) == want
