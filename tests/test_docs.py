"""The documentation: it builds without a warning, and its recipes and commands are ones that prefrec takes."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml

import prefrec
from prefrec import losses
from prefrec.cli import homes, load_verb
from prefrec.data import read_prepared
from prefrec.losses import LOSSES
from prefrec.pipeline.kinds import KINDS
from prefrec.pipeline.recipe import Recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXPERIMENTS = ROOT / "EXPERIMENTS.md"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert "softmax_dpo_loss" in (tmp_path / "reference" / "losses" / "index.html").read_text(encoding="utf-8")


def test_whole_recipes_in_the_pages_are_recipes():
    whole = [b for page in PAGES for b in blocks(page, "yaml") if b.startswith("name:")]
    assert whole
    for text in whole:
        Recipe.model_validate(yaml.safe_load(text))


def test_the_reference_of_recipes_is_that_of_the_classes():
    script = runpy.run_path(str(ROOT / "scripts" / "recipe_page.py"))
    made = script["page"]()
    for row in (
        "| `name` | required | text | Name of the run; its folder is runs/NAME. |",
        "| `latest_per_user` | – | whole number ≥ 1 | Use only each user's N most recent examples. Default: all. |",
        "| `warmup` | `0.05` | number ≥ 0, < 1 | Fraction of the steps for warm-up. |",
    ):
        assert row in made
    assert script["PAGE"].read_text(encoding="utf-8") == made, "run python scripts/recipe_page.py"


def test_the_page_of_experiments_is_that_of_their_results():
    made = runpy.run_path(str(ROOT / "scripts" / "experiments_page.py"))["page"]()
    assert "| BEAR | +0.002 [−0.001, +0.005] | +0.004 [+0.002, +0.007] | +0.005 [−0.002, +0.011] |" in made
    assert EXPERIMENTS.read_text(encoding="utf-8") == made, "run python scripts/experiments_page.py"


def test_a_view_of_a_table_names_what_the_table_has(tmp_path):
    page = runpy.run_path(str(ROOT / "scripts" / "experiments_page.py"))["page"]
    rows = [["SFT", "9", "0.1"], ["DPO", "9", "0.2"]]
    own = {"id": 1, "title": "A", "question": "Q?"}
    own["tables"] = [{"title": "Rankers", "columns": ["ranker", "n", "HR@1"], "rows": rows}]

    def shown(**view):
        (tmp_path / "01-a.json").write_text(json.dumps(own | {"page": [{"table": 0} | view]}))
        return page(tmp_path)

    assert "| ranker | HR@1 |\n|---|---|\n| SFT | 0.1 |\n| DPO | 0.2 |" in shown(columns=["ranker", "HR@1"])
    assert "|---|---|---|\n| DPO | 9 | 0.2 |" in shown(rows=["DPO"])
    with pytest.raises(ValueError, match=r"01-a.json, page, table 0: there is no \['BPR'\]"):
        shown(rows=["BPR"])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_in_the_pages_exist_with_their_options(page):
    verbs = {verb: load_verb(verb) for verb in homes()}
    for block in blocks(page, "(?:sh|console)"):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.match(r"\s*(?:\$ )?prefrec (lab [\w-]+|\w+)(.*)", line)
            if not found:
                continue
            verb = found[1].replace(" ", ".")
            assert verb in verbs, line
            known = {o for p in verbs[verb].params for o in (*p.opts, *p.secondary_opts)}
            assert set(re.findall(r"(?<!\S)--[a-z][\w.-]*", found[2].partition(" #")[0])) <= known, line


def test_the_readme_trains_logs_a_loss_and_ranks(place, tmp_path, monkeypatch, capsys):
    _, code = blocks(ROOT / "README.md", "python")
    monkeypatch.chdir(tmp_path)
    exec(code.replace("smollm2-135m", str(place.model)), made := {})
    assert [h["step"] for h in made["trainer"].state.log_history if "loss" in h] == [1, 2, 3]
    said = capsys.readouterr()
    assert re.search(r"S-DPO \(loss \d\.\d+, accuracy \d\.\d+\): 3 steps in \d+ s", said.out + said.err)
    assert re.search(r"\[\('(Emma|Casino)', -\d", said.out)
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists()


def test_the_readme_fits_two_frames_and_recommends(place, tmp_path, monkeypatch, capsys):
    code, _ = blocks(ROOT / "README.md", "python")
    monkeypatch.chdir(tmp_path)
    log, items = (pl.read_csv(place.shop[name]) for name in ("interactions", "items"))
    log.write_csv("orders.csv")
    items.write_csv("products.csv")
    first, second = items["title"].head(2)
    code = code.replace("Tent", first).replace("Lamp", second).replace("u17", str(log["user_id"][0]))
    exec(code.replace('recipe="fast"', "recipe=RECIPE"), {"RECIPE": place.recipe})
    assert capsys.readouterr().out.count("item_id") == 2


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / f"{name}.md" for name in ("ARCHITECTURE", "CONTRIBUTING"))])
def test_files_that_the_pages_name_exist(page):
    named = re.findall(r"`((?:tests|scripts|lab|systems|recipes|src)/[\w./-]+)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_citation_names_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (cited["title"], cited["version"]) == ("prefrec", prefrec.__version__)


def test_a_loss_of_ones_own_is_taken_as_the_page_says(monkeypatch):
    monkeypatch.setattr("prefrec.losses.LOSSES", dict(LOSSES))
    monkeypatch.setattr("prefrec.pipeline.recipe.LOSSES", losses.LOSSES)
    own, in_a_recipe = blocks(ROOT / "docs" / "extend-loss.md", "python")
    exec(own, {})
    policy = torch.tensor([[-1.0, -3.0, -2.5]])
    found = losses.LOSSES["hinge"](policy, policy, 1.0)
    assert (found.losses.tolist(), found.rewards.tolist()) == ([1.0], [[0.0, 0.0, 0.0]])
    taken = []
    monkeypatch.setattr("prefrec.pipeline.run.run_recipe", lambda recipe, folder: taken.append(recipe))
    monkeypatch.chdir(ROOT)
    exec(in_a_recipe, {})
    assert [a.loss for a in taken[0].align] == ["hinge"]


def test_a_ranker_of_ones_own_is_fitted_measured_and_blended_as_the_page_says(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(KINDS, "latest", None)  # taken out again after the test
    monkeypatch.chdir(tmp_path)
    own, alone, in_a_recipe = blocks(ROOT / "docs" / "extend-ranker.md", "python")
    made: dict = {"DATA": place.recipe["data"]}
    exec(own, made)
    assert [*made["LatestRanker"](made["LatestConfig"](last=1)).fit(read_prepared(place.data)).counts.values()] == [1]
    exec(alone.replace('source="movielens-100k"', "**DATA"), made)
    assert str(made["found"].metrics["latest"]["ndcg@10"]) in capsys.readouterr().out
    exec(in_a_recipe.replace('{"source": "movielens-100k"}', "DATA"), made)
    metrics = json.loads((tmp_path / "runs" / "latest" / "metrics.json").read_text())["evaluation"]["metrics"]
    assert {"latest", "blend"} <= metrics.keys()


LISTS_TABLE = re.compile(r"^\|[^\n]*(?:NDCG|HR@|MRR)[^\n]*\n\|[ :|-]+\n(?:\|[^\n]*\n?)+", re.MULTILINE)
VERDICT = re.compile(r"Audit:|whole catalogue|full ranking", re.IGNORECASE)


def without_verdict(text: str, leaking: list[str]) -> list[str]:
    """Return the heads of tables of leaking lists that have no verdict, and no full ranking, above them."""
    found = []
    for table in LISTS_TABLE.finditer(text):
        section = text[text.rfind("\n## ", 0, table.start()) + 1 : table.end()]
        named = any(name in section or name.split()[-1] in table[0] for name in leaking)
        if named and not VERDICT.search(section):
            found.append(table[0].splitlines()[0])
    return found


def test_no_table_of_leaking_lists_is_without_its_verdict():
    kept = json.loads((ROOT / "lab" / "results" / "55-audits.json").read_text(encoding="utf-8"))
    leaking = sorted({row[0].partition(",")[0] for row in kept["tables"][0]["rows"] if row[-1] != "none"})
    assert leaking == ["Amazon Book", "Amazon Office"]
    table = "| NDCG@10 | all |\n|---|---|\n| SFT | 0.626 |\n"
    bad = f"## A shop\n\nOn Amazon Office:\n\n{table}"
    assert without_verdict(bad, leaking) == ["| NDCG@10 | all |"]
    assert without_verdict(bad.replace("On Amazon", "Audit: 3 leaks. On Amazon"), leaking) == []
    assert without_verdict(bad.replace("Amazon Office", "MovieLens"), leaking) == []
    pages = [EXPERIMENTS, *PAGES]
    assert {str(page): found for page in pages if (found := without_verdict(page.read_text(), leaking))} == {}
