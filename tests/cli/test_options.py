"""Options made of sections: their names, values, defaults and errors."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from command import refused, succeed
from prefrec import cli
from prefrec.cli import _options as o
from prefrec.cli import command_line
from prefrec.cli._parsing import SHOWN
from prefrec.sections import EvaluateSection, ModelSection


class Lists(BaseModel):
    """The lists."""

    size: int = Field(20, ge=2, description="Titles in each.")


class Own(BaseModel):
    """The section of the verb itself."""

    kind: Literal["one", "two"] = Field("one", description="Which.")
    rows_taken: int | None = Field(3, ge=1, description="Rows; None: all.")
    rate: float = Field(1e-5, description="Of learning.")
    deep: bool = Field(True, description="Go deep.")
    words: list[str] = Field(["a"], description="Some words.")
    numbers: list[Annotated[int, Field(ge=1)]] = Field([1, 5], description="Some numbers.")
    layers: list[str] | str = Field("all", description="Names, or a text.")
    files: dict[Literal["train", "test"], Path] | None = Field(None, description="Files.")
    boost: dict[str, dict[str, float]] = Field({}, description="Factors.")
    inner: Lists = Field(default_factory=Lists)


TAKEN: list[Any] = []


def verb(
    out: Path,
    /,
    *,
    times: int = 1,
    section: o.Own[Own] = o.untouched(Own),
    lists: Lists = o.untouched(Lists),
) -> None:
    """Take them."""
    TAKEN[:] = [section, lists, out, times]


@pytest.fixture(autouse=True)
def verbs(monkeypatch):
    homes = {**cli.homes(), "take": f"{__name__}:verb"}
    monkeypatch.setattr(cli, "homes", lambda: homes)


def take(*options: object) -> list[Any]:
    succeed("take", *options, "out")
    return TAKEN


def test_without_options_the_sections_have_their_defaults():
    section, lists, out, times = take()
    assert (section, lists, out, times) == (Own(), Lists(), Path("out"), 1)
    assert section.model_fields_set == set()


def test_values():
    section, lists, _, times = take(
        *("--kind", "two", "--rows-taken", "none", "--rate", "2e-3", "--no-deep", "--words", "b", "--words", "c"),
        *("--numbers", 7, "--layers", "q_proj", "--files", "train=a.csv", "--files", "test=b=c.csv"),
        *("--boost", "a=b=2", "--boost", "a=c=d=0.5", "--boost", "e=f=1"),
        *("--inner.size", 5, "--lists.size", 4, "--times", 2),
    )
    files = {"train": Path("a.csv"), "test": Path("b=c.csv")}
    simple = {"kind": "two", "rows_taken": None, "rate": 2e-3, "deep": False, "layers": "q_proj", "files": files}
    boost = {"a": {"b": 2, "c=d": 0.5}, "e": {"f": 1}}
    lists_of = {"words": ["b", "c"], "numbers": [7], "inner": {"size": 5}, "boost": boost}
    assert section.model_dump() == simple | lists_of
    assert (lists.size, times) == (4, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--numbers", 1, "--numbers", 0), r"--numbers: Input should be greater than or equal to 1 \(given: '0'\)"),
        (("--files", "dev=a.csv"), r"--files: Input should be 'train' or 'test' \(given: 'dev'\)"),
        (("--kind", "x", "--rate", "y"), "--kind: .*; --rate: "),
    ],
)
def test_wrong_values_are_errors_of_the_section_with_the_name_of_the_option(options, message):
    assert re.match(f"error: {message}", refused("take", *options, "out"))


def test_help_shows_defaults_and_choices():
    told = " ".join(succeed("take", "--help-all").split())
    for shown in (
        "--kind CHOICE Which. [choices: one, two] [default: one]",
        *("--rows-taken INT Rows; None: all. [default: 3]", "--rate FLOAT Of learning. [default: 1e-05]"),
        *("--deep --no-deep Go deep. [default: True]", "--numbers INT... Some numbers. [default: 1, 5]"),
        *("--layers STR...|STR Names, or a text. [default: all]", "--files KEY=VALUE Files. │", "--lists.size INT"),
    ):
        assert shown in told


@pytest.mark.parametrize("verb", ["prepare", "evaluate-adapters"])
def test_help_shows_twelve_options_and_all_where_they_are_asked_for(verb):
    short, whole = (succeed(verb, asked) for asked in ("--help", "--help-all"))
    count, every = (len(re.findall(r"^│ +--\w", text, re.MULTILINE)) for text in (short, whole))
    assert count <= SHOWN < every
    assert f"--help-all shows {every - count} more options" in short


def test_evaluate_has_all_fields_of_its_sections():
    """But those that other parts of a recipe have to answer."""
    arguments = command_line()["evaluate-adapters"].assemble_argument_collection().filter_by(parse=True)
    found = {name for argument in arguments for name in argument.names}
    own = {f"--{field}" for field in EvaluateSection.model_fields}
    asked = {f"--model.{field}" for field in ModelSection.model_fields}
    wanted = {option.replace("_", "-") for option in own | asked}
    assert wanted - found == {"--model.answers", "--model.items"}
