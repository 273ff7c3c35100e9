"""Score choice sets with one language model: layout, packing and memory in one place."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from threading import Lock

import torch
from rich.markup import escape
from torch import Tensor, nn

from prefrec.console import warn
from prefrec.lm.architectures import BRANCHING, layout_for
from prefrec.lm.attention import compute_dtype
from prefrec.lm.catalogue_softmax import CatalogueSoftmax
from prefrec.lm.layout import verified_layout
from prefrec.lm.masks import FLEX, attention_implementation
from prefrec.lm.packing import Layout, LayoutChoice, PackedBatch, alike, pack_passes, pack_trajectories, tokens_of
from prefrec.lm.scoring import answer_token_logps, choice_logps, language_model
from prefrec.prompts import ChoiceSet, Trajectory

# While one thread checks a layout, no other thread may score with it.
_CHECKING = Lock()


class ChoiceScorer:
    """A scorer of choice sets with one causal language model of transformers, or a PEFT model around one.

    Methods accept another `model` with the same layout: the same model in a wrapper for several processes, or with
    other weights.

    Args:
        model: the model.
        pad_id: any token id, used for padding.
        layout: `packed`, `separate`, or `auto`: packed if it is correct for the model. Before `check_layout`, `auto`
            is what the model's configuration allows.
        max_tokens: tokens per pass, including padding. Default: no limit.
        within: restrict the softmax to this catalogue. Default: all tokens.
        name: name for warnings.
        share: let successive choice sets with similar prompts share a row. Under FlexAttention, each has its own.
        is_sharded: the weights are distributed over processes, so no trial pass is possible outside of training.
    """

    def __init__(
        self,
        model: nn.Module,
        pad_id: int,
        *,
        layout: LayoutChoice = "auto",
        max_tokens: int | None = None,
        within: CatalogueSoftmax | None = None,
        name: str = "",
        share: bool = False,
        is_sharded: bool = False,
    ) -> None:
        self.model = model
        self.pad_id = pad_id
        self.max_tokens = max_tokens
        self.within = within
        self.name = name
        # FlexAttention's mask holds one range of queries per key. In a shared row, the queries of a key have gaps.
        self.share = share and attention_implementation(language_model(model).config) != FLEX
        self.is_sharded = is_sharded
        self.layout: Layout
        self._is_verified = layout != "auto"
        self._is_checked = False
        self.layout, self._reason = (
            layout_for(language_model(model).config)
            if layout == "auto"
            else (layout, f"layout {layout!r} was requested")
        )

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    def among(self, within: CatalogueSoftmax | None) -> ChoiceScorer:
        """Return a scorer with the same model and layout, but the softmax of another catalogue."""
        other = copy(self)
        other.within = within
        return other

    def under(self, model: nn.Module) -> ChoiceScorer:
        """Return a scorer with the same layout, but another model of the same architecture."""
        other = copy(self)
        other.model = model
        return other

    def check_layout(self, choice_sets: Sequence[ChoiceSet]) -> None:
        """Check the packed layout on the longest of some choice sets; if it is wrong, use `separate` and warn.

        Only the first call has an effect. Call it in the autocast context in which the model will be used. A layout
        that was requested explicitly is not checked.
        """
        with _CHECKING:
            if choice_sets and not self._is_checked:
                self._choose_layout(max(choice_sets, key=lambda c: c.length))
                self._is_checked = True

    def _choose_layout(self, longest: ChoiceSet) -> None:
        if self.layout == "packed" and not self._is_verified:
            name = language_model(self.model).config.model_type
            if not self.is_sharded:
                self.layout, self._reason = verified_layout(self.model, longest, self.pad_id, self.layout)
            elif name not in BRANCHING:
                self.layout = "separate"
                self._reason = f"model type {name!r} is not known, and sharded weights cannot be checked"
        if self.layout == "separate":
            prefix = f"{escape(self.name)}: " if self.name else ""
            warn(f"{prefix}scoring one sequence per answer, which is slower: {escape(self._reason)}")

    def pack(self, choice_sets: Sequence[ChoiceSet]) -> list[PackedBatch]:
        """Return the passes that score these choice sets, on the CPU."""
        return pack_passes(
            choice_sets,
            pad_id=self.pad_id,
            layout=self.layout,
            max_tokens=self.max_tokens,
            within=self.within,
            share=self.share,
        )

    def pack_trajectories(self, trajectories: Sequence[Trajectory]) -> PackedBatch:
        """Return the single pass over these trajectories, on the CPU."""
        return pack_trajectories(trajectories, pad_id=self.pad_id, layout=self.layout, within=self.within)

    def score(self, choice_sets: Sequence[ChoiceSet], model: nn.Module | None = None) -> Tensor:
        """Return the log-probabilities [B, C] of all answers, in float32 on the model's device, without gradient.

        Entries beyond the answers of a choice set are −inf. On a CPU, the scores of a choice set do not depend on the
        other choice sets, unless they share a row.

        Args:
            choice_sets: B prompts with up to C answers each.
            model: another model with the same layout. Default: the scorer's.
        """
        self.check_layout(choice_sets)
        device, most = self.device, max(len(c.answers) for c in choice_sets)
        # The order of summation, and thereby rounding in 16 bits, depends on the shape of a call. On a CPU, calls of
        # one row cost little more.
        is_exact = compute_dtype(language_model(self.model), device) == torch.float32
        order = list(range(len(choice_sets)))
        if not self.share:
            # Rows of similar length share a pass, so there is little padding.
            order.sort(key=lambda i: -tokens_of(choice_sets[i]))
        groups = [order]
        if device.type == "cpu" and not is_exact:
            groups = alike(choice_sets) if self.share else [[i] for i in order]
        out = torch.full((len(choice_sets), most), -torch.inf, device=device)
        with torch.no_grad():
            for rows in groups:
                passes = [p.to(device) for p in self.pack([choice_sets[i] for i in rows])]
                logps = self.choice_logps(passes, model)
                out[rows, : logps.shape[1]] = logps
        return out

    def choice_logps(self, passes: Sequence[PackedBatch], model: nn.Module | None = None) -> Tensor:
        """Return `prefrec.lm.scoring.choice_logps` of passes from `pack`."""
        return choice_logps(self.model if model is None else model, *passes, within=self.within)

    def token_logps(self, batch: PackedBatch, model: nn.Module | None = None) -> Tensor:
        """Return `prefrec.lm.scoring.answer_token_logps` of a pass from `pack`."""
        return answer_token_logps(self.model if model is None else model, batch, self.within)
