"""Item tokens of LLaRA: an input embedding of words and of projected item vectors.

In LLaRA's hybrid prompts some positions are items. Item i has the token id V + i, beyond the vocabulary of size V. A
wrapper around the model's embedding looks up words and projects items. Packing, masks, scoring, trainers, the
reference pass and generation therefore handle hybrid prompts like others, and the model treats both kinds of
embeddings alike.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from prefrec.errors import ConfigError, ModelError
from prefrec.files import write_whole
from prefrec.lm.scoring import language_model
from prefrec_systems.sequential import SequentialRanker

PROJECTOR_FILE = "projector.safetensors"
"""File beside the adapter's weights with item vectors, projector, and the item ids in its metadata."""


@dataclass(frozen=True, eq=False)
class ItemVectors:
    """The item vectors of a sequential recommender.

    Attributes:
        ids: [I] ids of the items.
        table: [I, d] vectors in float32.
    """

    ids: tuple[str, ...]
    table: Tensor


def vectors_of(ranker: SequentialRanker) -> ItemVectors:
    """Return the item vectors of a trained sequential recommender."""
    return ItemVectors(ranker.ids, ranker.vectors.detach().float().clone())


class Projector(nn.Module):
    """A two-layer perceptron from item vectors [n, d] to the input space of a language model, [n, H]."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(size, width)
        self.outer = nn.Linear(width, width)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.outer(nn.functional.gelu(self.inner(vectors)))


class HybridEmbedding(nn.Module):
    """Input embeddings: words (id < V) from the model's table, items (id V + i) by projection.

    Args:
        words: the model's input embedding.
        items: item vectors, which are not trained.
    """

    items: Tensor

    def __init__(self, words: Any, items: ItemVectors) -> None:
        super().__init__()
        self.words = words
        self.ids = items.ids
        vocabulary, width = words.weight.shape
        self.first_item: int = vocabulary
        self.register_buffer("items", items.table)
        self.projector = Projector(items.table.shape[1], width)

    @property
    def weight(self) -> Tensor:
        """The table of words [V, H], as in the model's own embedding."""
        return self.words.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        is_item = input_ids >= self.first_item
        out: Tensor = self.words(input_ids.masked_fill(is_item, 0))
        projected = self.projector(self.items[input_ids[is_item] - self.first_item])
        return out.masked_scatter(is_item[..., None], projected.to(out.dtype))


def add_items(model: nn.Module, items: ItemVectors, *, trainable: bool = True) -> HybridEmbedding:
    """Add item tokens to a model in place, with a random projector.

    Args:
        model: a causal LM, or a PEFT model around one. Add adapters first, because PEFT would freeze or adapt the
            projector.
        items: item vectors.
        trainable: whether to train the projector.

    Raises:
        ConfigError: an adapter changes the input embedding, which therefore cannot be wrapped.
    """
    core = language_model(model)
    words = core.get_input_embeddings()
    if isinstance(words, BaseTunerLayer):
        raise ConfigError(
            "the adapter changes the input embedding, which LLaRA needs for item vectors: remove it from lora.targets"
        )
    embedding = HybridEmbedding(words, items).to(words.weight.device).train(model.training)
    embedding.projector.requires_grad_(trainable)
    core.set_input_embeddings(embedding)
    return embedding


def embedding_of(model: nn.Module) -> HybridEmbedding:
    """Return the embedding that `add_items` put into a model.

    Raises:
        ModelError: the model has no item tokens.
    """
    embedding = language_model(model).get_input_embeddings()
    if not isinstance(embedding, HybridEmbedding):
        raise ModelError("the model has no item tokens: load it with load_llara_model, or call add_items")
    return embedding


def save_projector(model: nn.Module, folder: Path) -> None:
    """Write the item vectors and the projector of a model to `PROJECTOR_FILE` in `folder`."""
    embedding = embedding_of(model)
    tensors = {
        name: tensor.detach().float().cpu().contiguous()
        for name, tensor in embedding.state_dict().items()
        if not name.startswith("words.")
    }
    metadata = {"items": json.dumps(embedding.ids)}
    write_whole(folder / PROJECTOR_FILE, lambda p: save_file(tensors, p, metadata=metadata))


def load_projector(model: nn.Module, folder: Path, *, trainable: bool = False) -> HybridEmbedding:
    """Load items and projector from `folder` into a model, and replace any that it has.

    Raises:
        ModelError: the projector is missing, damaged, or made for another language model.
    """
    path = folder / PROJECTOR_FILE
    if not path.is_file():
        raise ModelError(f"no projector in {folder}: expected a LLaRA adapter's folder with {PROJECTOR_FILE}")
    try:
        with safe_open(path, framework="pt") as f:
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (no mapping)
            items = ItemVectors(tuple(json.loads((f.metadata() or {})["items"])), tensors.pop("items"))
        core = language_model(model)
        has_items = isinstance(core.get_input_embeddings(), HybridEmbedding)
        embedding = embedding_of(model) if has_items else add_items(model, items, trainable=trainable)
        embedding.projector.load_state_dict({n.removeprefix("projector."): t for n, t in tensors.items()})
    except (SafetensorError, KeyError, ValueError, RuntimeError) as e:
        if isinstance(e, (ConfigError, ModelError)):
            raise
        raise ModelError(f"the projector in {path} is damaged, or made for another language model: {e}") from e
    return embedding
