"""The audit finds what was planted, finds nothing in clean lists, and does so on the real data sets."""

import io
import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from drawn_logs import make_log
from prefrec.data import Catalogue, PreparedData, RankingExample
from prefrec.errors import DataError
from prefrec.evaluation import Audit, audit_lists, audit_prepared
from prefrec.evaluation import audit as audits
from prefrec.evaluation.faults import protocol_faults
from prefrec.evaluation.shortcuts import encode_sets, favours_popular
from prefrec.intake import PrepareConfig, prepare
from prefrec.report.tables import audit_table

N_ITEMS, SIZE = 200, 10
IDS = [str(i) for i in range(N_ITEMS)]
CATALOGUE = Catalogue(pl.DataFrame({"item_id": IDS, "title": ["t" * (1 + i * 37 % 50) for i in range(N_ITEMS)]}))
POPULARITY = np.random.default_rng(99).permutation(1.0 / np.arange(1, N_ITEMS + 1))
SHARED = Path(os.environ.get("PREFREC_SHARED_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def _log(rng, users: int = 200, name: str = "u", popularity: np.ndarray = POPULARITY) -> pl.DataFrame:
    """Users who take popular items in random order."""
    rows = []
    for u in range(users):
        items = rng.choice(N_ITEMS, 12, replace=False, p=popularity / popularity.sum())
        rows += [(f"{name}{u}", str(i), t) for t, i in enumerate(items)]
    return make_log(rows)


def _examples(log: pl.DataFrame, rng: np.random.Generator) -> list[RankingExample]:
    """Clean rows: uniform negatives, random places; each user's items from the fourth on are targets."""
    rows = []
    for (user,), part in log.group_by("user_id", maintain_order=True):
        items = part["item_id"].to_list()
        for k in range(3, len(items)):
            negatives = [i for i in map(str, rng.permutation(N_ITEMS)) if i not in items][: SIZE - 1]
            candidates = tuple(rng.permutation([*negatives, items[k]]).tolist())
            rows.append(RankingExample(str(user), tuple(items[:k]), candidates, items[k]))
    return rows


def _clean(seed: int) -> tuple[list[RankingExample], list[RankingExample], pl.DataFrame]:
    rng = np.random.default_rng(seed)
    log = _log(rng)
    return _examples(_log(rng, 60, "held-out-"), rng), _examples(log, rng), log


TEST, LEARN, LOG = _clean(0)


def _audit(test, learn, log, **options) -> Audit:
    return audit_lists(test, learn, CATALOGUE, log, **options)


def _there_and_back(audit: Audit) -> Audit:
    return Audit.from_json(json.loads(json.dumps(audit.to_json(), allow_nan=False)))


def _printed(audit: Audit) -> str:
    out = io.StringIO()
    Console(file=out, width=180).print(audit_table(audit))
    return out.getvalue()


def test_an_audit_of_sets_without_negatives_can_be_read_back():
    alone = [replace(e, candidates=(e.target,)) for e in TEST[:40]]
    audit = audit_lists(alone, LEARN, CATALOGUE, LOG)
    assert np.isnan(audit.diagnosis.new_negatives)
    assert np.isnan(_there_and_back(audit).diagnosis.new_negatives)


def test_clean_lists_have_no_leak_and_few_false_alarms():
    first, second = _audit(TEST, LEARN, LOG), _audit(*_clean(1))
    assert len(first.leaks) + len(second.leaks) <= 1
    assert first.row("random").hr.mean == pytest.approx(1 / SIZE)
    assert first.row("popularity").note == "rewarded by the candidate sets"
    assert "popularity is rewarded by the candidate sets (HR@1 0." in first.verdict
    assert first.verdict.startswith("Audit: no leak in 540 candidate sets")


def test_the_level_is_for_all_rules_together():
    """Random has the same hits in each list, so at 95% a gain over it would be as wide as the hits' own interval."""
    row = _audit(TEST, LEARN, LOG).row("target position")
    assert row.against == "random"
    ratio = (row.gain.high - row.gain.low) / (row.hr.high - row.hr.low)
    assert 1.2 < ratio < 1.8  # 2.81 / 1.96 for ten rules


def _seeded_by_target(e: RankingExample) -> RankingExample:
    """The published rule in small: places are a function of the target."""
    rng = np.random.default_rng(int(e.target))
    return replace(e, candidates=tuple(rng.permutation(sorted(e.candidates, key=lambda c: c != e.target)).tolist()))


def _others(e: RankingExample) -> list[str]:
    return [c for c in e.candidates if c != e.target]


def _with_negatives(e: RankingExample, negatives: Iterable[str]) -> RankingExample:
    """The row with the first of these as negatives, and its target where it was."""
    spot, kept = e.target_index, [i for i in negatives if i != e.target][: SIZE - 1]
    return replace(e, candidates=(*kept[:spot], e.target, *kept[spot:]))


def _first(e: RankingExample) -> RankingExample:
    return replace(e, candidates=(e.target, *_others(e)))


def _longest(e: RankingExample) -> RankingExample:
    titles = CATALOGUE.titles
    longest = max(e.candidates, key=lambda c: len(titles[c]))
    swap = {longest: e.target, e.target: longest} if len(titles[longest]) > len(titles[e.target]) else {}
    return replace(e, target=swap.get(e.target, e.target))


def _popular_negatives(e: RankingExample) -> RankingExample:
    return _with_negatives(e, [str(i) for i in np.argsort(-POPULARITY)])


LEAKS = {"position lookup": _seeded_by_target, "target position": _first}
LEAKS |= {
    "list lookup": lambda e: _with_negatives(e, map(str, np.random.default_rng(int(e.target)).permutation(N_ITEMS))),
    "least popular first": _popular_negatives,
    "not in the history": lambda e: _with_negatives(e, [*e.history, *_others(e)]),
    "in the history": lambda e: replace(e, history=(e.target, *e.history[1:])),
}


@pytest.mark.parametrize("name", LEAKS)
def test_planted_leaks_are_found(name):
    found = _audit([LEAKS[name](e) for e in TEST], [LEAKS[name](e) for e in LEARN], LOG)
    assert name in [r.name for r in found.leaks]
    row = found.row(name)
    assert row.gain.low > 0
    assert f"{name} (HR@1 {row.hr.mean:.3f}, chance 0.100)" in found.verdict
    assert row.finding == "leak"


def test_targets_with_long_titles_are_solved_without_the_user_and_are_no_leak():
    found = _audit([_longest(e) for e in TEST], [_longest(e) for e in LEARN], LOG)
    assert not found.leaks
    assert "title length" in [r.name for r in found.solving]
    assert found.verdict.startswith("Audit: 540 candidate sets can be solved without the user: title length (HR@1 ")
    assert found.row("title length").finding == "solves without the user"


def test_lists_drawn_by_popularity_are_said_to_be_so():
    found = _audit([_popular_negatives(e) for e in TEST], LEARN, LOG)
    assert "because of how they are sampled, for example by popularity" in found.verdict
    assert "sampled, for example by popularity" not in _audit(TEST, LEARN, LOG).verdict


def test_least_popular_first_above_chance_but_below_popularity_is_rewarded():
    """Some targets that nobody took: no finding, since popularity does better with the same counts."""
    rare = {e.target for i, e in enumerate(TEST) if i % 20 == 0}
    found = _audit(TEST, LEARN, LOG.filter(~pl.col("item_id").is_in(rare)))
    assert not found.leaks
    assert found.row("least popular first").note == "rewarded by the candidate sets"
    assert "least popular first is rewarded by the candidate sets (HR@1 0." in found.verdict


@pytest.mark.parametrize("honest", [True, False])
def test_repeat_consumption_is_no_leak(honest):
    """Half of the targets stand in the shown history: a leak only where the log has no repeats."""
    rng = np.random.default_rng(0)

    def repeat(e: RankingExample) -> RankingExample:
        return replace(e, history=(*e.history[:-1], e.target)) if rng.random() < 0.5 else e

    again = (pl.col("timestamp") == 11) & (pl.col("user_id").hash(0) % 5 < 3)
    repeating = LOG.with_columns(item_id=pl.when(again).then(pl.col("item_id").shift(2)).otherwise("item_id"))
    row = _audit([repeat(e) for e in TEST], LEARN, repeating if honest else LOG).row("in the history")
    assert row.hr.mean > 0.5
    assert row.leak is not honest
    assert not honest or row.against == "repeats of training users"


def test_a_few_negatives_from_the_history_are_no_leak():
    some = [_with_negatives(e, [e.history[0], *_others(e)]) for e in TEST]
    found = _audit([t if i % 4 == 0 else e for i, (e, t) in enumerate(zip(TEST, some, strict=True))], LEARN, LOG)
    row = found.row("not in the history")
    assert row.hr.mean > found.row("random").hr.mean
    assert not row.leak


@pytest.mark.parametrize(("rows", "steps"), [(3, None), (None, 0)])
def test_rules_without_anything_to_learn_from_are_not_tried(rows, steps):
    found = _audit(TEST, LEARN[:rows], LOG[:steps])
    from_rows, from_log = ["target position", "position lookup", "list lookup"], ["popularity", "co-occurrence"]
    names = [r.name for r in found.untried]
    assert set(from_rows) <= set(names) or rows is None
    assert {*from_log, "least popular first", "common order", "item only"} <= set(names) or steps is None
    assert "title TF-IDF" not in names
    assert "no leak" not in found.verdict
    assert found.verdict.startswith("Audit: incomplete for 540 candidate sets. Skipped: ")
    assert rows is None or f"{rows} examples of train to learn from" in found.verdict
    assert steps is None or "0 training interactions" in found.verdict
    assert found.row(names[0]).finding == "not tried"
    assert _there_and_back(found) == found
    assert _printed(found).count("not tried") == len(names)


def test_a_ragged_list_that_betrays_its_target_is_found():
    """Short lists end with the target, long ones begin with it: the place depends on the length."""
    rng = np.random.default_rng(0)

    def plant(e: RankingExample) -> RankingExample:
        short = bool(rng.integers(2))
        return replace(e, candidates=(*_others(e)[:5], e.target) if short else (e.target, *_others(e)))

    found = _audit([plant(e) for e in TEST], [plant(e) for e in LEARN], LOG)
    assert found.row("target position").hr.mean == 1
    assert found.row("target position").leak


def _sorted_log(log: pl.DataFrame, key: dict[str, int]) -> pl.DataFrame:
    order = log.with_columns(pl.col("item_id").replace_strict(key).alias("key")).sort("user_id", "key")
    return order.select("user_id", "item_id", pl.int_range(pl.len()).over("user_id").alias("timestamp"))


@pytest.mark.parametrize("hidden", [False, True])
def test_histories_that_are_not_chronological_are_found(hidden):
    """Sorted by their id, or by a key that is not in the data."""
    rng = np.random.default_rng(1)
    key = {str(i): int(k) for i, k in enumerate(rng.permutation(N_ITEMS) if hidden else range(N_ITEMS))}
    flat = np.ones(N_ITEMS)
    log = _sorted_log(_log(rng, 400, popularity=flat), key)
    found = _audit(_examples(_sorted_log(_log(rng, 60, "held-out-", flat), key), rng), _examples(log, rng), log)
    leaks = [r.name for r in found.leaks]
    assert "common order" in leaks
    assert ("id order" in leaks) is not hidden
    assert found.row("common order").note == "100% of steps in this order"
    assert hidden or found.row("id order").note == "100% of steps in this order"


def test_a_handful_of_users_proves_nothing():
    few = [_first(e) for e in TEST if e.user_id in {"held-out-0", "held-out-1", "held-out-2"}]
    found = _audit(few, [_first(e) for e in LEARN], LOG)
    assert found.row("target position").hr.mean == 1
    assert not found.leaks
    few = "27 candidate sets of 3 users are too few to distinguish a leak from chance (20 users needed)."
    assert found.verdict == f"Audit: {few}"


def test_json_table_seed_and_thinning(monkeypatch):
    found = _audit(TEST, LEARN, LOG, learnt_from="validation")
    assert found == _audit(TEST, LEARN, LOG, learnt_from="validation")
    assert _there_and_back(found) == found
    for part in ("position lookup", "validation", "540", "Audit: no leak", "co-occurrence"):
        assert part in _printed(found)
    monkeypatch.setattr("prefrec.evaluation.audit.MAX_LEARN_ROWS", 50)
    thinned = _audit(TEST, LEARN, LOG)
    assert thinned != _audit(TEST, LEARN[:50], LOG)
    assert thinned.row("position lookup").learnt_from == "train, 50 of 1,800 examples"


def test_bad_calls_are_refused():
    data = PreparedData(CATALOGUE, LEARN, [], TEST, LOG)
    assert audit_prepared(data).row("random").hr.n == len(TEST)
    with pytest.raises(DataError, match="cannot learn from the same split"):
        audit_prepared(data, learn_from="test")
    with pytest.raises(DataError, match=r"nothing to audit: .*; lower data\.min_history"):
        audit_prepared(data, split="validation")


def _real(name: str, **options) -> PreparedData:
    folder = {"lastfm-published": "lastfm-sdpo", "lastfm-hetrec": "lastfm-hetrec2011"}.get(name, name)
    if not (SHARED / folder).is_dir():
        pytest.skip(f"needs {folder} in the folder that PREFREC_SHARED_DATA names (default: ../shared/data)")
    return prepare(PrepareConfig(source=name, path=SHARED / folder, **options))


@pytest.fixture(scope="module")
def published() -> PreparedData:
    return _real("lastfm-published", candidates={"kind": "published"})


@pytest.mark.shared_data
def test_published_lastfm_leaks_through_places_lists_and_order(published):
    found = audit_prepared(published, learn_from="validation")
    assert found.row("random").hr.n == 2495
    assert {r.name for r in found.leaks} == {"position lookup", "list lookup", "common order"}
    assert found.row("position lookup").hr.mean == pytest.approx(0.55, abs=0.06)
    assert found.row("common order").hr.mean == pytest.approx(0.76, abs=0.03)


@pytest.mark.shared_data
def test_published_lastfm_leaks_through_the_artist_id(published):
    """With HetRec's artist ids as a column, the next id is the target in 78% of the rows."""
    artists = SHARED / "lastfm-hetrec2011" / "artists.dat"
    if not artists.is_file():
        pytest.skip("needs lastfm-hetrec2011 in the folder that PREFREC_SHARED_DATA names (default: ../shared/data)")
    fields = [line.split("\t") for line in artists.read_text(encoding="utf-8").splitlines()[1:]]
    numbers = pl.DataFrame({"title": [f[1] for f in fields], "artist_id": [int(f[0]) for f in fields]})
    numbers = numbers.unique("title", keep="first", maintain_order=True)
    frame = published.catalogue.frame.join(numbers, on="title", how="left", maintain_order="left")
    found = audit_prepared(replace(published, catalogue=Catalogue(frame)), learn_from="validation")
    assert found.row("id order (artist_id)").leak
    assert found.row("id order (artist_id)").hr.mean == pytest.approx(0.78, abs=0.01)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "kind"),
    [("movielens-100k", "uniform"), ("lastfm-hetrec", "uniform"), ("goodreads-windows", "popularity")],
)
def test_prepared_lists_do_not_leak(name, kind):
    found = audit_prepared(_real(name, candidates={"kind": kind}, max_train_rows=20_000))
    assert {r.name for r in found.leaks} <= ({"least popular first"} if kind == "popularity" else set())
    assert ("least popular first" in found.verdict) is (name != "movielens-100k")
    assert found.row("co-occurrence").hr.low > found.row("random").hr.mean


def _prepared(seed: int, split: str, users: int = 16) -> PreparedData:
    """Small clean data: half of the users take an item again now and then; negatives are taken by somebody."""
    rng = np.random.default_rng(seed)
    log = _log(rng, users)
    again = (pl.col("timestamp") == 9) & (pl.col("user_id").hash(seed) % 4 < 1)
    log = log.with_columns(item_id=pl.when(again).then(pl.col("item_id").shift(5)).otherwise("item_id"))
    items = log["item_id"].unique(maintain_order=True).to_list()
    rows: dict[str, list[RankingExample]] = {"train": [], "test": []}
    for (user,), part in log.group_by("user_id", maintain_order=True):
        taken = part["item_id"].to_list()
        held_out = split == "user" and int(str(user)[1:]) >= users // 2
        for k in range(3, 12):
            negatives = rng.choice([i for i in items if i not in taken], SIZE - 1, replace=False).tolist()
            candidates = tuple(rng.permutation([*negatives, taken[k]]).tolist())
            part_of = "test" if held_out or (split != "user" and k == 11) else "train"
            rows[part_of].append(RankingExample(str(user), tuple(taken[max(0, k - 5) : k]), candidates, taken[k]))
    is_late = pl.col("user_id").is_in([e.user_id for e in rows["test"]])
    is_late = is_late if split == "user" else pl.col("timestamp") == 11
    catalogue = Catalogue(pl.DataFrame({"item_id": [*items, "never"], "title": [*items, "never"]}))
    early, late = log.filter(~is_late), log.filter(is_late)
    return PreparedData(catalogue, rows["train"], [], rows["test"], early, {"split": split}, None, late)


def test_the_protocol_of_clean_data_has_no_fault():
    """At most one of 24 small draws, each looked at from both sides."""
    cases = [(seed, split) for seed, split in enumerate(("user", "leave-last-out") * 12)]
    draws = [protocol_faults(_prepared(*case), part) for case in cases for part in ("test", "train")]
    assert sum(map(bool, draws)) <= 1


def _unknown_negative(e: RankingExample) -> RankingExample:
    return _with_negatives(e, ["never", *_others(e)])


def _in_training(data: PreparedData) -> PreparedData:
    taken = [(e.user_id, e.target, 99) for e in data.test]
    return _learnt_too(data, pl.DataFrame(taken, schema=data.train_interactions.schema, orient="row"))


def _learnt_too(data: PreparedData, more: pl.DataFrame) -> PreparedData:
    return replace(data, train_interactions=pl.concat([data.train_interactions, more]))


def _split_users(data: PreparedData) -> PreparedData:
    return _learnt_too(data, data.held_out_interactions[:60])


def _trained_on(data: PreparedData) -> PreparedData:
    user = data.test[0].user_id
    return replace(data, test=[*data.test, *(replace(e, user_id=user) for e in data.train[40:44])])


def _future(data: PreparedData) -> PreparedData:
    last = dict(data.held_out_interactions.group_by("user_id").agg(pl.last("item_id")).iter_rows())

    def shown(e):
        return e.history if e.target == last[e.user_id] else (*e.history[1:], last[e.user_id])

    return replace(data, test=[replace(e, history=shown(e)) for e in data.test])


PLANTED = {
    "candidates without any interaction": ("user", lambda d: replace(d, test=[*map(_unknown_negative, d.test)])),
    "targets that are in their user's training log": ("leave-last-out", _in_training),
    "examples that are also training examples": ("leave-last-out", _trained_on),
    "histories with items from after the target": ("user", _future),
    "users who are also in training, despite a split by user": ("user", _split_users),
    "examples that occur twice": ("user", lambda d: replace(d, test=[*d.test, *d.test[:4]])),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_of_the_protocol_is_named(fault):
    split, plant = PLANTED[fault]
    data = _prepared(3, split, 40)
    assert protocol_faults(data) == []
    found = audit_prepared(plant(data))
    assert [f for f in found.faults if f.startswith(f"{fault} (")]
    assert f"Protocol errors: {'; '.join(found.faults)}." in found.verdict
    assert Audit.from_json(json.loads(json.dumps(found.to_json()))) == found


def _drifting(
    seed: int, size: int = 800, of_kind: float = 1 / 6
) -> tuple[list[RankingExample], pl.DataFrame, Catalogue]:
    """A shop that drifts mildly: targets are a little more often young, rare and of long titles than negatives."""
    # Titles name one of twenty kinds. In the share `of_kind` of the rows, the target is of the kind of the last item.
    rng = np.random.default_rng(seed)
    kinds = rng.integers(20, size=size)
    lengths, counts = rng.integers(1, 40, size), rng.permutation(np.repeat(np.arange(1, 11), size // 10))
    titles = [f"kind{k} {'x' * n}" for k, n in zip(kinds, lengths, strict=True)]
    ids = [str(i) for i in range(size)]
    catalogue = Catalogue(pl.DataFrame({"item_id": ids, "title": titles}))
    logged = [(f"u{u}", str(i), 0) for i in range(size) for u in rng.choice(60, counts[i], replace=False)]
    log = make_log(logged).sort("user_id", maintain_order=True)
    # Middling counts and middling lengths: no rule of one direction finds them.
    drift = -np.abs(counts - 5.5) / 2 - np.abs(lengths - 20) / 8
    shares = np.exp(drift) / np.exp(drift).sum()
    rows = []
    for u in range(1100):
        last = int(rng.integers(size))
        own = np.where(kinds == kinds[last], 1.0, 0.0) if rng.random() < of_kind else shares.copy()
        own[last] = 0
        target = int(rng.choice(size, p=own / own.sum()))
        free = [i for i in rng.permutation(size)[: SIZE + 1].tolist() if i not in (last, target)]
        listed = rng.permutation([target, *free[: SIZE - 1]]).tolist()
        rows.append(RankingExample(f"t{u}", (str(last),), tuple(map(str, listed)), str(target)))
    return rows, log, catalogue


def test_a_mild_drift_that_no_single_shortcut_shows_is_found():
    rows, log, catalogue = _drifting(0)
    found = audit_lists(rows[100:], rows[:100], catalogue, log)
    assert not found.leaks
    assert [r.name for r in found.solving] == ["item only"]
    chance = 1 / SIZE
    assert all(r.hr.mean < 1.5 * chance for r in found.rows if r.name not in ("item only", "title TF-IDF"))
    text, item_only = found.row("title TF-IDF"), found.row("item only")
    assert text.hr.low > chance
    assert item_only.ndcg.mean > text.ndcg.mean - 0.02
    assert found.state == "solved"
    assert "Item properties separate targets from negatives" in found.verdict
    remedy = "Remedy: use full ranking (evaluate.full_rows: null), or sample negatives from the targets"
    assert remedy in found.verdict


def test_lists_that_a_rule_with_the_user_solves_much_better_are_not_solved_without_the_user():
    """The properties of items beat popularity, and titles like the last one beat both."""
    rows, log, catalogue = _drifting(0, of_kind=2 / 5)
    found = audit_lists(rows[100:], rows[:100], catalogue, log)
    item_only, text = found.row("item only"), found.row("title TF-IDF")
    assert item_only.gain.low > 0
    assert text.ndcg.low > item_only.ndcg.high
    assert not found.solving
    assert not found.leaks


def test_the_luckiest_draw_has_the_most_hits():
    none, all_hit = np.zeros(5), np.ones(5)
    assert audits._luckiest([none, all_hit]) is all_hit
    assert audits._luckiest([all_hit, none]) is all_hit


def _fashion(seed: int) -> tuple[list[RankingExample], list[RankingExample], pl.DataFrame, Catalogue]:
    """A shop without any fault: users buy what others bought in the last 40 days; 20 uniform unseen candidates."""
    rng = np.random.default_rng(seed)
    born, worth = rng.uniform(0, 1000, N_ITEMS), rng.gamma(0.5, size=N_ITEMS)
    bought = []
    for user in range(500):
        days = np.sort(rng.uniform(300, 1000) + rng.uniform(0, 60, 6))
        taken: list[int] = []
        for day in days:
            share = worth * np.exp(-((day - born) / 40)) * (born < day)
            share[taken] = 0
            taken.append(int(rng.choice(N_ITEMS, p=share / share.sum())))
        bought.append((f"u{user}", days, taken))
    day = 86_400
    begin = 1_000_000_000
    rows: dict[bool, list[RankingExample]] = {True: [], False: []}
    log = []
    for user, days, taken in bought:
        is_late = days[-1] > 850
        negatives = rng.permutation([i for i in range(N_ITEMS) if i not in taken])[:19].tolist()
        listed = tuple(map(str, rng.permutation([*negatives, taken[-1]]).tolist()))
        row = RankingExample(user, tuple(map(str, taken[:-1])), listed, str(taken[-1]), begin + int(days[-1] * day))
        rows[is_late].append(row)
        times = [begin + int(d * day) for d in days]
        log += [(user, str(i), t) for i, t in zip(taken, times, strict=True) if t < begin + 850 * day]
    titles = [f"Item {'x' * int(n)}" for n in rng.integers(1, 40, N_ITEMS)]
    catalogue = Catalogue(pl.DataFrame({"item_id": IDS, "title": titles}))
    return rows[True], rows[False], make_log(log).sort("user_id", "timestamp"), catalogue


def test_targets_by_recent_popularity_are_solved_without_the_user_and_are_no_leak():
    solved = 0
    for seed in range(3):
        rows, learn, log, catalogue = _fashion(seed)
        found = audit_lists(rows, learn, catalogue, log)
        assert not found.leaks, found.verdict
        solved += "item only" in [r.name for r in found.solving]
        assert "leak" not in found.verdict
    assert solved == 3


def test_a_title_length_of_a_few_popular_targets_is_chance():
    """Ten targets recur for many users. Folds and intervals are over targets, so their lengths say nothing."""
    found = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        titles = ["t" * int(n) for n in rng.integers(1, 40, N_ITEMS)]
        catalogue = Catalogue(pl.DataFrame({"item_id": IDS, "title": titles}))
        targets = map(str, rng.choice(rng.choice(N_ITEMS, 10, replace=False), len(TEST)))
        rows = [_with_target(e, target, rng) for e, target in zip(TEST, targets, strict=True)]
        log = make_log([(f"u{n}", str(i), n) for n in range(12) for i in range(N_ITEMS)])
        found += [r.name for r in audit_lists(rows, LEARN, catalogue, log).solving]
    assert len(found) <= 1


def _with_target(e: RankingExample, target: str, rng: np.random.Generator) -> RankingExample:
    negatives = [i for i in map(str, rng.permutation(N_ITEMS)) if i != target][: SIZE - 1]
    return replace(e, candidates=tuple(rng.permutation([target, *negatives]).tolist()), target=target)


def test_negatives_by_popularity_are_told_from_uniform_ones():
    popular = [_popular_negatives(e) for e in TEST]
    assert favours_popular(encode_sets(popular, CATALOGUE), LOG, CATALOGUE)
    assert not favours_popular(encode_sets(TEST, CATALOGUE), LOG, CATALOGUE)
    assert not favours_popular(encode_sets(TEST, CATALOGUE), LOG.clear(), CATALOGUE)
