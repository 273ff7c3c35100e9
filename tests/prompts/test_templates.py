"""prefrec.prompts.templates: what a template must hold, and what is refused by name."""

import hashlib
import re
from itertools import product

import jinja2
import polars as pl
import pytest

from prefrec.errors import TemplateError
from prefrec.prompts import PromptTemplate, item_texts, load_template, template_names

GOOD = "Seen:\n{% for t in history %}\n{{ t }}\n{% endfor %}\nOne of: {{ candidates | join(', ') }}\nNext:"

PINNED = {
    "books/1": "8069888e41af", "books/2": "9d8159d745ac", "books/3": "d3b9c1d5bb46",
    "books/continue": "87f568c99f62", "books/history": "dab7db71809c",
    "generic/1": "36a52fad6426", "generic/2": "75c24a3ebc22", "generic/3": "8c199d677de6",
    "generic/continue": "383c3bbc3149", "generic/history": "a677e0828ffc",
    "movies/1": "42c5058a95ee", "movies/2": "24823fcf86f2", "movies/3": "1eb034d41587",
    "movies/continue": "23c648295a35", "movies/history": "ccda2a2ecb74",
    "music/1": "824e3d34b810", "music/2": "3e6c390004c4", "music/3": "09006aed2c09",
    "music/continue": "e327d43539ad", "music/history": "2df9d96c5ea3",
}  # fmt: skip
"""SHA-256 of what the templates render: a prompt that changes is another one than models were trained on."""


@pytest.mark.parametrize("name", template_names())
def test_prompts_with_candidates_stay_as_they_are(name):
    text = load_template(name).render(["First Film", "Second Film"], ["Third Film", "Fourth Film"])
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == PINNED[name]


@pytest.mark.parametrize("name", template_names())
def test_without_candidates_the_prompt_says_nothing_of_a_list(name):
    """As the whole catalogue is asked about: the history, then at once the line that the answer follows."""
    shown = load_template(name).render(["First Film", "Second Film"], ["Third Film"])
    text = load_template(name).render(["First Film", "Second Film"], [])
    blocks = [b for b in shown.split("\n\n") if "Third" not in b]
    assert text == "\n\n".join(blocks)
    assert "\nFirst Film\nSecond Film\n" in text


@pytest.mark.parametrize("name", [n for n in template_names() if n.endswith("/history")])
def test_history_is_continue_without_the_list(name):
    """So that what was read in pre-training is the same text under both."""
    history, candidates = ["First Film", "Second Film"], ["Third Film"]
    text = load_template(name).render(history, candidates)
    assert text == load_template(name.replace("history", "continue")).render(history, [])


def test_a_users_file_is_read(tmp_path):
    (tmp_path / "mine.jinja2").write_text(GOOD, encoding="utf-8")
    assert load_template(str(tmp_path / "mine.jinja2")).render(["A"], ["B", "C"]) == "Seen:\nA\nOne of: B, C\nNext:"


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(TemplateError, match="movies/1"):
        load_template("nonsense")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "{{ history.__class__.__mro__ }} {{ candidates }}",
            "access to attribute '__class__' of 'list' object is unsafe",
        ),
        ("{{ history.pop() }}{{ candidates }}", "access to attribute 'pop' of 'list' object is unsafe"),
        ("{{ history }}{{ ''.join.__globals__ }}{{ candidates }}", "'__globals__'"),
        ("{{ '{0.__class__.__mro__}'.format(history) }}{{ candidates }}", "access to attribute '__class__'"),
        ("{% include '/etc/passwd' %}{{ history }}{{ candidates }}", "no loader for this environment"),
        ("{{ history | shout }}{{ candidates }}", "No filter named 'shout'"),
        ("{{ history }}{{ candidates }}{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "maximum recursion depth"),
    ],
)
def test_templates_cannot_reach_python_or_files(source, message):
    with pytest.raises(TemplateError, match=re.escape(message)) as e:
        PromptTemplate("own", source).render([], [])
    assert "own" in str(e.value)


def test_what_prompts_need_is_possible():
    source = (
        "{% set last = history[-2:] %}{% for t in last | reverse if t != 'C' %}{{ loop.index * 2 }}/{{ loop.length }}"
        " {{ loop.cycle('a', 'b') }} {{ t.strip() | title | truncate(9) }}{{ ', ' if not loop.last else '.' }}"
        "{% endfor %}{{ candidates | map('upper') | join(' or ') }} {{ history | length }} {{ 'x' ~ (1 + 2) }}"
        "{{ range(3) | list }}"
    )
    text = PromptTemplate("own", source).render(["C", "D", " e f"], ["x", "y"])
    assert text == "2/2 a E F, 4/2 b D.X or Y 3 x3[0, 1, 2]"


OWN = [
    GOOD,
    "{# said #}\n\n  {% if candidates %}  \n x {% endif %}\n\n{{ history | join(', ') }}\n",
    "{%- for t in history -%}\n\n  {{ t }}\n{%- endfor +%}\n\nA{% raw %}\n {{ x }}\n{% endraw %}\n{{ candidates }}\n",
    "a\r\n  {%+ if candidates %}\r\nb\r\n{% endif %}\r\n{{ history }}\r\n",
    "  {% if candidates %}\n  {% if history %}\n\n\n  y\n {% endif %} {# c #}\n{% endif %}\t\n  z\n",
    "{% set x = 'a%}\n' %}\n{{ x }}\n{{ '#}' }}\n{{ history }}{{ candidates }}{% if 1 %}\n\n{% endif %}\n",
]


@pytest.mark.parametrize(
    "template", [*map(load_template, template_names()), *(PromptTemplate("own", t) for t in OWN)]
)
def test_the_portable_form_renders_alike_everywhere(template):
    for trim, lstrip, keep in product((False, True), repeat=3):
        plain = jinja2.Environment(trim_blocks=trim, lstrip_blocks=lstrip, keep_trailing_newline=keep)
        portable = plain.from_string(template.portable)
        for history, candidates in product(([], ["A"], ["A", "B {{ x }}", " C\n"]), ([], ["X"], ["X", "Y"])):
            assert portable.render(history=history, candidates=candidates) == template.render(history, candidates)


ITEMS = pl.DataFrame(
    [("1", "Heat", 1995.0, 7.5, "Crime\n\x1b[1m"), ("2", "  Odd  {{ x }}", None, 8.0, None)],
    schema=["item_id", "title", "year", "score", "genres"],
    orient="row",
)


def test_items_are_shown_by_their_columns():
    texts = item_texts("{{ title }} ({{ year }}{% if genres %}, {{ genres ~ year }}{% endif %}) {{ score }}", ITEMS)
    assert texts == ["Heat (1995, Crime  [1m1995) 7.5", "  Odd  {{ x }} () 8"]
    assert item_texts("{{ shown }}", ITEMS.select("title", shown=pl.Series(texts))) == texts


def test_numbers_that_are_missing_are_empty():
    items = pl.DataFrame({"title": ["Heat", "Emma"], "year": [1995.0, float("nan")]})
    assert item_texts("{{ title }}{% if year %} ({{ year }}){% endif %}", items) == ["Heat (1995)", "Emma"]
    assert item_texts("{{ title }} {{ year }}", items) == ["Heat 1995", "Emma "]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ title }} {{ genre }}", "no column 'genre' in the catalogue, which has item_id, title, year, score"),
        ("{{ title ", "item_text '{{ title ': unexpected end"),
        ("{{ year + 1 }}", "unsupported operand"),
        ("{{ title.__class__.mro() }}", "unsafe"),
        ("{{ title.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_item_texts_that_cannot_be_made(source, message):
    with pytest.raises(TemplateError, match=r"model\.item_text") as e:
        item_texts(source, ITEMS)
    assert message in str(e.value)
