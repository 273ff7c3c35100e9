"""The declared rules of a table: its families of differences, their test and their correction.

`lab/protocol/table.yaml` holds them, and is committed before the runs that it judges. A trial's file, such
as `e5.yaml`, also holds its arms, and the recipe that made them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prefrec.errors import DataError
from prefrec.evaluation.intervals import Labels
from prefrec_lab.findings import Finding, Share, Tested, judge

Rules = TypeVar("Rules", bound="Protocol")
Gains = NDArray[np.float64]
"""A metric of a ranker on each row with each seed [K, B]."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Family(_Section):
    """A comparison that is made once per data set."""

    name: str = Field(description="Name in tables.")
    question: str = Field(description="What a difference answers.")
    ranker: str = Field(description="Ranker, or a role that the table resolves, such as `best baseline`.")
    against: str = Field(description="Ranker or role that is subtracted.")
    ranks: Literal["table", "control"] = Field("table", description="File of ranks that holds both.")


class Test(_Section):
    """The test of a difference, which gives its p-value."""

    __test__ = False  # of pytest

    kind: Literal["wild bootstrap"]
    draws: int = Field(ge=99)
    seed: int = 0


class Protocol(_Section):
    """The rules of a table."""

    metric: str
    families: list[Family] = Field(min_length=1)
    test: Test
    correction: Literal["holm"]
    level: float = Field(gt=0, lt=1)
    equivalence: float = Field(gt=0, lt=1, description="Margin as a share of the mean of the ranker compared with.")
    seeds: Literal["random"]
    evaluations: int = Field(ge=1, description="How often the test rows of a data set may be evaluated, per seed.")
    changes: list[str] = Field([], description="What was changed after test rows had been evaluated, with its date.")


class Trial(Protocol):
    """The rules of a table, and the recipe that made the runs of a trial."""

    question: str
    sets: list[str] = Field(min_length=1, description="Names of the data sets.")
    training_seeds: list[int] = Field(min_length=3, description="Seeds of the runs.")
    arms: dict[str, str] = Field(description="Ranker → what it answers.")
    positive_control: dict[str, Any] = Field(description="Sections of a recipe in which an effect must be seen.")
    dose: list[str] = Field(description="Figures to report of each alignment.")
    item_counts: list[str | int] = Field(description="Groups of test rows by the target's training interactions.")
    decision: str = Field(description="What follows from the findings.")
    recipe: dict[str, Any] = Field(description="Sections that replace those of a data set's recipe.")

    @model_validator(mode="after")
    def _has_all_arms(self) -> Self:
        made = {entry.get("name", entry.get("kind")) for entry in self.recipe.get("rankers", [])}
        named = {name for family in self.families for name in (family.ranker, family.against)}
        if absent := sorted((named | {*self.arms}) - made):
            raise ValueError(f"the recipe makes no {', '.join(absent)}")
        if untold := sorted(named - {*self.arms}):
            raise ValueError(f"arms: say what {', '.join(untold)} answers")
        return self


def read_trial(path: Path) -> Trial:
    """Return the trial in a file; raise DataError if it is missing or not understood."""
    return _read(path, Trial, "trial")


def read_protocol(path: Path) -> Protocol:
    """Return the rules in a file; raise DataError if it is missing or not understood."""
    return _read(path, Protocol, "table")


def _read(path: Path, kind: type[Rules], what: str) -> Rules:
    try:
        return kind.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as e:
        raise DataError(f"{path}: not the rules of a {what}: {e}") from None


@dataclass(frozen=True)
class Ranked:
    """The metric of all rankers on the test rows of a data set.

    Attributes:
        data: name of the data set.
        gains: ranker → metric [K, B] with each of K seeds.
        users, targets: user and target of each row [B].
        roles: role → ranker, for the names of families that are not rankers.
    """

    data: str
    gains: Mapping[str, Gains]
    users: Labels
    targets: Labels
    roles: Mapping[str, str]

    def pair(self, family: Family) -> tuple[str, str] | None:
        """Return the two rankers that a family compares here; None if one of them is not there."""
        ranker, against = (self.roles.get(name, name) for name in (family.ranker, family.against))
        return (ranker, against) if {ranker, against} <= {*self.gains} else None


@dataclass(frozen=True)
class Decision:
    """The decision of the rules for one family on one data set.

    Attributes:
        family, data, ranker, against: what is compared.
        seeds: number of seeds.
        found: the difference, with the p-values of the protocol's tests; Holm's correction is over the data sets.
    """

    family: str
    data: str
    ranker: str
    against: str
    seeds: int
    found: Finding


def decide(protocol: Protocol, family: Family, ranked: Sequence[Ranked]) -> list[Decision]:
    """Return the decisions of a family, one per data set that has both of its rankers."""
    pairs, tested = [], []
    for one in ranked:
        if (pair := one.pair(family)) is not None:
            first, second = (one.gains[name] for name in pair)
            pairs.append(pair)
            tested.append(Tested(one.data, first, second, one.users, one.targets))
    margin, test = Share(protocol.equivalence), protocol.test
    found = judge(tested, level=protocol.level, margin=margin, draws=test.draws, seed=test.seed)
    return [
        Decision(family.name, t.name, *pair, len(t.first), one)
        for t, pair, one in zip(tested, pairs, found, strict=True)
    ]
