"""Periods that do not overlap, an update that goes on from the old adapter, and the whole study."""

import numpy as np
import polars as pl
import pytest
import torch

from prefrec.data.types import COUNTED
from prefrec.data.update import MARK, read_by_sft
from prefrec.errors import ConfigError
from prefrec.files import read_json
from prefrec.intake import prepare
from prefrec.recipe import Recipe
from prefrec.stages.inputs import RunInputs
from prefrec.stages.train import train_sft, trained_items
from prefrec_lab.studies import continual
from prefrec_lab.studies.continual import BEFORE, CONTINUAL, MODELS, NEW, OLD, RETRAINED, UPDATED
from prefrec_lab.study_tools.carry_out import carry_out
from tiny_run import ITEMS, adapter_weights


@pytest.fixture(scope="module")
def timed(base, tmp_path_factory):
    """The base recipe on a log in which 30 users stop early, 8 go on to the end, and 4 come late and take fast."""
    folder, rng, log = tmp_path_factory.mktemp("timed"), np.random.default_rng(0), []
    spans = [*((0, 8) for _ in range(30)), *((0, 16) for _ in range(8)), *((10, 16) for _ in range(4))]
    for u, (start, end) in enumerate(spans):
        items, pace = rng.choice(ITEMS, end - start, replace=False).tolist(), 20 if start else 100
        times = (COUNTED + 100 * start + pace * n + u for n in range(len(items)))  # dates, and no counters
        log += [(f"u{u:02}", f"i{item}", time) for item, time in zip(items, times, strict=True)]
    pl.DataFrame(log, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(folder / "log.csv")
    raw = base.model_dump(mode="json")
    raw["data"] |= {"interactions": str(folder / "log.csv")}
    raw["evaluate"] |= {"rows": 10}
    raw["align"][0] |= {"skip_rows": 16}
    raw["sft"] |= {"rows": 12}
    return Recipe.model_validate(raw)


@pytest.fixture(scope="module")
def recipe(timed):
    return continual.continual_recipe(timed)


@pytest.fixture(scope="module")
def parts(recipe):
    return continual.periods_of(recipe, prepare(recipe.data))


@pytest.fixture(scope="module")
def summary(timed, place):
    return carry_out(CONTINUAL, timed, [0], place / "continual-study")


def test_data_with_repeats_are_refused(timed):
    raw = timed.model_dump(mode="json")
    with pytest.raises(ConfigError, match=r"^data\.repeats: .*set it to drop$"):
        continual.continual_recipe(Recipe.model_validate(raw | {"data": raw["data"] | {"repeats": "keep"}}))


def _pairs(rows):
    return {(e.user_id, e.target) for e in rows}


def test_nothing_under_test_is_trained_on(parts):
    for part in (parts.old, parts.new, parts.both):
        logged = set(part.train_interactions.select("user_id", "item_id").iter_rows())
        asked = _pairs([*parts.old_test, *parts.new_test])
        assert not asked & _pairs(part.train)
        assert not asked & logged
        assert not {(e.user_id, i) for e in part.train for i in e.history} & _pairs(parts.old_test)
        assert logged >= _pairs(part.train)
    assert len(parts.old_test) == len(parts.new_test) == 10


def test_periods_follow_each_other(parts, recipe):
    """The slow twin: time of every interaction from the log."""
    log = pl.read_csv(recipe.data.interactions)
    time = {(u, i): t for u, i, t in log.iter_rows()}
    old, new, later = ([time[p] for p in _pairs(rows)] for rows in (parts.old.train, parts.new.train, parts.new_test))
    assert max(old) < min(new) <= max(new) < min(later)
    assert max(time[p] for p in _pairs(parts.old_test)) < min(new)
    assert _pairs(parts.both.train) == _pairs(parts.old.train) | _pairs(parts.new.train)
    back = {u for u, t in log.select("user_id", "timestamp").iter_rows() if t >= min(new)}
    assert not {e.user_id for e in parts.old_test} & back


def test_the_update_learns_as_prefrec_update_without_a_replay(parts, recipe):
    """All items compete, histories of users who come back are whole, and only new interactions are marked."""
    assert trained_items(parts.new) == trained_items(parts.both)
    log = parts.new.train_interactions
    assert log.drop(MARK).equals(parts.both.train_interactions)
    is_old = [pair in _pairs(parts.old.train) for pair in log.filter(MARK).select("user_id", "item_id").iter_rows()]
    assert {*log[MARK]} == {True, False}
    assert not any(is_old)
    read = read_by_sft(log, recipe.sft.titles)
    assert {*read["user_id"]} == {*log.filter(MARK)["user_id"]}
    back = {*read["user_id"]} & {*parts.old.train_interactions["user_id"]}
    whole = log.filter(pl.col("user_id").is_in([*back]))
    assert not whole[MARK].all()
    assert read.filter(pl.col("user_id").is_in([*back])).equals(whole)


def test_the_update_goes_on_from_the_old_adapter(summary, place, parts, recipe, tmp_path):
    folder = place / "continual-study" / "runs" / "continual-seed-0"
    of = {w: folder / w.replace(" ", "-") for w in MODELS}
    states = {w: {p.parent.name: read_json(p) for p in of[w].rglob("stage.json")} for w in MODELS}
    assert set(states[BEFORE]) == set(states[UPDATED]) == set(states[RETRAINED]) == {"sft", "s-dpo"}
    assert [states[w]["sft"]["config"]["rows"] for w in MODELS] == [12, 12, 24]
    assert [states[w]["s-dpo"]["config"]["rows"] for w in MODELS] == [16, 16, 27]
    assert [states[w]["s-dpo"]["config"]["skip_rows"] for w in MODELS] == [16, 16, 32]
    assert [(r["SFT rows"], r["S-DPO rows"]) for r in summary["tables"]["effort"]] == [(12, 16), (12, 11), (24, 27)]
    told = [n for n in summary["notes"] if "there are no more" in n]
    assert told == ["S-DPO of the model “updated” takes 11 rows, not 16: there are no more."]
    start = of[BEFORE] / "align" / "s-dpo" / "adapter"
    twin = train_sft(RunInputs(parts.new, "", recipe.model, recipe.lora, 0), recipe.sft, tmp_path, start)
    found, expected = (adapter_weights(p) for p in (of[UPDATED] / "sft" / "adapter", twin))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_gain_and_forgetting(summary):
    table = pl.DataFrame(summary["tables"]["table"], infer_schema_length=None)
    assert table["variant"].unique(maintain_order=True).to_list() == list(MODELS)
    for group in (NEW, OLD):
        assert set(table.filter(group=group)["n"]) == {10}
        assert set(table.filter(group=group)["against"]) == {None, BEFORE}
    assert [r["model"] for r in summary["tables"]["effort"]] == list(MODELS)
    assert all(r["seconds"] > 0 for r in summary["tables"]["effort"])
    assert [f.partition(".")[0] for f in summary["facts"]] == [NEW, NEW, OLD, OLD]
    assert len(summary["plots"]) == 2
