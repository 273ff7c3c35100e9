"""Titles as vectors: the mean of a pretrained model's last hidden states over a title's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from prefrec.console import track
from prefrec.errors import ModelError
from prefrec.lm.models import SAFE, load_tokenizer, resolve
from prefrec.rankers.lm import default_device
from prefrec.training.sampler import longest_first

_TITLES_AT_A_TIME = 128


class TitleEncoder(nn.Module):
    """A pretrained transformer that reads titles.

    Args:
        model: a causal LM without its head, or a bidirectional encoder.
        tokenizer: of the model.
        max_tokens: of a title that are read.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.width: int = model.config.hidden_size

    def forward(self, titles: Sequence[str]) -> Tensor:
        """Vectors [T, H]: means over the tokens of each title, those that the tokenizer adds included."""
        rows = self._ids(titles)
        device = next(self.model.parameters()).device
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for n, row in enumerate(rows):
            ids[n, : len(row)] = torch.tensor(row)
            mask[n, : len(row)] = 1
        ids, mask = ids.to(device), mask.to(device)
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        return (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)

    @torch.no_grad()
    def encode(self, titles: Sequence[str], *, progress: bool = True) -> Tensor:
        """Vectors [T, H] of any number of titles, on the CPU, without dropout."""
        was_training = self.training
        self.eval()
        out = torch.empty(len(titles), self.width)
        order = longest_first(range(len(titles)), [len(t) for t in titles])
        batches = [order[n : n + _TITLES_AT_A_TIME] for n in range(0, len(order), _TITLES_AT_A_TIME)]
        for batch in track(batches, "encoding titles") if progress else batches:
            out[batch] = self([titles[i] for i in batch]).cpu()
        self.train(was_training)
        return out

    def _ids(self, titles: Sequence[str]) -> list[list[int]]:
        """Token ids of each title; a title without tokens is read as the token 0."""
        read = self.tokenizer(
            list(titles), truncation=True, max_length=self.max_tokens, split_special_tokens=True, padding=False
        )
        return [ids or [0] for ids in read["input_ids"]]


def load_encoder(name: str, max_tokens: int) -> TitleEncoder:
    """The encoder of that name (see `prefrec.lm.models.load_model`), in float32, on a GPU if there is one.

    Raises:
        ModelError: there is no such model, it cannot be read, or it is an encoder-decoder.
    """
    folder = resolve(name)
    try:
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, **SAFE)
    except (OSError, ValueError, RuntimeError, SafetensorError) as e:
        raise ModelError(f"no title encoder could be read from {folder!r}: {e}") from e
    if "decoder_input_ids" in signature(model.forward).parameters:
        raise ModelError(f"{name!r} is an encoder-decoder; titles are encoded by a causal LM or an encoder like BERT")
    return TitleEncoder(model, load_tokenizer(name), max_tokens).to(default_device())
