"""TALLRec: opinions, questions and prompts; P(Yes) against full sequences, one a candidate and answer."""

from itertools import zip_longest

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model

from prefrec.data import RankingExample
from prefrec.errors import ModelError, TemplateError, TokenizerError
from prefrec.lm.models import load_model
from prefrec.prompts import PromptEncoder
from prefrec.prompts.templates import DOMAINS
from prefrec.rankers import LMRanker
from prefrec.training import SFTConfig, SFTTrainer, lora_config
from prefrec_systems.tallrec.prompts import encode_question, load_like_template, tallrec_dataset
from prefrec_systems.tallrec.questions import Opinions, Question, history_of, training_questions
from prefrec_systems.tallrec.ranker import TallrecRanker, load_tallrec
from slow import slow_logps
from tiny_lists import CATALOGUE, examples
from tiny_run import write_model
from tiny_training import settings as training

TEMPLATE = load_like_template(None, domain="movies")
RATINGS = [("u0", "i0", 5.0), ("u0", "i1", 3.5), ("u0", "i2", 4.0), ("u1", "i0", 2.0), ("u1", "i3", None)]
RATED = pl.DataFrame(RATINGS, ["user_id", "item_id", "rating"], orient="row")
UNRATED = RATED.drop("rating")
EXAMPLES = examples(4, long=5)


def test_a_rating_below_the_threshold_is_a_dislike_and_no_rating_is_none():
    opinions = Opinions(RATED, 4.0)
    assert [opinions.liked(user, item) for user, item, _ in RATINGS] == [True, False, True, False, True]
    assert opinions.liked("somebody else", "i1")
    assert not Opinions(RATED, 4.5).liked("u0", "i2")
    assert opinions
    assert not Opinions(RATED, 2.0)
    assert not Opinions(UNRATED, 4.0)


def test_with_ratings_the_target_s_rating_is_the_answer():
    rows = [RankingExample("u0", ("i0",), ("i9", "i1", "i7"), "i1")]
    rows += [RankingExample("u0", ("i0", "i1"), ("i2", "i9", "i7"), "i2")]
    assert training_questions(rows, Opinions(RATED, 4.0), negatives=2, seed=0) == [
        Question((("i0", True),), "i1", False),
        Question((("i0", True), ("i1", False)), "i2", True),
    ]


@given(st.integers(1, 5), st.integers(0, 9))
def test_without_dislikes_untouched_candidates_are_disliked(negatives, seed):
    opinions = Opinions(UNRATED, 4.0)
    questions = training_questions(EXAMPLES, opinions, negatives=negatives, seed=seed)
    of_rows = [[q for q in questions if q.history == history_of(row, opinions)] for row in EXAMPLES]
    assert sum(map(len, of_rows)) == len(questions)
    for row, asked in zip(EXAMPLES, of_rows, strict=True):
        assert [q.item for q in asked if q.liked] == [row.target]
        disliked = [q.item for q in asked if not q.liked]
        assert len(set(disliked)) == len(disliked) == min(negatives, len(row.candidates) - 1)
        assert set(disliked) <= set(row.candidates) - {row.target}
    assert questions == training_questions(EXAMPLES, opinions, negatives=negatives, seed=seed)


@pytest.mark.parametrize("domain", DOMAINS)
def test_built_in_questions_say_who_liked_what(domain):
    template = load_like_template(None, domain=domain)
    text = template.ask(["First One", "Second One"], ["Third One"], "Fourth One")
    places = [text.index(f"{n} One") for n in ("First", "Second", "Third", "Fourth")]
    assert places == sorted(places)
    assert text.index("\nLiked:\n") < places[0] < places[1] < text.index("\nDisliked:\n") < places[2]
    assert text.endswith("Yes or No:\n")
    alone = template.ask([], [], "Fourth One")
    assert "iked:" not in alone
    assert alone.endswith(text[places[3] :])


def test_a_template_of_one_s_own(tmp_path):
    path = tmp_path / "mine.jinja2"
    path.write_text("+{{ liked | join('+') }} -{{ disliked | join('-') }} ={{ item }}?")
    assert load_like_template(str(path)).ask(["A", "B"], ["C"], "D") == "+A+B -C =D?"
    path.write_text("{{ history }} {{ candidates }}")
    with pytest.raises(TemplateError, match="missing liked and disliked and item; expected the placeholders"):
        load_like_template(str(path))
    with pytest.raises(TemplateError, match="no template 'nowhere'"):
        load_like_template("nowhere")


def test_the_oldest_items_make_room(bpe_tokenizer):
    history = tuple((f"i{n}", n % 2 == 0) for n in range(8))

    def encoded(history, encoder=None):
        return encode_question(Question(history, "i9"), CATALOGUE, TEMPLATE, encoder or PromptEncoder(bpe_tokenizer))

    short = PromptEncoder(bpe_tokenizer, max_length=encoded(history).length - 1)
    assert (encoded(history, short), short.shortened) == (encoded(history[1:]), 1)
    with pytest.raises(TokenizerError, match="max_length is 20"):
        encoded(history, PromptEncoder(bpe_tokenizer, max_length=20))


@pytest.fixture
def ranker(model, bpe_tokenizer):
    def make(opinions=None, **settings) -> TallrecRanker:
        settings |= {"objective": "tokens"}
        lm = LMRanker("TALLRec", settings.pop("model", model), bpe_tokenizer, CATALOGUE, TEMPLATE, **settings)
        return TallrecRanker(lm, Opinions(UNRATED, 4.0) if opinions is None else opinions)

    return make


def _slow_p_yes(ranker: TallrecRanker, example: RankingExample, candidate: str) -> float:
    """Two full sequences: question and Yes, question and No."""
    kept = list(example.history)
    while True:
        liked = [CATALOGUE.titles[i] for i in kept if ranker.opinions.liked(example.user_id, i)]
        disliked = [CATALOGUE.titles[i] for i in kept if not ranker.opinions.liked(example.user_id, i)]
        question = TEMPLATE.ask(liked, disliked, CATALOGUE.titles[candidate])
        try:
            choices = ranker.lm.encoder.encode_text(question, ["Yes", "No"])
            break
        except TokenizerError:
            kept.pop(0)
    with torch.no_grad():
        yes, no = slow_logps(ranker.lm.model, choices).double()
    return float(yes.exp() / (yes.exp() + no.exp()))


@pytest.mark.parametrize("settings", [{}, {"max_length": 75}, {"chat": True}])
def test_p_yes_equals_the_slow_twin(ranker, settings):
    rated = pl.DataFrame({"user_id": ["u1", "u3"], "item_id": [EXAMPLES[1].history[0], EXAMPLES[3].history[2]]})
    asked = ranker(Opinions(rated.with_columns(rating=1.0), 4.0), **settings)
    scores = asked.score(EXAMPLES)
    assert scores.shape == (4, 5)
    assert (asked.lm.encoder.shortened > 0) == ("max_length" in settings)
    want = zip_longest(*([_slow_p_yes(asked, e, c) for c in e.candidates] for e in EXAMPLES), fillvalue=-np.inf)
    np.testing.assert_allclose(scores.T, list(want), rtol=0, atol=1e-5)
    assert np.ptp(scores[0]) > 1e-3


@pytest.mark.parametrize("liked", [True, False])
def test_trained_on_one_answer_it_gives_it(tmp_path, ranker, bpe_tokenizer, liked):
    folder = str(write_model(tmp_path / "model", bpe_tokenizer))
    questions = [Question((("i5", True),), f"i{n}", liked) for n in range(8)]
    model = get_peft_model(load_model(folder), lora_config(4))
    args = SFTConfig(**training(tmp_path / "out", max_steps=10, learning_rate=2e-2, per_device_train_batch_size=4))
    dataset = tallrec_dataset(questions, CATALOGUE, TEMPLATE, PromptEncoder(bpe_tokenizer))
    opinions, example = Opinions(UNRATED, 4.0), RankingExample("u", ("i5",), ("i20", "i30"), "i20")
    before = ranker(opinions, model=model).score([example])
    assert ((before > 0.3) & (before < 0.7)).all()
    SFTTrainer(model, args, train_dataset=dataset, processing_class=bpe_tokenizer).train()
    model.save_pretrained(tmp_path / "adapter")
    of = (CATALOGUE, TEMPLATE, opinions)
    after = load_tallrec("T", folder, tmp_path / "adapter", *of, loading={"dtype": "float32"}).score([example])
    assert (after > 0.8).all() if liked else (after < 0.2).all()
    with pytest.raises(ModelError, match="no adapter in"):
        load_tallrec("T", folder, tmp_path / "nowhere", *of)
