"""What two runs serve by default, compared on examples that neither has learnt."""

import math
from dataclasses import replace
from unittest.mock import patch

import polars as pl
import pytest

from command import refused, succeed
from prefrec.data import read_prepared
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.run import run_recipe
from prefrec.recipe import Recipe
from prefrec.recommend import succession
from prefrec.recommend.succession import SUCCESSION, compare_served
from prefrec.recommender import Recommender
from tiny_run import ITEMS, tiny_recipe, write_shop

BASELINES = ["popularity", "window co-occurrence"]


@pytest.fixture(scope="module")
def shops(tmp_path_factory):
    """The log of the first night; and that of the second, with a new item that some users took last."""
    folder = tmp_path_factory.mktemp("shops")
    first = write_shop(folder / "first")
    log, items = (pl.read_csv(path) for path in first.values())
    last = log.group_by("user_id", maintain_order=True).last().head(24)
    rows = [
        (user, "new" if n < 3 else f"i{(int(item[1:]) + 1 + int(user[1:]) % 3) % ITEMS}", 20_000)
        for n, (user, item) in enumerate(last.select("user_id", "item_id").iter_rows())
    ]
    second = {name: folder / f"{name}.csv" for name in first}
    more = pl.DataFrame(rows, log.schema, orient="row")
    pl.concat([log, more]).write_csv(second["interactions"])
    pl.concat([items, pl.DataFrame({"item_id": ["new"], "title": ["Wild Planet"]})]).write_csv(second["items"])
    return first, second


@pytest.fixture(scope="module")
def runs(shops, tmp_path_factory):
    """Runs of baselines: of the first log, of the second, and of the second by popularity alone."""
    folder = tmp_path_factory.mktemp("runs")

    def run(name, shop, baselines):
        raw = tiny_recipe(shop, folder / "model") | {"sft": None, "align": []}
        raw["evaluate"] = {"rows": 20, "zero_shot": False, "full_rows": 0, "baselines": baselines}
        run_recipe(Recipe.model_validate(raw), folder / name)
        return folder / name

    first, second = shops
    run("shop.1", first, BASELINES)
    run("shop.2", second, BASELINES)
    run("shop.3", second, ["popularity"])
    return folder


def _by_hand(run, example, log):
    """NDCG@10 of the ten items that a recommender of the run names after a user's history."""
    rec = Recommender.from_run(run)
    history = [item for item in example.history if item in rec.data.catalogue.index]
    seen = [item for item in log.filter(user_id=example.user_id)["item_id"] if item in rec.data.catalogue.index]
    denied = [{"item_id": item} for item in seen if item != example.target]
    best = rec.recommend(
        [rec.items.item(i) for i in history], 10, deny=[rec.items.item(d["item_id"]) for d in denied]
    )
    ranks = [row.rank for row in best if row.item_id == example.target]
    return 1 / math.log2(1 + ranks[0]) if ranks else 0.0


def test_the_newest_examples_are_answered_as_each_run_would_serve_them(runs, shops):
    before, after = open_run(runs / "shop.1"), open_run(runs / "shop.2")
    found = compare_served(before, after)
    assert (found.before, found.after, found.folders) == (BASELINES[1], BASELINES[1], ("shop.1", "shop.2"))
    known = {pair for log in before.data.logs for pair in log.select("user_id", "item_id").iter_rows()}
    newest = [e for e in after.data.test if (e.user_id, e.target) not in known]
    assert sum(e.target == "new" for e in newest) == 3
    assert found.difference.n == len(newest) == 24
    log = pl.read_csv(shops[1]["interactions"])
    values = [[_by_hand(runs / name, e, log) for e in newest] for name in ("shop.1", "shop.2")]
    old, new = (sum(column) / len(column) for column in values)
    assert found.old.mean == pytest.approx(old)
    assert found.new.mean == pytest.approx(new)
    assert found.difference.mean == pytest.approx(new - old)
    assert found.sentence.startswith("window co-occurrence is the default of shop.2, as of shop.1. NDCG@10 of the ")
    assert f"on 24 newest test examples: {old:.3f} before, {new:.3f} now, " in found.sentence


def test_without_new_examples_those_count_that_neither_has_learnt(runs):
    found = compare_served(open_run(runs / "shop.2"), open_run(runs / "shop.3"))
    assert found.group == "test examples, which both have not learnt"
    assert found.difference.n == 40
    assert found.is_worse
    assert "The default changes: window co-occurrence in shop.2, popularity in shop.3. " in found.sentence


def test_a_run_that_has_learnt_all_examples_is_not_compared(runs):
    newer = open_run(runs / "shop.2")
    older = open_run(runs / "shop.1")
    older = replace(older, data=replace(older.data, test=older.data.test[:24]))
    found = compare_served(newer, older)
    assert (found.reason, found.difference) == ("shop.2 has learnt all test examples of shop.1", None)
    assert found.sentence.endswith("Not compared: shop.2 has learnt all test examples of shop.1")
    assert not found.is_worse


def test_a_comparison_is_kept_until_a_ranker_changes(runs):
    before, after = open_run(runs / "shop.1"), open_run(runs / "shop.2")
    (after.folder / SUCCESSION).unlink(missing_ok=True)
    found = compare_served(before, after)
    with patch.object(succession, "_ndcg", side_effect=AssertionError):
        assert compare_served(before, after) == found
        with pytest.raises(AssertionError):
            compare_served(open_run(runs / "shop.3"), after)


def test_switch_refuses_what_is_worse_or_damaged_and_leads_back(runs, tmp_path):
    link = runs / "shop"
    assert succeed("switch", link, runs / "shop.1") == f"{link} leads to {runs / 'shop.1'}.\n"
    out = succeed("switch", link, runs / "shop.2")
    assert out.endswith(
        f"{link} leads to {runs / 'shop.2'}.\nTo go back: prefrec switch {link} {runs / 'shop.1'} --force\n"
    )
    message = " ".join(refused("switch", link, runs / "shop.3").split())
    assert "shop still leads to shop.2, because shop.3 is worse. The default changes: " in message
    assert message.endswith("To switch nevertheless: --force")
    assert link.resolve() == runs / "shop.2"
    assert "popularity in shop.3" in succeed("switch", link, runs / "shop.3", "--force")
    assert link.resolve() == runs / "shop.3"
    succeed("switch", link, runs / "shop.2", "--force")
    assert "there is no such folder" in refused("switch", link, runs / "shop.9")
    assert "is not a link to a run" in refused("switch", runs / "shop.1", runs / "shop.2")
    assert link.resolve() == runs / "shop.2"
    assert len(read_prepared(link / "data").test) == 40
