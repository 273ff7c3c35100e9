"""Recipes: no YAML, wrong fields, sections that do not fit together, overrides that name nothing."""

# ruff: noqa: E501  # a case a line is a table that can be read

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from reliability.corpus.case import Case, Content, command, write
from tiny_run import tiny_recipe


def _text(name: str, message: str, content: Content) -> Case:
    def give(place: Any, folder: Path) -> tuple[Any, ...]:
        return ("run", write(folder / "bad.yaml", content), "--out", folder / "run", "--until", "prepare")

    return command(f"recipe: {name}", message, give)


def _changed(name: str, message: str, change: Callable[[dict[str, Any]], object], *options: str) -> Case:
    def give(place: Any, folder: Path) -> tuple[Any, ...]:
        shop = {"interactions": place.shop / "log.csv", "items": place.shop / "items.csv"}
        recipe = tiny_recipe(shop, place.model)
        change(recipe)
        path = write(folder / "bad.yaml", yaml.safe_dump(recipe))
        return ("run", path, "--out", folder / "run", "--until", "prepare", *options)

    return command(f"recipe: {name}", message, give)


def _field(field: str, value: Any, message: str) -> Case:
    """A field of the recipe, as `sft.epochs`, has this value."""

    def change(recipe: dict[str, Any]) -> None:
        *parents, last = field.split(".")
        place: Any = recipe
        for name in parents:
            place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
        place[last] = value

    return _changed(f"{field}: {value!r}", message, change)


def _override(text: str, message: str) -> Case:
    return _changed(f"--set {text}", message, lambda recipe: None, "--set", text)


FORM = "expected FIELD=VALUE such as sft.rows=100 or align.0.beta=0.5"

# Nine levels of nine aliases each.
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
BOMB += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))

CASES = [
    command("recipe: not there", "bad.yaml: No such file or directory; a clone has examples in `recipes/`", lambda p, f: ("run", f / "bad.yaml")),
    command("recipe: a folder", "Is a directory; a clone has examples in `recipes/`", lambda p, f: ("run", f)),
    command("recipe: a pipe", "bad.yaml: a pipe or a device may be endless; write its content to a file", lambda p, f: ("run", write(f / "bad.yaml", os.mkfifo), "--out", f / "run")),
    command("recipe: a device", "/dev/zero: a pipe or a device may be endless", lambda p, f: ("run", "/dev/zero", "--out", f / "run")),
    _text("empty", "bad.yaml: expected a mapping with name, data, sft, …, got NoneType", ""),
    _text("not closed", "bad.yaml: not a YAML file: while parsing a flow mapping", "name: {x"),
    _text("not UTF-8", "bad.yaml: not a YAML file: 'utf-8' codec can't decode byte 0xe9", b"name: Andr\xe9\n"),
    _text("Python inside", "could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.system'", "name: !!python/object/apply:os.system [echo]\n"),
    _text("nested without end", "bad.yaml: not a YAML file: nested too deeply", "[" * 10_000),
    _text("aliases that expand to 9^9 values", "bad.yaml, line 6: more than 100,000 values with those of aliases", BOMB),
    _text("an alias inside its own anchor", "bad.yaml, line 1: the alias *a lies inside its own anchor", "name: &a [*a]\n"),
    _text("a key twice", "bad.yaml, line 3: the key 'seed' occurs twice; remove one of them", "name: x\nseed: 1\nseed: 2\n"),
    _text("a number in base 8", "bad.yaml, line 2: 010 is a number in base 8; write it without zeros in front", "name: x\nseed: 010\n"),
    _text("a number in base 60", "bad.yaml, line 2: 1:30 is a number in base 60", "name: x\nseed: 1:30\n"),
    _text("a date that there is not", "bad.yaml: not a YAML file", "name: 2020-99-99\n"),
    _text("no name", "bad.yaml: name: Field required", "seed: 1\n"),
    _text("keys that are numbers", "bad.yaml: 5: Keys should be strings (given: 5)", "name: x\n5: 6\n"),
    _field("name", "../escape", "name: String should match pattern"),
    _field("data.source", "netflix", "data.source: Input should be 'movielens-100k'"),
    _field("data.split", "given", "data: split: files has no split of its own; choose leave-last-out, time, user or time-share"),
    _field("data.windows", "all", "data: windows: only for split time, user or time-share, not leave-last-out"),
    _field("data.candidates", {"size": 1}, "data.candidates.size: Input should be greater than or equal to 2 (given: 1)"),
    _field("data.columns", {"user_id": "u"}, "data.columns.user_id: Extra inputs are not permitted"),
    _field("model.templates", [], "model.templates: List should have at least 1 item"),
    _field("sft.epochs", float("nan"), "sft.epochs: Input should be a finite number"),
    _field("sft.beta", 1, "sft.beta: Extra inputs are not permitted"),
    _field("align", [{"loss": "magic"}], "align.0: loss 'magic' is unknown: expected one of softmax_dpo"),
    _field("align", [{"name": "../x"}], "align.0.name: String should match pattern"),
    _field("align", [{}, {}], "align: the name 's-dpo' is used by another ranker"),
    _field("align", [{"num_negatives": 6, "negatives_from": "list"}], "align.s-dpo.num_negatives: 6 negatives, but a candidate set of 6 has only 5; lower it, raise data.candidates.size"),
    _override("sft.rows", f"--set 'sft.rows': {FORM}"),
    _override("=5", f"--set '=5': {FORM}"),
    _override("align.9.beta=1", f"--set 'align.9.beta=1': {FORM}"),
    _override("sfd.rows=5", "sfd: Extra inputs are not permitted"),
]  # fmt: skip
