"""Where a study's runs and outcome lie, for the recipe's data and for others."""

import json

import pytest

from prefrec.errors import ConfigError
from prefrec.recipe import Recipe
from prefrec_lab.studies.registry import STUDIES
from prefrec_lab.study_tools import carry_out as module
from prefrec_lab.study_tools.carry_out import carry_out


def _on(base: Recipe, path: str) -> Recipe:
    """The base recipe on LastFM in another place, which is never read."""
    given = {"source": "lastfm-hetrec", "path": path, "interactions": None, "items": None}
    return base.model_copy(update={"data": base.data.model_copy(update=given)})


@pytest.fixture
def made(monkeypatch):
    """Carries out a study without running anything; says where its runs would lie, and where the outcome."""
    found: list[str] = []

    def analyse(study, runs, folder):
        found.append(folder.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "study.json").write_text(json.dumps({"recipes": [r.model_dump(mode="json") for r in runs]}))
        return {}

    monkeypatch.setattr(module, "_made", lambda study, recipe, folder: found.append(folder.name) or recipe)
    monkeypatch.setattr(module, "_analyse", analyse)

    def carry(name, *recipes, out):
        found.clear()
        carry_out(STUDIES[name], recipes[0], [0, 1], out, recipes[1:])
        return list(found)

    return carry


def test_other_data_have_folders_of_their_own(base, made, tmp_path):
    songs, runs = _on(base, "/songs"), ["lastfm-hetrec-seed-0", "lastfm-hetrec-seed-1"]
    assert made("ablation", base, out=tmp_path) == ["seed-0", "seed-1", "ablation"]
    assert made("ablation", base, base, out=tmp_path) == ["seed-0", "seed-1", "ablation"]
    assert made("ablation", base, songs, out=tmp_path) == [*runs, "ablation-lastfm-hetrec"]
    assert made("table", base, songs, out=tmp_path) == [*(f"table-{r}" for r in runs), "table-lastfm-hetrec"]


def test_no_outcome_takes_the_place_of_one_on_other_data(base, made, tmp_path):
    first, second = _on(base, "/songs"), _on(base, "/more")
    made("ablation", base, first, out=tmp_path)
    told = rf"{tmp_path}/ablation-lastfm-hetrec holds .* on other data \(lastfm-hetrec /songs\): name another --out"
    with pytest.raises(ConfigError, match=told):
        made("ablation", base, second, out=tmp_path)
    made("beta", first, out=tmp_path)
    with pytest.raises(ConfigError, match=rf"{tmp_path}/beta holds what the study found on other data"):
        made("beta", base, out=tmp_path)
    made("ablation", base, second, out=tmp_path / "more")
