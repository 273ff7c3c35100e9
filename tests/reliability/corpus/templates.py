"""Prompt templates: no jinja2, without the history, or with code that breaks out or ends badly."""

# ruff: noqa: E501  # a case a line is a table that can be read

from pathlib import Path
from typing import Any

from reliability.corpus.case import Case, Content, command, write

BOTH = "{{ history }} {{ candidates }}"


def _template(name: str, message: str, content: Content) -> Case:
    def give(place: Any, folder: Path) -> tuple[Any, ...]:
        path = write(folder / "own.jinja2", content)
        few = ("--rows", "1", "--baselines", "random", "--out", folder / "out")
        return ("evaluate-adapters", place.run / "data", *few, *place.asked, "--model.templates", path)

    return command(f"template: {name}", message, give)


CASES = [
    command("template: not there", "no template 'none.jinja2': expected the path of a jinja2 file or one of books/1", lambda p, f: ("evaluate-adapters", p.run / "data", "--rows", "1", "--out", f, *p.asked, "--model.templates", "none.jinja2")),
    _template("empty", "own.jinja2: the file is empty", " \n"),
    _template("JSON", "own.jinja2: missing history and candidates; expected the placeholders {{ history }} and {{ candidates }}", '{"history": 1}'),
    _template("not UTF-8", "own.jinja2: not UTF-8 text", b"\xe9"),
    _template("not closed", "own.jinja2, line 1: unexpected end of template", "{{ history "),
    _template("no history", "own.jinja2: missing history; expected the placeholders", "{{ candidates }}"),
    _template("another placeholder", "own.jinja2: unknown placeholder 'user'", BOTH + "{{ user }}"),
    _template("a filter that there is not", "own.jinja2, line 1: No filter named 'shout'", "{{ history | shout }}" + BOTH),
    _template("another file included", "own.jinja2: no loader for this environment", "{% include '/etc/passwd' %}" + BOTH),
    _template("a way out of the sandbox", "own.jinja2: access to attribute '__class__' of 'list' object is unsafe", BOTH + "{{ history.__class__.__mro__ }}"),
    _template("a change to what it is given", "own.jinja2: access to attribute 'append' of 'list' object is unsafe", BOTH + "{{ history.append(1) }}"),
    _template("a division by nothing", "own.jinja2: division by zero", BOTH + "{{ 1 / 0 }}"),
    _template("a loop without end", "own.jinja2: Range too big", BOTH + "{% for x in range(10 ** 9) %}{% endfor %}"),
    _template("a macro that calls itself", "own.jinja2: maximum recursion depth", BOTH + "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
    _template("nested without end", "own.jinja2: nested too deeply", "{{ history" + "[" * 3000 + "1" + "]" * 3000 + " }}" + BOTH),
]  # fmt: skip
