"""The result of a run in two sentences: the verdict, and how many of 100 next items are found."""

from __future__ import annotations

import math

from prefrec.evaluation import Evaluation, PairedDifference
from prefrec.evaluation.intervals import too_few_users
from prefrec.evaluation.labels import metric_label
from prefrec.evaluation.outcome import Comparison
from prefrec.rankers.baselines import PopularityRanker
from prefrec.report.wording import includes_zero, label, p_value, with_interval
from prefrec.runs.contents import RunContents
from prefrec.runs.results import Results

FOUND = "hr@10"
"""The metric of `plain_words`: whether the next item is among the first ten."""


def verdict(run: RunContents) -> str:
    """Return the result in a sentence: the best ranker, its gain over the best baseline, and the audit's result.

    It is about full ranking if all examples were ranked, otherwise about candidate sets; "" without results.
    """
    sentence, sampled = outcome(run.results), run.results.evaluation
    return f"{sentence} {sampled.audit.headline}" if sampled else ""


def decisive(results: Results) -> Evaluation | None:
    """Return full ranking if all examples were ranked, otherwise the candidate sets; None without results."""
    sampled, full = results.evaluation, results.full_catalogue
    return full if full and sampled and full.n == sampled.n else sampled


def outcome(results: Results) -> str:
    """Return the verdict without the audit's result; "" without results."""
    block = decisive(results)
    if block is None:
        return ""
    where = "in full ranking" if block is results.full_catalogue else "on candidate sets"
    metric = "ndcg@10" if "ndcg@10" in block.measured else block.measured[0]
    best, is_chosen = _best(results, block, metric)
    baseline = block.best_reference
    how = "is best on validation, with" if is_chosen else "has the highest"
    how += f" {metric_label(metric)}" + ("" if is_chosen else ",")
    sentence = f"{label(best)} {how} {with_interval(block.metrics[best][metric])} {where}"
    gains = (c for c in block.comparisons if (c.ranker, c.against, c.metric) == (best, baseline, metric))
    if best == baseline:
        sentence += ", and is itself the best baseline"
    elif (gain := next(gains, None)) is not None:
        sentence += (
            f", {with_interval(gain)} over the best baseline, {label(gain.against)}: {significance(gain, block)}"
        )
    few = too_few_users(block.users)
    return f"{sentence}. {few}." if few else f"{sentence}."


def significance(gain: Comparison, block: Evaluation) -> str:
    """Return whether a difference is significant after the correction for all comparisons of its table."""
    if math.isnan(gain.p_value):
        return "not tested"
    if math.isnan(gain.adjusted_p):  # not of the corrected metric
        return f"{'not ' * includes_zero(gain)}significant, without correction"
    family = sum(c.metric == gain.metric for c in block.comparisons)
    correction = f"after Holm’s correction for {family} comparisons" if family > 1 else "in the one comparison"
    return f"{'not ' * (not gain.stands)}significant {correction} ({p_value(gain.adjusted_p)})"


def _best(results: Results, block: Evaluation, metric: str) -> tuple[str, bool]:
    """Return the ranker that is best on validation, and True; if there is none, the one with the highest metric."""
    chosen = results.best
    if chosen and metric in block.metrics.get(chosen.ranker, {}):
        return chosen.ranker, True
    most = max(of[metric].n for of in block.metrics.values() if metric in of)
    values = {r: of[metric].mean for r, of in block.metrics.items() if metric in of and of[metric].n == most}
    return max(values, key=values.__getitem__), False


def plain_words(run: RunContents) -> str:
    """Return how many of 100 next items popularity and the best ranker find, and what the language model adds.

    An item is found if it is among the first ten in full ranking; "" without full ranking.
    """
    full = run.results.full_catalogue
    if full is None or FOUND not in full.measured:
        return ""
    found = {r: 100 * of[FOUND].mean for r, of in full.metrics.items() if FOUND in of}
    best, _ = _best(run.results, full, "ndcg@10" if "ndcg@10" in full.measured else FOUND)
    if best not in found:
        return ""
    popular = PopularityRanker.name if PopularityRanker.name in found else full.best_reference
    if popular in (None, best):
        return f"Of 100 next items, {label(best)} finds {found[best]:.1f} in its first ten."
    beginning = f"Of 100 next items, {label(str(popular))} finds {found[str(popular)]:.1f} in its first ten, "
    return f"{beginning}and {label(best)} finds {found[best]:.1f}{_of_language_model(run, full, best, found)}."


def users_served(results: Results) -> str:
    """Return how full ranking by the best ranker is spread over users; "" if that is not known."""
    full, spreads = results.full_catalogue, results.by_user
    best = _best(results, full, "ndcg@10")[0] if full and "ndcg@10" in full.measured else ""
    if best not in spreads:
        return ""
    own, popular = spreads[best], spreads.get(PopularityRanker.name)
    beside = f" ({label(PopularityRanker.name)}: {popular.with_hit:.0%})" if popular and popular is not own else ""
    inequality = "" if math.isnan(own.gini) else f"; Gini {own.gini:.2f}"
    return (
        f"By user: {label(best)} has a next item in its first ten for {own.with_hit:.0%} of {own.users:,} users"
        f"{beside}. Its NDCG@10 is at most {own.deciles[4]:.3f} for half of them, and at least {own.deciles[8]:.3f} "
        f"for the best-served tenth{inequality}."
    )


def _of_language_model(run: RunContents, full: Evaluation, best: str, found: dict[str, float]) -> str:
    """Return what the language model adds to the best ranker, as the end of a sentence; "" if that is not known."""
    models = [name for name in run.language_models if name in found]
    if best in models:
        baseline = full.best_reference
        gain = _difference(full, best, baseline)
        return f"; the language model adds {_per_100(gain)} to {label(str(baseline))}" if gain else ""
    parts = [part for part in run.parts_of(best) if part in run.language_models]
    gains = {part: _difference(full, best, f"{best} without {part}") for part in parts}
    told = [f"the language model {label(part)} adds {_per_100(gain)}" for part, gain in gains.items() if gain]
    if models and not parts:
        alone = max(models, key=found.__getitem__)
        told = [f"the language model {label(alone)} is not a part of it and finds {found[alone]:.1f} alone"]
    return f"; {' and '.join(told)}" if told else ""


def _difference(block: Evaluation, ranker: str, against: str | None) -> PairedDifference | None:
    pairs = (c for c in block.comparisons if (c.ranker, c.against, c.metric) == (ranker, against, FOUND))
    return next(pairs, None)


def _per_100(gain: PairedDifference) -> str:
    """Return `1.2 (0.3 to 2.1)`, in items of 100, and whether that may be chance."""
    mean, low, high = (f"{100 * value:+.1f}".replace("-", "−") for value in (gain.mean, gain.low, gain.high))
    if math.isnan(gain.low):
        return f"{mean} (no interval)"
    return f"{mean} (95% interval {low} to {high}{', which may be chance' * includes_zero(gain)})"
