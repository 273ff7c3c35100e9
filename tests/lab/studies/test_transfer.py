"""Models of one data set on another: the adapter is the source's, the question the target's."""

import numpy as np
import polars as pl
import pytest

from prefrec.errors import PrefrecError
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.run import run_recipe
from prefrec.recipe import Recipe
from prefrec.stages.language_model import lm_ranker
from prefrec_lab.studies import transfer
from prefrec_lab.studies.transfer import TRANSFER
from prefrec_lab.study_tools import carry_out as carry_out_module
from prefrec_lab.study_tools.carry_out import analyse_runs, carry_out
from tiny_run import ITEMS, write_shop

OF = ("Rain", "Sun", "Ice", "Fog", "Sea", "Air", "Dew", "Sky", "Ash", "Oak")
SONGS = [f"Song {a} of {b}" for a in "ABCDEF" for b in OF]


@pytest.fixture(scope="module")
def songs(base, tmp_path_factory):
    """The base recipe on another shop: other titles, another domain, another way through the items."""
    shop = write_shop(tmp_path_factory.mktemp("songs"), titles=SONGS)
    log = pl.read_csv(shop["interactions"])
    mirrored = pl.format("i{}", ITEMS - 1 - pl.col("item_id").str.slice(1).cast(pl.Int64))
    log.with_columns(item_id=mirrored).write_csv(shop["interactions"])
    raw = base.model_dump(mode="json")
    raw["name"] = "songs"
    raw["data"] |= {k: str(v) for k, v in shop.items()} | {"domain": "music"}
    return Recipe.model_validate(raw)


@pytest.fixture(scope="module")
def runs(base, songs, place):
    """A run a data set, as `--run` takes them."""
    folders = [place / "transfer-runs" / f"{name}-0" for name in ("films", "songs")]
    for recipe, name, folder in zip((base, songs), ("films", "songs"), folders, strict=True):
        raw = recipe.model_dump(mode="json") | {"name": name}
        run_recipe(transfer.vary(Recipe.model_validate(raw), None), folder, until="evaluate")
    return folders


@pytest.fixture(scope="module")
def summary(runs, place):
    return analyse_runs(TRANSFER, runs, place / "transfer")


def test_every_source_on_every_target(summary):
    table = pl.DataFrame(summary["tables"]["table"], infer_schema_length=None)
    models = ["SFT of films", "S-DPO of films", "SFT of songs", "S-DPO of songs"]
    for target in ("films", "songs"):
        of = table.filter(on=target)
        assert set(of["variant"]) == {*models, "popularity", "zero-shot"}
        assert set(of.filter(pl.col("variant") != "zero-shot")["against"]) == {"zero-shot"}
    assert (summary["seeds"], summary["n"], len(summary["plots"])) == ([0], 40, 2)
    assert summary["facts"][0].startswith("On films. HR@1: the largest difference from")


def test_the_adapter_is_theirs_and_the_question_ours(runs, place, summary):
    """The slow twin: the source's adapter put on the base by hand, and asked about the target's rows."""
    source, target = map(open_run, runs)
    ranker = lm_ranker("x", source.adapter("s-dpo"), target.data, source.recipe.model)
    scores = ranker.score(target.data.test[:20])
    asked = place / "transfer" / "transfer" / "asked" / "songs" / "films" / "seed-0" / "s-dpo.parquet"
    np.testing.assert_allclose(np.array(pl.read_parquet(asked)["scores"].to_list()), scores, atol=1e-4)
    own = target.predictions().filter(ranker="s-dpo")["scores"].to_list()
    assert np.abs(np.array(own) - scores).max() > 1e-3


@pytest.mark.parametrize("wrong", ["place", "rows"])
def test_no_data_set_is_trained_on_before_all_have_been_looked_at(base, tmp_path, monkeypatch, wrong):
    monkeypatch.setattr(carry_out_module, "_made", lambda study, recipe, folder: pytest.fail("trained"))
    data, align = base.data, base.align
    if wrong == "place":
        files = {"path": tmp_path / "nowhere", "interactions": None, "items": None}
        data = data.model_copy(update={"source": "lastfm-hetrec", **files})
    else:
        align = [base.align[0].model_copy(update={"skip_rows": 5000})]
    other = base.model_copy(update={"data": data, "align": align})
    if wrong == "rows":
        monkeypatch.setattr(carry_out_module, "_other_data", lambda study, first, others: others)
    with pytest.raises(PrefrecError, match=r"nowhere" if wrong == "place" else r"align\.s-dpo\.skip_rows: 5000"):
        carry_out(TRANSFER, base, [0, 1], tmp_path / "studies", [other])
    assert [p.name for p in (tmp_path / "studies" / "runs" / "transfer-seed-0").iterdir()] == ["data"]
