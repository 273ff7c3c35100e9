"""A trained MoRec as a ranker: it scores every item that has a title, with training interactions or without."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from prefrec.data import Catalogue, RankingExample
from prefrec.errors import DataError, ModelError
from prefrec.rankers.rows import pad_codes
from prefrec.rankers.title_encoder import load_encoder
from prefrec_systems.morec.config import MoRecConfig
from prefrec_systems.morec.model import MoRecModel
from prefrec_systems.morec.titles import read_titles, title_vectors

MODEL_FILES = ("model.safetensors", "titles.safetensors", "model.json")
"""The files that `load_morec` reads, beside the folder `ENCODER` of a tuned encoder."""
ENCODER = "encoder"
SIZES = ("hidden_size", "inner_size", "n_layers", "n_heads", "dropout")
"""Fields of the configuration that the model takes."""

_ROWS_AT_A_TIME = 512


class MoRecRanker:
    """Scores items by MoRec.

    A history without items scores 0 everywhere: a tie, which evaluation breaks at random.

    Args:
        vectors: title vectors [I, H] of the catalogue's items, in its order.
    """

    def __init__(self, name: str, model: MoRecModel, vectors: Tensor, catalogue: Catalogue) -> None:
        self.name = name
        self.model = model.eval()
        self.catalogue = catalogue
        self._columns = {item: n for n, item in enumerate(catalogue.ids)}
        with torch.inference_mode():
            self._items = model.items(vectors.to(model.mean.device))

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return scores [B, C] of the candidates, -inf in empty places.

        Raises:
            DataError: an item is not in the catalogue.
        """
        codes = self._codes([e.candidates for e in examples])
        scores = np.full(codes.shape, -np.inf)
        for rows, known in self._scores(examples):
            scores[rows] = np.take_along_axis(known, codes[rows].clip(min=0), axis=1)
        return np.where(codes < 0, -np.inf, scores)

    def full_scores(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return scores [B, n_items] of the whole catalogue, in its order.

        Raises:
            DataError: an item of a history is not in the catalogue.
        """
        scores = np.empty((len(examples), len(self.catalogue)))
        for rows, known in self._scores(examples):
            scores[rows] = known
        return scores

    def _scores(self, examples: Sequence[RankingExample]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Yield slices of the rows, and the scores [b, n_items] of each."""
        histories = [e.history[-self.model.history_length :] for e in examples]
        codes, lengths = self._codes(histories), np.array([len(h) for h in histories])
        for start in range(0, len(examples), _ROWS_AT_A_TIME):
            rows = slice(start, start + _ROWS_AT_A_TIME)
            yield rows, last_scores(self.model, self._items, codes[rows], lengths[rows])

    def _codes(self, lists: Sequence[Sequence[str]]) -> NDArray[np.int64]:
        """Return the positions [B, L] of items in the catalogue, -1 in empty places."""
        codes = pad_codes(lists, self._columns)
        if (codes == len(self._columns)).any():
            unknown = next(i for items in lists for i in items if i not in self._columns)
            raise DataError(f"item {unknown!r} is not in the catalogue of {len(self.catalogue)} items")
        return codes


@torch.inference_mode()
def last_scores(
    model: MoRecModel, items: Tensor, codes: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return scores [B, I] of all items after the last item of each history.

    Args:
        model: in evaluation mode.
        items: item vectors [I, d].
        codes: histories [B, L], oldest first, as rows of `items`; -1 in empty places at the end.
        lengths: [B] of the histories; 0 gives a row of zeros.
    """
    if not codes.shape[1]:
        return np.zeros((len(codes), len(items)))
    histories = items[torch.from_numpy(codes.clip(min=0)).to(items.device)]
    last = torch.from_numpy(lengths.clip(min=1) - 1).to(items.device)
    states = model.states(histories)[torch.arange(len(codes), device=items.device), last]
    scores = (states @ items.T).double().cpu().numpy()
    return np.where(lengths[:, None] > 0, scores, 0.0)


def load_morec(folder: Path, catalogue: Catalogue, name: str | None = None) -> MoRecRanker:
    """Return the ranker that `train_morec` left in `folder`; without `name` it has that of its configuration.

    The encoder is loaded only if the catalogue holds titles that were absent in training.

    Raises:
        ModelError: the model is missing or damaged.
    """
    try:
        about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        config = MoRecConfig.model_validate(about["config"])
        model = MoRecModel(about["width"], about["history_length"], **{s: getattr(config, s) for s in SIZES})
        model.load_state_dict(load_file(folder / "model.safetensors"))
        known = read_titles(folder / "titles.safetensors")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as e:
        raise ModelError(f"{folder} holds no MoRec, or a damaged one: {e}; train it again") from e
    encoder = str(folder / ENCODER) if config.tune else config.encoder
    titles = catalogue.titles_of(catalogue.ids)
    vectors = title_vectors(titles, known, lambda: load_encoder(encoder, config.max_title_tokens))
    return MoRecRanker(name or config.name, model, vectors, catalogue)
