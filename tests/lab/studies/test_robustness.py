"""What the changed questions keep and what they change, and that the models were asked them."""

import numpy as np
import polars as pl
import pytest

from prefrec.evaluation import read_predictions
from prefrec.sections import ModelSection
from prefrec_lab.studies import robustness
from prefrec_lab.studies.robustness import AS_IT_IS, CONDITIONS, NOISE, lower_case, noisy, numbered, shuffled

STUDY = robustness.ROBUSTNESS


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 1.0])
def test_noise_replaces_a_share_of_the_history(data, share):
    for before, after in zip(data.test, noisy(share)(data.test, data), strict=True):
        changed = [b != a for b, a in zip(before.history, after.history, strict=True)]
        assert sum(changed) == max(1, round(share * len(before.history)))
        new = [a for a, c in zip(after.history, changed, strict=True) if c]
        assert len(set(new)) == len(new)
        assert not set(new) & {*before.history, *before.candidates}
        assert (after.candidates, after.target, after.user_id) == (before.candidates, before.target, before.user_id)


def test_shuffling_moves_the_candidates_alone(data):
    first, second = shuffled(1)(data.test, data), shuffled(2)(data.test, data)
    for before, a, b in zip(data.test, first, second, strict=True):
        assert sorted(a.candidates) == sorted(b.candidates) == sorted(before.candidates)
        assert (a.history, a.target) == (before.history, before.target)
    assert len({tuple(e.candidates for e in rows) for rows in (data.test, first, second)}) == 3


def test_titles_change_and_items_do_not(data):
    for other in (lower_case(data.catalogue), numbered(data.catalogue)):
        assert other.ids == data.catalogue.ids
        assert all(other.titles[i] != data.catalogue.titles[i] for i in other.ids)
    assert lower_case(data.catalogue).titles["i0"] == data.catalogue.titles["i0"].lower()
    numbers = [int(t.removeprefix("Item ")) for t in numbered(data.catalogue).titles.values()]
    assert sorted(numbers) == [*range(1, len(data.catalogue) + 1)]
    assert abs(np.corrcoef(numbers, range(len(numbers)))[0, 1]) < 0.5


def test_every_condition_changes_the_scores(summary, place):
    folder, found = place / "robustness" / "asked" / "robustness-seed-0", {}
    for path in folder.iterdir():
        rows = read_predictions(path / "sft.parquet").select("candidates", "scores").rows()
        found[path.name] = np.array([[dict(zip(c, s, strict=True))[i] for i in sorted(c)] for c, s in rows])
    assert len(found) == len(CONDITIONS)
    plain = found.pop("as-it-is")
    for name, scores in found.items():
        assert np.abs(scores - plain).max() > 1e-3, name


def _asked(choose):
    """Predictions in three orders of one list [0..5], in which `choose(order)` gets the best score."""
    rows = [list(range(6)), [5, 4, 3, 2, 1, 0], [2, 0, 1, 5, 4, 3]]
    names = [c.name for c in CONDITIONS if c.name == AS_IT_IS or c.name.startswith("candidates")]
    frames = {}
    for name, order in zip(names, rows, strict=True):
        scores = [float(item == choose(order)) for item in order]
        row = {"candidates": [[f"i{i}" for i in order]], "scores": [scores], "target": ["i0"], "tied": [0]}
        frames[name] = [pl.DataFrame(row | {"rank": [1 if choose(order) == 0 else 2]})]
    return {"m": frames}


def test_position_bias_of_one_who_takes_the_first_and_of_one_who_knows():
    first, _ = robustness.position_tables(_asked(lambda order: order[0]), ["u"])
    knows, thirds = robustness.position_tables(_asked(lambda order: 0), ["u"])
    values = [{r["quantity"]: r["mean"] for r in t.frame.to_dicts()} for t in (first, knows)]
    assert values[0] == {"place": 0, "same": 0}
    assert values[1] == {"place": pytest.approx((0 + 1 + 0.2) / 3), "same": 1}
    (row,) = thirds.frame.to_dicts()
    assert [row[f"{t}, n"] for t in ("first", "middle", "last")] == [2, None, 1]
    assert (row["first"], row["middle"], row["last"]) == (1, None, 1)


def test_models_are_asked_under_conditions_that_they_can_see():
    def names(**settings):
        return [c.name for c in robustness.conditions_for(ModelSection(**settings), "movies")]

    noise = names(answers="items")
    assert (noise[0], len(noise)) == (AS_IT_IS, 1 + len(NOISE))
    assert names(templates=["history"]) == [*noise, "titles in lower case", "titles replaced by numbers"]
    assert names(templates=["1"]) == [c.name for c in CONDITIONS]
