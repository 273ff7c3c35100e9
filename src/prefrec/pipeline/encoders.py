"""Input and output of a recipe's model: text by a template, or item tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from prefrec.data import Catalogue, PreparedData
from prefrec.lm.items import ItemEncoder
from prefrec.lm.models import load_tokenizer, vocabulary_size
from prefrec.pipeline.recipe import ModelSection
from prefrec.prompts import PromptEncoder, load_template
from prefrec.rankers.title_encoder import load_encoder
from prefrec.rankers.title_words import tfidf

Encoder = PromptEncoder | ItemEncoder
TFIDF_SIZE = 256
"""Dimensions of title vectors by TF-IDF, after reduction."""
_TITLE_TOKENS = 64


def prompt_encoder(model: ModelSection, catalogue: Catalogue) -> Encoder:
    """Return the encoder that turns questions about items of a catalogue into tokens."""
    tokenizer = load_tokenizer(model.name)
    if model.answers == "titles":
        return PromptEncoder(tokenizer, max_length=model.max_length, chat=model.chat)
    return ItemEncoder(catalogue, tokenizer, vocabulary_size(model.name), model.max_length)


def shows_candidates(model: ModelSection, domain: str) -> bool:
    """Return True if the model's prompt shows the candidates."""
    return model.answers == "titles" and load_template(model.templates[0], domain=domain).shows_candidates


def title_vectors(data: PreparedData, model: ModelSection) -> Tensor:
    """Return vectors [I, T] of all items' titles, made as `model.items.vectors` says."""
    titles = data.catalogue.titles_of(data.catalogue.ids)
    if model.items.vectors != "tfidf":
        name = model.name if model.items.vectors == "base" else model.items.vectors
        return load_encoder(name, _TITLE_TOKENS).encode(titles)
    words = tfidf(titles)
    size = min(TFIDF_SIZE, *words.shape)
    left, sizes, _ = torch.svd_lowrank(torch.from_numpy(words.toarray()).float(), q=size, niter=4)
    return left * sizes
