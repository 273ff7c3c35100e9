"""Export a ranker of a run to a folder for other servers and the hub: adapter or merged model, tokenizer, card."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
from huggingface_hub import EvalResult, ModelCardData
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from rich.markup import escape
from torch import nn

from prefrec.console import quiet_libraries, warn
from prefrec.data.types import ITEM_SCHEMA
from prefrec.errors import ConfigError
from prefrec.export.parts import ABOUT, ITEMS, PROMPT, about_key, write_parts
from prefrec.files import SEAL, digests, drafting, folder_files, share, storage_error, write_json, writing
from prefrec.lm.items import cast_layers
from prefrec.lm.models import load_tokenizer
from prefrec.lm.names import EMBEDDED, base_id
from prefrec.losses import find_loss, trait
from prefrec.pipeline.opened import Run
from prefrec.prompts import load_template
from prefrec.recipe import Recipe
from prefrec.recommend.popular import Popular
from prefrec.report.render import page_environment
from prefrec.report.tables import metrics_grid
from prefrec.report.wording import label, metric_label
from prefrec.runs.contents import RunContents, read_run
from prefrec.sections import SFT, ZERO_SHOT, ModelSection
from prefrec.stages.item_texts import shown_items, shows_candidates
from prefrec.training.adapters import check_adapter, warn_of_other_base
from prefrec.training.weights import is_adapter, load_weights

SHOWN = "shown"
"""Column of an exported catalogue with the items' texts in histories, if they are not the titles."""
SETTINGS = ("loss", "beta", "num_negatives", "learning_rate", "rows", "epochs")
"""Settings of the last stage that the card shows, if set."""

TERMS = {
    "movielens": "MovieLens data may be used for research under GroupLens' usage licence; commercial use needs "
    "the permission of GroupLens, and so does passing the data on.",
    "lastfm": "The HetRec 2011 Last.FM data may be used for non-commercial purposes.",
    "goodreads": "The UCSD Book Graph is for academic use only, and must not be passed on.",
}
"""First word of a source → the terms of its data."""

_environment = page_environment("prefrec.export").overlay(autoescape=False)  # Markdown without titles from data


@quiet_libraries()
def export_ranker(run: Run, ranker: str, out: Path, *, merged: bool = False, for_new: str | None = None) -> Path:
    """Export a ranker of a run to a folder; return the folder.

    The folder has the weights, tokenizer, prompt, ids and titles of the items, and a model card; it is written
    completely or not at all. A model with item-ID tokens is copied. A blend or a baseline is written with its parts
    (`write_parts`).

    Args:
        run: the run.
        ranker: name of the ranker.
        out: folder, which must be new or empty.
        merged: merge the adapter into the base in float32, and store the model in the recipe's dtype. Default: write
            the adapter.
        for_new: name of another ranker of the run, which answers where the items that a user has are excluded. A
            folder of a language model has no room for it, and a warning says so. Default: `ranker` answers.

    Raises:
        DataError: the run has no such ranker.
        ConfigError: `out` cannot be created, or the ranker cannot be exported in this form.
        ModelError: model or adapter cannot be read.
    """
    stage, model = run.stage(ranker), run.recipe.model
    if stage.model is None and merged:
        raise ConfigError(f"{ranker} is not a language model: export it without --merged")
    if stage.model is not None:
        merged = merged or model.answers == "items"
        _check_form(ranker, stage.weights, model, merged)
    out = Path(out)
    _check_new(out)
    with writing(out), drafting(out) as draft:
        _check_new(out)  # another export may have written it while this one waited
        template = load_template(model.templates[0], domain=run.data.domain)
        about: dict[str, Any] = {"ranker": ranker}
        parts: list[str] = []
        if stage.model is None:
            parts = write_parts(run, [ranker, *([for_new] if for_new else [])], draft)
            about |= {"parts": parts, "model": {"name": model.name}, **({"for_new": for_new} if for_new else {})}
        else:
            if for_new:
                warn(
                    escape(
                        f"the export has {ranker} alone, which also answers where the items that a user has are "
                        f"excluded; {for_new} is better there: export it, too (--ranker '{for_new}')"
                    )
                )
            if run.recipe.answers.new_every:
                warn(
                    "answers.new_every does not hold for the export, which has no log that tells which items are new"
                )
            about |= _write_lm(run, stage.weights, draft, merged)
        contents = read_run(run.folder, run.data, run.results)
        card = model_card(
            contents,
            run.recipe,
            ranker,
            base_id(model.name),
            merged=merged,
            parts=parts,
            for_new=about.get("for_new"),
        )
        texts = {"README.md": card, ABOUT: json.dumps(about, indent=2) + "\n"}
        texts |= {} if model.answers == "items" else {PROMPT: template.portable}
        for name, text in texts.items():
            (draft / name).write_text(text, encoding="utf-8")
        sealed = [f for f in folder_files(draft) if f != ABOUT]
        write_json(draft / SEAL, {"files": digests(draft, sealed), ABOUT: about_key(about)})
        inside = [*draft.rglob("*")]
        share([path for path in inside if path.is_dir()], like=draft)
        share([path for path in inside if not path.is_dir()], like=draft / "README.md")
        _replace(draft, out)
    return out


def _check_form(ranker: str, weights: Path | None, model: ModelSection, merged: bool) -> None:
    """Raise ConfigError if a language model cannot be exported as an adapter that others can load."""
    if merged:
        return
    if weights is None or not is_adapter(weights):
        raise ConfigError(f"{ranker} has no adapter: export it with --merged")
    if model.layers is not None:
        raise ConfigError(f"{ranker} has a base with fewer layers, which others cannot load: export it with --merged")


def _write_lm(run: Run, weights: Path | None, out: Path, merged: bool) -> dict[str, Any]:
    """Write a language model, its tokenizer and the items; return its settings for `ABOUT`."""
    model = run.recipe.model
    if weights and model.answers == "items":
        shutil.copytree(weights, out, dirs_exist_ok=True, copy_function=shutil.copyfile)
    elif merged or weights is None:
        _write_merged(run, weights, out)
    else:
        _write_adapter(run, weights, out)
    load_tokenizer(model.name).save_pretrained(out)
    settings = model.model_dump(exclude={"templates"})
    settings |= {"name": "", "quantization": "none"} if merged else {}  # "" means the folder itself
    items = run.data.catalogue.frame.select(*ITEM_SCHEMA)
    if texts := shown_items(model, run.data.catalogue):
        items = items.with_columns(pl.col("title").replace_strict(texts).alias(SHOWN))
        settings["item_text"] = f"{{{{ {SHOWN} }}}}"
    known: dict[str, Any] = {"repeats": "keep"} if run.data.keeps_repeats else {}
    if popular := Popular.of(run.data):
        items = popular.added_to(items)
        known["popularity"] = popular.name
    items.write_parquet(out / ITEMS)
    return {"model": settings, "history_length": run.data.history_length, **known}


def _check_new(out: Path) -> None:
    """Create the folder around `out`; raise ConfigError or StorageError if `out` cannot be a new folder there."""
    if out.name in ("", ".."):
        raise ConfigError(f"{out}: name a new folder in it, such as {out / 'exported'}")
    if out.is_symlink():
        raise ConfigError(f"{out} is a symbolic link: name its target, or a new folder")
    try:
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise ConfigError(f"{out} exists: name a new folder, or an empty one")
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        failed = ConfigError(f"{out.parent} cannot be created ({e.strerror}): choose another --out")
        raise storage_error(e, out) or failed from e


def _replace(draft: Path, out: Path) -> None:
    try:
        draft.replace(out)
    except OSError as e:
        if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise ConfigError(f"{out}: another command has written to it meanwhile; choose a new folder") from e


def _write_adapter(run: Run, adapter: Path, out: Path) -> None:
    config = check_adapter(adapter)
    warn_of_other_base(adapter, config.get("base_model_name_or_path"), run.recipe.model.name)
    # The id of the base, not its path in this machine's cache.
    config |= {"base_model_name_or_path": base_id(run.recipe.model.name), "inference_mode": True}
    shutil.copyfile(adapter / "adapter_model.safetensors", out / "adapter_model.safetensors")
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_merged(run: Run, adapter: Path | None, out: Path) -> None:
    section = run.recipe.model
    model: Any = load_weights(section.name, adapter, dtype="float32", layers=section.layers)
    if isinstance(model, PeftModel):
        _untie_adapted(model)
        model = model.merge_and_unload(safe_merge=True)
    cast_layers(model, section.dtype)
    model.save_pretrained(out)


def _untie_adapted(model: PeftModel) -> None:
    """Untie the head from the embedding if one of them has an adapter."""
    # Otherwise its adapter would be merged into the weights of both.
    base: Any = model.get_base_model()
    layers = base.get_input_embeddings(), base.get_output_embeddings()
    embedding, head = (layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer for layer in layers)
    if (embedding, head) == layers or embedding.weight is not head.weight:
        return
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    for config in (base.config, base.config.get_text_config()):
        config.tie_word_embeddings = False


def model_card(
    contents: RunContents,
    recipe: Recipe,
    ranker: str,
    base: str,
    *,
    merged: bool,
    parts: Sequence[str] = (),
    for_new: str | None = None,
) -> str:
    """Return the card of an exported ranker as Markdown with the hub's YAML header.

    The card omits what is missing in the run's folder.

    Args:
        contents: contents of the run's folder.
        recipe: recipe of the run.
        ranker: name of the exported ranker.
        base: hub id or folder of the base model.
        merged: whether the export is a whole model.
        parts: names of the rankers in a folder of `write_parts`.
        for_new: name of the ranker in it that answers where the items that a user has are excluded.
    """
    composed = ranker not in recipe.lm_rankers
    has_base = not composed or bool({*parts} & {*recipe.lm_rankers})
    stage = next((s for s in contents.stages if s.name == ranker), None)
    # A hub id, with or without an owner, as `prefrec.lm.names.resolve` accepts it.
    on_hub = base.count("/") <= 1 and not base.startswith((".", "/", "~")) and not Path(base).exists()
    is_text = recipe.model.answers == "titles" and not composed
    alignment, evaluation = recipe.alignment(ranker), contents.results.evaluation
    paper = trait(find_loss(alignment.loss), "arxiv") if alignment else None
    tags = [
        "recommender-systems",
        "prefrec",
        *["lora"] * (not merged and not composed),
        *[ranker] * (ranker != ZERO_SHOT),
    ]
    relation = "finetune" if merged or composed else "adapter"
    base_model: dict[str, Any] = {"base_model": base, "base_model_relation": relation}
    header = ModelCardData(
        library_name="prefrec" if not is_text else "transformers" if merged else "peft",
        license="apache-2.0" if recipe.model.name == EMBEDDED and ranker == ZERO_SHOT else None,
        pipeline_tag="text-generation" if is_text else None,
        tags=[*tags, f"arxiv:{paper}"] if paper else tags,
        model_name=recipe.name,
        eval_results=_results(contents, recipe.data.source, ranker),
        **(base_model if on_hub and has_base else {}),
    )
    found = {name: contents.environment.get(name) for name in ("prefrec", "torch", "transformers", "peft")}
    versions = {name: version for name, version in found.items() if version}
    before = [SFT] if recipe.sft and not composed and ranker not in (SFT, ZERO_SHOT) else []
    card = _environment.get_template("card.md.jinja2").render(
        header=header.to_yaml().strip(),
        base=base if on_hub else Path(base).name,
        embedded=recipe.model.name == EMBEDDED,
        merged=merged,
        is_text=is_text,
        composed=composed,
        has_base=has_base,
        weights=next((s for s in contents.fusions if s.startswith(f"{ranker}: ")), ""),
        shows_candidates=shows_candidates(recipe.model, contents.data.domain if contents.data else ""),
        recipe=recipe,
        run=contents,
        steps=[label(step) for step in parts or (*before, ranker) if step != ZERO_SHOT],
        settings={k: stage.setting(k) for k in SETTINGS} if stage else {},
        metrics=metrics_grid(evaluation) if evaluation else None,
        exported=label(ranker),
        for_new=for_new and label(for_new),
        terms=TERMS.get(recipe.data.source.partition("-")[0]),
        versions=versions,
    )
    return card.rstrip() + "\n"


def _results(contents: RunContents, source: str, ranker: str) -> list[EvalResult] | None:
    """Return a ranker's metrics for the hub's model index; None if it was not measured."""
    evaluation, split = contents.results.evaluation, contents.results.split
    if evaluation is None or ranker not in evaluation.metrics:
        return None
    on: Any = {"dataset_split": split, "dataset_args": {"rows": evaluation.n, "users": evaluation.users}}
    return [
        EvalResult("text-ranking", source, source, m, round(i.mean, 4), metric_name=metric_label(m), **on)
        for m, i in evaluation.metrics[ranker].items()
    ]
