"""Item-ID tokens: one additional token per item, with a vector that is used for both input and output.

An item's vector is a projection of its title vector plus a per-item vector:

    v_i = W·t_i + keep·e_i        logit_i = (P·hidden)·v_i + b_i

In training, `keep` is 0 for a random fraction of the items, drawn anew each time that vectors are computed, so the
model learns to rank new items by their titles. Item i is token V + i for a vocabulary of V words. A history is
therefore a prompt, and an item is an answer of one token; packing, scoring, losses and trainers work as with words.
Related methods are E4SRec (arXiv 2312.02443) and LLaRA (2312.02445).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prefrec.cpu.linear import product, use_onednn
from prefrec.cpu.rows import take_rows
from prefrec.data import Catalogue
from prefrec.errors import DataError, TokenizerError
from prefrec.files import read_whole
from prefrec.lm.head import replaced_head
from prefrec.lm.models import DTYPES, check_size, in_one_line, read_config, resolve_dtype
from prefrec.prompts import ChoiceSet, PromptEncoder, Trajectory
from prefrec.prompts.encoding import TOKENIZING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ITEMS_FILE = "items.json"
"""File of item ids, in the folder of a model with item-ID tokens."""
_WEIGHTS_FILE = "model.safetensors"


class ItemTable(nn.Module):
    """The vectors of I items.

    Args:
        ids: item ids.
        titles: [I, T] title vectors, which are not trained.
        width: hidden size D of the language model.
        vector_dropout: probability of dropping an item's own vector in training (title-only dropout), drawn anew each
            time that vectors are computed.
        dropout: dropout probability on input vectors, and on hidden states before the output vectors.
    """

    titles: Tensor

    def __init__(
        self, ids: Sequence[str], titles: Tensor, width: int, *, vector_dropout: float = 0.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.ids = list(ids)
        self.register_buffer("titles", titles)
        self.project = nn.Linear(titles.shape[1], width, bias=False)
        self.own = nn.Parameter(torch.zeros(len(titles), width))
        self.predict = nn.Linear(width, width, bias=False)
        self.bias = nn.Parameter(torch.zeros(len(titles)))
        self.vector_dropout = vector_dropout
        self.dropout = nn.Dropout(dropout)
        self._kept: dict[torch.dtype, tuple[Any, Tensor]] = {}

    def train(self, mode: bool = True) -> Self:
        # A fused optimiser does not count its changes of the weights, so `_fixed_vectors` would not see them.
        self._kept = {} if mode else self._kept
        return super().train(mode)

    def vectors_in(self, items: Tensor) -> Tensor:
        """Return the input vectors [..., D] of items."""
        return self.dropout(self._vectors(items))

    def logits(self, hidden: Tensor, items: Tensor) -> Tensor:
        """Return the logits [..., n] of `items` [n] after hidden states [..., D], in float32."""
        # Input and output share the vectors: what the model learns about an item in histories helps to predict it.
        states = self.predict(self.dropout(hidden.float()))
        if states.numel() >= states.shape[-1] ** 2 or not torch.is_grad_enabled():
            return product(states, self._vectors(items), self.bias[items])
        # With few states, it is cheaper to project them than to project every title. The logits are the same, because
        # h · (P t + o) = (Pᵀ h) · t + h · o. Selecting columns of logits is also cheaper than selecting vectors.
        by_own = product(states, self._own(), self.bias)
        return (by_own + product(states @ self.project.weight, self.titles)).index_select(-1, items)

    def _own(self) -> Tensor:
        if not (self.training and self.vector_dropout):
            return self.own
        return self.own * (torch.rand(len(self.own), 1, device=self.own.device) >= self.vector_dropout)

    def _vectors(self, items: Tensor) -> Tensor:
        if not (self.training or torch.is_grad_enabled()):
            fixed = self._fixed_vectors()
            # Copying all vectors would cost more than multiplying by them.
            is_all = items.shape == fixed.shape[:1] and torch.equal(
                items, torch.arange(len(fixed), device=items.device)
            )
            return fixed if is_all else fixed[items]
        return cast(Tensor, self.project(self.titles[items]) + take_rows(self._own(), items))

    def _fixed_vectors(self) -> Tensor:
        """Return all vectors [I, D], recomputed only if the weights have changed; for each dtype of autocast."""
        # Projecting all titles costs more than the layers' pass over one history.
        weight, own = self.project.weight, self.own
        kind = own.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else own.dtype
        state = (weight.data_ptr(), weight._version, own.data_ptr(), own._version)
        kept = self._kept.get(dtype)
        if kept is None or kept[0] != state:
            # Also bound to a local name, because another thread may change the weights meanwhile.
            vectors = self.project(self.titles) + own if self.titles.shape[1] else own.detach()
            kept = self._kept[dtype] = state, vectors
        return kept[1]

    @torch.no_grad()
    def merge_titles(self) -> None:
        """Merge the projected titles into the per-item vectors: a third of the memory, but no further training."""
        for vectors, titles in zip(self.own.split(1 << 14), self.titles.split(1 << 14), strict=True):
            vectors += self.project(titles)
        self.titles = self.titles[:, :0].clone()
        self.project.weight = nn.Parameter(self.project.weight[:, :0].clone())


class ItemEmbedding(nn.Module):
    """The input embedding of a model with words (ids below V) and items (ids V + i)."""

    def __init__(self, words: nn.Module, table: ItemTable) -> None:
        super().__init__()
        self.words: Any = words
        self.table = table

    @property
    def weight(self) -> Tensor:
        """The words' vectors [V, D], as in a plain embedding."""
        return self.words.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        first = len(self.words.weight)
        is_item = input_ids >= first
        # Item ids are outside the table of words. They look up word 0, and the result is then overwritten.
        out: Tensor = self.words(input_ids.masked_fill(is_item, 0))
        vectors = self.table.vectors_in(input_ids[is_item] - first)
        return out.masked_scatter(is_item[..., None], vectors.to(out.dtype))


class ItemHead(nn.Module):
    """The head of a model with item-ID tokens: logits of words, then of items, with the embedding's weights."""

    bias = None

    def __init__(self, embedding: ItemEmbedding) -> None:
        super().__init__()
        self._embedding = (embedding,)  # the tuple hides it from torch, which would save the weights twice

    @property
    def weight(self) -> Tensor:
        """The words' vectors [V, D]."""
        return self._embedding[0].weight

    def forward(self, hidden: Tensor) -> Tensor:
        table = self._embedding[0].table
        items = torch.arange(len(table.titles), device=hidden.device)
        words = F.linear(hidden, self.weight.to(hidden.dtype))
        return torch.cat([words.float(), table.logits(hidden, items)], dim=-1)

    def logits_of(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits [..., n] of items, given as token ids [n]."""
        return self._embedding[0].table.logits(hidden, tokens - len(self.weight))


def add_items(model: Any, ids: Sequence[str], titles: Tensor, **settings: float) -> ItemTable:
    """Add item-ID tokens to a model in place, and freeze its word vectors.

    Args:
        model: a causal language model of transformers.
        titles: [I, T] title vectors.
        **settings: dropout settings of `ItemTable`.
    """
    words, length = model.get_input_embeddings(), math.sqrt(titles.shape[1])
    table = ItemTable(ids, centred(titles, length).float(), words.weight.shape[1], **settings)
    # Items start at the scale of word vectors, on which the layers were trained.
    nn.init.normal_(table.project.weight, std=float(words.weight.detach().std()) * (1 / length))
    nn.init.normal_(table.predict.weight, std=0.002)
    words.requires_grad_(False)
    embedding = ItemEmbedding(words, table)
    model.set_input_embeddings(embedding)
    model.set_output_embeddings(ItemHead(embedding))
    model.config.tie_word_embeddings = False
    return table


def centred(vectors: Tensor, length: float) -> Tensor:
    """Centre vectors [I, T] at their mean, and scale them to a mean norm of `length`."""
    # Encoders place all texts in a narrow cone. After centring and scaling, titles differ more than they agree.
    spread = vectors - vectors.mean(dim=0)
    return spread * (length / spread.norm(dim=1).mean().clamp_min(1e-12))


def extend_items(table: ItemTable, ids: Sequence[str], vectors: Tensor) -> None:
    """Replace a table's items by `ids`, in this order: known items keep what they learnt, new ones have their titles.

    Ridge regression on the known items maps `vectors` to the table's title vectors, because a basis that depends on
    all titles (`tfidf`, co-occurrence) rotates when titles are added.

    Args:
        ids: all items.
        vectors: [I, V] vectors of all items, of the same kind as the table's title vectors.
    """
    rows = {item: i for i, item in enumerate(table.ids)}
    old = torch.tensor([rows.get(i, -1) for i in ids], device=table.own.device)
    known = old >= 0
    basis = F.pad(centred(vectors.to(table.titles), math.sqrt(vectors.shape[1])), (0, 1), value=1.0)
    gram = basis[known].T @ basis[known] + 1e-3 * known.sum() * torch.eye(basis.shape[1], device=basis.device)
    titles = basis @ torch.linalg.solve(gram, basis[known].T @ table.titles[old[known]])

    def grown(before: Tensor, start: Tensor) -> Tensor:
        return start.index_put((known,), before.detach()[old[known]])

    table.ids, table._kept = list(ids), {}
    table.titles = grown(table.titles, titles)
    table.own = nn.Parameter(grown(table.own, table.own.new_zeros(len(ids), table.own.shape[1])))
    table.bias = nn.Parameter(grown(table.bias, table.bias.new_zeros(len(ids))))


def item_table(model: Any) -> ItemTable | None:
    """Return the item table of a transformers model, or None if the model has only words."""
    embedding = model.get_input_embeddings()
    return embedding.table if isinstance(embedding, ItemEmbedding) else None


def cast_layers(model: Any, dtype: str) -> None:
    """Cast the layers of a transformers model to `dtype`, a name as for `load_model`. Items stay in float32."""
    model.to(DTYPES[resolve_dtype(dtype)])
    if (table := item_table(model)) is not None:
        table.float()


@torch.no_grad()
def next_item_logps(model: Any, histories: Sequence[Sequence[int]]) -> Tensor:
    """Return the log-probabilities [B, I] of all items after B histories, in float32, with one call of the model.

    A history that is the beginning of another one is read together with it. In 16 bits, rounding depends on a call's
    length, so histories should share a call only if their `padded_length` is the same.

    Args:
        model: a model with item-ID tokens.
        histories: token ids of B histories.
    """
    table = item_table(model)
    assert table is not None
    device, head = table.bias.device, model.get_output_embeddings()
    texts = [tuple(history) for history in histories]
    read: list[tuple[int, ...]] = []
    rows = [0] * len(texts)
    # In descending lexical order, a history comes right after those that begin with it.
    for i in sorted(range(len(texts)), key=texts.__getitem__, reverse=True):
        if not read or read[-1][: len(texts[i])] != texts[i]:
            read.append(texts[i])
        rows[i] = len(read) - 1
    ends = torch.tensor([rows, [len(history) - 1 for history in histories]], device=device)
    # Padding is on the right, where no earlier token attends to it. So the model needs no mask.
    length = max(map(padded_length, histories))
    ids = torch.tensor([[*history, *[0] * (length - len(history))] for history in read], device=device)

    def at_ends(hidden: Tensor) -> Tensor:
        with torch.autocast(device.type, enabled=False):
            last = table.predict(hidden[ends[0], ends[1]].float())
            return product(last, table._fixed_vectors()).add_(table.bias)[:, None]

    with replaced_head(head, at_ends):
        logits: Tensor = model(input_ids=ids, use_cache=False).logits[:, 0]
    return logits.sub_(logits.logsumexp(dim=1, keepdim=True))


def padded_length(history: Sequence[int]) -> int:
    """Return the number of tokens that `next_item_logps` reads for a history, a multiple of 16."""
    return len(history) + -len(history) % 16


def save_item_model(model: Any, folder: Path) -> None:
    """Write a model with item-ID tokens, and the item ids, to `folder`."""
    table = item_table(model)
    assert table is not None
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(str(folder))
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / _WEIGHTS_FILE)
    (folder / ITEMS_FILE).write_text(json.dumps(table.ids), encoding="utf-8")


def load_item_model(folder: Path, *, dtype: str = "auto") -> Any:
    """Load a model written by `save_item_model`, in evaluation mode; raise ModelError if it is damaged.

    `dtype` applies to the layers. Items stay in float32.
    """
    from transformers import AutoModelForCausalLM

    with in_one_line(f"{folder}: the model with item-ID tokens cannot be read"):
        ids = json.loads(read_whole(folder / ITEMS_FILE))
        config = read_config(str(folder))
        check_size(folder, config)
        if not (folder / _WEIGHTS_FILE).is_file():
            raise FileNotFoundError(f"no file {_WEIGHTS_FILE}")
        state = load_file(folder / _WEIGHTS_FILE)
        model = AutoModelForCausalLM.from_config(config)
        titles = next(tensor for name, tensor in state.items() if name.endswith("table.titles"))
        add_items(model, ids, titles)
        model.load_state_dict(state)
    cast_layers(model, dtype)
    use_onednn(model)
    return model.eval()


class ItemEncoder(PromptEncoder):
    """An encoder of histories and answers into `ChoiceSet`s of item-ID tokens.

    Items are given by their titles; templates and candidates are ignored. Raise DataError if two items share a title,
    or a title is not in the catalogue.

    Args:
        catalogue: all items, in the order of their tokens.
        tokenizer: the model's tokenizer. Its BOS token starts every history, and its EOS token closes every answer.
        first: token id of the first item, which is the size of the model's vocabulary.
        max_length: maximum number of tokens of a history with its answer. Default: no limit.
    """

    def __init__(
        self, catalogue: Catalogue, tokenizer: PreTrainedTokenizerBase, first: int, max_length: int | None = None
    ) -> None:
        super().__init__(tokenizer, max_length=max_length)
        self._tokens = {title: first + i for i, title in enumerate(catalogue.titles.values())}
        if len(self._tokens) < len(catalogue):
            raise DataError(
                "two items of the catalogue share a title, but item-ID tokens need unique titles; prepare the data "
                "with --duplicate-titles merge or number (`duplicate_titles` in a recipe)"
            )
        self.begin: int = self.end if tokenizer.bos_token_id is None else tokenizer.bos_token_id

    def fit(
        self, template: Any, history: Sequence[str], candidates: Sequence[str], answers: Sequence[str]
    ) -> tuple[ChoiceSet, int]:
        """Return the choice set of a history, and the number of oldest items dropped because it is too long."""
        room = len(history) if self.max_length is None else self.max_length - 3  # begin, answer, end
        dropped = max(0, len(history) - room)
        with TOKENIZING:
            self.shortened += dropped > 0
        prompt = (self.begin, *map(self._token, history[dropped:]))
        return ChoiceSet(prompt, self.answers_after("", answers)), dropped

    def encode_text(self, prompt: Any, answers: Sequence[str]) -> ChoiceSet:
        """Raise TokenizerError, because item-ID tokens cannot encode text."""
        raise TokenizerError("a model with item-ID tokens reads histories of items, not text")

    def answers_after(self, text: str, answers: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Return the two tokens of each answer, which do not depend on the text before it."""
        return tuple((self._token(a), self.end) for a in answers)

    def _token(self, title: str) -> int:
        if title not in self._tokens:
            raise DataError(f"title {title!r} is not in the catalogue, and the model knows only its items")
        return self._tokens[title]


class ItemTrajectoryEncoder:
    """An encoder of histories into `Trajectory`s of item-ID tokens; the counterpart of `TrajectoryEncoder`."""

    def __init__(self, encoder: ItemEncoder) -> None:
        self.encoder = encoder

    def encode(self, titles: Sequence[str]) -> Trajectory:
        """Encode the titles of a history, oldest first."""
        return Trajectory((self.encoder.begin,), (), (), self.encoder.answers_after("", titles))

    def answers(self, titles: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the tokens of titles."""
        return list(self.encoder.answers_after("", titles))
