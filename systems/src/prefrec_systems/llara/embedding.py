"""Items as tokens: an input embedding that knows the words of a model and, beyond them, projected item vectors.

LLaRA's hybrid prompts hold places whose input embedding is not a word's but that of an item. Here such a place is a
token id beyond the model's vocabulary, id = V + i for item i, and the model's own embedding is wrapped by one that
looks words up and projects items. So a hybrid prompt is a prompt like every other: packing, masks, scoring, trainers,
the reference pass and generation take it as it is, in every layout, and what the model does to embeddings after
looking them up happens to items too.
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
"""Beside the adapter's weights: item vectors, projector, and the ids of the items in the metadata."""


@dataclass(frozen=True)
class ItemVectors:
    """What a sequential recommender learned of each item.

    Attributes:
        ids: of I items.
        table: float32 [I, d], a row an item.
    """

    ids: tuple[str, ...]
    table: Tensor


def vectors_of(ranker: SequentialRanker) -> ItemVectors:
    """The item embeddings of a trained sequential recommender, for the items that it knows."""
    table = ranker.model.item_embedding.weight.detach()
    ids = tuple(ranker.vocabulary.items)
    return ItemVectors(ids, table[1 : len(ids) + 1].float().clone())  # row 0 is padding


class Projector(nn.Module):
    """A perceptron of two layers from item vectors [n, d] into a language model's input space, [n, H]."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(size, width)
        self.outer = nn.Linear(width, width)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.outer(nn.functional.gelu(self.inner(vectors)))


class HybridEmbedding(nn.Module):
    """Input embeddings of token ids: of words (id < V) by the model's own table, of items (V + i) by projection.

    Args:
        words: the model's own input embedding.
        items: vectors of the items, which are not trained.
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
        """The table of the words [V, H], which a model's own embedding shows too."""
        return self.words.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        is_item = input_ids >= self.first_item
        out: Tensor = self.words(input_ids.masked_fill(is_item, 0))
        projected = self.projector(self.items[input_ids[is_item] - self.first_item])
        return out.masked_scatter(is_item[..., None], projected.to(out.dtype))


def add_items(model: nn.Module, items: ItemVectors, *, trainable: bool = True) -> HybridEmbedding:
    """Teach a model the items' token ids, in place; the projector starts at random.

    Args:
        model: a causal language model, or a PEFT model around one (adapters come first: PEFT would freeze, or
            adapt, the projector).
        items: their vectors.
        trainable: the projector is to be trained.

    Raises:
        ConfigError: the adapter adapts the input embedding, which can not be wrapped then.
    """
    core = language_model(model)
    words = core.get_input_embeddings()
    if isinstance(words, BaseTunerLayer):
        raise ConfigError("LLaRA puts item vectors into the input embedding: take it out of lora.targets")
    embedding = HybridEmbedding(words, items).to(words.weight.device).train(model.training)
    embedding.projector.requires_grad_(trainable)
    core.set_input_embeddings(embedding)
    return embedding


def embedding_of(model: nn.Module) -> HybridEmbedding:
    """The embedding that `add_items` put into a model.

    Raises:
        ModelError: the model knows no items.
    """
    found = language_model(model).get_input_embeddings()
    if not isinstance(found, HybridEmbedding):
        raise ModelError("the model knows no items: load it by load_llara_model, or call add_items")
    return found


def save_projector(model: nn.Module, folder: Path) -> None:
    """Write item vectors and projector of a model to `PROJECTOR_FILE` in `folder`."""
    embedding = embedding_of(model)
    tensors = {
        name: tensor.detach().float().cpu().contiguous()
        for name, tensor in embedding.state_dict().items()
        if not name.startswith("words.")
    }
    about = {"items": json.dumps(embedding.ids)}
    write_whole(folder / PROJECTOR_FILE, lambda p: save_file(tensors, p, metadata=about))


def load_projector(model: nn.Module, folder: Path, *, trainable: bool = False) -> HybridEmbedding:
    """Items and projector from `folder`, put into a model that knows none, or over those that it knows.

    Raises:
        ModelError: there is no projector, a damaged one, or one for another language model.
    """
    path = folder / PROJECTOR_FILE
    if not path.is_file():
        raise ModelError(f"no projector in {folder}: expected a LLaRA adapter's folder with {PROJECTOR_FILE}")
    try:
        with safe_open(path, framework="pt") as f:
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (no mapping)
            items = ItemVectors(tuple(json.loads((f.metadata() or {})["items"])), tensors.pop("items"))
        core = language_model(model)
        known = isinstance(core.get_input_embeddings(), HybridEmbedding)
        embedding = embedding_of(model) if known else add_items(model, items, trainable=trainable)
        embedding.projector.load_state_dict({n.removeprefix("projector."): t for n, t in tensors.items()})
    except (SafetensorError, KeyError, ValueError, RuntimeError) as e:
        if isinstance(e, (ConfigError, ModelError)):
            raise
        raise ModelError(f"the projector in {path} is damaged, or of another language model: {e}") from e
    return embedding
