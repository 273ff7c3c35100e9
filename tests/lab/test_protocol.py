"""The rules of the table: the file that declares them, and what they say of drawn differences."""

import numpy as np
import pytest
import yaml

from prefrec.errors import DataError
from prefrec.evaluation.intervals import holm
from prefrec_lab.protocol import Family, Ranked, decide, read_protocol
from prefrec_lab.trials import full_ranking, rank_tables
from prefrec_lab.wild import wild_test

DECLARED = read_protocol(full_ranking.PROTOCOL)
QUICK = DECLARED.model_copy(update={"test": DECLARED.test.model_copy(update={"draws": 499})})
FAMILY = Family(name="gain", question="?", ranker="model", against="best")


def _ranked(data: str, gain: float, spread: float = 0.02, seeds: int = 3) -> Ranked:
    """300 rows of 60 targets, on which a model gains a share of what the baseline has."""
    rng = np.random.default_rng(len(data))
    base = np.tile(rng.uniform(0.5, 1.0, 300), (seeds, 1))
    model = base * (1 + gain) + spread * rng.normal(size=(seeds, 300))
    targets = rng.integers(0, 60, 300)
    return Ranked(data, {"model": model, "popularity": base}, np.arange(300), targets, {"best": "popularity"})


def test_the_declared_rules_are_read():
    names = [
        "blend − best baseline",
        "the language model adds",
        "title tower − random vectors",
        "title tower − random vectors, in the blend",
        "SASRec adds",
        "the title tower adds",
    ]
    assert [family.name for family in DECLARED.families] == names
    assert (DECLARED.metric, DECLARED.test.kind, DECLARED.correction) == ("ndcg@10", "wild bootstrap", "holm")
    assert (DECLARED.equivalence, DECLARED.seeds, DECLARED.evaluations) == (0.03, "random", 1)


@pytest.mark.parametrize("change", [{"correction": "none"}, {"levl": 0.05}, {"families": []}, {"equivalence": 3}])
def test_rules_that_are_not_understood_are_refused(tmp_path, change):
    value = DECLARED.model_dump() | change
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(value))
    with pytest.raises(DataError, match=r"table.yaml: not the rules of a table"):
        read_protocol(tmp_path / "table.yaml")
    with pytest.raises(DataError, match=r"absent.yaml: not the rules of a table"):
        read_protocol(tmp_path / "absent.yaml")


def test_a_family_is_corrected_over_its_data_sets():
    ranked = [_ranked("a", 0.2), _ranked("bb", 0.0), _ranked("ccc", -0.2), _ranked("dddd", 0.02, spread=1.5)]
    found = decide(QUICK, FAMILY, ranked)
    assert [d.found.word for d in found] == ["above", "equivalent", "below", "open"]
    alone = [
        wild_test(r.gains["model"] - r.gains["popularity"], r.users, r.targets, draws=499).p_value for r in ranked
    ]
    assert [d.found.p for d in found] == alone
    assert [d.found.adjusted for d in found] == holm(alone)
    assert [(d.ranker, d.against, d.seeds) for d in found] == [("model", "popularity", 3)] * 4


def test_data_sets_without_one_of_the_rankers_are_left_out():
    absent = FAMILY.model_copy(update={"against": "title-tower-random"})
    assert decide(QUICK, absent, [_ranked("a", 0.2)]) == []


def test_classes_and_bins_of_kept_ranks_hold_all_rows():
    table = rank_tables.class_table(rank_tables.read("amazon-office"))
    sizes = {row[0]: int(row[1].split(" ")[0].replace(",", "")) for row in table["rows"]}
    assert sizes.pop("all") == 1925
    assert [sizes.pop(name) for name in ("in training", "in validation only", "new")] == [741, 288, 896]
    assert sizes.pop("0 interactions") == 896
    assert sum(sizes.values()) == 1029
