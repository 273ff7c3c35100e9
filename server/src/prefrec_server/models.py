"""Load the language models of a server: one base for all adapters, and one encoder for the thread of requests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from prefrec.lm.items import item_table
from prefrec.lm.models import default_device, hold_weights, load_model
from prefrec.lm.scoring import language_model
from prefrec.pipeline.opened import Run
from prefrec.stages.encoders import Encoder, prompt_encoder
from prefrec.stages.language_model import as_ranker
from prefrec.training.adapters import load_adapter
from prefrec.training.weights import is_adapter, load_weights
from prefrec_server.scorer import Scorer

PASS_TOKENS = {"cpu": 2048}
"""Device → padded tokens per pass; 4,096 on others. Larger passes exceed a CPU's caches."""


def default_pass() -> int:
    """Return the default of the padded tokens per pass on this machine."""
    return PASS_TOKENS.get(default_device().type, 4096)


def load_models(run: Run, weights: Mapping[str, Path | None], max_tokens: int) -> tuple[Scorer, Encoder]:
    """Return a scorer with the language models of a run, on a GPU if there is one, and an encoder of prompts.

    Args:
        run: the run.
        weights: ranker → folder of its adapter or of its whole model; None: the base model.
        max_tokens: most tokens per pass, padding included.
    """
    section = run.recipe.model
    models, adapters = load_rankers(section.name, weights=weights, **section.loading())
    for model in set(models.values()):
        if (table := item_table(language_model(model))) is not None:
            table.merge_titles()
        hold_weights(model)
    lm = as_ranker(*next(iter(models.items())), run.data, section, max_tokens_per_pass=max_tokens)
    # A separate tokenizer: the thread that encodes requests must not share one with the worker.
    return Scorer(models, adapters, lm, run.data.catalogue), prompt_encoder(section, run.data.catalogue)


def load_rankers(
    base: str, dtype: str, weights: Mapping[str, Path | None], **options: Any
) -> tuple[dict[str, nn.Module], dict[str, str | None]]:
    """Return `models` and `adapters` for `Scorer`: one base for all adapters, and each whole model.

    Args:
        base: name of the base model.
        dtype: compute dtype.
        weights: ranker → folder of its adapter or of its whole model; None: the base model.
        **options: for `load_model`.

    Raises:
        ModelError: base or weights cannot be read, or are not stored as safetensors.
    """
    whole = [name for name, folder in weights.items() if folder is not None and not is_adapter(folder)]
    models = {name: load_weights(base, weights[name], dtype=dtype, **options) for name in whole}
    adapted = {name: folder for name, folder in weights.items() if name not in whole}
    names: dict[str, str | None] = dict.fromkeys(weights)
    if adapted:
        model: nn.Module = load_model(base, dtype=dtype, **options)
        for i, (ranker, folder) in enumerate(adapted.items()):
            if folder is not None:
                names[ranker] = f"ranker{i}"
                # In the precision of the base: the same numbers as with autocast in training, without its casts.
                model = load_adapter(model, folder, adapter_name=f"ranker{i}", autocast_adapter_dtype=False)
        models |= dict.fromkeys(adapted, model)
    return {name: models[name].eval() for name in weights}, names
