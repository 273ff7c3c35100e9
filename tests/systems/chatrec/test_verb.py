"""`prefrec chat`: a run's retriever and a chat model talk, with a tiny model here and a server that runs."""

import io
import json
import sys
from types import SimpleNamespace

import pytest
import yaml

from command import succeed
from prefrec.intake import prepare
from prefrec.recipe import Recipe
from prefrec_systems.cli import chat as chat_module
from served_run import write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory, bpe_tokenizer):
    return write_run(tmp_path_factory.mktemp("chat"), bpe_tokenizer)


@pytest.fixture
def scripted(monkeypatch):
    """Lets the run's model say these texts; the retriever and everything else are what they are."""
    made = chat_module.chat_rec_ranker

    def use(*texts: str) -> None:
        said = list(texts)

        def with_script(*args, **kwargs):
            ranker = made(*args, **kwargs)
            ranker.chat = SimpleNamespace(answer=lambda conversations, doing: [said.pop(0) for _ in conversations])
            return ranker

        monkeypatch.setattr(chat_module, "chat_rec_ranker", with_script)

    return use


SHORT = ("--keep", 5, "--max-new-tokens", 6)


def test_all_that_a_held_out_user_took_before_is_left_out(run):
    config = Recipe.model_validate(yaml.safe_load((run / "recipe.yaml").read_text())).data
    data = prepare(config.model_copy(update={"split": "user", "history_length": 2}))
    row = data.test[0]
    log = [line.split(",") for line in config.interactions.read_text().splitlines()]
    own = [item for user, item, _ in log if user == row.user_id]
    taken = own[: own.index(row.target)]
    assert len(taken) > len(row.history)
    assert chat_module._user(data, row.user_id, []) == (row.user_id, row.history, set(taken))


def test_a_conversation_for_people(run, scripted, monkeypatch):
    asked = ("chat", run, "--history", "Red Emma", *SHORT)
    answer, *_ = map(json.loads, succeed(*asked, "--json", "--ask", "/quit").splitlines())
    first, second = (item["title"] for item in answer["items"][:2])
    scripted(f"1. {second}\nReason: it is [bold]old[/bold]", "Because I like it.", "1. Old Heat")
    monkeypatch.setattr(sys, "stdin", io.StringIO("why?\n\n/quit\nnever asked\n"))
    said = [f"  1. {second}", f"  2. {first}", "it is [bold]old[/bold]", "Because I like it."]
    assert succeed(*asked, "--top", 2).splitlines() == said
