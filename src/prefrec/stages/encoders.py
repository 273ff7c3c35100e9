"""Inputs and outputs of a recipe's model: text by a template, or item-ID tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prefrec.data import Catalogue, PreparedData
from prefrec.lm.items import ItemEncoder, ItemTable, centred, extend_items, item_table
from prefrec.lm.models import load_tokenizer, vocabulary_size
from prefrec.prompts import PromptEncoder
from prefrec.rankers.window import WindowCooccurrenceRanker
from prefrec.rankers.words import TFIDF
from prefrec.sections import ModelSection
from prefrec.stages.item_texts import shown_items
from prefrec.stages.title_vectors import text_vectors

Encoder = PromptEncoder | ItemEncoder
COOCCURRENCE_LENGTH = 2.0
"""Length of a co-occurrence vector; title vectors have a mean length of 1."""


def prompt_encoder(model: ModelSection, catalogue: Catalogue) -> Encoder:
    """Return the encoder that turns questions about items of a catalogue into tokens."""
    tokenizer = load_tokenizer(model.name)
    if model.answers == "titles":
        details = {title: text[len(title) :] for title, text in shown_items(model, catalogue).items()}
        return PromptEncoder(tokenizer, max_length=model.max_length, chat=model.chat, details=details)
    return ItemEncoder(catalogue, tokenizer, vocabulary_size(model.name), model.max_length)


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
        extend_items(table, data.catalogue.ids, item_vectors(data, section))
    return table


def encoded_titles(data: PreparedData, model: ModelSection) -> tuple[str, list[str]]:
    """Return the name of the title encoder ("" for TF-IDF), and the texts of the items [I] that it reads."""
    texts = shown_items(model, data.catalogue)
    titles = [texts.get(title, title) for title in data.catalogue.titles.values()]
    names = {"base": model.name, "tfidf": ""}
    return names.get(model.items.vectors, model.items.vectors), titles


def title_vectors(data: PreparedData, model: ModelSection) -> Tensor:
    """Return vectors [I, T] of all items' titles, made as `model.items.vectors` says."""
    name, titles = encoded_titles(data, model)
    return torch.from_numpy(text_vectors(name or TFIDF, titles, model.dtype))
