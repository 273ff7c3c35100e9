"""The models of a server: they score choice sets in bounded passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import nn

from prefrec.errors import ModelError
from prefrec.lm.catalogue import check_finite
from prefrec.lm.catalogue_softmax import CatalogueSoftmax
from prefrec.lm.models import load_model
from prefrec.lm.packing import LayoutChoice
from prefrec.lm.scorer import ChoiceScorer
from prefrec.prompts import ChoiceSet
from prefrec.rankers.catalogue import CatalogueRanker, Recommendation
from prefrec.training.adapters import is_adapter, load_adapter, load_weights

Scores = list[NDArray[np.float64]]

MAX_CALLS = 64
"""Model calls for one question about a catalogue too large to score whole. The best items by then are the answer."""

PASS_TOKENS = {"cpu": 2048}
"""Padded tokens of a pass by device; 4,096 on others. Larger passes are slower on a CPU: they leave its caches."""


class Scorer:
    """A scorer of choice sets under the rankers of a run. It switches adapters, so one thread may use it at a time.

    Args:
        models: ranker → a causal LM, or a PEFT model around one. Rankers may share a model.
        adapters: ranker → name of its adapter in its model; None for the bare base or a whole model.
        pad_id: token id for padding.
        max_tokens: of a pass, padding included (see `pack_passes`); None: by `PASS_TOKENS`.
        layout: `packed`, `separate`, or `auto` (packed if it is correct for the model).
        catalogue: ranker of the whole catalogue, for `recommend`.
        within: the catalogue to score titles within; None: among all tokens.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        adapters: Mapping[str, str | None],
        pad_id: int,
        *,
        max_tokens: int | None = None,
        layout: LayoutChoice = "auto",
        catalogue: CatalogueRanker | None = None,
        within: CatalogueSoftmax | None = None,
    ) -> None:
        self.models = {name: model.eval() for name, model in models.items()}
        self.model = next(iter(self.models.values()))  # all have the same architecture
        self.adapters = dict(adapters)
        if max_tokens is None:
            max_tokens = PASS_TOKENS.get(next(self.model.parameters()).device.type, 4096)
        self.max_tokens = max_tokens
        self.scorer = ChoiceScorer(self.model, pad_id, layout=layout, max_tokens=max_tokens, within=within)
        self.catalogue = catalogue

    def score(self, ranker: str, choice_sets: Sequence[ChoiceSet]) -> Scores:
        """Return the log-probabilities [C] of each choice set's answers under `ranker`.

        Raises:
            ModelError: a log-probability is not finite.
        """
        with self._asked(ranker) as model:
            logps = self.scorer.score(choice_sets, model).double().cpu().numpy()
        out: Scores = [row[: len(c.answers)] for c, row in zip(choice_sets, logps, strict=True)]
        check_finite(ranker, *out)
        return out

    def recommend(self, ranker: str, history: Sequence[str], k: int) -> tuple[Recommendation, bool]:
        """Return the `k` best items of the catalogue for a history of item ids, without those in it.

        Returns:
            The items, and True if the oldest items of the history did not fit into the prompt.

        Raises:
            ModelError: a log-probability is not finite, or no catalogue was given.
        """
        if self.catalogue is None:
            raise ModelError("this scorer was made without a catalogue")
        encoder = self.catalogue.lm.encoder
        before = encoder.shortened
        with torch.no_grad(), self._asked(ranker) as model:
            self.catalogue.lm.model = model
            best = self.catalogue.recommend(history, k, without=set(history), max_calls=MAX_CALLS)
        return best, encoder.shortened > before

    @contextmanager
    def _asked(self, ranker: str) -> Iterator[nn.Module]:
        """Yield the model of a ranker, with its adapter switched on."""
        model, adapter = self.models[ranker], self.adapters[ranker]
        if not isinstance(model, PeftModel):
            yield model
        elif adapter is None:
            with model.disable_adapter():
                yield model
        else:
            if model.active_adapter != adapter:
                model.set_adapter(adapter, inference_mode=True)
            yield model


def load_rankers(
    base: str, dtype: str, weights: Mapping[str, Path | None], **options: Any
) -> tuple[dict[str, nn.Module], dict[str, str | None]]:
    """Load the models of several rankers for `Scorer`: one base for all adapters, and each whole model.

    Args:
        base: a name for `prefrec.lm.models.load_model`.
        dtype: of the models.
        weights: ranker → folder of its adapter, or of its whole model; None: the bare base.
        **options: for `load_model`, how the base attends and is held.

    Returns:
        ranker → model, and ranker → name of its adapter.

    Raises:
        ModelError: base or weights cannot be found or read, or are not stored as safetensors.
    """
    whole = {name: folder for name, folder in weights.items() if folder is not None and not is_adapter(folder)}
    models: dict[str, nn.Module] = {
        name: load_weights(base, folder, dtype=dtype, **options) for name, folder in whole.items()
    }
    adapted = {name: folder for name, folder in weights.items() if name not in whole}
    names: dict[str, str | None] = dict.fromkeys(weights)
    if adapted:
        model: nn.Module = load_model(base, dtype=dtype, **options)
        for i, (ranker, folder) in enumerate(adapted.items()):
            if folder is not None:
                names[ranker] = f"ranker{i}"
                # In the base's own precision: the same numbers as autocast gives in training, without its casts.
                model = load_adapter(model, folder, adapter_name=f"ranker{i}", autocast_adapter_dtype=False)
        models |= dict.fromkeys(adapted, model)
    return {name: models[name].eval() for name in weights}, names
