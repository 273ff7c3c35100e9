"""Chat-REC: answers read, places as scores, sessions; language models that are there, here and behind a server."""

import importlib.util
import sys
from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrec.data import Catalogue, RankingExample
from prefrec.errors import DataError, ModelError, TokenizerError
from prefrec.rankers import GeneratingRanker, PopularityRanker
from prefrec_systems.chatrec import ChatRecRanker, ChatSession, EndpointChat, LocalChat, Profiles, read_answer
from prefrec_systems.chatrec.prompt import numbered, question
from prefrec_systems.endpoint import OpenAIClient, ServerSettings
from servers import free_port, serving
from slow import slow_greedy
from tiny import tiny_llama

TITLES = ["Alien", "Aliens", "12 Angry Men", "It", "It Happened One Night", "Se7en", "(500) Days of Summer", "1984"]
IDS = [f"i{n}" for n in range(len(TITLES))]
CATALOGUE = Catalogue(pl.DataFrame({"item_id": IDS, "title": TITLES}))
ROWS = [(f"u{u}", IDS[n], u) for n in range(len(IDS)) for u in range(8 - n)]
LOG = pl.DataFrame(ROWS, schema=["user_id", "item_id", "timestamp"], orient="row")
"""i0 is the most popular item, i7 the least."""


class Scripted:
    """A chat model with given answers or errors, which records the questions."""

    def __init__(self, *texts: str | Exception) -> None:
        self.texts = list(texts)
        self.asked: list[list[dict[str, str]]] = []

    def answer(self, conversations: Sequence[Sequence[dict[str, str]]], doing: str) -> list[str]:
        if isinstance(self.texts[0], Exception):
            raise self.texts.pop(0)
        self.asked += [list(c) for c in conversations]
        return [self.texts.pop(0) for _ in conversations]


def _ranker(chat, keep=4) -> ChatRecRanker:
    retriever = PopularityRanker.fit(LOG)
    return ChatRecRanker("Chat-REC", retriever, chat, CATALOGUE, Profiles(CATALOGUE, LOG), keep=keep)


def _session(chat, history=("i0",)) -> ChatSession:
    return ChatSession(_ranker(chat), "u1", list(history))


def _example(*candidates: str, target: int = 0) -> RankingExample:
    return RankingExample("u1", ("i0",), candidates, candidates[target])


@pytest.mark.parametrize(
    ("text", "order", "reason"),
    [
        ("1. Se7en\n2. Alien\nReason: dark", (5, 0), "dark"),
        ("Sure!\n\n1) **Se7en** – one\n2) *alien*: two\n\n**Reason:** both\nare dark", (5, 0), "both are dark"),
        ("- 'It'\n- It Happened One Night.\n- ALIENS", (3, 4, 1), None),
        ("1. 12 Angry Men\n2. 1984\n3. (500) Days of Summer", (2, 7, 6), None),
        ("1. 1. Alien\n2. Alien\n3. Aliens (1986)", (0, 1), None),
        ('```json\n["Se7en", "Aliens"]\n```', (5, 1), None),
        ("<think>1. Aliens\n</think>1. Alien", (0,), None),
        ('Here [you] go: [[1], ["1. Se7en", "Film [REC]"]] or ["Alien"]', (5,), None),
        ("**1. Alien**\n__2) Se7en__\n***3. It*** – scary: for most", (0, 5, 3), None),
        ("1. Alien: Covenant\n2. It: Chapter Two\n3. It's a Wonderful Life", (), None),
        ("[" * 3000 + '"Alien"', (), None),
        ("I would watch Alien or Aliens.\nReason: Alien", (), "Alien"),
    ],
)
def test_answers_are_read(text, order, reason):
    answer = read_answer(text, TITLES)
    assert (answer.order, answer.reason, answer.text) == (order, reason, text)


@given(st.permutations(range(len(TITLES))), st.integers(0, len(TITLES)), st.sampled_from(["1.", "-", "1)", ""]))
def test_every_order_in_the_form_asked_for_is_read(order, length, marker):
    kept = order[:length]
    lines = [TITLES[i] if not marker else f"{marker.replace('1', str(n))} {TITLES[i]}" for n, i in enumerate(kept, 1)]
    answer = read_answer("\n".join([*lines, "Reason: so"]), TITLES)
    assert (answer.order, answer.reason, answer.invented) == (tuple(kept), "so", ())


@given(st.text())
def test_any_text_is_read_without_an_error(text):
    answer = read_answer(text, TITLES)
    assert len(set(answer.order)) == len(answer.order)
    assert all(0 <= n < len(TITLES) for n in answer.order)


def test_the_answered_order_then_the_retrievers_then_what_was_not_shown():
    chat = Scripted("1. Se7en\n2. Aliens\nReason: dark", "no idea")
    ranker = _ranker(chat)
    rows = [_example("i7", "i5", "i1", "i3", "i2"), _example("i6", "i4")]
    scores = ranker.score(rows)
    # retrieved: i1 i2 i3 i5 | i7; answered: i5 i1
    assert scores[0].tolist() == [1, 5, 4, 2, 3]
    assert scores[1].tolist() == [1, 2, -np.inf, -np.inf, -np.inf]
    shown = numbered(["Aliens", "12 Angry Men", "It", "Se7en"])
    assert f"Candidates:\n{shown}\n\n" in chat.asked[0][0]["content"]
    c = ranker.counts
    assert (c.answers, c.unreadable, c.invented, c.missing) == (2, 1, 0, 2)


def test_it_is_asked_once_and_the_target_is_not_told():
    chat = Scripted("1. Heat\n2. Se7en")
    ranker = _ranker(chat)
    row, other = _example("i7", "i5"), _example("i7", "i5", target=1)
    assert isinstance(ranker, GeneratingRanker)
    assert ranker.score([row, other]).tolist() == [[1, 2], [1, 2]]
    assert ranker.generate([row]) == ["Heat"]  # what it chose is none of the candidates
    assert ranker.counts.invented == 1
    assert len(chat.asked) == 1


def test_profiles_tell_what_the_data_has():
    genres, years = ["Horror|Action", "Action", "Drama", None], [1979, 1986, 1957, 2017]
    frame = pl.DataFrame({"item_id": IDS[:4], "title": TITLES[:4], "genres": genres, "year": years})
    users = pl.DataFrame({"user_id": ["u1"], "age": ["24"], "occupation": [None]})
    rated = LOG.with_columns(rating=pl.when(pl.col("item_id") == "i1").then(5.0).otherwise(3.0))
    assert Profiles(Catalogue(frame), rated, users).lines("u1", ["i0", "i1", "i3"]) == [
        "age: 24",
        "favourite genres: Action (2 of 2), Horror (1 of 2)",
        "average year: 1994",
        "average rating of the last 3 rated: 3.67",
        "rated 5, the highest of them: Aliens",
        "1 of the last 3 taken are among the most popular 10%",
    ]
    assert Profiles(CATALOGUE, LOG).lines("nobody", []) == []
    with pytest.raises(DataError, match="needs a column user_id, but has age"):
        Profiles(CATALOGUE, LOG, users.select("age"))


def test_the_question_says_what_the_user_did():
    text = question(["age: 24"], ["Alien"], ["It", "Se7en"], "books")
    assert "The user:\n- age: 24\n" in text
    assert "The user read, oldest first:\n- Alien\n" in text
    assert "Candidates:\n1. It\n2. Se7en\n" in text
    assert "The user" not in question([], [], ["It"], "movies")


def test_a_session_refines_explains_and_goes_on():
    answers = ("1. 12 Angry Men\nReason: no monsters", "1. 1984\nReason: other ones")
    chat = Scripted("1. It\n2. Aliens\nReason: scary", "Because it is tense.", *answers)
    session = _session(chat)
    first = session.recommend()
    assert (first.items, first.reason, first.changed) == (("i3", "i1", "i2", "i4"), "scary", True)
    why = session.ask("why the second?")
    assert (why.items, why.text, why.changed) == (first.items, "Because it is tense.", False)
    assert numbered(["It", "Aliens", "12 Angry Men", "It Happened One Night"]) in chat.asked[1][-1]["content"]
    tame = session.ask("something without monsters")
    assert (tame.items, tame.reason) == (("i2",), "no monsters")
    more = session.recommend()
    assert more.items == ("i7", "i5", "i6")
    assert [m["role"] for m in chat.asked[-1]] == ["user", "assistant"] * 3 + ["user"]
    with pytest.raises(DataError, match="all 7 candidates have been shown"):
        session.recommend()


def test_a_turn_that_fails_leaves_the_conversation_as_it_was():
    away = ModelError("away")
    chat = Scripted(away, away, "1. It", away, "1. 1984", away, "hm")
    session = _session(chat)
    for turn in (session.recommend, lambda: session.ask("hello")):
        with pytest.raises(ModelError, match="away"):
            turn()
        assert session.messages == []
    assert session.recommend().items == ("i3", "i1", "i2", "i4")
    assert chat.asked[-1][0]["content"].startswith("You recommend")
    with pytest.raises(ModelError, match="away"):
        session.recommend()
    assert session.recommend().items == ("i7", "i5", "i6")
    with pytest.raises(ModelError, match="away"):
        session.ask("why?")
    assert session.ask("why?").text == "hm"
    assert [m["role"] for m in chat.asked[-1]] == ["user", "assistant"] * 2 + ["user"]


def test_a_conversation_that_gets_long_tells_fewer_of_the_latest_exchanges(model, bpe_tokenizer):
    told = []

    class Watched(LocalChat):
        def answer(self, conversations, doing):
            said = super().answer(conversations, doing)
            told.append(len(conversations[0]) // 2)
            return said

    first = len(bpe_tokenizer(_ranker(Scripted()).question(_example(*IDS[1:]), range(7)))["input_ids"])
    chat = Watched(model, bpe_tokenizer, max_new_tokens=8, max_length=2 * first + 200)
    session = _session(chat)
    for n in range(8):
        session.ask(f"question {n}")
    assert told[:2] == [0, 1]
    assert 1 <= told[-1] < 5
    assert len(session.messages) == 18
    chat.max_length = 10
    with pytest.raises(TokenizerError, match=r"max_length \(10\)"):
        session.ask("one more")


@pytest.mark.parametrize(
    "said",
    [
        "400: This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
        "400: the request exceeds the available context size, try increasing it",
        "400: context_length_exceeded",
    ],
)
def test_a_server_whose_context_is_too_short_is_told_less(monkeypatch, said):
    client, asked = OpenAIClient(ServerSettings(model="x")), []

    def chat(messages, **settings):
        asked.append(len(messages) // 2)
        if len(messages) > 5:
            raise ModelError(f"http://localhost/v1/chat/completions refuses the request ({said})")
        return "hm"

    monkeypatch.setattr(client, "chat", chat)
    session = _session(EndpointChat(client))
    for n in range(5):
        session.ask(f"question {n}")
    assert asked == [0, 1, 2, 3, 2, 4, 3, 2, 5, 4, 3, 2]
    assert len(session.messages) == 12


def test_a_session_needs_items_that_there_are():
    with pytest.raises(DataError, match="'i99' is not in the catalogue"):
        _session(Scripted(), ["i99"])
    with pytest.raises(DataError, match="the history has all items of the catalogue"):
        _session(Scripted(), IDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bpe_tokenizer):
    folder = tmp_path_factory.mktemp("chat") / "model"
    tiny_llama(max_position_embeddings=2048).save_pretrained(folder)
    bpe_tokenizer.save_pretrained(folder)
    return folder


SAID = (("user", "A film?"), ("assistant", "Babe"), ("user", "Why?"))
TALKS = [[{"role": "user", "content": "Alien or Emma?"}], [{"role": role, "content": text} for role, text in SAID]]


def test_a_local_model_answers_as_its_chat_template_asks(model, bpe_tokenizer):
    chat = LocalChat(model, bpe_tokenizer, max_new_tokens=12, max_length=200, batch_size=2)
    want = []
    for talk in TALKS:
        asked = bpe_tokenizer.apply_chat_template(talk, add_generation_prompt=True)["input_ids"]
        said = slow_greedy(model, asked, bpe_tokenizer.eos_token_id, 12)
        want.append(bpe_tokenizer.decode(said, skip_special_tokens=True))
    assert chat.answer(TALKS, "answering") == want
    assert want[0] != want[1]


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    """The address of `transformers serve` with the tiny model."""
    if importlib.util.find_spec("openai") is None:
        pytest.skip("`transformers serve` needs the package openai (pip install openai)")
    port, log = free_port(), tmp_path_factory.mktemp("serve") / "log"
    start = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", start, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    with serving([*command, "--device", "cpu"], port, log, seconds=300) as url:
        yield url


@pytest.mark.long
def test_a_server_answers_as_the_model_does_here(server, folder, model, bpe_tokenizer):
    local = LocalChat(tiny_llama(max_position_embeddings=2048), bpe_tokenizer, max_new_tokens=12, max_length=200)
    client = OpenAIClient(ServerSettings(url=server, model=str(folder), retries=0))
    remote = EndpointChat(client, max_new_tokens=12)
    assert remote.answer(TALKS, "answering") == local.answer(TALKS, "answering")
