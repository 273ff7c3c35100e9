"""What the studies of one alignment setting vary, and what they keep."""

from types import SimpleNamespace

import pytest

from prefrec.recipe import dump_recipe
from prefrec_lab.studies import alignments
from prefrec_lab.studies.registry import STUDIES
from prefrec_lab.study_tools.carry_out import base_recipe


def _kept(section, *names):
    """All settings but those named."""
    return {k: v for k, v in section.model_dump().items() if k not in ("name", *names)}


def test_the_ablation_varies_the_loss_alone(base, data):
    recipe = alignments.vary_loss(base, data)
    (one,) = base.align
    losses = [("dpo", "dpo", 1), ("dpo-pairs", "dpo", 3), ("dmpo", "dmpo", 3), ("bpr", "bpr", 3)]
    losses += [("softmax", "softmax", 3), ("s-dpo", "softmax_dpo", 3)]
    assert [(a.name, a.loss, a.num_negatives) for a in recipe.align] == losses
    assert all(_kept(a, "loss", "num_negatives") == _kept(one, "loss", "num_negatives") for a in recipe.align)
    assert recipe.model_dump(exclude={"align"}) == base.model_dump(exclude={"align"})


@pytest.mark.parametrize("name", ["cold-start", "continual", "transfer"])
def test_studies_with_a_base_of_their_own_share_no_run(name, tmp_path):
    """Unless the user names a recipe, or rows."""
    study, shared = STUDIES[name], base_recipe(alignments.ABLATION)
    assert shared.model.answers == "items"
    assert (base_recipe(study).model.answers == "titles") == (name == "transfer")
    assert not study.shares_runs
    assert base_recipe(study, overrides=["sft.rows=900"]).sft.rows == 900
    (path := tmp_path / "mine.yaml").write_text(dump_recipe(shared), encoding="utf-8")
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
