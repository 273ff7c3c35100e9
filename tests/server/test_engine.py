"""Answers of the engine against the slow twin: one sequence an answer, the adapter alone on a fresh base."""

import shutil
import threading
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines import SERVED_BASELINES
from fixed_rankers import ListsAlone
from prefrec.data import Query
from prefrec.errors import DataError, ModelError, TokenizerError
from prefrec.lm.items import ItemEncoder, add_items
from prefrec.pipeline.opened import open_run
from prefrec.prompts import ChoiceSet, load_template
from prefrec.rankers import LMRanker
from prefrec.rankers.catalogue import CatalogueRanker
from prefrec.recommend import questions
from prefrec.recommend.explain import leave_one_out
from prefrec.recommend.questions import Past, RulesError, Selection
from prefrec.recommend.rules import Rules
from prefrec.recommender import Recommender
from prefrec.stages.base import Loaded
from prefrec_server.bodies import ExplainRequest, RankRequest, RecommendRequest, RelatedRequest
from prefrec_server.engine import Engine, UnknownRankerError
from prefrec_server.models import load_rankers
from prefrec_server.scorer import Scorer
from prefrec_server.server import open_engine
from served_run import HOSTILE, dated, with_model
from slow import slow_logps, slow_logps_within
from tiny import VOCABULARY, tiny_llama
from tiny_lists import CATALOGUE, IDS

HISTORY = ["Red Emma", "i7", "Old Night"]
SHOWN = ["Red Emma", "Red Eye", "Old Night"]
CANDIDATES = ["Wild Alien", "Cold Heat", "Lost Days", "Red Story"]


def _ask(engine, asked):
    return asked.answer(engine.submit(asked, timeout=60).result(timeout=60))


def _slow(run, ranker, history, candidates, shown=None):
    """Log-probabilities [C] of titles by a model of its own, one sequence each; `shown`: those in the prompt."""
    twin = run.ranker(ranker)
    choices = twin.encoder.encode(twin.template, history, candidates if shown is None else shown, candidates)
    with torch.no_grad():
        return slow_logps(twin.model, choices).numpy()


@pytest.mark.parametrize("ranker", ["zero-shot", "dpo"])
def test_rank_equals_the_slow_twin(engine, run, ranker):
    answer = _ask(
        engine, engine.rank(RankRequest(history=HISTORY, candidates=CANDIDATES, ranker=ranker, show_history=True))
    )
    want = _slow(run, ranker, SHOWN, CANDIDATES)
    assert answer.ranker == ranker
    assert [i.title for i in answer.history] == SHOWN
    assert [r.title for r in answer.ranking] == [CANDIDATES[i] for i in np.argsort(-want)]
    assert [r.rank for r in answer.ranking] == [1, 2, 3, 4]
    np.testing.assert_allclose([r.score for r in answer.ranking], sorted(want, reverse=True), rtol=1e-4)
    shares = np.exp(want - want.max()) / np.exp(want - want.max()).sum()
    np.testing.assert_allclose([r.share for r in answer.ranking], sorted(shares, reverse=True), rtol=1e-3)
    assert not answer.history_shortened


def test_history_is_shown_as_the_recipe_says(run):
    """Ranking, explanation and recommendation show details of the history, and answer with plain titles."""
    titles = [*run.data.catalogue.titles.values()]
    engine, shown = open_engine(dated(run), ["sft"]), [f"{t} ({1900 + titles.index(t)})" for t in SHOWN]
    answer = _ask(engine, engine.rank(RankRequest(history=HISTORY, candidates=CANDIDATES)))
    want = _slow(run, "sft", shown, CANDIDATES)
    assert [r.title for r in answer.ranking] == [CANDIDATES[i] for i in np.argsort(-want)]
    np.testing.assert_allclose([r.score for r in answer.ranking], sorted(want, reverse=True), rtol=1e-4)
    told = _ask(engine, engine.explain(ExplainRequest(history=HISTORY, item="Wild Alien")))
    rest = [_slow(run, "sft", [*shown[:i], *shown[i + 1 :]], ["Wild Alien"], shown=())[0] for i in range(3)]
    np.testing.assert_allclose([told.score - i.effect for i in told.influences], rest, rtol=1e-4)
    (best,) = _ask(engine, engine.recommend(RecommendRequest(history=HISTORY, k=1))).ranking
    np.testing.assert_allclose(best.score, _slow(run, "sft", shown, [best.title], shown=())[0], rtol=1e-4)
    engine.close()


def test_within_the_catalogue_answers_equal_the_slow_twin(run):
    """Whichever titles are asked about, all of the catalogue compete."""
    engine, twin = open_engine(with_model(run, objective="catalogue"), ["sft"]), run.ranker("sft")
    every = run.data.catalogue.titles_of(run.data.catalogue.ids)
    question = twin.encoder.encode(twin.template, SHOWN, CANDIDATES, every)
    want = dict(zip(every, slow_logps_within(twin.model, question.prompt, question.answers), strict=True))
    ranked = _ask(engine, engine.rank(RankRequest(history=HISTORY, candidates=CANDIDATES))).ranking
    engine.close()
    assert [r.title for r in ranked] == sorted(CANDIDATES, key=want.__getitem__, reverse=True)
    np.testing.assert_allclose([r.score for r in ranked], [want[r.title] for r in ranked], rtol=1e-4)


def test_explain_equals_leaving_each_item_out(engine, run):
    request = ExplainRequest(history=HISTORY, candidates=CANDIDATES, item="lost days", ranker="dpo")
    answer = _ask(engine, engine.explain(request))
    column = CANDIDATES.index("Lost Days")

    def of(titles):
        logps = _slow(run, "dpo", titles, CANDIDATES)
        return logps[column], (np.exp(logps) / np.exp(logps).sum())[column]

    logp, share = of(SHOWN)
    assert answer.item.title == "Lost Days"
    np.testing.assert_allclose([answer.score, answer.share], [logp, share], rtol=1e-4)
    for i, influence in enumerate(answer.influences):
        without, share_without = of(SHOWN[:i] + SHOWN[i + 1 :])
        assert (influence.position, influence.title) == (i, SHOWN[i])
        np.testing.assert_allclose(answer.score - influence.effect, without, rtol=1e-4)
        np.testing.assert_allclose(influence.share_change, share - share_without, atol=1e-4)
    assert len({i.effect for i in answer.influences}) == 3


def test_many_clients_at_once_get_what_each_gets_alone(run):
    """Requests that share passes, of two rankers and of different lengths."""
    engine = open_engine(run, ["sft", "s-dpo"], max_tokens=700)
    requests = [
        RankRequest(history=HOSTILE[n : n + n % 4], candidates=HOSTILE[9 : 11 + n % 5], ranker=engine.rankers[n % 2])
        for n in range(24)
    ]
    alone = [_ask(engine, engine.rank(r)) for r in requests]
    told = []
    engine.batcher._on_pass = told.append
    asked = [(a := engine.rank(r), engine.submit(a, timeout=60)) for r in requests]
    for (a, future), want in zip(asked, alone, strict=True):
        got = a.answer(future.result(timeout=60))
        assert [r.item_id for r in got.ranking] == [r.item_id for r in want.ranking]
        np.testing.assert_allclose([r.score for r in got.ranking], [r.score for r in want.ranking], rtol=1e-4)
    engine.close()
    assert sum(p.jobs for p in told) == 24
    assert max(p.jobs for p in told) > 1


def test_the_model_goes_to_the_device_of_this_process(run, monkeypatch):
    monkeypatch.setattr("prefrec.lm.models.default_device", lambda: torch.device("meta"))
    monkeypatch.setattr(Engine, "warm_up", lambda self, rankers: None)
    engine = open_engine(run, ["s-dpo"])
    devices = {p.device.type for p in engine._scorer.lm.model.parameters()}
    engine.close()
    assert devices == {"meta"}


def test_recommend_and_explain_equal_the_slow_twin(engine, run):
    """Every title of the catalogue after the prompt without candidates, one sequence each."""
    answer = _ask(engine, engine.recommend(RecommendRequest(history=HISTORY, k=7, ranker="dpo")))
    titles = [t for t in HOSTILE if t not in SHOWN]
    want = _slow(run, "dpo", SHOWN, titles, shown=())
    best = np.argsort(-want, kind="stable")[:7]
    assert [r.title for r in answer.ranking] == [titles[i] for i in best]
    np.testing.assert_allclose([r.score for r in answer.ranking], want[best], rtol=1e-4)
    assert answer.exact
    assert not answer.history_shortened
    told = _ask(engine, engine.explain(ExplainRequest(history=HISTORY, item=titles[3], ranker="dpo")))
    without = _slow(run, "dpo", SHOWN[1:], [titles[3]], shown=())[0]
    np.testing.assert_allclose([told.score, told.score - told.influences[0].effect], [want[3], without], rtol=1e-4)
    assert (told.share, told.influences[0].share_change) == (None, None)


def test_what_the_prompt_has_no_room_for_is_not_explained(engine, run):
    """As by the command line."""
    row, history = run.data.test[0], ("i0", "i1", "i7", "i9") * 12
    asked = ExplainRequest(history=list(history), candidates=list(row.candidates), item=row.target, ranker="sft")
    answer = _ask(engine, engine.explain(asked))
    want = leave_one_out(run.ranker("sft"), Query(history, row.candidates), row.target)
    assert answer.history_shortened
    assert [i.position for i in answer.influences] == list(range(48 - len(want), 48))
    assert [i.item_id for i in answer.influences] == [item for item, _ in want]
    np.testing.assert_allclose([i.effect for i in answer.influences], [e for _, e in want], atol=1e-3)


def test_each_history_of_item_tokens_tells_whether_it_is_shortened(bpe_tokenizer):
    """Although many are read in one call."""
    model = tiny_llama(tie_word_embeddings=True)
    add_items(model, IDS, torch.eye(len(IDS)))
    encoder = ItemEncoder(CATALOGUE, bpe_tokenizer, VOCABULARY, max_length=8)  # five items, begin, answer and end
    settings = {"encoder": encoder, "objective": "catalogue"}
    lm = LMRanker("items", model, bpe_tokenizer, CATALOGUE, load_template("history"), **settings)
    scorer, selection = Scorer({"items": model}, {"items": None}, lm, CATALOGUE), Selection(CATALOGUE, Rules(), 3)
    questions = [selection.question(IDS[:n], []) for n in (5, 6, 0, 9)]
    assert [is_short for _, is_short in scorer.recommend("items", questions)] == [False, True, False, True]


def test_what_cannot_be_asked_is_refused(engine):
    for ask, error, message in (
        ({"ranker": "sdpo"}, UnknownRankerError, "no ranker 'sdpo': expected one of s-dpo, dpo, sft, zero-shot"),
        ({"candidates": HOSTILE}, TokenizerError, "use fewer candidates"),
    ):
        request = RankRequest.model_validate({"history": HISTORY, "candidates": CANDIDATES} | ask)
        with pytest.raises(error, match=message):
            engine.rank(request)
    with pytest.raises(DataError, match="'Red Emma' is not among the candidates"):
        engine.explain(ExplainRequest(history=HISTORY, candidates=CANDIDATES, item="Red Emma"))


@pytest.mark.parametrize("ranker", ["item-kNN", "transition graph"])
def test_a_history_as_long_as_init_proposes_is_explained(run, ranker):
    """By leave-one-out, effects of the last 50 items, on the score of the whole history."""
    log = [f"i{n}" for n in range(60)]
    asked = ExplainRequest(history=log[:50], item="i3", user_id="u03", ranker=ranker)
    engine, rec = open_engine(run, [ranker]), Recommender.from_run(run, ranker)
    answer = _ask(engine, engine.explain(asked))
    want = rec.explain(log[:50], "i3", user="u03")
    engine.close()
    before = len(answer.history) - 50
    assert before > 0
    assert answer.not_explained == want.not_explained == (before if answer.method == "leave-one-out" else 0)
    assert not answer.history_shortened
    assert [i.position for i in answer.influences] == list(range(answer.not_explained, len(answer.history)))
    np.testing.assert_allclose([i.effect for i in answer.influences], [e.effect for e in want], atol=1e-3)
    (line,) = [line for line in rec.rank([*answer.history], log) if line.item_id == "i3"]
    assert answer.score == pytest.approx(line.score)


def test_a_language_model_explains_fewer_items_among_many_candidates(engine, monkeypatch):
    asked = ExplainRequest(history=HISTORY, candidates=CANDIDATES, item=CANDIDATES[0], ranker="sft")
    every = _ask(engine, engine.explain(asked))
    monkeypatch.setattr("prefrec_server.bodies.MAX_EXPLAINED_PAIRS", 2 * len(CANDIDATES) + 1)
    answer = _ask(engine, engine.explain(asked))
    assert (every.not_explained, answer.not_explained, answer.history_shortened) == (0, 1, False)
    assert [i.position for i in answer.influences] == [1, 2]
    np.testing.assert_allclose(
        [i.effect for i in answer.influences], [i.effect for i in every.influences[1:]], rtol=1e-3
    )


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 6)), min_size=1, max_size=12), st.integers(20, 400))
def test_scores_do_not_depend_on_the_budget_and_keep_the_order(shapes, budget):
    rng = np.random.default_rng(0)
    drawn = [(rng.integers(3, 300, n).tolist(), rng.integers(3, 300, (c, 2)).tolist()) for n, c in shapes]
    sets = [ChoiceSet(tuple(prompt), tuple((*a, 1) for a in answers)) for prompt, answers in drawn]
    model, settings = tiny_llama(), {"encoder": SimpleNamespace(end=1), "objective": "tokens"}
    lm = LMRanker("zero-shot", model, None, None, None, max_tokens_per_pass=budget, **settings)
    scorer = Scorer({"zero-shot": model}, {"zero-shot": None}, lm, None)
    for choices, got in zip(sets, scorer.score("zero-shot", sets), strict=True):
        with torch.no_grad():
            np.testing.assert_allclose(got, slow_logps(model, choices).numpy(), rtol=1e-4, atol=1e-3)


def test_scores_that_are_no_numbers_are_an_error(run):
    engine = open_engine(run, ["zero-shot"])
    with torch.no_grad():
        engine._scorer.lm.model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        engine._scorer.recommend("zero-shot", [Selection(run.data.catalogue, Rules(), 3).question(["i2"], [])])
    with pytest.raises(ModelError, match="not finite"):
        _ask(engine, engine.rank(RankRequest(history=HISTORY, candidates=CANDIDATES)))
    engine.close()


@pytest.mark.parametrize("others", [[], ["sft"]], ids=["first", "second"])
def test_pickled_adapters_are_not_read(run, tmp_path, others):
    """PEFT would read `adapter_model.bin`, which is a pickle."""
    adapter = shutil.copytree(run.folder / "align" / "dpo" / "adapter", tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    adapters = {name: run.folder / name / "adapter" for name in others} | {"dpo": adapter}
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        load_rankers(run.recipe.model.name, "float32", adapters)


def test_a_ranker_that_the_run_lacks(run, tmp_path):
    with pytest.raises(DataError, match="no trained model 'ppo'; there are zero-shot, sft, dpo, s-dpo"):
        open_engine(run, ["ppo"])
    copy = shutil.copytree(run.folder, tmp_path / "run")
    shutil.rmtree(copy / "align" / "s-dpo" / "adapter")
    other = open_engine(open_run(copy))
    other.close()
    assert other.models == ["dpo", "sft", "zero-shot"]


@pytest.fixture(scope="module")
def composed(run_with_rankers):
    """The engine of a run with a fusion and a retriever."""
    engine = open_engine(open_run(run_with_rankers))
    yield engine
    engine.close()


@pytest.mark.parametrize("name", ["fused", "two", "item-kNN"])
def test_other_rankers_answer_as_in_python(composed, run_with_rankers, name):
    engine, rec = composed, Recommender.from_run(run_with_rankers, name)
    assert engine.rankers == ["s-dpo", "dpo", "sft", "zero-shot", "two", "fused", *SERVED_BASELINES]
    ranked = _ask(engine, engine.rank(RankRequest(history=HISTORY, candidates=CANDIDATES, ranker=name))).ranking
    asked = {"history": HISTORY[:1], "k": 7, "user_id": "u03", "where": "title <> 'Red Eye'", "ranker": name}
    asked["boost"] = {"item_id": {f"i{n}": 3 for n in range(0, 60, 5)}}
    best = _ask(engine, engine.recommend(RecommendRequest(**asked))).ranking
    twin = rec.recommend(HISTORY[:1], 7, user="u03", where=asked["where"], boost=asked["boost"])
    for got, want in ((ranked, rec.rank(HISTORY, CANDIDATES)), (best, twin)):
        assert [(r.rank, r.item_id) for r in got] == [(r.rank, r.item_id) for r in want]
        np.testing.assert_allclose([r.score for r in got], [r.score for r in want], rtol=1e-4, atol=1e-5)
        assert {r.share for r in got} == {None}
    for among in ([], CANDIDATES):
        asked = {"history": HISTORY[:2], "candidates": among, "item": "Lost Days", "ranker": name, "user_id": "u03"}
        why = _ask(engine, engine.explain(ExplainRequest(**asked)))
        want = rec.explain(HISTORY[:2], "Lost Days", among, user="u03")
        assert (why.ranker, why.method, len(why.history)) == (name, want.method, len(why.influences))
        np.testing.assert_allclose([why.score, why.rest or 0], [want.score, want.rest or 0], rtol=1e-4, atol=1e-5)
        assert [i.item_id for i in why.influences] == [e.item_id for e in want]
        np.testing.assert_allclose([i.effect for i in why.influences], [e.effect for e in want], atol=1e-4)
        assert [{*i.parts} for i in why.influences] == [{*e.parts} for e in want]


@pytest.mark.parametrize("name", ["fused", "s-dpo", "window co-occurrence"])
@pytest.mark.parametrize("relation", ["also_bought", "similar"])
def test_related_items_are_those_of_python(composed, run_with_rankers, relation, name):
    rec = Recommender.from_run(run_with_rankers, name)
    rules = {"deny": ["i3"], "boost": {"item_id": {f"i{n}": 3 for n in range(0, 60, 5)}}}
    answer = _ask(composed, composed.related(relation, RelatedRequest(item="red emma", k=5, ranker=name, **rules)))
    want = getattr(rec, relation)("i2", 5, **rules)
    assert (answer.by, answer.item.item_id) == (want.by, "i2")
    assert [(s.rank, s.item_id) for s in answer.items] == [(r.rank, r.item_id) for r in want]
    np.testing.assert_allclose([s.score for s in answer.items], [r.score for r in want])
    with pytest.raises(RulesError, match="functions"):
        composed.related(relation, RelatedRequest(item="i2", where="length(title) > 2"))


def test_a_fusion_asks_the_models_that_are_loaded(run_with_rankers, monkeypatch):
    monkeypatch.setattr("prefrec.rankers.lm.load_weights", lambda *_, **__: pytest.fail("a model is loaded again"))
    engine = open_engine(open_run(run_with_rankers), ["fused", "sft"])
    assert (engine.rankers, engine.models) == (["fused", "sft"], ["sft"])
    answer = _ask(engine, engine.recommend(RecommendRequest(history=HISTORY, k=3)))
    assert (answer.ranker, len(answer.ranking)) == ("fused", 3)
    engine.close()


def test_a_fusion_that_was_not_made_is_left_out_unless_it_is_named(run_with_rankers, tmp_path, capsys):
    copy = shutil.copytree(run_with_rankers, tmp_path / "run")
    (copy / "rankers" / "fused" / "blend.json").write_text("{}")
    engine = open_engine(open_run(copy))
    engine.close()
    assert engine.rankers == ["s-dpo", "dpo", "sft", "zero-shot", *SERVED_BASELINES]
    assert "fused is not served" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(DataError, match=r"fused is damaged \(blend\.json\): run the recipe again"):
        open_engine(open_run(copy), ["fused"])


def test_a_ranker_of_lists_alone_is_not_asked_about_the_catalogue(composed, monkeypatch):
    others = composed._scorer.others
    monkeypatch.setitem(others, "popularity", ListsAlone(others["popularity"]))
    with pytest.raises(DataError, match="popularity cannot recommend from all items: send candidates"):
        composed.recommend(RecommendRequest(history=HISTORY, ranker="popularity"))


@pytest.mark.parametrize("names", [["popularity"], ["popularity", "item-kNN"]], ids=["alone", "first"])
def test_a_ranker_of_lists_alone_can_be_the_default(run, monkeypatch, names):
    class Listed(Loaded):
        @property
        def full(self):
            return None if self.name == "popularity" else super().full

    monkeypatch.setattr("prefrec_server.server.Loaded", Listed)
    engine = open_engine(run, names)
    assert engine.rankers == names
    assert _ask(engine, engine.rank(RankRequest(history=HISTORY, candidates=CANDIDATES))).ranker == "popularity"
    with pytest.raises(DataError, match="popularity cannot recommend from all items: send candidates"):
        engine.recommend(RecommendRequest(history=HISTORY))
    engine.close()


def test_the_log_is_read_once_for_all_users(run, monkeypatch):
    read = Mock(side_effect=questions.user_logs)
    monkeypatch.setattr(questions, "user_logs", read)
    engine = open_engine(run, ["popularity"])
    for user in ("u01", "u03", "u01"):
        (asked,) = engine.recommend(RecommendRequest(user_id=user)).questions
        (want,) = questions.logged_users(run.data, [user]).values()
        assert (asked.history, asked.seen, asked.times) == want
    engine.close()
    assert read.call_count == 1 + 3  # three times for the twin


def test_questions_about_users_have_the_times_of_their_log(run):
    """Items of the request have none: they are newer."""
    engine = open_engine(run, ["popularity"])
    logged = Past(["i1", "i2"], ["i9", "i1", "i2"], [5, 7])
    engine.__dict__["_logged"] = Mock(past=lambda user: logged)
    (asked,) = engine.recommend(RecommendRequest(user_id="u", history=["i3"])).questions
    assert (asked.history, asked.times) == (["i1", "i2", "i3"], [5, 7])
    (why,) = engine.explain(ExplainRequest(user_id="u", history=["i3"], item="i4")).questions
    assert (why.query.history, why.query.history_times) == (("i1", "i2", "i3"), (5, 7))
    engine.close()


def test_a_catalogue_is_not_read_to_the_end_for_nobody(run):
    engine = open_engine(run, ["sft"])
    calls, begun, go = [], threading.Event(), threading.Event()

    def call(*_):
        calls.append(1)
        begun.set()
        assert go.wait(20)

    engine._scorer.lm.model.register_forward_hook(call)
    asked = engine.submit(engine.recommend(RecommendRequest(history=HISTORY, k=3)), 60)
    assert begun.wait(20)
    asked.cancel()
    go.set()
    engine.close()
    assert len(calls) == 1


def test_all_doors_agree_in_bfloat16(run):
    """`rank`, `explain`, `recommend`, `evaluate` and the server, alone or with others, however much shares a pass."""
    rounded = with_model(run, dtype="bfloat16")
    engine, lm = open_engine(rounded, ["sft"]), rounded.ranker("sft")
    rows = run.data.test[:12]
    want = lm.score(rows)
    for size in (1, 5):
        lm.batch_size = size
        np.testing.assert_array_equal(lm.score(rows), want)
    questions = [{"history": row.history, "candidates": row.candidates} for row in rows]
    ranked = [engine.rank(RankRequest(**q)) for q in questions]
    futures = [engine.submit(r, 60) for r in ranked]  # many at once
    for row, asked, future, scores in zip(rows, ranked, futures, want, strict=True):
        best = [row.candidates[i] for i in np.argsort(-scores, kind="stable")]
        answer = asked.answer(future.result(60))
        assert [r.item_id for r in answer.ranking] == best
        np.testing.assert_allclose([r.score for r in answer.ranking], sorted(scores)[::-1], atol=1e-3)
    whole = CatalogueRanker(lm)
    for row, scores, question in zip(rows[:2], want, questions, strict=False):
        why = _ask(engine, engine.explain(ExplainRequest(**question, item=row.target)))
        np.testing.assert_allclose(why.score, scores[row.target_index], atol=1e-3)
        effects = [effect for _, effect in leave_one_out(lm, row, row.target)]
        np.testing.assert_allclose([i.effect for i in why.influences], effects, atol=1e-3)
        found = _ask(engine, engine.recommend(RecommendRequest(history=row.history, k=10)))
        for method in ("exact", "search"):
            best = whole.recommend(row.history, 10, without=row.history, method=method)
            assert [r.item_id for r in found.ranking] == best.item_ids
            np.testing.assert_allclose([r.score for r in found.ranking], best.logps, atol=1e-3)
    engine.close()
