"""What the studies of one alignment setting vary, and what they keep."""

from types import SimpleNamespace

import pytest

from prefrec.data import prepare
from prefrec.pipeline.recipe import Recipe, dump_recipe
from prefrec_lab.studies import alignments
from prefrec_lab.studies.carry_out import base_recipe
from prefrec_lab.studies.registry import STUDIES
from prefrec_lab.studies.study import with_alignments


def _kept(section, *names):
    """All settings but those named."""
    return {k: v for k, v in section.model_dump().items() if k not in ("name", *names)}


def test_the_ablation_varies_the_loss_alone(base, data):
    recipe = alignments.vary_loss(base, data)
    (one,) = base.align
    assert [(a.name, a.loss, a.num_negatives) for a in recipe.align] == [
        ("dpo", "dpo", 1),
        ("dpo-pairs", "dpo", 3),
        ("dmpo", "dmpo", 3),
        ("bpr", "bpr", 3),
        ("softmax", "softmax", 3),
        ("s-dpo", "softmax_dpo", 3),
    ]
    assert all(_kept(a, "loss", "num_negatives") == _kept(one, "loss", "num_negatives") for a in recipe.align)
    assert recipe.model_dump(exclude={"align"}) == base.model_dump(exclude={"align"})


def test_beta_varies_alone(base, data):
    recipe = alignments.vary_beta(base, data)
    assert [a.beta for a in recipe.align] == [0.1, 0.5, 1, 3, 5]
    assert [a.name for a in recipe.align] == ["s-dpo-beta0.1", "s-dpo-beta0.5", "s-dpo", "s-dpo-beta3", "s-dpo-beta5"]
    assert all(_kept(a, "beta") == _kept(base.align[0], "beta") for a in recipe.align)


def test_a_beta_of_ones_own_is_among_them(base, data):
    own = with_alignments(base, [alignments.variant(base.align[0], "mine", beta=0.7)])
    recipe = alignments.vary_beta(own, data)
    assert [(a.name, a.beta) for a in recipe.align][2] == ("s-dpo", 0.7)


@pytest.mark.parametrize(("size", "room"), [(6, 5), (16, 15)])
def test_more_negatives_than_a_list_holds_are_drawn(base, size, room):
    raw = base.model_dump(mode="json")
    raw["data"]["candidates"]["size"] = size
    wide = Recipe.model_validate(raw)
    data = prepare(wide.data)
    recipe = alignments.vary_negatives(wide, data)
    assert [a.num_negatives for a in recipe.align] == [n for n in (1, 3, 8, 15, 63) if n < len(data.catalogue) // 2]
    assert len(recipe.align) > 3
    assert {a.rows for a in recipe.align} == {16}
    assert [a.name for a in recipe.align][:3] == ["dpo", "s-dpo", "s-dpo-n8"]
    assert {a.negatives_from for a in recipe.align if a.num_negatives <= room} == {"list"}
    assert {a.negatives_from for a in recipe.align if a.num_negatives > room} <= {"uniform"}


@pytest.mark.parametrize("name", ["cold-start", "continual", "transfer"])
def test_studies_with_a_base_of_their_own_share_no_run(name, tmp_path):
    """Unless the user names a recipe, or rows."""
    study = STUDIES[name]
    shared = base_recipe(alignments.ABLATION)
    assert shared.model.answers == "items"
    assert (base_recipe(study).model.answers == "titles") == (name == "transfer")
    assert not study.shares_runs
    assert base_recipe(study, overrides=["sft.rows=900"]).sft.rows == 900
    path = tmp_path / "mine.yaml"
    path.write_text(dump_recipe(shared), encoding="utf-8")
    assert base_recipe(study, path) == shared


def test_alignments_of_one_name_are_equal_in_all_studies_that_share_runs():
    """Otherwise they would be made again and again in the folder that all share."""
    known = {}
    for study in (STUDIES[n] for n in ("negatives", "negative-sampling", "ablation", "beta", "dynamics")):
        own = base_recipe(study)
        assert study.shares_runs
        assert own.model_dump(exclude={"align"}) == base_recipe(alignments.BETA).model_dump(exclude={"align"})
        for a in study.vary(own, SimpleNamespace(catalogue=range(200), train=range(9000))).align:
            assert known.setdefault(a.name, a) == a
