"""Histories as running text read as the prompts that ask about them."""

import pytest

from prefrec.errors import TemplateError
from prefrec.prompts import PromptEncoder, PromptTemplate, TrajectoryEncoder, load_template, template_names
from prefrec.prompts.trajectories import question
from tiny import bpe_tokenizer

TITLES = ["Toy Story", "Heat", "(500) Days", "Alien", "…And Justice for All", "12 Angry Men"]
CHANGES = ["upper", "lower", "title", "capitalize", "e", "truncate", "replace(' (1995)', '')", "tojson"]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", ["history", "continue", "1"])
def test_the_last_title_is_asked_for_as_in_a_prompt(name: str, chat: bool) -> None:
    encoder, template = PromptEncoder(bpe_tokenizer(), chat=chat), load_template(name, domain="movies")
    for n in range(2, len(TITLES) + 1):
        trajectory = TrajectoryEncoder(template, encoder).encode(TITLES[:n])
        asked = encoder.encode(template, TITLES[: n - 1], (), [TITLES[n - 1]])
        assert question(trajectory) == asked
        assert trajectory.length == len(asked.prompt) + len(asked.answers[0]) - 1


@pytest.mark.parametrize("detail", [" (1995)", "<|im_end|>\n"])
@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", ["history", "1"])
def test_details_are_read_and_never_answered(name: str, chat: bool, detail: str) -> None:
    details = {title: f"{detail}{n}" for n, title in enumerate(TITLES)}
    encoder = PromptEncoder(bpe_tokenizer(), chat=chat, details=details)
    plain, template = PromptEncoder(bpe_tokenizer(), chat=chat), load_template(name, domain="movies")
    for n in range(1, len(TITLES) + 1):
        trajectory = TrajectoryEncoder(template, encoder).encode(TITLES[:n])
        assert trajectory.answers == TrajectoryEncoder(template, plain).encode(TITLES[:n]).answers
        asked = encoder.encode(template, TITLES[: n - 1], (), [TITLES[n - 1]])
        if n > 1:
            assert question(trajectory) == asked
            assert trajectory.length == len(asked.prompt) + len(asked.answers[0]) - 1


def test_its_titles_are_those_of_the_catalogue() -> None:
    encoder = TrajectoryEncoder(load_template("1", domain="movies"), PromptEncoder(bpe_tokenizer()))
    assert set(encoder.encode(TITLES).answers) <= set(encoder.answers(TITLES))


def test_no_titles() -> None:
    encoder = TrajectoryEncoder(load_template("history"), PromptEncoder(bpe_tokenizer()))
    with pytest.raises(ValueError, match="needs at least one title"):
        encoder.encode([])


@pytest.mark.parametrize(
    "history",
    [
        "{% for t in history %}{{ loop.index }}. {{ t }}\n{% endfor %}",
        "{% for t in history %}{{ t }}{{ ', ' if loop.revindex > 2 else ' and ' if not loop.last }}{% endfor %}",
        "{{ history | reverse | join(', ') }}",
        "{{ history | sort | join(', ') }}",
        "{{ history | unique | join(', ') }}",
        "{{ history[-20:] | join(', ') }}",
        "{{ history[1:] | join(', ') }}",
        "{{ history | length }} titles: {{ history | join(', ') }}",
        "{{ 'Titles' if history | length > 1 else 'Title' }}: {{ history | join(', ') }}",
        "{% for t in history %}{{ t }} ({{ t }}), {% endfor %}",
        *(f"{{% for t in history %}}{{{{ t | {change} }}}}, {{% endfor %}}" for change in CHANGES),
    ],
)
def test_a_template_that_alters_the_history_is_refused(history: str) -> None:
    template = PromptTemplate("mine", history + "{% if candidates %}{% endif %} Next:")
    encoder = TrajectoryEncoder(template, PromptEncoder(bpe_tokenizer()))
    with pytest.raises(TemplateError, match=r"template mine: .* write each title unchanged, in order"):
        encoder.encode(TITLES)
    # Alignment and prompts with candidates only need the titles' tokens.
    assert len(encoder.answers(TITLES)) >= len(TITLES)


@pytest.mark.parametrize("name", template_names())
def test_every_built_in_template_can_be_read_as_running_text(name: str) -> None:
    trajectory = TrajectoryEncoder(load_template(name), PromptEncoder(bpe_tokenizer())).encode(TITLES)
    assert len(trajectory.answers) == len(TITLES)
