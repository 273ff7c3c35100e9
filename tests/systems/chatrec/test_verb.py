"""`prefrec chat`: a run's retriever and a chat model talk, with a tiny model here and a server that runs."""

import io
import json
import sys

import pytest
import yaml

from command import succeed
from prefrec.data import prepare
from prefrec.pipeline.recipe import Recipe
from prefrec_systems.cli import chat as chat_module
from served_run import write_run


class Scripted:
    """Says what it was told to say."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)

    def answer(self, conversations, doing):
        if isinstance(self.texts[0], Exception):
            raise self.texts.pop(0)
        return [self.texts.pop(0) for _ in conversations]


@pytest.fixture(scope="module")
def run(tmp_path_factory, bpe_tokenizer):
    return write_run(tmp_path_factory.mktemp("chat"), bpe_tokenizer)


@pytest.fixture
def scripted(monkeypatch):
    """Lets the run's model say these texts; the retriever and everything else are what they are."""

    def use(*texts: str) -> None:
        made = chat_module.chat_rec_ranker

        def with_script(*args, **kwargs):
            ranker = made(*args, **kwargs)
            ranker.chat = Scripted(*texts)
            return ranker

        monkeypatch.setattr(chat_module, "chat_rec_ranker", with_script)

    return use


def _json_lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


SHORT = ("--keep", 5, "--max-new-tokens", 6)


def test_all_that_a_held_out_user_took_before_is_left_out(run):
    recipe = Recipe.model_validate(yaml.safe_load((run / "recipe.yaml").read_text()))
    data = prepare(recipe.data.model_copy(update={"split": "user", "history_length": 2}))
    row = data.test[0]
    log = [line.split(",") for line in recipe.data.interactions.read_text().splitlines()]
    own = [item for user, item, _ in log if user == row.user_id]
    taken = own[: own.index(row.target)]
    assert len(taken) > len(row.history)
    assert chat_module._user(data, row.user_id, []) == (row.user_id, row.history, set(taken))


def test_a_conversation_for_people(run, scripted, monkeypatch):
    first = _json_lines(succeed("chat", run, "--history", "Red Emma", *SHORT, "--json", "--ask", "/quit"))[0]["items"]
    second = first[1]["title"]
    scripted(f"1. {second}\nReason: it is [bold]old[/bold]", "Because I like it.", "1. Old Heat")
    monkeypatch.setattr(sys, "stdin", io.StringIO("why?\n\n/quit\nnever asked\n"))
    out = succeed("chat", run, "--history", "Red Emma", *SHORT, "--top", 2)
    assert out.splitlines() == [
        f"  1. {second}",
        f"  2. {first[0]['title']}",
        "it is [bold]old[/bold]",
        "Because I like it.",
    ]
