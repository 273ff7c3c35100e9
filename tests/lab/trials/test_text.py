"""The trial of texts: recipes of its data sets, and findings from finished runs."""

import numpy as np
import polars as pl

from prefrec.recipe import checked_recipe
from prefrec_lab.protocol import read_trial
from prefrec_lab.trials.text import PLAN, ranked, tables, trial_recipe

TRIAL = read_trial(PLAN)


def write_runs(folder, name, ranks):
    """Finished runs of seeds 0 and 2, in which every arm gives the targets these ranks."""
    for seed in (0, 2):
        kept = folder / f"text-{name}-{seed}" / "predictions" / "full_catalogue"
        kept.mkdir(parents=True)
        (kept.parents[1] / "metrics.json").write_text("{}")
        for arm, own in ranks.items():
            n = len(own)
            columns = {"row": [*range(n)], "user_id": [f"u{i}" for i in range(n)], "target": ["a", "b"] * (n // 2)}
            pl.DataFrame(columns | {"rank": own, "tied": [0] * n}).reverse().write_parquet(kept / f"{arm}.parquet")


def test_recipes_hold_all_arms_and_learn_no_validation_items():
    for name in TRIAL.sets:
        recipe = checked_recipe(trial_recipe(name, TRIAL))
        assert {*TRIAL.arms} == {ranker.name for ranker in recipe.rankers}
        assert recipe.refit is None
        assert not recipe.data.learn_validation
    assert checked_recipe(trial_recipe("amazon-scientific", TRIAL)).model.item_text


def test_findings_are_those_of_the_finished_runs(tmp_path):
    ranks = {arm: [1, 2] * 20 for arm in TRIAL.arms} | {"no-words": [3, 11] * 20}
    write_runs(tmp_path, TRIAL.sets[0], ranks)
    one = ranked(TRIAL.sets[0], TRIAL, tmp_path)
    assert one.gains["words"].shape == (2, 40)
    np.testing.assert_allclose(one.gains["no-words"][1, :2], [0.5, 0])
    assert ranked(TRIAL.sets[1], TRIAL, tmp_path) is None
    found, means = tables(TRIAL, tmp_path)
    primary = found["rows"][0]
    mean = (1 + 1 / np.log2(3)) / 2 - 0.25
    assert primary[:2] == [TRIAL.families[0].name, TRIAL.sets[0]]
    assert primary[2].startswith(f"+{mean:.4f} [")
    assert primary[-1] == "2"
    assert means["columns"] == ["arm", TRIAL.sets[0]]
    assert ["no-words", "0.2500"] in means["rows"]
