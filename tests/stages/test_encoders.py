"""What a recipe's model reads and answers."""

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch

from prefrec.errors import TemplateError
from prefrec.lm.items import ItemEncoder, add_items
from prefrec.prompts import PromptEncoder
from prefrec.rankers.window import WindowCooccurrenceRanker
from prefrec.sections import ItemsSection
from prefrec.stages.encoders import COOCCURRENCE_LENGTH, fit_items, item_vectors, prompt_encoder, title_vectors
from prefrec.stages.item_texts import shown_items, shows_candidates
from prefrec.stages.title_vectors import TFIDF_SIZE, _encoded
from prefrec.towers import title_store
from prefrec.towers.title_encoder import TitleEncoder
from tiny import VOCABULARY, tiny_llama
from tiny_run import FIRST, SECOND, TITLES


@pytest.fixture
def model(recipe):
    return lambda **changes: recipe.model.model_copy(update=changes)


@pytest.mark.parametrize(
    ("templates", "answers", "shown"),
    [(["1"], "titles", True), (["history", "1"], "titles", False), (["1"], "items", False)],
)
def test_whether_the_first_prompt_shows_candidates(model, templates, answers, shown):
    assert shows_candidates(model(templates=templates, answers=answers), "movies") is shown


def test_the_encoder_is_that_of_the_answers(model, data):
    titles = prompt_encoder(model(chat=True), data.catalogue)
    assert isinstance(titles, PromptEncoder)
    assert (titles.max_length, titles.chat) == (400, True)
    items = prompt_encoder(model(answers="items"), data.catalogue)
    assert isinstance(items, ItemEncoder)
    assert items.answers_after("", TITLES[:1]) == ((VOCABULARY, items.end),)


def test_title_vectors_by_tfidf_tell_titles_by_their_words(model, data):
    vectors = title_vectors(data, model(items=ItemsSection(vectors="tfidf")))
    assert vectors.shape == (len(TITLES), min(TFIDF_SIZE, len(FIRST) + len(SECOND)))
    near = torch.nn.functional.normalize(vectors, dim=1) @ torch.nn.functional.normalize(vectors, dim=1).T
    same_end = [i for i, t in enumerate(TITLES) if i and t.split()[1] == TITLES[0].split()[1]]
    others = [i for i, t in enumerate(TITLES) if not set(t.split()) & set(TITLES[0].split())]
    assert near[0, same_end].min() > near[0, others].max() + 0.2


def test_title_vectors_of_the_base(model, data):
    base = title_vectors(data, model(items=ItemsSection()))
    named = title_vectors(data, model(items=ItemsSection(vectors=model().name)))
    assert torch.equal(base, named)
    assert (base.shape, len(torch.unique(base, dim=0))) == ((len(TITLES), 32), len(TITLES))


def test_items_start_near_items_that_histories_put_near_them(model, data):
    new = data.catalogue.ids[3]
    data = dataclasses.replace(data, train_interactions=data.train_interactions.filter(pl.col("item_id") != new))
    section = model(items=ItemsSection(vectors="tfidf", cooccurrence=6))
    titles, vectors = title_vectors(data, section), item_vectors(data, section)
    places = vectors[:, titles.shape[1] :]
    assert torch.equal(places, item_vectors(data, section)[:, titles.shape[1] :])
    assert places.shape == (len(TITLES), 6)
    torch.testing.assert_close(places.norm(dim=1).max(), torch.tensor(COOCCURRENCE_LENGTH))
    assert (places[3] == 0).all()
    fitted = WindowCooccurrenceRanker.fit(data.train_interactions)
    rows = [data.catalogue.ids.index(i) for i in fitted.index]
    near, apart = (places[rows] @ places[rows].T).numpy(), ~np.eye(len(rows), dtype=bool)
    assert np.corrcoef(near[apart], fitted.similarity.toarray()[apart])[0, 1] > 0.3


def test_a_model_gets_the_items_that_it_lacks_alike_at_each_load(data, model):
    section, fitted = model(answers="items", items=ItemsSection(vectors="tfidf")), []
    for seed in (1, 2):
        torch.manual_seed(0)
        lm = tiny_llama(tie_word_embeddings=True)
        assert fit_items(lm, data, section) is None
        add_items(lm, data.catalogue.ids[:50], title_vectors(data, section)[:50])
        torch.manual_seed(seed)
        fitted.append(fit_items(lm, data, section))
        assert fitted[-1].ids == data.catalogue.ids
        assert fit_items(lm, data, section) is fitted[-1]
    assert torch.equal(fitted[0].titles, fitted[1].titles)


def dated(data):
    """The data with a year for each item."""
    catalogue = data.catalogue.frame.with_columns(year=pl.int_range(pl.len()) + 1900)
    return dataclasses.replace(data, catalogue=type(data.catalogue)(catalogue))


def test_titles_of_a_history_have_their_details(model, data):
    encoder = prompt_encoder(model(item_text="{{ title }} ({{ year }})", chat=True), dated(data).catalogue)
    assert encoder.shown(TITLES[:2]) == [f"{TITLES[0]} (1900)", f"{TITLES[1]} (1901)"]
    assert prompt_encoder(model(), data.catalogue).details == shown_items(model(), data.catalogue) == {}
    items = model(answers="items", item_text="{{ year }}: {{ title }}", items=ItemsSection(vectors="tfidf"))
    plain, read = (title_vectors(dated(data), m) for m in (items.model_copy(update={"item_text": None}), items))
    assert plain.shape != read.shape  # the years are words too


def test_a_text_that_does_not_begin_with_its_title(model, data):
    section = model(item_text="{{ year }}: {{ title }}")
    with pytest.raises(TemplateError, match=r"begin with the title, but that of 'Red Alien' is '1900: Red Alien'"):
        prompt_encoder(section, dated(data).catalogue)
    prompt_encoder(section.model_copy(update={"answers": "items"}), dated(data).catalogue)


def test_titles_are_encoded_once_for_all_models_and_runs(model, data, monkeypatch, tmp_path):
    counted, encode = [], TitleEncoder.encode
    count = lambda self, titles, **more: counted.append(len(titles)) or encode(self, titles, **more)  # noqa: E731
    monkeypatch.setattr(TitleEncoder, "encode", count)
    monkeypatch.setattr(title_store, "cache_dir", lambda: tmp_path)
    _encoded.cache_clear()
    first = title_vectors(data, model())
    assert torch.equal(first, title_vectors(data, model()))
    _encoded.cache_clear()  # as in another run
    assert torch.equal(first, title_vectors(data, model()))
    frame = data.catalogue.frame.with_columns(title=pl.Series(["A title that is new", *TITLES[1:]]))
    vectors = title_vectors(dataclasses.replace(data, catalogue=type(data.catalogue)(frame)), model())
    assert counted == [len(TITLES), 1]
    torch.testing.assert_close(vectors[1:], first[1:])
