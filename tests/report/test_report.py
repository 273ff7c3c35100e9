"""The report of a synthetic run: its numbers, its gaps, its escaping, its errors."""

import dataclasses
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from hostile_pages import SHORT, TEXTS, needs_browser, text_of_unbroken
from prefrec.data import Catalogue, PreparedData, RankingExample, read_prepared, write_prepared
from prefrec.errors import DataError
from prefrec.evaluation import audit_prepared, evaluate_predictions, target_ranks
from prefrec.evaluation.best import Best
from prefrec.evaluation.predictions import prediction_frame
from prefrec.report import write_report
from prefrec.report.curves import running_mean, start_loss
from prefrec.report.examples import pick_examples
from prefrec.report.render import verdict
from prefrec.report.tables import metrics_grid
from prefrec.report.wording import clock, signed, with_interval
from prefrec.runs.contents import Stage, read_run
from sealed import seal_stage, write_metrics
from verdicts import NONE

SCRIPT = "<script>alert(1)</script>"
RECIPE = {
    "name": "tiny-run",
    "model": {"name": "smollm2-135m"},
    "sft": {"rows": 400},
    "align": [{"name": "dpo"}, {"name": "s-dpo"}],
}
ENVIRONMENT = {"prefrec": "0.1.0", "torch": "2.13", "python": "3.11.9", "commit": None, "seed": 0}
MODELS = ("zero-shot", "sft", "dpo", "s-dpo")
PAIRS = [("sft", "zero-shot"), ("dpo", "sft"), ("s-dpo", "dpo"), ("s-dpo", "sft"), ("s-dpo", "popularity")]
N, C = 120, 20


def _data() -> PreparedData:
    rng = np.random.default_rng(0)
    ids = [str(i) for i in range(60)]
    titles = [SCRIPT, "Tom & Jerry", *(f"The Film of Number {i} ({1950 + i})" for i in range(2, 60))]

    def rows(n: int, name: str) -> list[RankingExample]:
        drawn = [rng.permutation(ids).tolist() for _ in range(n)]
        return [
            RankingExample(f"{name}{u}", tuple(d[:8]), tuple(d[8 : 8 + C]), d[8 + int(rng.integers(C))])
            for u, d in enumerate(drawn)
        ]

    log = [(f"u{u}", str(i), t) for u in range(40) for t, i in enumerate(rng.permutation(60)[:9])]
    frame = pl.DataFrame(
        log, schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}, orient="row"
    )
    protocol = {
        "format_version": 1,
        "source": "movielens-100k",
        "domain": "movies",
        "split": "leave-last-out",
        "candidates": {"kind": "uniform", "size": C},
        "seed": 0,
        "counts": {
            "users": 943,
            "items": 1682,
            "rows": {"train": 60, "test": N},
            "row_users": {"train": 60, "test": N},
        },
        "notes": [f"a note with {SCRIPT}"],
    }
    catalogue = Catalogue(pl.DataFrame({"item_id": ids, "title": titles}))
    return PreparedData(catalogue, rows(60, "u"), rows(20, "v"), rows(N, "w"), frame, protocol)


def _predictions(data: PreparedData) -> pl.DataFrame:
    """Rankers whose scores lift the target more and more; SFT and the models after it answer in text too."""
    rng = np.random.default_rng(1)
    target = np.array([e.target_index for e in data.test])
    shared, frames = rng.normal(size=(N, C)), []
    for name, lift in {
        "random": 0.0,
        "popularity": 0.6,
        "zero-shot": 0.3,
        "sft": 1.0,
        "dpo": 1.1,
        "s-dpo": 2.0,
    }.items():
        scores = shared + 0.5 * rng.normal(size=(N, C)) - 8
        scores[np.arange(N), target] += lift
        said = None if name not in MODELS else ["x"] * N
        picks = None
        if said is not None:
            columns = np.where(rng.random(N) < 0.1, -1, scores.argmax(axis=1))
            picks = [e.candidates[c] if c >= 0 else None for e, c in zip(data.test, columns, strict=True)]
        frames.append(prediction_frame(name, data.test, scores, target_ranks(scores, target), said, picks))
    return pl.concat(frames)


def _log(kind: str, negatives: int = 1, points: int = 60) -> list[dict[str, float]]:
    rng = np.random.default_rng(negatives)
    rows: list[dict[str, float]] = []
    for i in range(points):
        t, noise = i / points, float(rng.normal())
        if kind == "sft":
            entry = {"loss": 1.2 + 3.5 * math.exp(-5 * t) + 0.1 * noise, "logps/chosen": -30 + 22 * t + noise}
        else:
            entry = {
                "loss": math.log(1 + negatives) * (1 - 0.5 * t) + 0.08 * noise,
                "rewards/chosen": 1.2 * t + 0.1 * noise,
                "rewards/rejected": -2 * t * negatives**0.5 + 0.1 * noise,
                "rewards/margins": 1.2 * t + 2 * t * negatives**0.5,
                "rewards/accuracies": min(1.0, 0.4 + 0.5 * t + 0.05 * noise),
                "logps/chosen": -9 + t,
                "logps/rejected": -11 - 3 * t,
                "negatives/effective": negatives * (1 - 0.4 * t),
            }
        rows.append({"step": i + 1, "epoch": t, **entry})
        if i % 10 == 9:
            held = {f"eval_{k}": v * 1.04 for k, v in entry.items()}
            rows.append({"step": i + 1, "epoch": t, **held})
    return [*rows, {"step": points, "train_runtime": 812.0}]


def _stage(folder: Path, kind: str, log: list[dict[str, float]], **config: object) -> None:
    folder.mkdir(parents=True)
    (folder / "log.json").write_text(json.dumps(log))
    seal_stage(folder, seconds=812.4, kind=kind, config=config)


def build_run(run: Path) -> Path:
    """A whole run as `prefrec run` leaves it."""
    data = _data()
    predictions = _predictions(data)
    run.mkdir()
    (run / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (run / "environment.json").write_text(json.dumps(ENVIRONMENT))
    write_prepared(data, run / "data")
    seal_stage(run / "data")
    _stage(run / "sft", "sft", _log("sft"), learning_rate=5e-4)
    _stage(run / "align/dpo", "align", _log("align", 1), loss="dpo", beta=0.1, num_negatives=1, learning_rate=1e-5)
    settings = {"loss": "softmax_dpo", "beta": 1.0, "num_negatives": 7, "learning_rate": 1e-5}
    _stage(run / "align/s-dpo", "align", _log("align", 7), **settings)
    audit = audit_prepared(data, "test", "train")
    scored = predictions.with_columns(generated=pl.lit(None, pl.String), choice=pl.lit(None, pl.String))
    evaluation = evaluate_predictions(scored, compare=PAIRS, audit=audit)
    texts = predictions.filter(pl.col("generated").is_not_null())
    generation = evaluate_predictions(texts, compare=[], audit=NONE).to_json()
    keep = ("gen_hr@1", "valid_ratio")
    generation["metrics"] = {r: {m: of[m] for m in keep} for r, of in generation["metrics"].items()}
    metrics = {"split": "test", "evaluation": evaluation.to_json(), "generation": generation}
    predictions.write_parquet(run / "predictions.parquet")
    write_metrics(run, metrics)
    return run


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_run(tmp_path_factory.mktemp("runs") / "run")


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
        if tag not in ("meta", "path", "use"):
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
    return _Page(write_report(run).read_text(encoding="utf-8"))


def test_numbers_and_settings_are_in_it(run):
    page, contents = _read(run), read_run(run)
    evaluation = contents.evaluation
    for part in (
        "chance",
        evaluation.audit.verdict,
        *("smollm2-135m", "movielens-100k", "13 min 32 s", "softmax_dpo", "valid ratio", "3.11.9", "tiny-run"),
        *(f"{interval.mean:.3f}" for of in evaluation.metrics.values() for interval in of.values()),
        *(signed(c.mean) for c in evaluation.comparisons),
    ):
        assert part in page.text
    assert "This run is incomplete" not in page.text
    assert page.all("svg") == []
    assert "pip install matplotlib, then prefrec report" in " ".join(page.text.split())


def test_the_whole_catalogue_and_the_best_reference_are_in_it(run):
    """The block of the whole catalogue lacks zero-shot; half of the rows have new targets."""
    frame = pl.read_parquet(run / "predictions.parquet").with_columns(
        generated=pl.lit(None, pl.String), choice=pl.lit(None, pl.String)
    )
    known = [str(i) for i in range(0, 60, 2)]
    lists = evaluate_predictions(frame, compare=[("s-dpo", "popularity")], known_items=known, audit=NONE)
    rest = frame.filter(pl.col("ranker") != "zero-shot")
    full = evaluate_predictions(rest, ks=[10], compare=[("s-dpo", "random")], known_items=known, audit=NONE)
    told = {"split": "test", "evaluation": lists.to_json(), "generation": None}
    told["evaluation"]["best_reference"], told["full_catalogue"] = "popularity", full.to_json()
    told["full_catalogue"]["best_reference"] = "random"
    write_metrics(run, told)
    text = _read(run).text
    own = full.metrics["s-dpo"]["ndcg@10"]
    for part in (
        "NDCG@10, full ranking, new targets",
        "Models are compared with random, the baseline with the highest NDCG@10.",
        signed(lists.difference("s-dpo", "popularity", "hr@1").mean),
    ):
        assert part in text
    contents = read_run(run)
    grid = metrics_grid(contents.evaluation, contents.full_catalogue)
    column = grid.columns.index("NDCG@10, full ranking")
    cells = {name: cells[column].text for name, cells, _ in grid.rows}
    assert (cells["S-DPO"], cells["zero-shot"]) == (f"{own.mean:.3f}", "–")


@pytest.mark.usefixtures("drawn")
def test_page_is_well_formed_accessible_and_needs_no_network(run):
    text = write_report(run).read_text(encoding="utf-8")
    page = _Page(text)
    assert page.open == []
    assert not re.search(r"(src|href)=\"(?!#)", text)
    assert "@import" not in text
    assert "url(http" not in text
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = {v for _, a in page.tags for k, v in a.items() if k in ("href", "xlink:href")}
    assert links <= {f"#{i}" for i in ids}
    assert set(re.findall(r"url\(#(.*?)\)", text)) <= set(ids)
    plots = page.all("svg")
    assert len(plots) == 2 + 1 + 6
    assert all(p["role"] == "img" and len(p["aria-label"] or "") > 30 for p in plots)
    assert all("scope" in th for th in page.all("th"))
    assert text.count("DPO starts at ln 2 = 0.693") == 1
    assert "S-DPO starts at ln 8 = 2.079" in text


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
    frame = pl.read_parquet(run / "predictions.parquet")
    odd = frame.with_columns(ranker=pl.col("ranker").replace("random", SHORT))
    evaluation = evaluate_predictions(odd, compare=[(SHORT, "popularity")], audit=NONE)
    metrics = {"split": "test", "evaluation": evaluation.to_json(), "generation": None}
    write_metrics(run, metrics)
    text = text_of_unbroken(write_report(run))
    assert all(hostile in text for hostile in [*TEXTS, SHORT])


@pytest.mark.usefixtures("drawn")
def test_names_titles_and_notes_with_markup_stay_text(run):
    frame = pl.read_parquet(run / "predictions.parquet")
    odd = frame.with_columns(ranker=pl.col("ranker").replace("random", "<b>$x$ & y"))
    evaluation = evaluate_predictions(odd, compare=[], audit=NONE)
    metrics = {"split": "test", "evaluation": evaluation.to_json(), "generation": None}
    write_metrics(run, metrics)
    text = write_report(run).read_text(encoding="utf-8")
    assert "<b>" not in text
    assert text.count("&lt;b&gt;$x$ &amp; y") >= 3
    assert SCRIPT not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
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
    assert "This run is incomplete" in page.text
    assert sentence in page.text
    assert "Training" in page.text
    assert page.open == []


def test_the_verdict_names_the_best_and_its_gain(run):
    contents = read_run(run)
    lists = contents.evaluation
    own, gain = lists.metrics["s-dpo"]["ndcg@10"], lists.difference("s-dpo", "popularity", "ndcg@10")
    named = dataclasses.replace(lists, best_reference="popularity")
    shown = f"{with_interval(own)} on candidate sets, {with_interval(gain)} over the best baseline, popularity"
    said = verdict(dataclasses.replace(contents, evaluation=named))
    assert said == f"S-DPO has the highest NDCG@10, {shown}. {lists.audit.headline}"
    full = dataclasses.replace(named, metrics={"popularity": named.metrics["popularity"]})
    said = verdict(dataclasses.replace(contents, evaluation=named, full_catalogue=full))
    assert "in full ranking, and is itself the best baseline. " in said
    best = Best("sft", "ndcg@10", {"sft": 0.5}, {"sft": 20})
    chosen = verdict(dataclasses.replace(contents, evaluation=named, best=best))
    assert chosen.startswith("SFT is best on validation, with NDCG@10 ")


def test_the_weights_of_a_blend_are_told(run):
    (run / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"rankers": [{"kind": "blend", "name": "blend"}]}))
    (run / "rankers/blend").mkdir(parents=True)
    made = run / "rankers/blend/blend.json"
    values = {"mean": [0, 0], "scale": [1, 1], "weights": [1, -2], "errors": [0.1, 0.2], "n": 20}
    logit = {"names": ["sft", SCRIPT], **values}
    found = {"units": {"sft": None, SCRIPT: 2.0}, "logits": {"": logit}}
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
    (run / "align/dpo.previous").mkdir()
    text = _read(run).text
    for part in ("metrics.json", "sft/log.json", "recipe.yaml", "predictions.parquet"):
        assert f"{part} cannot be read" in text
    assert "align/s-dpo/ is not finished" in text
    assert "SFT → DPO → S-DPO (not finished)" in text
    assert "dpo.previous" not in text


def test_a_folder_without_any_part_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"not the folder of a run: expected at least one of recipe\.yaml, .*metrics"):
        write_report(tmp_path)
    with pytest.raises(DataError, match="there is no such folder"):
        write_report(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_small_functions():
    assert running_mean(np.array([1.0, math.nan, 3.0])).tolist() == [1.0, 2.0, 3.0]
    assert [clock(s) for s in (4.4, 725, 12000, None)] == ["4 s", "12 min 05 s", "3 h 20 min", "–"]
    bpr = Stage("bpr", "align", {"config": {"loss": "bpr", "num_negatives": 3}})
    nested = Stage("x", "align", {"config": {"section": {"loss": "softmax_dpo", "num_negatives": 3}}})
    assert (start_loss(bpr), start_loss(nested)) == (None, math.log(4))
