"""Inputs and outputs of a recipe's model: text by a template, or item-ID tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prefrec.data import Catalogue, PreparedData
from prefrec.errors import TemplateError
from prefrec.lm.items import ItemEncoder, ItemTable, centred, extend_items, item_table
from prefrec.lm.models import base_digest, load_tokenizer, resolve_dtype, vocabulary_size
from prefrec.prompts import PromptEncoder, item_texts, load_template
from prefrec.rankers.window import WindowCooccurrenceRanker
from prefrec.rankers.words import TFIDF, tfidf
from prefrec.runs.stage import stage_key
from prefrec.sections import ModelSection
from prefrec.towers.title_store import TitleStore

Encoder = PromptEncoder | ItemEncoder
TFIDF_SIZE = 256
"""Dimensions of TF-IDF title vectors after the SVD."""
COOCCURRENCE_LENGTH = 2.0
"""Length of a co-occurrence vector; title vectors have a mean length of 1."""
_TITLE_TOKENS = 64


def prompt_encoder(model: ModelSection, catalogue: Catalogue) -> Encoder:
    """Return the encoder that turns questions about items of a catalogue into tokens."""
    tokenizer = load_tokenizer(model.name)
    if model.answers == "titles":
        details = {title: text[len(title) :] for title, text in shown_items(model, catalogue).items()}
        return PromptEncoder(tokenizer, max_length=model.max_length, chat=model.chat, details=details)
    return ItemEncoder(catalogue, tokenizer, vocabulary_size(model.name), model.max_length)


def shown_items(model: ModelSection, catalogue: Catalogue) -> dict[str, str]:
    """Return title → text of each item by `model.item_text`; {} if it is not set.

    Raise TemplateError as `item_texts` does, and if with `answers: titles` a text does not begin with the title.
    """
    if model.item_text is None:
        return {}
    texts = dict(zip(catalogue.titles.values(), item_texts(model.item_text, catalogue.frame), strict=True))
    for title, text in texts.items() if model.answers == "titles" else ():
        # A history is also training text, in which each title is an answer to what precedes it.
        if not text.startswith(title):
            raise TemplateError(
                f"model.item_text: with `answers: titles` a text must begin with the title, but that of {title!r} is "
                f"{text!r}: write {{{{ title }}}} first"
            )
    return texts


def shows_candidates(model: ModelSection, domain: str) -> bool:
    """Return True if the model's prompt shows the candidates."""
    return model.answers == "titles" and load_template(model.templates[0], domain=domain).shows_candidates


def item_vectors(data: PreparedData, model: ModelSection) -> Tensor:
    """Return the initial vectors [I, T] of items: of titles, and of co-occurrence if `model.items` has it."""
    titles = title_vectors(data, model)
    if not model.items.cooccurrence:
        return titles
    return torch.cat([centred(titles, 1.0), COOCCURRENCE_LENGTH * _cooccurrence_vectors(data, model)], dim=1)


def _cooccurrence_vectors(data: PreparedData, model: ModelSection) -> Tensor:
    """Return unit vectors [I, K] of the items' window co-occurrence in training; zeros for new items."""
    fitted = WindowCooccurrenceRanker.fit(data.train_interactions)
    size = min(model.items.cooccurrence, len(fitted.index) - 1)
    from scipy.sparse.linalg import svds  # here, because it is slow to import

    left, sizes, _ = svds(fitted.similarity, k=size, random_state=0)
    known = F.normalize(torch.from_numpy(left * np.sqrt(sizes)).float(), dim=1)
    rows = data.catalogue.index
    out = torch.zeros(len(rows), size)
    out[[rows[item] for item in fitted.index]] = known[[*fitted.index.values()]]
    return out


def fit_items(model: Any, data: PreparedData, section: ModelSection) -> ItemTable | None:
    """Return a model's item table, extended to the items of the data; None for a model without item-ID tokens."""
    table = item_table(model)
    if table is not None and table.ids != data.catalogue.ids:
        # The SVD of TF-IDF is randomised, and a model must get the same vectors each time it is loaded.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            extend_items(table, data.catalogue.ids, item_vectors(data, section))
    return table


@lru_cache(maxsize=1)
def _encoded(name: str, digest: str, titles: tuple[str, ...], dtype: str) -> Tensor:
    # An update needs the vectors twice: for its training, and for the comparison with the earlier model.
    store = title_store(digest, dtype)
    known = store.read(titles)
    missing = list(dict.fromkeys(title for title in titles if title not in known))
    if missing:
        from prefrec.towers.title_encoder import load_encoder  # here, because transformers takes seconds to import

        vectors = load_encoder(name, _TITLE_TOKENS, dtype).encode(missing, keep=store.write)
        known |= zip(missing, vectors, strict=True)
    return torch.stack([known[title] for title in titles])


def title_store(digest: str, dtype: str) -> TitleStore:
    """Return the store of title vectors of the encoder with this digest and dtype."""
    return TitleStore(stage_key(encoder=digest, dtype=dtype, tokens=_TITLE_TOKENS))


def encoded_titles(data: PreparedData, model: ModelSection) -> tuple[str, list[str]]:
    """Return the name of the title encoder ("" for TF-IDF), and the texts of the items [I] that it reads."""
    texts = shown_items(model, data.catalogue)
    titles = [texts.get(title, title) for title in data.catalogue.titles.values()]
    names = {"base": model.name, "tfidf": ""}
    return names.get(model.items.vectors, model.items.vectors), titles


def title_vectors(data: PreparedData, model: ModelSection) -> Tensor:
    """Return vectors [I, T] of all items' titles, made as `model.items.vectors` says."""
    name, titles = encoded_titles(data, model)
    return text_vectors(name or TFIDF, titles, model.dtype)


def text_vectors(encoder: str, texts: Sequence[str], dtype: str) -> Tensor:
    """Return vectors [I, T] of texts by `TFIDF`, or by an encoder that computes in `dtype`."""
    if encoder != TFIDF:
        return _encoded(encoder, base_digest(encoder), tuple(texts), resolve_dtype(dtype))
    words = tfidf(texts)
    size = min(TFIDF_SIZE, *words.shape)
    left, sizes, _ = torch.svd_lowrank(torch.from_numpy(words.toarray()).float(), q=size, niter=4)
    return left * sizes
