"""Ready-made rows with their own split: files that are found, what is learnt from, what stays held out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command import succeed
from prefrec.data import PreparedData, read_prepared, seen_items
from prefrec.errors import DataError
from prefrec.intake import PrepareConfig, prepare
from prefrec.intake.sources.windows import find_window_files
from prefrec.recipe import load_recipe

Log = dict[str, list[tuple[str, int]]]
WIDTH, LEAST = 4, 2


def draw_log(seed: int, users: int = 30) -> Log:
    """User → items, no item twice, and the days on which they were taken; many on one day."""
    rng, log = np.random.default_rng(seed), {}
    for u in range(users):
        n = int(rng.integers(LEAST + 1, 15))
        days = np.sort(rng.integers(12_000, 12_040, n)).tolist()
        log[f"u{u}"] = list(zip(rng.permutation(60)[:n].astype(str).tolist(), days, strict=True))
    return log


def write_rows(folder: Path, log: Log, cut: int = 12_030) -> Path:
    """Rows of windows, by day before `cut` in `train.csv` and after it in `test.csv`; two items share a title."""
    rows = [
        (taken[n][1], user, [item for item, _ in taken[max(0, n - WIDTH) : n + 1]])
        for user, taken in log.items()
        for n in range(LEAST, len(taken))
    ]
    for name in ("train", "test"):
        kept = sorted((r for r in rows if (r[0] < cut) == (name == "train")), key=lambda row: row[0])
        lines = [f'{user},"{items}",{day * 86_400}\n' for day, user, items in kept]
        (folder / f"{name}.csv").write_text("user_id,item_ids,timestamp\n" + "".join(lines))
    titles = {str(i): f"Pen &amp; pad {i}" for i in range(70)} | {"61": "Pen &amp; pad 60"}
    (folder / "id2name4Rec.json").write_text(json.dumps(titles))
    return folder


def prepared(folder: Path, **options: Any) -> PreparedData:
    usual = {"candidates": {"size": 5}, "min_history": LEAST}
    return prepare(PrepareConfig(source="windows", path=folder, **usual | options))


def pairs(data: PreparedData) -> list[tuple[str, str]]:
    return [(user, item) for user, item, *_ in data.train_interactions.iter_rows()]


def test_the_log_that_rows_were_cut_from(tmp_path):
    log = draw_log(1)
    data = prepared(write_rows(tmp_path, log), validation_share=0.2, history_length=3)
    days = {(user, item): day for user, taken in log.items() for item, day in taken}
    cut = min(days[pair] for pair in {(e.user_id, e.target) for e in data.validation})
    shown = [  # by the training rows that are left
        (user, item)
        for user, taken in sorted(log.items())
        for n, (item, _) in enumerate(taken)
        if any(day < cut for _, day in taken[max(n, LEAST) :][: 1 if n >= LEAST else None])
    ]
    assert pairs(data) == shown  # in order, each once
    assert data.train_interactions["timestamp"].is_between(12_000 * 86_400, 12_040 * 86_400).all()
    assert max(days[e.user_id, e.target] for e in data.train) < cut
    assert 0.2 <= len(data.validation) / (len(data.train) + len(data.validation)) < 0.35
    whole = sum(len(taken) - LEAST for taken in log.values())
    assert len(data.train) + len(data.validation) + len(data.test) == whole
    for rows in (data.validation, data.test):
        for e, seen in zip(rows, seen_items(data, rows), strict=True):
            items = [item for item, _ in log[e.user_id]]
            before = items[: items.index(e.target)]
            assert (seen, list(e.history)) == (set(before), before[-3:])
            assert not {*e.candidates} - {e.target} & set(items)


def test_titles_and_notes(tmp_path):
    data = prepared(write_rows(tmp_path, draw_log(0)))
    assert len(data.catalogue) == 70  # items that occur nowhere stay
    assert data.catalogue.titles_of(["60", "61"]) == ["Pen & pad 60", "Pen & pad 60 (2)"]
    notes = data.protocol["notes"]
    assert notes[0] == "1 items with the title of another item were numbered, as in 'Title (2)'"
    assert notes[1].startswith("train.csv: ")
    assert notes[2].startswith("validation: the latest ")
    with pytest.raises(DataError, match="1 titles belong to more than one item"):
        prepared(tmp_path, duplicate_titles="error")


def small(folder: Path, train: str, test: str, head: str = "user_id,item_ids,timestamp\n", **more: str) -> Path:
    (folder / "train.csv").write_text(head + train)
    (folder / "test.csv").write_text(head + test)
    (folder / "items.csv").write_text("id,title\n" + "".join(f"{i},Thing {i}\n" for i in range(30)))
    for name, text in more.items():
        (folder / f"{name}.csv").write_text(head + text)
    return folder


def test_rows_that_ask_for_what_was_taken_before_are_left_out(tmp_path):
    train = "u,1 2 3,10\nu,2 3 4,20\nu,3 4 5,30\nu,4 5 6,40\nv,1 2 1,50\nv,11,60\n"
    data = prepared(small(tmp_path, train, "u,5 6 7,70\nu,6 7 1,80\n", validation="u,4 5 7 6,65\nw,8 9 10,66\n"))
    assert [(e.user_id, e.history, e.target) for e in data.validation] == [("w", ("8", "9"), "10")]
    assert ([(e.user_id, e.target) for e in data.test], len(data.train)) == ([("u", "7")], 4)
    assert pairs(data) == [("u", str(i)) for i in range(1, 7)] + [("v", "1"), ("v", "2"), ("v", "11")]
    assert data.protocol["counts"]["repeats_dropped"] == 1
    assert "1 examples with fewer than 2 history items were dropped" in data.protocol["notes"]
    assert "3 examples whose target the user had seen before were dropped" in data.protocol["notes"]
    assert "100.0% of the test targets do not occur in training" in data.protocol["notes"]


def test_merged_and_missing_titles(tmp_path):
    folder = small(tmp_path, "u,1 2 3,10\nu,2 3 4,20\nv,1 40 2 3,30\nv,2 3 40,40\n", "w,5 40 6 7,50\n")
    with pytest.raises(DataError, match=r"items\.csv: 1 items of the log have no title .*'40'; 3 interactions"):
        prepared(folder, validation_share=0)
    data = prepared(folder, validation_share=0, missing_titles="drop")
    assert [(e.history, e.target) for e in (*data.train[2:], *data.test)] == [(("1", "2"), "3"), (("5", "6"), "7")]
    text = (folder / "items.csv").read_text()
    (folder / "items.csv").write_text(text.replace("Thing 3\n", "Thing 1\n") + "40,Thing 5\n")
    data = prepared(folder, validation_share=0, duplicate_titles="merge")
    assert pairs(data) == [("u", i) for i in "124"] + [("v", i) for i in "152"]
    assert [(e.history, e.target) for e in data.train] == [(("2", "1"), "4"), (("2", "1"), "5")]


def test_recbole_files_need_no_times(tmp_path):
    head = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
    for part, lengths in {"train": (1, 2, 3), "valid": (4,), "test": (5,)}.items():
        rows = [(u, " ".join(f"{u}{i}" for i in range(1, n + 1)), n + 1) for u in (1, 2) for n in lengths]
        lines = [f"u{u}\t{history}\t{u}{target}\n" for u, history, target in rows]
        (tmp_path / f"shop.{part}.inter").write_text(head + "".join(lines))
    items = "".join(f"{u}{i}\tThing {u}{i}\n" for u in (1, 2) for i in range(7))
    (tmp_path / "shop.item").write_text("item_id:token\ttitle:token_seq\n" + items)
    data = prepared(tmp_path)
    assert [(e.user_id, e.target) for e in data.test] == [("u1", "16"), ("u2", "26")]
    assert pairs(data) == [(f"u{u}", f"{u}{i}") for u in (1, 2) for i in range(1, 5)]
    assert seen_items(data, data.test) == [{f"{u}{i}" for i in range(1, 6)} for u in (1, 2)]
    (tmp_path / "shop.valid.inter").unlink()
    with pytest.raises(DataError, match=r"there are no validation examples, .* they have no times.*file-order"):
        prepared(tmp_path)
    assert prepared(tmp_path, validation_share=0).validation == []
    cut = prepared(tmp_path, validation_share=0.2, columns={"timestamp": "file-order"}, min_history=1)
    assert [(e.user_id, e.target) for e in cut.validation] == [("u2", "24")]
    assert ("u2", "24") not in pairs(cut)


def test_files_are_found_or_asked_for(tmp_path):
    with pytest.raises(DataError, match=r"no train examples; expected a file such as train\.csv"):
        find_window_files(tmp_path, {})
    rows = {part: tmp_path / f"shop_{part}.jsonl" for part in ("train", "val", "test")}
    for path in rows.values():
        path.write_text("")
    with pytest.raises(DataError, match=r"expected one file of titles, .*found none\. Name it with --items"):
        find_window_files(tmp_path, {})
    titles = tmp_path / "id2name.json"
    for path in (titles, tmp_path / "name2genre.json", tmp_path / "popular.parquet"):
        path.write_text("")
    files = {"train": rows["train"], "validation": rows["val"], "test": rows["test"]}
    assert find_window_files(tmp_path, {}) == (files, titles)
    (tmp_path / "new_test.csv").write_text("")
    with pytest.raises(DataError, match=r"new_test\.csv and shop_test\.jsonl both look like the test examples"):
        find_window_files(tmp_path, {}, titles)
    named = {"test": tmp_path / "new_test.csv"}
    assert find_window_files(tmp_path, named, titles)[0] == files | named
    assert find_window_files(None, files, titles) == (files, titles)


def test_command_and_recipe(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    write_rows(folder, draw_log(0))
    common = ["--source", "windows", "--candidates.size", 5]
    assert "train.csv: " in succeed("prepare", tmp_path / "out", *common, "--path", folder, "--validation-share", 0.1)
    found = read_prepared(tmp_path / "out")
    (folder / "test.csv").rename(folder / "later.csv")
    named = ["--row-files", f"train={folder / 'train.csv'}", "--row-files", f"test={folder / 'later.csv'}"]
    named += ["--items", folder / "id2name4Rec.json", "--columns.item-list", "item_ids"]
    succeed("prepare", tmp_path / "named", *common, *named, "--validation-share", 0.1)
    assert read_prepared(tmp_path / "named").test == found.test
    rest = "row_files: {test: shop/later.csv}, validation_share: 0.1, candidates: {size: 5}"
    (tmp_path / "shop.yaml").write_text(f"name: shop\ndata: {{source: windows, path: shop, {rest}}}\n")
    config = load_recipe(tmp_path / "shop.yaml").data
    assert (config.row_files, prepare(config).test) == ({"test": folder / "later.csv"}, found.test)


@pytest.mark.shared_data
def test_amazon_office(shared_data):
    office = {"source": "windows", "path": shared_data / "amazon-office", "candidates": {"kind": "uniform"}}
    data = prepare(PrepareConfig(**office, validation_share=0))
    learnt = data.train_interactions
    assert (len(learnt), learnt["user_id"].n_unique(), len(data.catalogue)) == (41_662, 3_718, 2_414)
    assert learnt.select("user_id", "item_id").is_unique().all()
    assert (len(data.train), len(data.validation), len(data.test)) == (15_400, 0, 1_925)
    assert "46.5% of the test targets do not occur in training" in data.protocol["notes"]
    cut = prepare(PrepareConfig(**office))
    assert (len(cut.train), len(cut.validation), len(cut.train_interactions)) == (14_098, 1_302, 38_077)
    assert cut.test == data.test


def test_rows_can_be_split_as_one_log(tmp_path):
    """All targets of a user with enough history before them and after the cut are questions."""
    log = draw_log(0)
    folder = write_rows(tmp_path, log)
    data = prepared(folder, split="time")
    assert data.protocol["split"] == "time"
    times = sorted(day for taken in log.values() for _, day in taken[LEAST:])
    shown = {(user, item) for user, item, *_ in data.train_interactions.iter_rows()}
    assert len(times) * 0.5 < len(shown) < len(times)
    cuts = [cut // 86_400 for cut in data.protocol["split_facts"]["cuts"]]
    expected = [(u, i) for u, own in log.items() for n, (i, day) in enumerate(own) if n >= LEAST and day >= cuts[1]]
    assert sorted((e.user_id, e.target) for e in data.test) == sorted(expected)
    assert prepared(folder, split="leave-last-out").protocol["split"] == "leave-last-out"
    with pytest.raises(DataError, match="split time needs the times of all examples"):
        prepared(folder, split="time", columns={"timestamp": "file-order"})


def test_titles_are_decoded_once(tmp_path):
    folder = write_rows(tmp_path, draw_log(1))
    titles = {str(i): f"A&amp;lt;B &copyright {i}" for i in range(70)}
    (folder / "id2name4Rec.json").write_text(json.dumps(titles))
    assert prepared(folder).catalogue.titles["1"] == "A&lt;B &copyright 1"
