"""The table of trials in docs/reproduce.md: its sizes are shares of the controls, computed from the results."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import trials_table  # noqa: E402

RESULT = {
    "title": "Made up",
    "tables": [
        {
            "columns": ["difference", "HR@1", "finding (±0.01)"],
            "rows": [["a − b", "+0.0200 [−0.0100, +0.0500]", "open"]],
        },
        {
            "columns": ["difference", "NDCG@10", "p of ±3% after Holm", "finding"],
            "rows": [["set: a − b", "−0.0050 [−0.0070, −0.0030]", "1.0000", "below"]],
        },
        {
            "columns": ["data", "ranker", "value"],
            "rows": [["set", "b", "0.5000 [0.4000, 0.6000]"], ["set", "c", "0.1"], ["other", "b", "0.2"]],
        },
    ],
    "trial": {
        "name": "E9",
        "rows": [
            {
                "question": "Does a help?",
                "metric": "HR@1",
                "dose": [{"examples": 300, "passes": 1, "batch": 16}, {"examples": 1000, "passes": 2, "batch": 16}],
                "differences": [
                    {"at": [0, "a − b", "HR@1"], "control": [2, "set: b", "value"]},
                    {"at": [1, "set: a − b", "NDCG@10"], "control": [2, "other", "value"]},
                ],
            }
        ],
    },
}


def test_sizes_are_shares_of_the_control():
    row = trials_table.table([("docs/experiments/99-made-up.md", RESULT)]).splitlines()[-1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    # 0.02 of 0.5 and −0.005 of 0.2; half-widths 0.03 of 0.5 and 0.002 of 0.2; margins 0.01 of 0.5 and 3%.
    assert cells == [
        "[E9](experiments/99-made-up.md)",
        "Does a help?",
        "300 to 1,000 examples, 1 to 2 passes, 19 to 126 steps",
        "−2.5% to +4.0%",
        "1.0% to 6.0%",
        "2.0% to 3.0%",
        "1 open, 1 below",
    ]


def test_the_picture_has_each_difference_with_its_interval():
    drawn = trials_table.drawn([("docs/experiments/99-made-up.md", RESULT)])
    assert ">E9: HR@1<" in drawn
    assert ">+4.0 [−2.0, +10.0]<" in drawn
    assert ">−2.5 [−3.5, −1.5]<" in drawn


def test_a_row_that_two_rows_could_be_is_refused():
    with pytest.raises(ValueError, match="unpack"):
        trials_table.shown(RESULT, {"at": [0, "a − b", "HR@1"], "control": [2, "set", "value"]})


def test_figures_on_dislikes_are_those_of_the_tables():
    """The answer and the notes of trial E6, and the table of the page on likes."""
    fields = json.loads((ROOT / "lab/results/73-dislikes.json").read_text(encoding="utf-8"))
    known = " ".join(cell for table in fields["tables"] for row in table["rows"] for cell in row)
    page = (ROOT / "docs" / "preferences.md").read_text(encoding="utf-8")
    own = page[page.index("**Fewer dislikes") : page.index("experiments/73-dislikes.md")]
    for text in (fields["answer"], *fields["notes"], own):
        assert [number for number in re.findall(r"[+−]?0\.\d{3,4}", text) if number not in known] == []
    curves = {(row[0], row[1]): row for row in fields["tables"][0]["rows"]}
    names = {
        "SFT on liked items": "sft-on-liked",
        "reward of S-DPO": "s-dpo",
        "user-centred item mean": "mean",
        "user-centred item mean + reward of S-DPO": "mean + s-dpo",
        "item mean, without the user": "item mean",
    }
    rows = {row[0]: row[1:] for row in re.findall(r"^\| ([^|]+) \| (0\.\d+) \| (0\.\d+) \|$", own, re.MULTILINE)}
    sets = ("movielens-100k", "lastfm-counts")
    assert rows.pop("nothing") == tuple(curves[name, "mean"][3] for name in sets)
    assert rows == {shown: tuple(curves[name, arm][5] for name in sets) for shown, arm in names.items()}


def test_no_difference_of_the_first_trials_could_have_been_equivalent():
    """The page says so."""
    fields = [json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "lab/results").glob("*.json")]
    early = [own for own in fields if own.get("trial", {}).get("name") in ("E1", "E2", "E3", "E4")]
    assert len(early) == 4
    for own in early:
        for row in own["trial"]["rows"]:
            for one in (trials_table.shown(own, difference) for difference in row["differences"]):
                assert one.half > one.margin


def test_the_page_has_all_trials_and_their_values():
    page = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(E\d)\]\(experiments/([\w-]+)\.md\) \|(.*)\|$", page, re.MULTILINE)
    assert {name for name, _, _ in rows} == {f"E{n}" for n in range(1, 7)}
    open_only = [row for name, _, row in rows if name in ("E1", "E2", "E3", "E4")]
    assert all(row.rstrip().endswith(" open") for row in open_only), "the page says that none is equivalent"
    # Slow twin, by hand: S-DPO with low-rated negatives against SFT on liked items, in trial E3.
    fields = json.loads((ROOT / "lab/results/67-liked-items.json").read_text(encoding="utf-8"))
    cell = next(row[1] for row in fields["tables"][1]["rows"] if row[0] == "s-dpo-rated − sft-on-liked")
    control = next(row[1] for row in fields["tables"][0]["rows"] if row[0] == "sft-on-liked")
    least = float(cell.split()[0].replace("−", "-")) / float(control)
    (shown,) = [row for name, _, row in rows if name == "E3"]
    assert f"| {least:.1%} to ".replace("-", "−") in shown
