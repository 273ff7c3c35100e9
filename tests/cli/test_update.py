"""`prefrec update`: a finished run goes on with new interactions and new items, in a new folder."""

import json
import shutil

import polars as pl
import pytest
import yaml

from command import prefrec, refused, succeed
from prefrec.data import read_prepared
from prefrec.files import file_digest, folder_files
from prefrec.recommender import Recommender
from prefrec.runs.stage import read_state
from prefrec.training.progress import ProgressCallback
from tiny_run import ITEMS, adapter_weights, write_recipe

PAIR = ["user_id", "item_id"]
NEW_ITEMS = ["n0", "n1"]


@pytest.fixture(scope="module")
def shop(place, tmp_path_factory):
    """New interactions of 16 users, two with new items, and one new user; and the catalogue with the new items."""
    folder = tmp_path_factory.mktemp("new")
    log = pl.read_csv(place.shop["interactions"])
    last = log.group_by("user_id", maintain_order=True).last().head(16)
    rows = []
    for n, (user, item) in enumerate(last.select(PAIR).iter_rows()):
        rows += [(user, f"i{(int(item[1:]) + (1 + n % 3) * k) % ITEMS}", 20_000 + k) for k in range(1, 4)]
    rows += [("u00", "n0", 30_000), ("u01", "n1", 30_000), *(("fresh", f"i{k}", 20_000 + k) for k in range(6))]
    pl.DataFrame(rows, ["user_id", "item_id", "timestamp"], orient="row").write_csv(folder / "new.csv")
    items = pl.read_csv(place.shop["items"])
    more = pl.DataFrame({"item_id": NEW_ITEMS, "title": ["Wild Planet", "Cold Planet"]})
    pl.concat([more[:1], items, more[1:]]).write_csv(folder / "items.csv")
    return folder


def _raw(place, **changes):
    """SFT on histories, without alignments."""
    raw = place.recipe | {"align": []} | changes
    raw["model"] |= {"templates": ["history"]}
    raw["sft"] |= {"rows": None}
    raw["evaluate"] = {"rows": 20, "ks": [1, 3], "zero_shot": False, "full_rows": 0, "baselines": ["popularity"]}
    return raw


@pytest.fixture(scope="module")
def run(place, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    succeed("run", write_recipe(folder, _raw(place)), "--out", folder / "shop")
    return folder / "shop"


@pytest.fixture(scope="module")
def files(shop):
    return "--interactions", shop / "new.csv", "--items", shop / "items.csv"


@pytest.fixture(scope="module")
def updated(run, files):
    """The folder of the update, and what was printed."""
    before = {name: file_digest(run / name) for name in folder_files(run)}
    out = succeed("update", run, *files, "--set", "sft.epochs=1")
    assert {name: file_digest(run / name) for name in folder_files(run)} == before
    (folder,) = run.parent.glob("shop.updated-*")
    return folder, out


def test_an_update_says_what_it_gained_and_forgot(run, updated):
    folder, out = updated
    assert "old examples: test examples of the old run that the update did not train on" in out
    assert "newest examples: test examples whose targets the old run does not know" in out
    assert out.count("SFT − sft before") == 2
    measured = json.loads((folder / "update.json").read_text())
    old, new = read_prepared(run / "data"), read_prepared(folder / "data")
    assert measured["old"]["n"] == 20  # half of the old test rows
    known = {row for log in (old.train_interactions, old.held_out_interactions) for row in log[PAIR].iter_rows()}
    newest = [e for e in new.test if (e.user_id, e.target) not in known]
    assert measured["newest"]["n"] == len(newest) == 17
    for group in measured.values():
        assert {c["metric"] for c in group["comparisons"]} == {"hr@1", "hr@3", "ndcg@3", "mrr"}
        assert list(group["metrics"]) == ["sft before", "sft"]


def test_the_old_model_scores_its_rows_as_before(run, updated):
    """The same weights, asked in the new catalogue; there titles compete that begin like a new one."""
    folder, _ = updated
    titles = read_prepared(run / "data").catalogue.titles
    before = pl.read_parquet(folder / "predictions" / "update" / "old" / "sft before.parquet")
    asked = pl.read_parquet(run / "predictions" / "sft.parquet")
    both = before.join(asked, on=["user_id", "target", "candidates"], suffix="_asked")
    assert len(both) >= 15
    for row in both.iter_rows(named=True):
        for item, ours, theirs in zip(row["candidates"], row["scores"], row["scores_asked"], strict=True):
            if titles[item].split()[0] not in ("Wild", "Cold"):
                assert ours == pytest.approx(theirs, abs=1e-4)


def test_training_goes_on_from_the_weights_of_the_run(place, run, shop, tmp_path):
    """Without steps to speak of, the new weights are the old ones.

    The log has grown, in place of a second file, and an item has another title.
    """
    grown, retitled = tmp_path / "log.csv", tmp_path / "items.csv"
    pl.concat([pl.read_csv(place.shop["interactions"]), pl.read_csv(shop / "new.csv")]).write_csv(grown)
    is_changed = pl.col("item_id") == "i3"
    items = pl.read_csv(shop / "items.csv")
    items.with_columns(title=pl.when(is_changed).then(pl.lit("Another Name")).otherwise("title")).write_csv(retitled)
    fields = ("sft.learning_rate=1e-12", "sft.eval_rows=0", "sft.epochs=1", f"data.interactions={grown}")
    changes = [text for field in fields for text in ("--set", field)]
    succeed("update", run, "--items", retitled, "--out", tmp_path / "out", *changes)
    old, new = (adapter_weights(folder / "sft" / "adapter") for folder in (run, tmp_path / "out"))
    assert all((old[name] - new[name]).abs().max() < 1e-6 for name in old)
    assert json.loads((tmp_path / "out" / "update.json").read_text())["newest"]["n"] == 17
    before, after = (read_prepared(folder / "data").catalogue.titles for folder in (run, tmp_path / "out"))
    assert {item: after[item] for item in before} == before | {"i3": "Another Name"}
    assert before["i3"] != after["i3"]


@pytest.mark.parametrize("vanish", ["from the log", "from the catalogue"])
def test_an_update_goes_on_where_an_old_item_has_gone(place, run, shop, tmp_path, vanish):
    """Nobody buys an item any more, or it has no title any more."""
    old = read_prepared(run / "data").examples("test", 20)
    gone = [old[0].target, old[1].history[-1]]
    assert not {e.target for e in old} <= {*gone}
    log = pl.concat([pl.read_csv(place.shop["interactions"]), pl.read_csv(shop / "new.csv")])
    items = pl.read_csv(shop / "items.csv")
    is_there = ~pl.col("item_id").is_in(gone)
    log, items = (log.filter(is_there), items) if vanish == "from the log" else (log, items.filter(is_there))
    log_file = tmp_path / "log.csv"
    log.write_csv(log_file)
    items.write_csv(tmp_path / "items.csv")
    fields = ("sft.eval_rows=0", "sft.epochs=1", "data.missing_titles=drop")
    changes = [text for field in (*fields, f"data.interactions={log_file}") for text in ("--set", field)]
    done = prefrec("update", run, "--items", tmp_path / "items.csv", "--out", tmp_path / "out", *changes)
    assert done.code == 0, done.err
    assert not {*gone} & {*read_prepared(tmp_path / "out" / "data").catalogue.ids}
    left_out = sum(e.target in gone for e in old)
    assert f"update: {left_out} of 20 old test examples are left out" in done.err
    assert json.loads((tmp_path / "out" / "update.json").read_text())["old"]["n"] == 20 - left_out


def test_the_update_is_a_recipe_and_stays_when_the_run_is_deleted(run, updated, tmp_path):
    folder, out = updated
    raw = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert raw["update"] == {"run": str(run), "replay": 1.0, "rows": 1000}
    done = prefrec("run", folder / "recipe.yaml", "--out", folder)
    assert (done.code, done.out) == (0, out)
    assert [line for line in done.err.splitlines() if "unchanged" in line] == ["prepare: unchanged", "sft: unchanged"]
    copy = shutil.copytree(folder, tmp_path / "copy")
    raw["update"]["run"] = str(tmp_path / "gone")
    (copy / "recipe.yaml").write_text(yaml.safe_dump(raw))
    assert len(Recommender.from_run(copy).recommend(user="fresh", k=3)) == 3


def test_a_run_can_be_updated_from_inside_its_folder(run, updated, files, monkeypatch):
    monkeypatch.chdir(run)
    assert succeed("update", ".", *files, "--set", "sft.epochs=1") == updated[1]


@pytest.mark.long
def test_an_interrupted_update_goes_on(run, files, tmp_path, monkeypatch):
    whole = ProgressCallback.on_step_end
    command = ("update", run, *files, "--out", tmp_path / "out", "--set", "sft.eval_rows=0")

    def stop(self, args, state, control, **kwargs):
        whole(self, args, state, control, **kwargs)
        if state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProgressCallback, "on_step_end", stop)
        assert prefrec(*command).code == 130
    done = prefrec(*command)
    assert done.code == 0
    assert "Resuming from" in done.err
    assert read_state(tmp_path / "out" / "sft")["finished"]


def test_items_as_tokens_learn_new_items(place, files, tmp_path):
    raw = _raw(place, lora=None)
    raw["model"] |= {"answers": "items", "items": {"vectors": "base", "cooccurrence": 8}}
    raw["align"] = [{"name": "s-dpo", "rows": 8, "num_negatives": 3, "negatives_from": "uniform"}]
    succeed("run", write_recipe(tmp_path, raw), "--out", tmp_path / "run")
    value = json.loads(succeed("update", tmp_path / "run", *files, "--out", tmp_path / "new", "--json"))
    assert list(value["update"]["newest"]["metrics"]) == ["s-dpo before", "s-dpo"]
    ids = json.loads((tmp_path / "new" / "align" / "s-dpo" / "adapter" / "items.json").read_text())
    assert ids == read_prepared(tmp_path / "new" / "data").catalogue.ids
    assert set(NEW_ITEMS) <= set(ids)


def test_an_update_blends_the_attributes_of_new_items(place, shop, tmp_path):
    def with_brands(items, name):
        frame = pl.read_csv(items).with_columns(brand="b" + (pl.int_range(pl.len()) % 3).cast(pl.String))
        frame.write_csv(tmp_path / name)
        return tmp_path / name

    blend = {"kind": "blend", "parts": ["window co-occurrence"], "attributes": {"brand": "same"}}
    items = str(with_brands(place.shop["items"], "items.csv"))
    raw = _raw(place, rankers=[blend], data=place.recipe["data"] | {"items": items})
    succeed("run", write_recipe(tmp_path, raw), "--out", tmp_path / "run")
    asked = ("update", tmp_path / "run", "--interactions", shop / "new.csv", "--items")
    assert "the catalogue has no column 'brand'" in refused(*asked, shop / "items.csv", "--out", tmp_path / "none")
    succeed(*asked, with_brands(shop / "items.csv", "more.csv"), "--out", tmp_path / "new")
    rec = Recommender.from_run(tmp_path / "new", "blend")
    scores = {row.item_id: row.score for row in rec.rank(["n0"], NEW_ITEMS)}
    assert scores["n0"] != scores["n1"]  # both have one interaction, but only n0 has the brand of the history


def test_a_file_that_the_run_has_read_is_refused_because_its_earlier_interactions_may_be_gone(place, updated, files):
    folder, _ = updated
    for again in (files[1], place.shop["interactions"]):
        told = refused("update", folder, "--interactions", again)
        assert "this run has read that file already" in told
        assert "write the new ones to a file of another name" in " ".join(told.split())


def test_update_refuses_a_run_that_it_cannot_update(run, files, tmp_path):
    assert "name another folder" in refused("update", run, *files, "--out", run)
    copy = shutil.copytree(run, tmp_path / "copy")
    shutil.rmtree(copy / "sft")
    assert "no trained model 'sft'" in refused("update", copy, *files)
    raw = yaml.safe_load((run / "recipe.yaml").read_text())
    (copy / "recipe.yaml").write_text(yaml.safe_dump(raw | {"sft": None}))
    told = " ".join(refused("update", copy, *files).split())
    assert "this run has no SFT whose training could continue" in told
    assert "prefrec run RECIPE.yaml --out FOLDER" in told
    (copy / "recipe.yaml").write_text(yaml.safe_dump(raw | {"sft": None, "update": {"run": str(run)}}))
    assert "update: needs `sft` to continue" in refused("update", copy, *files)


def test_a_file_that_does_not_exist_is_named(tmp_path):
    there = tmp_path / "new.csv"
    there.touch()
    told = refused("update", tmp_path, "--interactions", there, "--interactions", tmp_path / "no.csv", code=2)
    assert told.startswith(f'error: Invalid value "{tmp_path}/no.csv" for --interactions.')
