"""Encode titles as vectors: the mean of a pretrained model's last hidden states over the tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from inspect import signature

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from prefrec.console import quiet_libraries, say, track
from prefrec.errors import ModelError
from prefrec.lm.models import DTYPES, SAFE, default_device, in_one_line, load_tokenizer, resolve_dtype
from prefrec.lm.names import resolve
from prefrec.training.sampler import longest_first

_TITLES_AT_A_TIME = 128
KEEP_EVERY_S = 20.0
Keep = Callable[[Sequence[str], Tensor], object]
"""Function that stores titles and their vectors [T, H]."""


class TitleEncoder(nn.Module):
    """A causal LM without its head, or a bidirectional encoder, which reads at most `max_tokens` of a title."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.width: int = model.config.hidden_size

    def forward(self, titles: Sequence[str]) -> Tensor:
        """Return vectors [T, H]: means over the tokens of each title, including those that the tokenizer adds."""
        read = self.tokenizer(
            list(titles), truncation=True, max_length=self.max_tokens, split_special_tokens=True, padding=False
        )
        # A title without tokens is read as token 0, because some tokenizers have no padding token.
        rows = [torch.tensor(ids or [0]) for ids in read["input_ids"]]
        device = next(self.model.parameters()).device
        ids = pad_sequence(rows, batch_first=True).to(device)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(device)
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        return (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)

    @torch.no_grad()
    def encode(self, titles: Sequence[str], *, progress: bool = True, keep: Keep | None = None) -> Tensor:
        """Return vectors [T, H] of any number of titles, on the CPU, without dropout.

        Args:
            keep: stores titles and their vectors. It is called every `KEEP_EVERY_S` seconds, and at the end, even
                after an error.
        """
        was_training = self.training
        self.eval()
        out = torch.empty(len(titles), self.width)
        order = longest_first(range(len(titles)), [len(t) for t in titles])
        batches = [order[n : n + _TITLES_AT_A_TIME] for n in range(0, len(order), _TITLES_AT_A_TIME)]
        # A batch is padded to its longest title.
        sizes = [len(batch) * max(len(titles[i]) for i in batch) for batch in batches]
        if progress:
            say(f"encoding {len(titles):,} titles")
        fresh, kept_at = list[int](), time.monotonic()
        try:
            for batch in track(batches, "encoding titles", sizes=sizes) if progress else batches:
                out[batch] = self([titles[i] for i in batch]).cpu()
                fresh += batch
                if keep and time.monotonic() - kept_at > KEEP_EVERY_S:
                    keep([titles[i] for i in fresh], out[fresh])
                    fresh, kept_at = [], time.monotonic()
        finally:
            if keep and fresh:
                keep([titles[i] for i in fresh], out[fresh])
        self.train(was_training)
        return out


@quiet_libraries()
def load_encoder(name: str, max_tokens: int, dtype: str = "float32") -> TitleEncoder:
    """Return a title encoder, on a GPU if there is one.

    Args:
        name: embedded model, local folder or Hugging Face id.
        max_tokens: tokens to read of a title.

    Raises:
        ModelError: the model does not exist, cannot be read, or is an encoder-decoder.
    """
    folder = resolve(name)
    with in_one_line(f"the title encoder in {folder!r} cannot be read"):
        model = AutoModel.from_pretrained(folder, dtype=DTYPES[resolve_dtype(dtype)], **SAFE)
    if "decoder_input_ids" in signature(model.forward).parameters:
        raise ModelError(f"{name!r} is an encoder-decoder; choose a causal LM or an encoder such as BERT for titles")
    return TitleEncoder(model, load_tokenizer(name), max_tokens).to(default_device())
