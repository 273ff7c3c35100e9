"""The page of published benchmarks: figures of papers and of runs, by what they are trained on."""

import json

from prefrec_lab.trials.published import costs, differences, table

ABOUT = {
    "title": "A set",
    "figures": [
        {"model": "Better", "learns": "+val", "hr": 0.09, "ndcg": 0.05, "source": "a paper"},
        {"model": "Worse", "learns": "+val", "hr": 0.08, "ndcg": 0.04, "source": "a paper", "checked": True},
        {"model": "Other", "learns": "train", "hr": 0.1, "ndcg": 0.06, "source": "another"},
    ],
}


def write_run(folder, seed, ndcg):
    run = folder / f"set-val-{seed}"
    run.mkdir()
    blend = {
        name: {
            "mean": mean,
            "low": mean - 0.01,
            "high": mean + 0.02,
            "user_low": mean - 0.002,
            "user_high": mean + 0.003,
        }
        for name, mean in ndcg.items()
    }
    pair = {"ranker": "blend", "against": "EASE", "metric": "ndcg@10", "mean": -0.001, "low": -0.003, "high": 0.002}
    full = {"metrics": {"blend": blend}, "comparisons": [pair | {"n": 1200}]}
    (run / "metrics.json").write_text(json.dumps({"full_catalogue": full}))


def test_published_figures_stand_beside_the_means_of_runs(tmp_path):
    write_run(tmp_path, 0, {"hr@10": 0.12, "ndcg@10": 0.07})
    write_run(tmp_path, 1, {"hr@10": 0.14, "ndcg@10": 0.08})
    made = table("set", ABOUT, tmp_path)
    assert [row[0] for row in made["rows"]] == ["Other", "Worse", "Better", "**prefrec, blend**"]
    # The interval of the first seed, around the mean of both.
    assert made["rows"][-1] == [
        "**prefrec, blend**",
        "+val",
        "0.1300 [0.1200, 0.1500]",
        "0.0750 [0.0650, 0.0950]",
        "[0.0730, 0.0780]",
        "2 seeds",
    ]
    assert [row[-1] for row in made["rows"][:-1]] == ["another", "a paper ✓", "a paper"]
    assert table("unknown", ABOUT, tmp_path)["rows"] == made["rows"][:-1]


def test_differences_and_costs_are_those_of_the_first_seed(tmp_path):
    write_run(tmp_path, 0, {"hr@10": 0.12, "ndcg@10": 0.07})
    lines = (
        "User time (seconds): 90.00",
        "System time (seconds): 30.00",
        "Maximum resident set size (kbytes): 2097152",
    )
    (tmp_path / "set-val-0.log").write_text("".join(f"\t{line}\n" for line in lines))
    rows = differences({"set": ABOUT}, tmp_path)["rows"]
    assert rows == [["set", "+val", "blend − EASE", "−0.0010 [−0.0030, +0.0020]", "1,200"]]
    assert costs({"set": ABOUT}, tmp_path)["rows"] == [["set", "+val", "2.0", "2.0"]]
