"""prefrec.training.sequences: the history part of a prompt, read on as an answer."""

import polars as pl
import pytest

from prefrec.data import Catalogue
from prefrec.errors import TokenizerError
from prefrec.prompts import PromptEncoder, load_template
from prefrec.training import encode_sequences

TITLES = ["Heat", "Babe", "Emma", "Alien", "Fargo", "Toy Story", "The Matrix", "GoldenEye", "Aliens", "12 Angry Men"]
CATALOGUE = Catalogue(pl.DataFrame({"item_id": [str(i) for i in range(10)], "title": TITLES}))
HEAD = "A viewer watched these movies, the latest one last:\n"


def log(**sequences: list[int]) -> pl.DataFrame:
    rows = [(u, str(i), t) for u, items in sequences.items() for t, i in enumerate(items)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def texts(tokenizer, sets):
    return [(tokenizer.decode(c.prompt), tokenizer.decode(c.answers[0][:-1])) for c in sets]


def test_a_sequence_is_the_prompt_of_a_question_read_on(bpe_tokenizer):
    template, encoder = load_template("movies/1"), PromptEncoder(bpe_tokenizer)
    sets = encode_sequences(log(u=[3, 1, 4, 0, 5]), CATALOGUE, template, encoder, titles=40)
    (found,) = texts(bpe_tokenizer, sets)
    assert found == (HEAD, "Alien\nBabe\nFargo\nHeat\nToy Story")
    question = template.render([TITLES[i] for i in (3, 1, 4, 0, 5)], ["x", "y"])
    assert question.startswith("".join(found))
    assert sets[0].answers[0][-1] == bpe_tokenizer.eos_token_id


def test_a_template_with_its_candidates_first_is_read_without_them(bpe_tokenizer):
    template, encoder = load_template("movies/continue"), PromptEncoder(bpe_tokenizer)
    sets = encode_sequences(log(u=[3, 1, 4, 0, 5]), CATALOGUE, template, encoder, titles=40)
    (found,) = texts(bpe_tokenizer, sets)
    assert found == (HEAD, "Alien\nBabe\nFargo\nHeat\nToy Story")
    question = template.render([TITLES[i] for i in (3, 1, 4, 0)], ["Toy Story", "Emma"])
    assert question.endswith(HEAD + "Alien\nBabe\nFargo\nHeat\n")


def test_long_histories_give_several_and_short_ones_none(bpe_tokenizer):
    frame = log(u=list(range(10)), short=[1, 2, 3, 4], v=[9, 8, 7, 6, 5, 4])
    sets = encode_sequences(frame, CATALOGUE, load_template("movies/1"), PromptEncoder(bpe_tokenizer), titles=5)
    assert [t.split("\n") for _, t in texts(bpe_tokenizer, sets)] == [TITLES[:5], TITLES[5:], TITLES[:4:-1]]


def test_what_does_not_fit_is_halved_and_nothing_is_lost(bpe_tokenizer):
    template = load_template("movies/1")
    (whole,) = encode_sequences(log(u=list(range(10))), CATALOGUE, template, PromptEncoder(bpe_tokenizer), titles=40)
    tight = PromptEncoder(bpe_tokenizer, max_length=whole.length - 1)
    sets = encode_sequences(log(u=list(range(10))), CATALOGUE, template, tight, titles=40)
    assert [t.split("\n") for _, t in texts(bpe_tokenizer, sets)] == [TITLES[:5], TITLES[5:]]
    with pytest.raises(TokenizerError, match="max_length is 10"):
        encode_sequences(
            log(u=list(range(10))), CATALOGUE, template, PromptEncoder(bpe_tokenizer, max_length=10), titles=40
        )
