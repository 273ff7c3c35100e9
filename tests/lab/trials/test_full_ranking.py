"""Results of full ranking: their tables are those of the kept ranks, and sentences follow from the findings."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from prefrec.errors import DataError
from prefrec_lab.protocol import read_protocol, read_trial
from prefrec_lab.results import PROTOCOLS
from prefrec_lab.study_tools import keep
from prefrec_lab.trials import full_ranking, rank_tables

ROOT = full_ranking.ROOT
QUICK = {"test": read_protocol(full_ranking.PROTOCOL).test.model_copy(update={"draws": 199})}
TABLE = read_protocol(full_ranking.PROTOCOL).model_copy(update=QUICK)
TRIAL = read_trial(PROTOCOLS / "e5.yaml").model_copy(update=QUICK)
LOGS = "training and validation"


def measured(name: str, seeds: int = 3, logs: str = LOGS, **gains: float) -> rank_tables.Measured:
    """300 rows of 60 targets; NDCG@10 of each ranker is that of popularity, raised by its share."""
    rng = np.random.default_rng(len(name))
    base = np.tile(rng.uniform(0.4, 0.6, 300), (seeds, 1))
    noise = {ranker: 0.01 * rng.normal(size=(seeds, 300)) for ranker in gains}
    each = {"popularity": base, "item only": base / 2}
    each |= {ranker: base * (1 + gain) + noise[ranker] for ranker, gain in gains.items()}
    kinds = np.array(["in training", "in validation only", "new"])[np.arange(300) % 3]
    rows = pl.DataFrame({"user": np.arange(300), "target": rng.integers(0, 60, 300), "class": kinds})
    rows = rows.with_columns(pl.lit(4).alias("trained"), pl.lit(7).alias("known"), pl.lit(1).alias("day"))
    facts = {"baselines": ["popularity", "item only"], "language_models": ["sft"], "blend": "blend", "leaks": []}
    facts |= {"items": 100, "commit": "0123456789", "evaluations": 2, "logs": dict.fromkeys(each, logs)}
    return rank_tables.Measured(name, facts, each, rows)


def test_the_table_of_results_is_that_of_the_kept_ranks():
    kept = json.loads(full_ranking.SECTION.read_text(encoding="utf-8"))
    made = rank_tables.main_table(full_ranking.read_all(), set())
    unmarked = [[cell.removesuffix(" ✱") for cell in row] for row in kept["tables"][0]["rows"]]
    assert unmarked == made["rows"], "run python -m prefrec_lab.trials.full_ranking"
    assert kept["tables"][0]["columns"] == made["columns"]


def test_readme_has_the_answer_of_the_results():
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert json.loads(full_ranking.SECTION.read_text(encoding="utf-8"))["answer"] in readme


def test_sentences_name_the_data_sets_of_each_finding():
    def one(name, gain):
        return measured(name, **{"blend": gain, "sequential-tower-sft": gain, "sequential-tower": 0.0})

    better, same, worse = one("lastfm", 0.3), one("goodreads", 0.001), one("amazon-book", -0.3)
    section = full_ranking.table_section([better, same, worse], TABLE)
    told = (
        "The mean NDCG@10 of the blend is above that of the best baseline in two of three splits; the difference "
        "is significant in one (LastFM by date, leave-last-out), and significantly below 0 in one (Amazon Book "
        "windows); "
    )
    assert section["answer"].startswith(told)
    note = next(note for note in section["notes"] if note.startswith("*the language model adds*"))
    assert "significantly above 0 in LastFM by date, leave-last-out" in note
    assert "significantly below 0 in Amazon Book windows" in note
    assert "Equivalent within ±3% of the ranker compared with in Goodreads windows" in note
    assert (
        section["notes"][0] == "All rankers of a split were trained on the same log before they ranked test examples."
    )
    marked = [row for row in section["tables"][0]["rows"] if row[-1].endswith("✱")]
    assert [row[0] for row in marked] == [rank_tables.TITLES[name] for name in ("lastfm", "amazon-book")]
    (read,) = (table for table in section["tables"] if table["columns"][1] == "trained on")
    assert read["rows"][0][1:] == [f"all: {LOGS}", "2", "0123456789"]


def test_features_of_time_and_the_other_parts_add_up_to_the_gain_of_the_blend():
    one = measured("lastfm", blend=0.3)
    aged = replace(one, each={"blend": one.each["popularity"][:1] * 1.2})
    section = full_ranking.table_section([one], TABLE, [aged])
    (table,) = (table for table in section["tables"] if rank_tables.WITH_TIME in table["columns"])
    (row,) = table["rows"]
    own, known, blend = (float(cell.split()[-1]) for cell in row[1:4])
    parts = [float(cell.split()[0]) for cell in row[4:]]
    assert parts == pytest.approx([known - own, blend - known], abs=2e-4)
    assert known == pytest.approx(1.2 * own, abs=2e-4)
    other = replace(aged, rows=aged.rows.with_columns(user=pl.col("user") + 1))
    with pytest.raises(DataError, match=r"aged-lastfm.*: its test examples are not those of lastfm"):
        full_ranking.table_section([one], TABLE, [other])


def test_ranks_without_a_language_model_leave_its_columns_and_family_out():
    section = full_ranking.table_section([measured("lastfm", blend=0.1)], TABLE)
    row = dict(zip(section["tables"][0]["columns"], section["tables"][0]["rows"][0], strict=True))
    assert row["the language model adds"] == row["with a language model"] == "–"
    assert not [note for note in section["notes"] if note.startswith("*the language model adds*")]


def test_a_difference_that_one_target_carries_is_told():
    one = measured("lastfm", seeds=1, **{"title-tower": 0.02, "title-tower-random": 0.0})
    one.each["title-tower"][0, :150] += 0.5  # half of the examples
    rows = one.rows.with_columns(target=pl.Series(np.r_[np.full(150, 99), one.rows["target"].to_numpy()[150:]]))
    one = replace(one, rows=rows)
    decided = full_ranking.judged(TABLE, [one])
    (decision,) = decided["title tower − random vectors"]
    difference = decision.found.difference
    assert difference.low < 0 < difference.high
    sure = replace(decision, found=replace(decision.found, word="above"))
    (note,) = full_ranking.carried_notes([one], {"title tower − random vectors": [sure]})
    assert "One target, with 150 of the 300 examples, carries +0.25" in note
    assert "without it the difference is +0.0095 [" in note
    unsure = replace(decision, found=replace(decision.found, word="open"))
    assert full_ranking.carried_notes([one], {"x": [unsure]}) == []


def test_logs_that_differ_are_told():
    one = measured("lastfm", blend=0.1)
    less = replace(one, facts=one.facts | {"logs": one.facts["logs"] | {"blend": "training"}})
    words = f"{LOGS}: popularity, item only; training: blend"
    assert rank_tables.logs_table([less])["rows"][0][1] == words
    said = full_ranking.log_sentence([less])
    assert "except in LastFM by date, leave-last-out. There the run is older: its language model" in said
    assert full_ranking.log_sentence([replace(one, facts=one.facts | {"logs": {}})]).startswith("The language model")


def test_seeds_with_other_test_examples_are_refused(tmp_path, monkeypatch):
    kept = rank_tables.RANKS
    monkeypatch.setattr(rank_tables, "RANKS", tmp_path)
    for name in ("lastfm", "lastfm-1"):
        for suffix in (".json", ".parquet"):
            (tmp_path / f"{name}{suffix}").write_bytes((kept / f"lastfm{suffix}").read_bytes())
    other = pl.read_parquet(kept / "lastfm.parquet").with_columns(pl.col("target").replace("17", "18"))
    other.write_parquet(tmp_path / "lastfm-2.parquet")
    with pytest.raises(DataError, match=r"lastfm-2.parquet: its test examples are not those of lastfm.parquet"):
        rank_tables.read("lastfm")
    (tmp_path / "lastfm-2.parquet").unlink()
    assert rank_tables.read("lastfm").seeds == 2


def test_seeds_of_earlier_runs_are_left_out_with_a_note(tmp_path, monkeypatch, capsys):
    kept = rank_tables.RANKS
    monkeypatch.setattr(rank_tables, "RANKS", tmp_path)
    (tmp_path / "lastfm.json").write_bytes((kept / "lastfm.json").read_bytes())
    new = pl.read_parquet(kept / "lastfm.parquet")
    new.with_columns(pl.col("ranker").replace("s-dpo", "sequential")).write_parquet(tmp_path / "lastfm.parquet")
    (tmp_path / "lastfm-1.parquet").write_bytes((kept / "lastfm.parquet").read_bytes())
    assert rank_tables.read("lastfm").seeds == 1
    assert "lastfm-1.parquet is left out: its rankers are not those of lastfm.parquet" in capsys.readouterr().err


def test_a_part_that_some_seeds_left_out_adds_nothing_there():
    def run(*names):
        rows = [
            {"ranker": n, "row": r, "rank": 1 + r + ("without" in n), "tied": 0, "listed": 50}
            for n in names
            for r in (0, 1)
        ]
        return pl.DataFrame(rows)

    each = rank_tables.ndcg_of([run("blend", "blend without sft"), run("blend")], "blend")
    assert each["blend without sft"].shape == (2, 2)
    assert each["blend without sft"][1].tolist() == each["blend"][1].tolist()
    assert each["blend without sft"][0].tolist() != each["blend"][0].tolist()


def test_the_mean_over_data_sets_has_a_row_per_family_and_counts_the_splits_of_a_data_set_once():
    names = ["lastfm", "amazon-book", "amazon-book-log"]
    sets = [measured(name, **{"with-reward": 0.1 * n, "with-second-model": 0.0}) for n, name in enumerate(names)]
    decided = full_ranking.judged(TRIAL, sets)
    table = rank_tables.pooled_table(sets, {"reward": decided[TRIAL.families[0].name]}, 0.03)
    ((name, count, share, *_),) = table["rows"]
    assert (name, count) == ("reward", "2 (3)")
    assert share.startswith("+")
    assert rank_tables.pooled_table(sets[1:], {"reward": decided[TRIAL.families[0].name][1:]}, 0.03)["rows"] == []


def test_a_trial_has_its_families_groups_and_declared_decision():
    assert full_ranking.trial_section([measured("lastfm", blend=0.1)], TRIAL) is None
    one = measured("lastfm", **{"blend": 0.1, "with-reward": 0.3, "with-second-model": 0.0, "without": 0.0})
    dose = {"s-dpo": {"first loss": 2.77, "last loss": 2.5, "preferences in order": 0.6, "KL": 0.7, "minutes": 3.04}}
    section = full_ranking.trial_section([replace(one, facts=one.facts | {"doses": dose})], TRIAL)
    assert section["answer"] == (
        "The primary difference, *reward − second model*, is significantly above 0 on one split. By the rule "
        "that was declared before the runs, the reward is left open."
    )
    titles = [table["title"] for table in section["tables"]]
    assert titles[1].startswith("reward − second model: ")
    groups = next(t for t in section["tables"] if t["title"].startswith("reward − second model, by class"))
    names = [row[1] for row in groups["rows"]]
    assert names == ["all", "in training", "in validation only", "new", "3–10 training interactions"]
    assert [row[2].split(" ")[0] for row in groups["rows"]] == ["300", "100", "100", "100", "300"]
    row = ["LastFM by date, leave-last-out", "s-dpo", "2.77", "2.5", "0.6", "0.7", "3.04"]
    assert row in section["tables"][-2]["rows"]
    assert "The positive control has no figures here." in section["notes"]


@pytest.mark.parametrize(
    ("gains", "decision"),
    [
        (0.3, "becomes a part of the presets"),
        (0.0, "is left out of the presets"),
        (-0.3, "is left out of the presets"),
    ],
)
def test_the_decision_of_a_trial_follows_its_rule(gains, decision):
    of = {"with-reward": gains, "with-second-model": 0.0}
    all_sets = [measured(name, **of) for name in TRIAL.sets]
    decided = full_ranking.judged(TRIAL, all_sets)[TRIAL.families[0].name]
    assert decision in full_ranking.trial_answer(TRIAL.families[0], decided, TRIAL)
    kept = "use" if gains > 0 else "do not use"
    said = full_ranking.trial_in_short(decided, TRIAL)
    assert "on seven of the seven splits. " in said
    assert said.endswith(f"The presets {kept} this reward.")


def test_readme_says_on_how_many_splits_a_trial_made_a_difference():
    gains = {"lastfm": 0.3, "goodreads": 0.0, "amazon-book": 0.0}
    sets = [measured(name, **{"with-reward": gain, "with-second-model": 0.0}) for name, gain in gains.items()]
    said = full_ranking.trial_in_short(full_ranking.judged(TRIAL, sets)[TRIAL.families[0].name], TRIAL)
    assert "is significantly above 0 on one and within ±3% on two of the three splits. " in said
    assert said.endswith("The presets do not use this reward.")


@pytest.mark.parametrize(("reward", "won"), [(0.3, True), (0.0, False)])
def test_the_second_positive_control_decides_beside_the_first(reward, won):
    def control(name, reward):
        return measured(name, seeds=1, **{"s-dpo": 0.0, "sft": 0.0, "with-reward": reward, "with-second-model": 0.0})

    (first, verdict) = full_ranking.poor_notes([control("goodreads", 0.3)])
    assert "It did not win." in first, "its own difference is S-DPO − SFT"
    assert "The control could not win" in verdict
    both = [control("goodreads", 0.3), control("movielens-100k", reward), control("lastfm", reward)]
    _, second, *verdict = full_ranking.poor_notes([*both, control("amazon-office", 0.0)])
    assert ("It won." in second) is won
    assert (verdict == []) is won
    assert ("can see an effect" in full_ranking.control_verdict(both)) is won
    assert full_ranking.control_verdict([]) == ""
    assert "Goodreads" not in second


STUDY = """## ablation

Which loss?

n = 5 rows

### Results

| Loss | N | HR@5 | − SFT’s | NDCG@10 | − SFT’s |
|---|---|---|---|---|---|
| a \\| b | 1 | 0.1 | – | 0.2 | +0.1 [+0.0, +0.2] |

### More

| x | y |
|---|---|
| 1 | 2 |
"""


def test_a_study_is_put_into_the_results_and_what_people_wrote_is_kept(tmp_path):
    folder = tmp_path / "ablation"
    folder.mkdir()
    (folder / "table.md").write_text(STUDY, encoding="utf-8")
    summary = {"study": "ablation", "question": "Which loss?", "n": 5, "users": 4, "seeds": [0, 1], "model": "m"}
    summary |= {"data": "d", "candidates": 20, "split": "validation", "intervals": "95%", "verdicts": ["No leak."]}
    summary["environment"] = {"commit": "0123456789ab", "processor": "cpu", "threads": 1}
    (folder / "study.json").write_text(json.dumps(summary))
    first = json.loads(keep.put(folder, studies=tmp_path).read_text())
    assert (first["answer"], first["status"], first["n"]) == (keep.MISSING, "current", "5 examples of 4 users")
    columns = ["Loss", "N", "HR@5", "HR@5: − SFT’s", "NDCG@10", "NDCG@10: − SFT’s"]
    assert first["tables"][0]["columns"] == columns
    assert first["tables"][0]["rows"] == [["a | b", "1", "0.1", "–", "0.2", "+0.1 [+0.0, +0.2]"]]
    assert first["tables"][1] == {"title": "More", "columns": ["x", "y"], "rows": [["1", "2"]]}
    assert first["page"] == [{"table": 0, "columns": [c for c in columns if c != "HR@5"]}]
    (tmp_path / "ablation.json").write_text(json.dumps(first | {"answer": "All alike."}))
    again = json.loads(keep.put(folder, studies=tmp_path).read_text())
    assert again == first | {"answer": "All alike."}
