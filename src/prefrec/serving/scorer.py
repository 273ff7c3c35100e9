"""The model side of the server: one base, the run's adapters on it, and choice sets scored in bounded passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from rich.markup import escape
from torch import nn

from prefrec.catalogue import check_finite
from prefrec.console import warn
from prefrec.errors import ModelError
from prefrec.models import load_model
from prefrec.packing import Layout, LayoutChoice, pack_passes, tokens_of
from prefrec.prompts import ChoiceSet
from prefrec.rankers.catalogue import CatalogueRanker, Recommendation
from prefrec.scoring import choice_logps, language_model, layout_for, verified_layout
from prefrec.training.adapters import load_adapter

Scores = list[NDArray[np.float64]]

MAX_CALLS = 64
"""Calls of the model for one question about a catalogue too large to score whole; then the best found so far."""


PASS_TOKENS = {"cpu": 2048}
"""Padded tokens of a pass, by device; elsewhere 4,096.

A CPU gains nothing by more: rows of unlike lengths are padded to the longest, and the pass leaves its caches.
"""


class Scorer:
    """Scores choice sets under any of a run's rankers. Not for several threads at once: adapters are switched.

    Args:
        model: a causal LM, or a PEFT model around one.
        adapters: ranker → name of its adapter in `model`, None for the bare base.
        pad_id: token id for padding.
        max_tokens: of a pass, padding included (see `pack_passes`); None: by `PASS_TOKENS`.
        layout: of rows of candidates: `packed`, `separate`, or `auto` (packed where it is right for the model).
        catalogue: asks `model` about the whole catalogue; for `recommend`.
    """

    def __init__(
        self,
        model: nn.Module,
        adapters: Mapping[str, str | None],
        pad_id: int,
        *,
        max_tokens: int | None = None,
        layout: LayoutChoice = "auto",
        catalogue: CatalogueRanker | None = None,
    ) -> None:
        self.model = model.eval()
        self.adapters = dict(adapters)
        self.pad_id = pad_id
        self.max_tokens = PASS_TOKENS.get(self._device().type, 4096) if max_tokens is None else max_tokens
        self.catalogue = catalogue
        self.row_layout: Layout
        asked = f"layout {layout!r} was asked for"
        self._is_settled = layout != "auto"
        self.row_layout, self._layout_reason = (
            layout_for(language_model(model).config) if layout == "auto" else (layout, asked)
        )

    def settle_layout(self, choice_set: ChoiceSet) -> None:
        """Try a packed row of `choice_set`, and fall back to one row an answer where the model cannot branch.

        A layout that was asked for stays.
        """
        if not self._is_settled:
            self.row_layout, self._layout_reason = verified_layout(
                self.model, choice_set, self.pad_id, self.row_layout
            )
        if self.row_layout == "separate":
            warn(f"one sequence an answer is scored, which is slower: {escape(self._layout_reason)}")

    def score(self, ranker: str, choice_sets: Sequence[ChoiceSet]) -> Scores:
        """Log-probabilities [C] of each choice set's answers under `ranker`.

        Raises:
            ModelError: one of them is no number.
        """
        # Rows of like length share a pass.
        order = sorted(range(len(choice_sets)), key=lambda i: -tokens_of(choice_sets[i]))
        passes = pack_passes(
            [choice_sets[i] for i in order], pad_id=self.pad_id, layout=self.row_layout, max_tokens=self.max_tokens
        )
        with torch.no_grad(), self._adapter(self.adapters[ranker]):
            logps = choice_logps(self.model, *(p.to(self._device()) for p in passes)).double().cpu().numpy()
        out: Scores = [np.empty(0)] * len(choice_sets)
        for i, row in zip(order, logps, strict=True):
            out[i] = row[: len(choice_sets[i].answers)]
        check_finite(ranker, *out)
        return out

    def recommend(self, ranker: str, history: Sequence[str], k: int) -> tuple[Recommendation, bool]:
        """The `k` best items of the catalogue for a history of item ids, those in it left out.

        Returns:
            the items, and whether the oldest of the history did not fit into the prompt.

        Raises:
            ModelError: a log-probability is no number, or no catalogue was given.
        """
        if self.catalogue is None:
            raise ModelError("this scorer was made without a catalogue")
        encoder = self.catalogue.lm.encoder
        before = encoder.shortened
        with torch.no_grad(), self._adapter(self.adapters[ranker]):
            best = self.catalogue.recommend(history, k, without=set(history), max_calls=MAX_CALLS)
        return best, encoder.shortened > before

    @contextmanager
    def _adapter(self, name: str | None) -> Iterator[None]:
        if not isinstance(self.model, PeftModel):
            yield
        elif name is None:
            with self.model.disable_adapter():
                yield
        else:
            if self.model.active_adapter != name:
                self.model.set_adapter(name, inference_mode=True)
            yield

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def load_rankers(
    base: str, dtype: str, adapters: Mapping[str, Path | None], **options: Any
) -> tuple[nn.Module, dict[str, str | None]]:
    """One base model with the adapters of several rankers on it, for `Scorer`.

    Args:
        base: a name for `prefrec.models.load_model`.
        dtype: of the base.
        adapters: ranker → folder of its adapter; None: the bare base.
        **options: for `load_model`, how the base attends and is held.

    Returns:
        the model, and ranker → name of its adapter.

    Raises:
        ModelError: base or adapter cannot be found or read, or is not stored as safetensors.
    """
    model: nn.Module = load_model(base, dtype=dtype, **options)
    names: dict[str, str | None] = {}
    for i, (ranker, folder) in enumerate(adapters.items()):
        names[ranker] = None if folder is None else f"ranker{i}"
        if folder is not None:
            # In the base's own precision: the same numbers as autocast gives in training, without its casts.
            model = load_adapter(model, folder, adapter_name=f"ranker{i}", autocast_adapter_dtype=False)
    return model.eval(), names
