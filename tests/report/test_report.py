"""The report of a synthetic run: its numbers, its gaps, its escaping, its errors."""

import base64
import dataclasses
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
import yaml

from hostile_pages import SHORT, TEXTS, needs_browser, text_of_unbroken
from prefrec.data import Catalogue, PreparedData, read_prepared, write_prepared
from prefrec.errors import DataError
from prefrec.evaluation import audit_prepared, evaluate_predictions, target_ranks
from prefrec.evaluation.best import Best
from prefrec.evaluation.by_user import UserSpread
from prefrec.evaluation.predictions import prediction_frame
from prefrec.files import read_json, write_json
from prefrec.report import write_report
from prefrec.report.curves import running_mean, start_loss
from prefrec.report.examples import pick_examples
from prefrec.report.headline import plain_words, users_served, verdict
from prefrec.report.render import facts, render
from prefrec.report.tables import folded, metrics_grid, metrics_note, shown_baselines
from prefrec.report.wording import clock, p_value, signed, with_interval
from prefrec.runs.contents import StageLog, read_run
from sealed import seal_stage, write_metrics
from served_run import MARKUP
from verdicts import NONE

SCRIPT = "<script>alert(1)</script>"
RECIPE = {"name": "tiny-run", "model": {"name": "smollm2-135m"}, "sft": {"rows": 400}}
RECIPE |= {"align": [{"name": "dpo"}, {"name": "s-dpo"}]}
ENVIRONMENT = {"prefrec": "0.1.0", "torch": "2.13", "python": "3.11.9", "commit": None, "seed": 0}
MODELS = ("zero-shot", "sft", "dpo", "s-dpo")
PAIRS = [("sft", "zero-shot"), ("dpo", "sft"), ("s-dpo", "dpo"), ("s-dpo", "sft"), ("s-dpo", "popularity")]
LIFTS = {"random": 0.0, "popularity": 0.6, "zero-shot": 0.3, "sft": 1.0, "dpo": 1.1, "s-dpo": 2.0}
"""Ranker → how much it lifts the target's score."""
ALIGN = {"loss": "softmax_dpo", "beta": 1.0, "num_negatives": 7}
STAGES = {"sft": {}, "align/dpo": ALIGN | {"loss": "dpo", "num_negatives": 1}, "align/s-dpo": ALIGN}
N = 40


def _predictions(data: PreparedData) -> pl.DataFrame:
    """Rankers that find the target more and more often; SFT and the models after it answer in text too."""
    rng, frames = np.random.default_rng(1), []
    target = np.array([e.target_index for e in data.test])
    shared = rng.normal(size=(N, 6))
    for name, lift in LIFTS.items():
        scores = shared + 0.5 * rng.normal(size=shared.shape) - 8
        scores[np.arange(N), target] += lift
        said, picks = None, None
        if name in MODELS:
            columns = np.where(rng.random(N) < 0.1, -1, scores.argmax(axis=1))
            picks = [e.candidates[c] if c >= 0 else None for e, c in zip(data.test, columns, strict=True)]
            said = ["x"] * N
        frames.append(prediction_frame(name, data.test, scores, target_ranks(scores, target), said, picks))
    return pl.concat(frames)


def _without_texts(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(generated=pl.lit(None, pl.String), choice=pl.lit(None, pl.String))


def _log(negatives: int, points: int = 60) -> list[dict[str, float]]:
    """Of an alignment; SFT logs the first two of these alone."""
    rows: list[dict[str, float]] = []
    for i in range(points):
        t, noise = i / points, math.sin(i) / 10
        entry = {"loss": math.log(1 + negatives) * (1 - 0.5 * t) + noise, "logps/chosen": -9 + t}
        if negatives:
            chosen, rejected = 1.2 * t + noise, -2 * t * negatives**0.5
            entry |= {"rewards/chosen": chosen, "rewards/rejected": rejected, "rewards/margins": chosen - rejected}
            entry |= {"rewards/accuracies": 0.4 + 0.5 * t, "logps/rejected": -11 - 3 * t}
            entry |= {"negatives/effective": negatives * (1 - 0.4 * t)}
        rows.append({"step": i + 1, "epoch": t, **entry})
        if i % 10 == 9:
            rows.append({"step": i + 1, "epoch": t, **{f"eval_{k}": v * 1.04 for k, v in entry.items()}})
    return [*rows, {"step": points, "train_runtime": 812.0}]


@pytest.fixture(scope="module")
def whole_run(adapted_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run as `prefrec run` leaves it."""
    run = shutil.copytree(adapted_run, tmp_path_factory.mktemp("runs") / "run")
    protocol = read_json(run / "data/protocol.json")
    shown = {"source": "movielens-100k", "notes": [f"a note with {SCRIPT}"]}
    write_json(run / "data/protocol.json", protocol | shown)
    seal_stage(run / "data")
    (run / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    write_json(run / "environment.json", ENVIRONMENT)
    for stage, config in STAGES.items():
        write_json(run / stage / "log.json", _log(config.get("num_negatives", 0)))
        seal_stage(run / stage, seconds=812.4, config=config | {"learning_rate": 1e-5})
    data = read_prepared(run / "data")
    predictions = _predictions(data)
    audit = audit_prepared(data, "test", "train")
    evaluation = evaluate_predictions(_without_texts(predictions), compare=PAIRS, audit=audit)
    texts = predictions.filter(pl.col("generated").is_not_null())
    generation = evaluate_predictions(texts, compare=[], audit=NONE).to_json()
    keep = ("gen_hr@1", "valid_ratio")
    generation["metrics"] = {r: {m: of[m] for m in keep} for r, of in generation["metrics"].items()}
    predictions.write_parquet(run / "predictions.parquet")
    write_metrics(run, {"split": "test", "evaluation": evaluation.to_json(), "generation": generation})
    return run


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole_run, tmp_path / "run")


class _Page(HTMLParser):
    """Tags, ids, links and text of a page; text of <style> left out."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def _read(run: Path) -> _Page:
    return _Page(write_report(read_run(run)).read_text(encoding="utf-8"))


def test_numbers_and_settings_are_in_it(run):
    page, contents = _read(run), read_run(run)
    evaluation = contents.results.evaluation
    for part in (
        *("chance", evaluation.audit.verdict),
        *("smollm2-135m", "movielens-100k", "13 min 32 s", "softmax_dpo", "valid ratio", "3.11.9", "tiny-run"),
        *(f"{interval.mean:.3f}" for of in evaluation.metrics.values() for interval in of.values()),
        *(signed(c.mean) for c in evaluation.comparisons),
    ):
        assert part in page.text
    assert "This run is incomplete" not in page.text
    assert page.all("img") == []
    text = " ".join(page.text.split())
    assert "pip install matplotlib, then prefrec report" in text
    assert "prefrec report with this run’s folder makes this page again" in text


@pytest.mark.parametrize(
    ("changes", "model"),
    [
        ({"rankers": [{"kind": "blend"}, {"kind": "title-tower"}]}, ""),
        ({"sft": {"rows": 3}}, "smollm2-135m"),
        ({"align": [{"name": "s-dpo"}]}, "smollm2-135m"),
        ({"evaluate": {}}, "smollm2-135m"),
        ({"rankers": [{"kind": "tallrec"}]}, "smollm2-135m"),
    ],
)
def test_the_base_model_is_named_where_a_ranker_uses_it(run, changes, model):
    """Without a language model, a recipe has one by default all the same."""
    empty = {"sft": None, "align": [], "rankers": [], "evaluate": {"zero_shot": False}}
    contents = read_run(run)
    changed = dataclasses.replace(contents, recipe=contents.recipe | empty | changes)
    assert changed.model == model
    assert [value for name, value in facts(changed) if name == "Model"] == [model] * bool(model)


def test_the_whole_catalogue_and_the_best_reference_are_in_it(run):
    """The block of the whole catalogue lacks zero-shot; half of the rows have new targets."""
    frame = _without_texts(pl.read_parquet(run / "predictions.parquet"))
    known = [f"i{i}" for i in range(2, 35)]
    lists = evaluate_predictions(frame, compare=[("s-dpo", "popularity")], known_items=known, audit=NONE)
    rest = frame.filter(pl.col("ranker") != "zero-shot")
    full = evaluate_predictions(rest, ks=[10], compare=[("s-dpo", "random")], known_items=known, audit=NONE)
    told = {"split": "test", "evaluation": lists.to_json(), "generation": None}
    told["evaluation"]["best_reference"], told["full_catalogue"] = "popularity", full.to_json()
    told["full_catalogue"]["best_reference"] = "random"
    write_metrics(run, told)
    text = _read(run).text
    own = full.metrics["s-dpo"]["ndcg@10"]
    compared = "Models are compared with random, the baseline with the highest NDCG@10."
    gain = signed(lists.difference("s-dpo", "popularity", "hr@1").mean)
    for part in ("NDCG@10, full ranking, new targets", compared, gain):
        assert part in text
    contents = read_run(run)
    grid = metrics_grid(contents.results.evaluation, contents.results.full_catalogue)
    column = grid.columns.index("NDCG@10, full ranking")
    cells = {name: cells[column].text for name, cells, _ in grid.rows}
    assert (cells["S-DPO"], cells["zero-shot"]) == (f"{own.mean:.3f}", "–")


@pytest.mark.usefixtures("drawn")
def test_page_is_well_formed_accessible_and_needs_no_network(run):
    text = write_report(read_run(run)).read_text(encoding="utf-8")
    page = _Page(text)
    assert page.open == []
    assert not re.search(r"(src|href)=\"(?!#|data:image/svg\+xml;base64,)", text)
    assert "@import" not in text
    assert "url(http" not in text
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {a["href"] for _, a in page.tags if "href" in a} <= {f"#{i}" for i in ids}
    plots = page.all("img")
    assert len(plots) == 2 + 1 + 6
    assert all(len(p["alt"] or "") > 30 for p in plots)
    for plot in plots:
        drawn = ElementTree.fromstring(base64.b64decode((plot["src"] or "").partition("base64,")[2]))
        assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    assert all("scope" in th for th in page.all("th"))
    assert text.count("DPO starts at ln 2 = 0.693") == 1
    assert "S-DPO starts at ln 8 = 2.079" in text


def _rename_random(run, name, compare):
    """Measure the predictions again, with another name of a ranker."""
    frame = pl.read_parquet(run / "predictions.parquet")
    odd = frame.with_columns(ranker=pl.col("ranker").replace("random", name))
    evaluation = evaluate_predictions(odd, compare=compare, audit=NONE)
    write_metrics(run, {"split": "test", "evaluation": evaluation.to_json(), "generation": None})


@needs_browser
@pytest.mark.usefixtures("drawn")
def test_in_a_browser_nothing_of_the_data_runs(run):
    pytest.importorskip("playwright")
    data = read_prepared(run / "data")
    ids = data.catalogue.ids
    titles = [f"{TEXTS[n % len(TEXTS)]} {n}" for n in range(len(ids))]
    catalogue = Catalogue(pl.DataFrame({"item_id": ids, "title": titles}))
    data.protocol["notes"] = TEXTS
    write_prepared(dataclasses.replace(data, catalogue=catalogue), run / "data")
    seal_stage(run / "data")
    _rename_random(run, SHORT, [(SHORT, "popularity")])
    text = text_of_unbroken(write_report(read_run(run)))
    assert all(hostile in text for hostile in [*TEXTS, SHORT])


@pytest.mark.usefixtures("drawn")
def test_names_titles_and_notes_with_markup_stay_text(run):
    _rename_random(run, "<b>$x$ & y", [])
    text = write_report(read_run(run)).read_text(encoding="utf-8")
    assert "<b>" not in text
    assert text.count("&lt;b&gt;$x$ &amp; y") >= 3
    for hostile in (SCRIPT, MARKUP):
        assert hostile not in text
        assert hostile.replace("<", "&lt;").replace(">", "&gt;") in text
    assert "No rankers were compared" in text
    assert "The candidate sets were not audited" in text


def test_examples_are_balanced_and_always_the_same(run):
    picked, again = pick_examples(read_run(run)), pick_examples(read_run(run))
    assert not isinstance(picked, str)
    assert picked == again
    assert (picked["before"], picked["after"]) == ("SFT", "S-DPO")
    assert [e["outcome"] for e in picked["examples"]] == ["better"] * 2 + ["worse"] * 2 + ["same"] * 2
    assert sum(picked["counts"].values()) == N
    frame = pl.read_parquet(run / "predictions.parquet")
    for e in picked["examples"]:
        ranks = {r: frame.filter(ranker=r, row=e["row"])["rank"].item() for r in ("sft", "s-dpo")}
        before, after = e["target"]["before"]["rank"], e["target"]["after"]["rank"]
        assert (before, after) == (ranks["sft"], ranks["s-dpo"])
        assert sum(c["after"]["share"] for c in e["candidates"]) == pytest.approx(1)
        assert {"better": 1, "worse": -1, "same": 0}[e["outcome"]] == (before > after) - (before < after)


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ("recipe.yaml", "recipe.yaml is missing"),
        ("data/protocol.json", "data cannot be read: data is damaged or unfinished (protocol.json)"),
        ("metrics.json", "metrics.json is missing"),
        ("sft/log.json", "sft/log.json is missing"),
    ],
)
def test_a_missing_part_is_named_and_the_rest_is_there(run, part, sentence):
    (run / part).unlink()
    page = _read(run)
    for text in ("This run is incomplete", sentence, "Training"):
        assert text in page.text
    assert page.open == []


def test_the_verdict_names_the_best_and_its_gain(run):
    contents = read_run(run)
    lists = contents.results.evaluation
    own, gain = lists.metrics["s-dpo"]["ndcg@10"], lists.difference("s-dpo", "popularity", "ndcg@10")
    named = dataclasses.replace(lists, best_reference="popularity")
    shown = f"{with_interval(own)} on candidate sets, {with_interval(gain)} over the best baseline, popularity"
    shown += f": significant after Holm’s correction for 5 comparisons ({p_value(gain.adjusted_p)})"
    said = verdict(_with(contents, evaluation=named))
    assert said == f"S-DPO has the highest NDCG@10, {shown}. {lists.audit.headline}"
    full = dataclasses.replace(named, metrics={"popularity": named.metrics["popularity"]})
    said = verdict(_with(contents, evaluation=named, full_catalogue=full))
    assert "in full ranking, and is itself the best baseline. " in said
    best = Best("sft", "ndcg@10", {"sft": 0.5}, {"sft": 20}, {"sft": 0.0})
    chosen = verdict(_with(contents, evaluation=named, best=best))
    assert chosen.startswith("SFT is best on validation, with NDCG@10 ")


def test_a_gain_that_the_correction_does_not_leave_is_called_not_significant(run):
    contents = read_run(run)
    lists = contents.results.evaluation
    gain = lists.difference("s-dpo", "popularity", "ndcg@10")
    assert gain.low > 0  # an interval that excludes 0 is not enough

    def said(adjusted_p):
        changed = [c if c != gain else dataclasses.replace(c, adjusted_p=adjusted_p) for c in lists.comparisons]
        block = dataclasses.replace(lists, best_reference="popularity", comparisons=changed)
        return verdict(_with(contents, evaluation=block))

    assert "popularity: not significant after Holm’s correction for 5 comparisons (p = 0.081). " in said(0.081)
    assert "popularity: significant after Holm’s correction for 5 comparisons (p = 0.049). " in said(0.049)
    assert "popularity: significant after Holm’s correction for 5 comparisons (p < 0.001). " in said(0.0004)
    assert "popularity: significant, without correction. " in said(math.nan)


def test_a_report_has_no_absolute_paths(run):
    """Paths of the machine name its users and projects; the names of files stay."""
    recipe = RECIPE | {"data": {"interactions": "/home/ann & bob/shop/log.csv", "items": "shop/items.csv"}}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    protocol = read_json(run / "data" / "protocol.json")
    contents = read_run(run)
    assert contents.data is not None
    contents.data.protocol["config"] = {"interactions": "/home/ann & bob/shop/log.csv", "more": ["/mnt/late.csv"]}
    contents = dataclasses.replace(contents, missing=[*contents.missing, f"{run}/sft is damaged"])
    page = render(contents)
    assert not re.search(r"/home|ann|bob|/mnt/", page)
    assert str(run) not in page
    for kept in ("…/log.csv", "…/late.csv", "shop/items.csv", f"…/{run.name}/sft is damaged"):
        assert kept in page
    assert protocol["source"] in page


def test_a_few_users_have_no_test_and_the_report_says_so(run):
    """Two users with equal gains once had p = 0 and an empty interval."""
    contents = read_run(run)
    lists = contents.results.evaluation
    two = contents.results.predictions.with_columns(user_id="u" + (pl.col("row") % 2).cast(pl.String))
    few = evaluate_predictions(_without_texts(two), compare="popularity", audit=lists.audit)
    block = dataclasses.replace(few, best_reference="popularity")
    said = verdict(_with(contents, evaluation=block))
    assert "(no interval) over the best baseline, popularity: not tested. " in said
    assert ". 2 users have no intervals and no tests (20 users needed). Audit: " in said
    assert "20 users needed" not in verdict(_with(contents, evaluation=lists))
    assert "\n2 users have no intervals and no tests" in metrics_note(block)
    assert "20 users needed" not in metrics_note(lists)
    assert repr(block).endswith(". 2 users have no intervals and no tests (20 users needed)")


def _full_ranking(contents, compare, **changes):
    frame = _without_texts(contents.results.predictions)
    block = evaluate_predictions(frame, ks=[10, 3], compare=compare, audit=NONE)
    # Six candidates would all be among the first ten: HR@3 takes the place of HR@10.
    metrics = {r: {"ndcg@10": of["ndcg@10"], "hr@10": of["hr@3"]} for r, of in block.metrics.items()}
    compared = [dataclasses.replace(c, metric="hr@10") for c in block.comparisons if c.metric == "hr@3"]
    full = dataclasses.replace(block, metrics=metrics, comparisons=compared, best_reference="popularity")
    return _with(contents, full_catalogue=full, **changes), full


def _with(contents, **changes):
    """Return the contents with other results."""
    return dataclasses.replace(contents, results=dataclasses.replace(contents.results, **changes))


def test_plain_words_say_what_popularity_and_the_best_find_and_what_the_language_model_adds(run):
    contents, full = _full_ranking(read_run(run), [("s-dpo", "popularity")])
    found = {r: 100 * of["hr@10"].mean for r, of in full.metrics.items()}
    (gain,) = full.comparisons
    low, high = 100 * gain.low, 100 * gain.high
    assert gain.low > 0
    want = (
        f"Of 100 next items, popularity finds {found['popularity']:.1f} in its first ten, and S-DPO finds "
        f"{found['s-dpo']:.1f}; the language model adds {100 * gain.mean:+.1f} (95% interval {low:+.1f} to "
        f"{high:+.1f}) to popularity."
    )
    assert plain_words(contents) == want
    assert want in _read_page(contents)
    may = dataclasses.replace(gain, low=-0.01)
    unsure = _with(contents, full_catalogue=dataclasses.replace(full, comparisons=[may]))
    assert f"interval −1.0 to {high:+.1f}, which may be chance) to popularity." in plain_words(unsure)
    assert plain_words(_with(contents, full_catalogue=None)) == ""


def test_a_sentence_says_how_full_ranking_is_spread_over_users(run):
    best = Best("dpo", "ndcg@10", {"dpo": 0.5}, {"dpo": 20}, {"dpo": 0.0})
    spreads = {
        "popularity": UserSpread(20, 0.234, [0.0] * 9, 0.9),
        "dpo": UserSpread(20, 0.41, [0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.61], 0.74),
    }
    contents, _ = _full_ranking(read_run(run), [], best=best, by_user=spreads)
    want = (
        "By user: DPO has a next item in its first ten for 41% of 20 users (popularity: 23%). Its NDCG@10 is at most "
        "0.040 for half of them, and at least 0.610 for the best-served tenth; Gini 0.74."
    )
    assert users_served(contents.results) == want
    assert want in _read_page(contents)
    alone = {"dpo": dataclasses.replace(spreads["dpo"], with_hit=0.0, deciles=[0.0] * 9, gini=math.nan)}
    nobody = users_served(_with(contents, by_user=alone).results)
    assert nobody.startswith("By user: DPO has a next item in its first ten for 0% of 20 users. Its NDCG@10 is")
    assert nobody.endswith("at least 0.000 for the best-served tenth.")
    for changes in ({"by_user": {}}, {"full_catalogue": None}):
        assert users_served(_with(contents, **changes).results) == ""


def _read_page(contents):
    return " ".join(_Page(render(contents)).text.split())


def test_plain_words_of_a_blend_name_its_language_model(run):
    best = Best("random", "ndcg@10", {"random": 0.5}, {"random": 20}, {"random": 0.0})
    blend = {"kind": "blend", "name": "random", "parts": ["popularity", "sft"]}
    recipe = RECIPE | {"rankers": [blend]}
    contents, full = _full_ranking(read_run(run), [("random", "dpo")], best=best)
    contents = dataclasses.replace(contents, recipe=recipe)
    (gain,) = full.comparisons
    named = dataclasses.replace(gain, against="random without sft")
    whole = _with(contents, full_catalogue=dataclasses.replace(full, comparisons=[named]))
    assert f"; the language model SFT adds {100 * gain.mean:+.1f} (95%".replace("-", "−") in plain_words(whole)
    without = dataclasses.replace(contents, recipe=RECIPE | {"rankers": [blend | {"parts": ["popularity"]}]})
    alone = 100 * full.metrics["s-dpo"]["hr@10"].mean
    assert f"; the language model S-DPO is not a part of it and finds {alone:.1f} alone." in plain_words(without)


@pytest.mark.usefixtures("drawn")
def test_plots_show_full_ranking_if_there_is_one(run):
    contents, full = _full_ranking(read_run(run), [])
    labels = [a["alt"] for a in _Page(render(contents)).all("img")]
    assert labels[0].startswith("NDCG@10. NDCG@10 with 95% intervals: random ")
    assert f"S-DPO {with_interval(full.metrics['s-dpo']['hr@10'])}" in labels[1]
    assert "NDCG@10, full ranking" in _read_page(contents)


def test_most_baselines_of_a_page_are_folded(run):
    contents = read_run(run)
    lists = contents.results.evaluation
    own = lists.metrics["random"]
    more = dict.fromkeys(("EASE", "item-kNN", "title TF-IDF"), own)
    many = dataclasses.replace(lists, metrics=lists.metrics | more, best_reference="EASE")
    page = _Page(render(_with(contents, evaluation=many)))
    summaries = re.findall(r"\d+ other baselines", page.text)
    assert summaries[0] == "3 other baselines"
    grid = metrics_grid(many)
    open_rows, rest = folded(grid, shown_baselines(many))
    assert [name for name, *_ in rest.rows] == ["random", "item-kNN", "title TF-IDF"]
    assert [name for name, *_ in open_rows.rows] == [
        "popularity",
        "zero-shot",
        "SFT",
        "DPO",
        "S-DPO",
        "EASE",
        "chance",
    ]
    few = metrics_grid(lists)
    assert folded(few, shown_baselines(lists)) == (few, None)


def test_the_weights_of_a_blend_are_told(run):
    (run / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"rankers": [{"kind": "blend", "name": "blend"}]}))
    (run / "rankers/blend").mkdir(parents=True)
    made = run / "rankers/blend/blend.json"
    values = {"mean": [0, 0], "scale": [1, 1], "weights": [1, -2], "errors": [0.1, 0.2], "n": 20}
    found = {"units": {"sft": None, SCRIPT: 2.0}, "logits": {"": {"names": ["sft", SCRIPT], **values}}}
    found |= {"reranked": None, "folds": [], "reranked_folds": []}
    made.write_text(json.dumps(found))
    seal_stage(run / "rankers/blend")
    sentence = f"blend: weights learnt on 20 validation examples: sft +1.00 ± 0.10, {SCRIPT} -2.00 ± 0.20"
    assert sentence in _read(run).text
    made.write_text("{}")
    assert "blend.json cannot be read: rankers/blend is damaged or unfinished (blend.json)" in _read(run).text
    seal_stage(run / "rankers/blend")
    assert "rankers/blend/blend.json cannot be read" in _read(run).text


def test_damaged_and_unfinished_parts_are_named(run):
    (run / "metrics.json").write_text('{"split": "te')
    (run / "sft/log.json").write_text("{}")
    (run / "recipe.yaml").write_text("a: [1")
    (run / "predictions.parquet").write_bytes(b"no parquet")
    state = json.loads((run / "align/s-dpo/stage.json").read_text())
    (run / "align/s-dpo/stage.json").write_text(json.dumps(state | {"finished": False}))
    (run / "align/dpo.previous-1").mkdir()
    text = _read(run).text
    for part in ("metrics.json", "sft/log.json", "recipe.yaml", "predictions.parquet"):
        assert f"{part} cannot be read" in text
    assert "align/s-dpo/ is not finished" in text
    assert "SFT → DPO → S-DPO (not finished)" in text
    assert "dpo.previous-1" not in text


def test_a_folder_without_any_part_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"not the folder of a run: expected at least one of recipe\.yaml, .*metrics"):
        write_report(read_run(tmp_path))
    with pytest.raises(DataError, match="there is no such folder"):
        write_report(read_run(tmp_path / "nowhere"))
    assert list(tmp_path.iterdir()) == []


def test_small_functions():
    assert running_mean(np.array([1.0, math.nan, 3.0])).tolist() == [1.0, 2.0, 3.0]
    assert [clock(s) for s in (4.4, 725, 12000, None)] == ["4 s", "12 min 05 s", "3 h 20 min", "–"]
    bpr = StageLog("bpr", "align", {"config": {"loss": "bpr", "num_negatives": 3}})
    nested = StageLog("x", "align", {"config": {"section": {"loss": "softmax_dpo", "num_negatives": 3}}})
    assert start_loss(bpr) is None
    assert start_loss(nested) == pytest.approx(math.log(4))
    for loss, start in (("dpo", math.log(2)), ("nca", 2 * math.log(2)), ("ipo", None), ("of-another-package", None)):
        stage = StageLog("x", "align", {"config": {"loss": loss, "num_negatives": 3}})
        assert start_loss(stage) == (start and pytest.approx(start))
