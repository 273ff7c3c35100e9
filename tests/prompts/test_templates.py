"""prefrec.prompts.templates: what a template must hold, and what is refused by name."""

import pytest

from prefrec.errors import TemplateError
from prefrec.prompts import PromptTemplate, load_template, template_names

GOOD = "Seen:\n{% for t in history %}\n{{ t }}\n{% endfor %}\nOne of: {{ candidates | join(', ') }}\nNext:"


@pytest.mark.parametrize("name", template_names())
def test_built_in_templates_show_everything_in_order(name):
    text = load_template(name).render(["First Film", "Second Film"], ["Third Film", "Fourth Film"])
    first, second, third, fourth = (text.index(f"{n} Film") for n in ("First", "Second", "Third", "Fourth"))
    assert first < second
    assert third < fourth
    assert (third > second) == text.endswith(":\n")  # where the candidates come first the history is gone on with
    assert text.endswith((":\n", "\nSecond Film\n"))
    assert "{" not in text


def test_every_domain_has_several_phrasings():
    for domain in ("movies", "books", "music", "generic"):
        assert len([n for n in template_names() if n.startswith(f"{domain}/")]) >= 3


def test_a_users_file_is_read(tmp_path):
    path = tmp_path / "mine.jinja2"
    path.write_text(GOOD, encoding="utf-8")
    assert load_template(str(path)).render(["A"], ["B", "C"]) == "Seen:\nA\nOne of: B, C\nNext:"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("Recommend {{ history }}", "mine: no candidates in it"),
        ("Recommend something", "mine: no history and no candidates"),
        ("{{ history }} {{ candidates }} {{ mood }}", "unknown placeholder 'mood'"),
        ("   \n", "mine: the file is empty"),
        ('{"historyList": "a", "candidates": "history"}', "mine: this is JSON"),
        ("[1, 2]", "mine: this is JSON"),
        ("{{ history }}\n{% for x in %}{{ candidates }}", "mine, line 2"),
    ],
)
def test_what_is_no_template_is_refused_by_name(source, message):
    with pytest.raises(TemplateError, match=message):
        PromptTemplate("mine", source)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(TemplateError, match="movies/1"):
        load_template("nonsense")


def test_wrong_encoding_is_named(tmp_path):
    path = tmp_path / "latin.jinja2"
    path.write_bytes("é {{ history }} {{ candidates }}".encode("latin-1"))
    with pytest.raises(TemplateError, match="not UTF-8"):
        load_template(str(path))


def test_a_template_cannot_reach_into_python():
    hostile = PromptTemplate("evil", "{{ history.__class__.__mro__ }} {{ candidates }}")
    with pytest.raises(TemplateError, match="evil"):
        hostile.render(["A"], ["B"])
