"""The parts of a study: a question, what is varied, and how runs answer it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
from matplotlib.figure import Figure

from prefrec.data import PreparedData
from prefrec.errors import ConfigError
from prefrec.pipeline.opened import Run
from prefrec.recipe import Recipe, checked_recipe
from prefrec.report.tables import Grid
from prefrec.sections import AlignSection
from prefrec_systems.sequential import SequentialConfig

BASE = "base.yaml"
"""The recipe that most studies start from, with item-ID tokens."""

SASREC = SequentialConfig()
"""The sequential recommender of studies whose recipe names none."""


@dataclass(frozen=True, eq=False)
class Table:
    """A table in two forms, for people and for machines."""

    name: str  # of the CSV file, without its ending; the first table of a study is called `table`
    title: str  # above it
    first: str  # heading of its first column
    grid: Grid  # as people read it
    frame: pl.DataFrame  # the same numbers, one fact per row
    note: str = ""  # below it


@dataclass(frozen=True)
class Drawing:
    """A plot: name of its files, title, figure, the figure in words, and how to read it."""

    name: str
    title: str
    figure: Figure
    alt: str
    hint: str = ""


@dataclass(frozen=True)
class Outcome:
    """The findings of a study."""

    tables: list[Table]  # the main one first
    drawings: list[Drawing]
    facts: list[str]  # computed sentences: the largest difference, and whether any interval excludes 0
    # n, users: rows behind the main table, and users among them
    n: int
    users: int
    notes: list[str] = field(default_factory=list)  # what the numbers do not show


@dataclass(frozen=True)
class Study:
    """A question that runs answer."""

    name: str  # on the command line, and of the folder
    question: str  # one sentence
    varied: str  # what differs between the variants, and what does not
    # from the base recipe and the data that it prepares to the recipe to run
    vary: Callable[[Recipe, PreparedData], Recipe]
    # from finished runs, one per seed, and the study's own folder (for its cache) to the outcome
    analyse: Callable[[Sequence[Run], Path], Outcome]
    reads_any_run: bool = False  # whether runs of other recipes can be analysed too
    # makes a run in its folder if that is more than to run what `vary` returns; such runs are not shared with other
    # studies
    make: Callable[[Recipe, Path], Run] | None = None
    # whether baselines count the log that the models have learnt, also before test examples (`run_recipe`)
    equal_logs: bool = False
    many_data: bool = False  # whether it compares several data sets, with a run for each
    base: str = BASE  # file of this package with the recipe to start from, unless the user names another
    overrides: tuple[str, ...] = ()  # `FIELD=VALUE` settings of that recipe, applied before those of the user

    @property
    def shares_runs(self) -> bool:
        """True if its runs use the data and the SFT model of other studies, and are made in the same way."""
        own = {o.partition(".")[0] for o in self.overrides} - {"align", "evaluate"}
        return self.make is None and self.base == BASE and not own


def varied_alignment(base: Recipe) -> AlignSection:
    """Return the alignment of the base recipe that studies vary: its first S-DPO.

    Raises:
        ConfigError: there is none.
    """
    alignment = next((a for a in base.align if a.loss == "softmax_dpo"), None)
    if alignment is None:
        raise ConfigError("align: a study varies the recipe's first alignment with loss softmax_dpo: add one")
    return alignment


def with_alignments(base: Recipe, align: Sequence[AlignSection]) -> Recipe:
    """Return the base recipe with these alignments in place of its own.

    Raises:
        ConfigError: another part of the recipe does not fit these alignments.
    """
    raw = base.model_dump(mode="json") | {"align": [a.model_dump(mode="json") for a in align]}
    return checked_recipe(raw)


def on_all_positions(base: Recipe) -> Recipe:
    """Return the base recipe with SFT and alignments on examples at all positions of a history.

    A recipe may take each user's latest rows only.
    """
    everywhere: dict[str, None] = {"latest_per_user": None}
    sft = base.sft.model_copy(update=everywhere) if base.sft else None
    return base.model_copy(update={"sft": sft, "align": [a.model_copy(update=everywhere) for a in base.align]})


def as_it_is(base: Recipe, data: PreparedData) -> Recipe:
    """Return the base recipe itself."""
    return base
