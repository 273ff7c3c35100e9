"""The model card of an export: what it was made of, how it was measured, and whose terms hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import yaml

from prefrec.evaluation import Evaluation
from prefrec.lm.models import EMBEDDED
from prefrec.pipeline.recipe import SFT, ZERO_SHOT, Recipe
from prefrec.report.wording import label, metric_label, with_interval
from prefrec.runs.contents import RunContents

SETTINGS = ("loss", "beta", "num_negatives", "learning_rate", "rows", "epochs")
"""Of the last stage, as far as it has them."""

TERMS = {
    "movielens-100k": "MovieLens data may be used for research under GroupLens' usage licence; commercial use needs "
    "the permission of GroupLens, and so does passing the data on.",
    "lastfm-hetrec": "The HetRec 2011 Last.FM data may be used for non-commercial purposes.",
    "goodreads": "The UCSD Book Graph is for academic use only, and must not be passed on.",
}
TERMS |= {
    "movielens-csv": TERMS["movielens-100k"],
    "lastfm-published": TERMS["lastfm-hetrec"],
    "goodreads-windows": TERMS["goodreads"],
}
"""Source → the terms of its data, where they are known."""

_environment = jinja2.Environment(  # nosec B701  # Markdown, and no titles in it
    loader=jinja2.PackageLoader("prefrec.serving", "."),
    autoescape=False,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def model_card(contents: RunContents, recipe: Recipe, ranker: str, base: str, *, merged: bool) -> str:
    """The card as Markdown with the hub's YAML header.

    Args:
        contents: of the run's folder; what is missing there is left out.
        recipe: of the run.
        ranker: the exported one.
        base: hub id or folder of the base model.
        merged: whether the weights are whole, or an adapter's.
    """
    protocol = contents.data.protocol if contents.data else {}
    stage = next((s for s in contents.stages if s.name == ranker), None)
    evaluation = contents.evaluation
    shown = base if _on_hub(base) else Path(base).name
    card = _environment.get_template("card.md.jinja2").render(
        header=yaml.safe_dump(_header(recipe, ranker, base, merged), sort_keys=False).strip(),
        title=f"{recipe.name}: {label(ranker)}",
        base=shown,
        embedded=recipe.model.name == EMBEDDED,
        merged=merged,
        model=recipe.model,
        steps=_steps(recipe, ranker),
        settings={k: stage.setting(k) for k in SETTINGS} if stage else {},
        protocol=protocol,
        rows=protocol.get("counts", {}).get("rows", {}),
        split=contents.split,
        evaluation=evaluation,
        metrics=_metrics(evaluation, ranker) if evaluation else None,
        audit=evaluation.audit.verdict if evaluation and evaluation.audit else None,
        terms=TERMS.get(recipe.data.source),
        versions={k: v for k in ("prefrec", "torch", "transformers", "peft") if (v := contents.environment.get(k))},
        commit=contents.environment.get("commit"),
        seed=recipe.seed,
    )
    return card.rstrip() + "\n"


def _on_hub(base: str) -> bool:
    """Whether `base` is a hub id, with or without an owner, as `prefrec.lm.models.resolve` takes it."""
    return base.count("/") <= 1 and not base.startswith((".", "/", "~")) and not Path(base).exists()


def _header(recipe: Recipe, ranker: str, base: str, merged: bool) -> dict[str, Any]:
    """What the hub reads; a base that is a local folder is no hub id, and is left out."""
    header: dict[str, Any] = {"library_name": "transformers" if merged else "peft"}
    if _on_hub(base):
        header["base_model"] = base
        header["base_model_relation"] = "finetune" if merged else "adapter"
    if recipe.model.name == EMBEDDED and ranker == ZERO_SHOT:
        header["license"] = "apache-2.0"
    tags = ["recommender-systems", "prefrec", *([] if merged else ["lora"])]
    if ranker != ZERO_SHOT:
        tags.append(ranker)
    return header | {"pipeline_tag": "text-generation", "tags": tags}


def _steps(recipe: Recipe, ranker: str) -> list[str]:
    """Stages that led to the ranker, in words."""
    names = [SFT] * bool(recipe.sft)
    if ranker in names:
        names = names[: names.index(ranker) + 1]
    elif ranker == ZERO_SHOT:
        names = []
    else:
        names.append(ranker)
    return [label(n) for n in names]


def _metrics(evaluation: Evaluation, ranker: str) -> dict[str, Any]:
    """Header and rows of the table: every ranker that was measured, the exported one in bold."""
    names = list(dict.fromkeys(m for of in evaluation.metrics.values() for m in of))
    rows = []
    for name, of in evaluation.metrics.items():
        shown = label(name)
        cells = [with_interval(of[m]) if m in of else "–" for m in names]
        rows.append((f"**{shown}**" if name == ranker else shown, cells))
    return {"names": [metric_label(m) for m in names], "rows": rows}
