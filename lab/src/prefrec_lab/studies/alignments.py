"""Studies of one alignment setting each: the loss, the number of negatives, β.

All variants start from the same SFT model and see the same rows. They are the `align` entries of one recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from prefrec.data import PreparedData, RankingExample, frame_to_examples
from prefrec.data.readers import read_parquet
from prefrec.evaluation.tables import metric_label
from prefrec.pipeline.encoders import prompt_encoder
from prefrec.pipeline.negatives import NEGATIVES_FILE
from prefrec.pipeline.opened import Run
from prefrec.pipeline.recipe import SFT, AlignSection, ModelSection, Recipe
from prefrec.pipeline.train import training_rows
from prefrec.prompts import ChoiceSet, load_template
from prefrec.training import encode_examples
from prefrec.training.negatives import redraw_lists
from prefrec_lab.studies.measure import Measured, measure_runs
from prefrec_lab.studies.opened import took
from prefrec_lab.studies.plots import Series, dots, lines, slug
from prefrec_lab.studies.study import Drawing, Outcome, Study, varied_alignment, with_alignments
from prefrec_lab.studies.tables import facts_of, results_table

NEGATIVES = (1, 3, 8, 15, 63)
ONE = "dpo"
"""Name of the variant with one negative."""

BETAS = (0.1, 0.5, 1.0, 3.0, 5.0)

SAME_COMPUTE = 0.05
"""Equal compute is run only if it removes at least this share of the rows."""

SAMPLED = 200
"""Most training rows whose tokens are counted."""


def variant(base: AlignSection, name: str, **settings: Any) -> AlignSection:
    """Return a copy of an alignment with another name and other settings, checked again."""
    return AlignSection.model_validate(base.model_dump() | {"name": name} | settings)


def vary_loss(base: Recipe, data: PreparedData) -> Recipe:
    """Return the recipe with every loss on the same rows and negatives, and DPO also with one negative."""
    one = varied_alignment(base)
    entries = [
        variant(one, "dpo", loss="dpo", num_negatives=1),
        variant(one, "dpo-pairs", loss="dpo"),
        *(variant(one, name, loss=name) for name in ("dmpo", "bpr", "softmax")),
        variant(one, "s-dpo"),
    ]
    return with_alignments(base, entries)


def dpo_and_s_dpo(base: Recipe, data: PreparedData) -> Recipe:
    """Return the recipe with the two alignments that other studies use, under the names of the ablation."""
    one = varied_alignment(base)
    return with_alignments(base, [variant(one, "dpo", loss="dpo", num_negatives=1), variant(one, "s-dpo")])


def vary_negatives(base: Recipe, data: PreparedData) -> Recipe:
    """Return the recipe with S-DPO for each N, on the same rows and on as many rows as cost what N = 1 costs.

    If N exceeds a row's own list, its list is drawn again, uniformly.
    """
    one, most = varied_alignment(base), base.data.candidates.size - 1
    rows = len(training_rows(data, one, base.seed))
    same_rows = [_with_negatives(one, n, most) for n in NEGATIVES if n < len(data.catalogue) // 2]
    tokens = [_tokens_of_a_row(data, base.model, entry, base.seed) for entry in same_rows]
    same_tokens = []
    for entry, of_a_row in zip(same_rows, tokens, strict=True):
        fewer = round(rows * tokens[0] / of_a_row)
        if fewer <= (1 - SAME_COMPUTE) * rows:
            same_tokens.append(variant(entry, f"s-dpo-n{entry.num_negatives}-compute", rows=fewer))
    return with_alignments(base, [*same_rows, *same_tokens])


def vary_beta(base: Recipe, data: PreparedData) -> Recipe:
    """Return the recipe with S-DPO for each strength of the pull to the reference."""
    one = varied_alignment(base)
    betas = sorted({*BETAS, one.beta})
    return with_alignments(
        base, [variant(one, "s-dpo" if b == one.beta else f"s-dpo-beta{b:g}", beta=b) for b in betas]
    )


def token_counts(
    data: PreparedData, model: ModelSection, section: AlignSection, seed: int, trained: Path | None = None
) -> tuple[float, float]:
    """Return the mean tokens of a prompt and of an answer that the model reads, over training rows of an alignment.

    The last token of an answer is only predicted, so it is not counted. At most `SAMPLED` rows are read.

    Args:
        trained: folder of the alignment if it has been trained.
    """
    encoder = prompt_encoder(model, data.catalogue)
    templates = [load_template(name, domain=data.domain) for name in model.templates]
    rows = _rows_of(data, section, seed, trained)[:SAMPLED]
    sets: list[ChoiceSet] = encode_examples(rows, data.catalogue, templates, encoder, answers="candidates")
    prompts, answers = [len(s.prompt) for s in sets], [len(a) - 1 for s in sets for a in s.answers]
    return float(np.mean(prompts)), float(np.mean(answers))


def _rows_of(data: PreparedData, section: AlignSection, seed: int, trained: Path | None) -> list[RankingExample]:
    """Return the rows that an alignment is trained on, with the lists that it kept, or drawn as it draws them.

    Hard negatives do not exist before training. Uniform lists of the same length stand in for them.
    """
    if section.drawn_from is not None and trained is not None and (trained / NEGATIVES_FILE).is_file():
        return frame_to_examples(read_parquet(trained / NEGATIVES_FILE))
    rows = training_rows(data, section, seed)
    if section.drawn_from is None:
        return rows
    size = max([1 + section.num_negatives, *(len(e.candidates) for e in rows)])
    return redraw_lists(rows, data, "uniform" if section.is_hard else section.drawn_from, seed=seed, size=size)


def _tokens_of_a_row(data: PreparedData, model: ModelSection, section: AlignSection, seed: int) -> float:
    """Return the mean tokens that the model reads per row: the prompt, the target and N negatives."""
    prompt, answer = token_counts(data, model, section, seed)
    return prompt + (1 + section.num_negatives) * answer


def analyse_loss(runs: Sequence[Run], folder: Path) -> Outcome:
    """Compare every loss with S-DPO."""
    measured = measure_runs(runs, "s-dpo")
    varied = [a.name for a in runs[0].recipe.align]
    return _outcome(runs, measured, "Loss", [dots(measured, q, varied) for q in measured.headline])


def analyse_negatives(runs: Sequence[Run], folder: Path) -> Outcome:
    """Draw the metrics against N, at equal rows and at equal tokens."""
    measured = measure_runs(runs, ONE)
    negatives = {a.name: a.num_negatives for a in runs[0].recipe.align}
    cheaper = [n for n in negatives if n.endswith("-compute")]
    lanes = {"equal rows": [n for n in negatives if n not in cheaper]}
    if cheaper:
        lanes["equal tokens"] = [ONE, *cheaper]
    drawings = [_against_setting(measured, q, lanes, negatives, "negatives N") for q in measured.headline]
    notes = [
        "Equal tokens: a variant whose name ends in -compute reads as many tokens as N = 1 does, on fewer rows. It "
        f"was not run if that removes less than {SAME_COMPUTE:.0%} of the rows."
        if cheaper
        else "An answer is one token, which is only predicted: more negatives read no more tokens."
    ]
    drawn = {a.num_negatives for a in runs[0].recipe.align if a.negatives_from != "list"}
    if redrawn := sorted(drawn):
        notes.append(
            f"N = {', '.join(map(str, redrawn))} exceeds a row's own list. These negatives are drawn again, "
            "uniformly from what the user had not taken by the end of training; the lists also exclude what the user "
            "takes later. The lists under test are the same for all."
        )
    if skipped := [str(n) for n in NEGATIVES if n not in negatives.values()]:
        notes.append(f"N = {', '.join(skipped)} is left out: it exceeds half of the catalogue.")
    return replace(_outcome(runs, measured, "Variant", drawings), notes=notes)


def analyse_beta(runs: Sequence[Run], folder: Path) -> Outcome:
    """Draw the metrics against β."""
    measured = measure_runs(runs, "s-dpo")
    betas = {a.name: a.beta for a in runs[0].recipe.align}
    drawings = [_against_setting(measured, q, {"s-dpo": list(betas)}, betas, "β") for q in measured.headline]
    return _outcome(runs, measured, "Variant", drawings)


def settings_of(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Return variant → loss, N, β, rows, tokens read and seconds of its alignment, of the first seed."""
    run, settings = runs[0], {}
    for section in run.recipe.align:
        rows = len(training_rows(run.data, section, run.recipe.seed))
        trained = run.adapter(section.name).parent
        prompt, answer = token_counts(run.data, run.recipe.model, section, run.recipe.seed, trained)
        settings[section.name] = {
            "loss": section.loss,
            "N": section.num_negatives,
            "β": section.beta,
            "rows": rows,
            "tokens": round(rows * section.epochs * (prompt + (1 + section.num_negatives) * answer)),
            "seconds": took(run, section.name, "seconds"),
        }
    return settings


def _with_negatives(one: AlignSection, n: int, most: int) -> AlignSection:
    """Return S-DPO with N negatives, of which a list holds `most`; with one it is DPO.

    Names are those of other studies, which share equal alignments.
    """
    if n == 1:
        return variant(one, ONE, loss="dpo", num_negatives=1)
    if n == one.num_negatives:
        return variant(one, "s-dpo")
    longer = {"negatives_from": "uniform"} if n > most and one.negatives_from == "list" else {}
    return variant(one, f"s-dpo-n{n}", num_negatives=n, **longer)


def _outcome(runs: Sequence[Run], measured: Measured, first: str, drawings: list[Drawing]) -> Outcome:
    table = results_table(measured, settings=settings_of(runs), first=first)
    return Outcome([table], drawings, facts_of(measured, runs[0].recipe.lm_rankers), measured.n, measured.users)


def _against_setting(
    measured: Measured, quantity: str, lanes: dict[str, list[str]], setting: dict[str, Any], x_label: str
) -> Drawing:
    """Return a plot of a quantity against the setting of each variant, one line per lane; SFT is a dashed line."""
    ordered = {lane: sorted(variants, key=lambda v: setting[v]) for lane, variants in lanes.items()}
    series = [
        Series(lane, [setting[v] for v in variants], [measured.intervals[v][quantity] for v in variants])
        for lane, variants in ordered.items()
    ]
    start = measured.intervals.get(SFT, {}).get(quantity)
    level = {"SFT": start.mean} if start else None
    hint = "Bars: 95% intervals over users." + (" Dashed: the SFT model that all start from." if start else "")
    return lines(slug(quantity), metric_label(quantity), series, x_label=x_label, log=True, hint=hint, level=level)


ABLATION = Study(
    "ablation",
    "Does the softmax over several negatives, with a reference, rank better than the losses that it combines?",
    "the loss: DPO with one negative, DPO on exploded pairs, DMPO, BPR, softmax, S-DPO; the SFT model, rows, "
    "negatives, β and steps are the same.",
    vary_loss,
    analyse_loss,
)
NEGATIVES_STUDY = Study(
    "negatives",
    "Do more negatives help S-DPO, and do they still help if each one costs its tokens?",
    "the number of negatives N, on the same rows (equal steps) and on as many rows as cost the tokens of N = 1 "
    "(equal compute); the SFT model and β are the same.",
    vary_negatives,
    analyse_negatives,
)
BETA = Study(
    "beta",
    "How strong should the pull to the reference be?",
    "β of S-DPO; the SFT model, rows, negatives and steps are the same.",
    vary_beta,
    analyse_beta,
)
