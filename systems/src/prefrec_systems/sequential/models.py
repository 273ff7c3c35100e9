"""Models of the next item after a history: SASRec, GRU4Rec and Caser."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefrec.cpu.rows import take_rows
from prefrec_systems.sequential.batches import Batch
from prefrec_systems.sequential.config import NextItemSection, SequentialConfig
from prefrec_systems.sequential.softmax import softmax_loss

Module = TypeVar("Module", bound=nn.Module)
STD = 0.02
"""Standard deviation of initial item and position vectors, as in SASRec. With more, the softmax is overconfident."""


class NextItemModel(Protocol):
    """A module that can be trained and scored here. Items are codes from 0 to I − 1."""

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean loss over the targets of a batch."""
        ...

    def all_items(self) -> Tensor:
        """Return the item vectors [I, d]."""
        ...

    def states(self, histories: Tensor) -> Tensor:
        """Return the expected next vector [B, T, d] after each item of histories [B, T, d], oldest first."""
        ...


class Transformer(nn.Module):
    """The blocks of SASRec (Kang and McAuley 2018), with a vector for each position.

    As in the other layers, an item does not see later ones, so that short histories can be padded at the end.
    """

    def __init__(self, config: NextItemSection, history_length: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.positions = nn.Embedding(history_length, width)
        nn.init.normal_(self.positions.weight, std=STD)
        self.dropout = nn.Dropout(config.dropout)
        block = nn.TransformerEncoderLayer(
            width,
            config.n_heads,
            config.inner_size,
            config.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(block, config.n_layers, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, histories: Tensor) -> Tensor:
        length = histories.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=histories.device)
        return self.blocks(self.dropout(histories + self.positions.weight[:length]), mask=mask, is_causal=True)


class Recurrent(nn.Module):
    """The gated recurrent units of GRU4Rec (Hidasi et al. 2016), twice as wide as the item vectors."""

    def __init__(self, config: NextItemSection) -> None:
        super().__init__()
        width, between = config.hidden_size, config.dropout if config.n_layers > 1 else 0.0
        self.dropout = nn.Dropout(config.dropout)
        self.gru = nn.GRU(width, 2 * width, config.n_layers, batch_first=True, dropout=between)
        self.project = nn.Linear(2 * width, width)

    def forward(self, histories: Tensor) -> Tensor:
        return self.project(self.gru(self.dropout(histories))[0])


class Convolutions(nn.Module):
    """The filters of Caser (Tang and Wang 2018) over the latest items at each position, without user vectors."""

    WIDE, TALL = 16, 4
    """Number of horizontal filters per height, and of vertical filters."""

    def __init__(self, config: SequentialConfig) -> None:
        super().__init__()
        width, self.window = config.hidden_size, config.window
        self.wide = nn.ModuleList(nn.Conv1d(width, self.WIDE, height) for height in range(1, self.window + 1))
        self.tall = nn.Linear(self.window, self.TALL, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.project = nn.Linear(self.WIDE * self.window + self.TALL * width, width)

    def forward(self, histories: Tensor) -> Tensor:
        images = F.pad(histories, (0, 0, self.window - 1, 0)).unfold(1, self.window, 1)  # [B, T, d, window]
        flat = images.flatten(0, 1)
        seen = [conv(flat).relu().amax(dim=-1) for conv in self.wide]
        state = self.project(self.dropout(torch.cat([*seen, self.tall(flat).flatten(1)], dim=-1)))
        return state.view(*histories.shape)


class SequentialModel(nn.Module):
    """Learnt item vectors, and the layers of the configured architecture; scores are inner products.

    Args:
        config: settings of the model.
        items: I, the number of items.
        history_length: most items of a history.
    """

    def __init__(self, config: SequentialConfig, items: int, history_length: int) -> None:
        super().__init__()
        self.table = nn.Embedding(items, config.hidden_size)
        nn.init.normal_(self.table.weight, std=STD)
        layers = {
            "SASRec": lambda: Transformer(config, history_length),
            "GRU4Rec": lambda: Recurrent(config),
            "Caser": lambda: Convolutions(config),
        }
        self.layers = layers[config.model]()
        self.negatives, self.logq = config.negatives, config.logq

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean over the targets of −log softmax(target), among all items or sampled ones."""
        if self.negatives is None:
            return full_softmax_loss(self, self.table.weight, batch)
        return sampled_softmax_loss(self, self.table.weight, batch, self.negatives, logq=self.logq)

    def all_items(self) -> Tensor:
        """Return the item vectors [I, d]."""
        return self.table.weight

    def states(self, histories: Tensor) -> Tensor:
        """Return the expected next vector [B, T, d] after each item of histories [B, T, d], oldest first."""
        return cast(Tensor, self.layers(histories))


def with_weights(make: Callable[[], Module], layers: int, weights: Mapping[str, Tensor]) -> Module:
    """Return the module that `make` builds, with these weights; raise ValueError if they do not fit.

    `layers` is the number of layers in its settings. No module is built that needs more memory than the weights.
    """
    if layers > len(weights):
        raise ValueError(f"{layers} layers, but {len(weights)} weights")
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in make().state_dict().items()}
    if expected != {name: tensor.shape for name, tensor in weights.items()}:
        raise ValueError("the weights do not fit the settings")
    module = make()
    module.load_state_dict(weights)
    return module


def full_softmax_loss(model: NextItemModel, items: Tensor, batch: Batch) -> Tensor:
    """Return the mean over the targets of −log softmax(target) among all items.

    Args:
        model: the model.
        items: [I, d] item vectors by code.
        batch: inputs and targets as codes.
    """
    states = model.states(take_rows(items, batch.inputs))[batch.mask]
    return softmax_loss(states, items, batch.targets[batch.mask])


def sampled_softmax_loss(
    model: NextItemModel, items: Tensor, batch: Batch, negatives: int, *, logq: bool = True
) -> Tensor:
    """Return the mean over the targets of −log softmax(target) among the target and sampled items.

    Negatives are sampled per piece, uniformly with replacement. Samples that equal the target do not count.

    Args:
        model: the model.
        items: [I, d] item vectors by code.
        batch: inputs and targets as codes.
        negatives: K, number of samples per piece.
        logq: whether log(I / K) is added to the scores of samples, since each represents I / K items. It makes the
            sum of exponentials unbiased (logQ correction; Bengio and Senécal 2008). Without it, as in RecTools and
            eSASRec, a target that the model already prefers to K items has little weight.
    """
    drawn = torch.randint(len(items), (len(batch.inputs), negatives), device=items.device)
    states = model.states(take_rows(items, batch.inputs))
    target = (states * take_rows(items, batch.targets)).sum(dim=-1, keepdim=True)
    correction = math.log(len(items) / negatives) if logq else 0.0
    others = states @ take_rows(items, drawn).transpose(1, 2) + correction  # [B, T, K]
    others = others.masked_fill(drawn[:, None] == batch.targets[..., None], -torch.inf)
    logits = torch.cat([target, others], dim=-1)[batch.mask]
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
