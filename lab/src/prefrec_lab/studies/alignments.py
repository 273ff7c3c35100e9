"""Studies of one alignment setting each: the loss, the number of negatives, β.

All variants start from the same SFT model and see the same rows. They are the `align` entries of one recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefrec.data import PreparedData
from prefrec.evaluation.labels import metric_label
from prefrec.pipeline.opened import Run
from prefrec.recipe import Recipe
from prefrec.sections import SFT, AlignSection
from prefrec.stages.training_rows import alignment_rows
from prefrec_lab.study_tools.measure import Measured, measure_runs
from prefrec_lab.study_tools.opened import took
from prefrec_lab.study_tools.plots import Series, dots, lines, slug
from prefrec_lab.study_tools.study import Drawing, Outcome, Study, varied_alignment, with_alignments
from prefrec_lab.study_tools.tables import facts_of, results_table

NEGATIVES = (1, 3, 8, 15, 63)
ONE = "dpo"
"""Name of the variant with one negative."""

BETAS = (0.1, 0.5, 1.0, 3.0, 5.0)


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
    """Return the recipe with S-DPO for each N, on the same rows.

    If N exceeds a row's own list, its list is drawn again, uniformly.
    """
    one, most = varied_alignment(base), base.data.candidates.size - 1
    possible = [n for n in NEGATIVES if n < len(data.catalogue) // 2]
    return with_alignments(base, [_with_negatives(one, n, most) for n in possible])


def vary_beta(base: Recipe, data: PreparedData) -> Recipe:
    """Return the recipe with S-DPO for each strength of the pull to the reference."""
    one = varied_alignment(base)
    betas = sorted({*BETAS, one.beta})
    return with_alignments(
        base, [variant(one, "s-dpo" if b == one.beta else f"s-dpo-beta{b:g}", beta=b) for b in betas]
    )


def analyse_loss(runs: Sequence[Run], folder: Path) -> Outcome:
    """Compare every loss with S-DPO."""
    measured = measure_runs(runs, "s-dpo")
    varied = [a.name for a in runs[0].recipe.align]
    return _outcome(runs, measured, "Loss", [dots(measured, q, varied) for q in measured.headline])


def analyse_negatives(runs: Sequence[Run], folder: Path) -> Outcome:
    """Draw the metrics against N."""
    measured = measure_runs(runs, ONE)
    negatives = {a.name: a.num_negatives for a in runs[0].recipe.align}
    drawings = [_against_setting(measured, q, negatives, "negatives N") for q in measured.headline]
    notes = []
    drawn = {a.num_negatives for a in runs[0].recipe.align if a.negatives_from != "list"}
    if redrawn := sorted(drawn):
        notes.append(
            f"N = {', '.join(map(str, redrawn))} exceeds a row's own list. These negatives are drawn again, "
            "uniformly from what the user had not seen by the end of training; the lists also exclude what the user "
            "interacts with later. The lists under test are the same for all."
        )
    if skipped := [str(n) for n in NEGATIVES if n not in negatives.values()]:
        notes.append(f"N = {', '.join(skipped)} is left out: it exceeds half of the catalogue.")
    return replace(_outcome(runs, measured, "Variant", drawings), notes=notes)


def analyse_beta(runs: Sequence[Run], folder: Path) -> Outcome:
    """Draw the metrics against β."""
    measured = measure_runs(runs, "s-dpo")
    betas = {a.name: a.beta for a in runs[0].recipe.align}
    drawings = [_against_setting(measured, q, betas, "β") for q in measured.headline]
    return _outcome(runs, measured, "Variant", drawings)


def settings_of(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Return variant → loss, N, β, rows and seconds of its alignment, of the first seed."""
    run, settings = runs[0], {}
    for section in run.recipe.align:
        settings[section.name] = {
            "loss": section.loss,
            "N": section.num_negatives,
            "β": section.beta,
            "rows": len(alignment_rows(run.data, section, run.recipe.seed)),
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


def _against_setting(measured: Measured, quantity: str, setting: dict[str, Any], x_label: str) -> Drawing:
    """Return a plot of a quantity against the setting of each variant; SFT is a dashed line."""
    ordered = sorted(setting, key=lambda v: setting[v])
    series = [Series("s-dpo", [setting[v] for v in ordered], [measured.intervals[v][quantity] for v in ordered])]
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
    "Do more negatives help S-DPO?",
    "the number of negatives N; the SFT model, rows, β and steps are the same.",
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
