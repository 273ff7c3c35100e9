"""Histories as running text read as the prompts that ask about them."""

from __future__ import annotations

import pytest

from prefrec.prompts import PromptEncoder, TrajectoryEncoder, load_template
from prefrec.prompts.trajectories import question
from tiny import bpe_tokenizer

TITLES = ["Toy Story", "Heat", "(500) Days", "Alien", "…And Justice for All", "12 Angry Men"]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", ["history", "continue", "1", "2", "3"])
def test_the_last_title_is_asked_for_as_in_a_prompt(name: str, chat: bool) -> None:
    encoder, template = PromptEncoder(bpe_tokenizer(), chat=chat), load_template(name, domain="movies")
    for n in range(2, len(TITLES) + 1):
        trajectory = TrajectoryEncoder(template, encoder).encode(TITLES[:n])
        asked = encoder.encode(template, TITLES[: n - 1], (), [TITLES[n - 1]])
        assert question(trajectory) == asked
        assert trajectory.length == len(asked.prompt) + len(asked.answers[0]) - 1


def test_its_titles_are_those_of_the_catalogue() -> None:
    encoder = TrajectoryEncoder(load_template("1", domain="movies"), PromptEncoder(bpe_tokenizer()))
    known = set(encoder.answers(TITLES))
    assert set(encoder.encode(TITLES).answers) <= known


def test_no_titles() -> None:
    encoder = TrajectoryEncoder(load_template("history"), PromptEncoder(bpe_tokenizer()))
    with pytest.raises(ValueError, match="needs a title"):
        encoder.encode([])
