"""The base classes of all stages of a run: a key, a folder, `make` and `run`; for rankers also `load`."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel

from prefrec.console import say
from prefrec.errors import without_secrets
from prefrec.rankers.base import Ranker
from prefrec.rankers.config import RankerConfig
from prefrec.report.wording import clock
from prefrec.runs.served import REFIT
from prefrec.runs.stage import damaged, is_aside, is_finished, read_state, stage, stage_key
from prefrec.stages.inputs import RunInputs, by_content

WEIGHTS = "adapter"
"""Folder of the trained weights inside a stage's folder: an adapter, or a whole model."""
MADE_WITH = "made_with"
"""Key in `stage.json` for the inputs of a stage that trains a language model (`RunInputs.stage_inputs`)."""


class Stage(ABC):
    """A stage of a run. It is made once for each key, in a folder of its own.

    Attributes:
        name: of the stage; for a ranker, its name in the table.
        folder: where `make` writes.
        kind: `prepare`, `sft`, `align`, or the kind of a ranker.
        config: settings, a section of the recipe or an entry of its `rankers`.
    """

    name: str
    folder: Path
    kind: str = ""
    config: BaseModel | None = None

    @property
    @abstractmethod
    def key(self) -> str:
        """A hash of everything that the result depends on (`stage_key`)."""

    @property
    def makes_files(self) -> bool:
        """True if `make` writes files, so that there is something to run and to check."""
        return True

    @abstractmethod
    def make(self) -> None:
        """Write the result to `folder`. `run` calls it once for each key, in all processes of a job."""

    @property
    def label(self) -> str:
        """Name of the stage in messages."""
        return self.name

    @property
    def settings(self) -> dict[str, Any]:
        """Settings as JSON, for `stage.json`."""
        return self.config.model_dump(mode="json") if self.config else {}

    @property
    def made_with(self) -> Mapping[str, Any]:
        """Inputs of a stage that trains a language model (`RunInputs.stage_inputs`); {} for others."""
        return {}

    def run(self) -> None:
        """Make the stage, unless its folder holds the finished result with this key."""
        if not self.makes_files:
            return
        if is_finished(self.folder, self.key):
            say(f"[dim]{self.label}: unchanged[/dim]")
            return
        say(f"[bold]{self.label}[/bold]")
        more = {MADE_WITH: self.made_with} if self.made_with else {}
        with stage(self.folder, self.key, self.kind, self.settings, **more):
            self.make()
        say(f"{self.label}: {clock(read_state(self.folder).get('seconds'))}")

    def changed(self, otherwise: Sequence[str] = ()) -> list[str] | None:
        """Return the dotted names of inputs that changed since it was made; None: they were not recorded.

        Args:
            otherwise: names of what else it depends on, for stages of which only the settings were recorded.
        """
        state = read_state(self.folder)
        if not self.makes_files or state.get("key") == self.key:
            return []
        if self.made_with:
            return _changed_inputs(state.get(MADE_WITH), self.made_with)
        return differences(state.get("config"), without_secrets(self.settings), self.name) or list(otherwise)

    def why(self, otherwise: Sequence[str] = ()) -> str:
        """Return why it has to run; "" if its result is up to date, in its folder or set aside.

        Args:
            otherwise: as for `changed`.
        """
        if not self.makes_files or is_aside(self.folder, self.key):
            return ""
        state = read_state(self.folder)
        if not state:
            return "not made yet"
        if state.get("key") != self.key:
            changed = self.changed(otherwise)
            return f"changed: {', '.join(changed)}" if changed else "made from other inputs, which were not recorded"
        if state.get("finished") is False:
            return "unfinished"
        broken = damaged(self.folder)
        return f"damaged: {', '.join(broken)}" if broken else ""


class RankerStage(Stage):
    """A stage whose result is a ranker of the table. An entry of a recipe's `rankers` names a subclass by its `kind`.

    To plan it must neither load nor train anything; `make` and `load` do. By default there is nothing to train.

    Attributes:
        Config: class of its entries in a recipe, which knows what they need.
        served: whether `prefrec serve` serves it by default.
        queries: whether its ranker queries those that it needs when it scores.
        learns: whether its ranker learns items from examples, so that it knows nothing of new ones; baselines only
            count.
        inputs: shared inputs of the run.
        before: name → stage, of the rankers and baselines that it needs.
        first: for a refit, the stage of this name that has learnt the training log alone. It answers validation
            examples, and what they chose is read from it, because the data of a refit have no validation examples.
    """

    Config: ClassVar[type[RankerConfig]]
    config: Any
    served: ClassVar[bool] = False
    queries: bool = False
    learns: ClassVar[bool] = True
    inputs: RunInputs
    before: Mapping[str, RankerStage]
    first: RankerStage | None = None

    def __init__(
        self,
        inputs: RunInputs,
        config: Any,
        folder: Path,
        before: Mapping[str, RankerStage],
        first: RankerStage | None = None,
    ) -> None:
        self.inputs = inputs
        self.config = config
        self.folder = folder
        self.before = before
        self.first = first
        self.name = config.name
        self.kind = config.kind

    @abstractmethod
    def load(self, batch_size: int) -> Ranker:
        """Load the ranker for test examples and for questions of clients; `batch_size`: examples per pass."""

    def make(self) -> None:
        """Train nothing."""

    @property
    def makes_files(self) -> bool:
        """True if there is something to train: the class has a `make` of its own."""
        return type(self).make is not RankerStage.make

    @property
    def label(self) -> str:
        """Name in messages: that of the ranker, or `sft refit`."""
        return self.name if self.first is None else f"{self.name} {REFIT}"

    def forget(self) -> None:
        """Free what was loaded for the examples of an evaluation. The next query may load it again."""

    @property
    def weights(self) -> Path | None:
        """Folder of the trained weights; None if nothing was trained."""
        return self.folder if self.makes_files else None

    @property
    def model(self) -> Mapping[str, Any] | None:
        """Settings of the base of a language model, whose prompts may show the candidates; None for other rankers."""
        return None

    @property
    def is_slow(self) -> bool:
        """True if full ranking takes minutes, because the ranker reads titles one by one.

        It then scores only unseen items, example by example.
        """
        return False

    @property
    def full(self) -> RankerStage | None:
        """The stage whose ranker ranks the whole catalogue; None if it does not support full ranking."""
        return self

    @property
    def has_out_of_fold(self) -> bool:
        """True if the ranker has learnt from validation examples or counts them: `load_out_of_fold` differs then."""
        return False

    def load_out_of_fold(self, batch_size: int) -> Ranker:
        """Load the ranker that scores each validation example with what it learnt from other users."""
        return self.load(batch_size)

    @property
    def out_of_fold(self) -> RankerStage:
        """The stage whose ranker scores validation examples with what it learnt from other users."""
        return OutOfFold(self) if self.has_out_of_fold else self

    def on(self, split: str) -> RankerStage:
        """Return the stage that answers the examples of a split, which its ranker must not have learnt from."""
        return (self.first or self).out_of_fold if split == "validation" else self

    @property
    def left_out(self) -> Collection[str]:
        """Names of the rankers that it names in its settings and does not query, which its making decides."""
        return ()

    @property
    def ablations(self) -> list[RankerStage]:
        """For a blend that is made, the blends without one of the parts that it has not left out."""
        return []


class View(RankerStage):
    """Another way to query the ranker of a stage, which makes the files."""

    makes_files = False

    def __init__(self, of: RankerStage) -> None:
        self.of = of
        self.name, self.first = of.name, of.first
        self.queries = of.queries
        if of.queries:
            self.before = of.before

    @property
    def key(self) -> str:
        return self.of.key

    @property
    def made_with(self) -> Mapping[str, Any]:
        return self.of.made_with

    @property
    def weights(self) -> Path | None:
        return self.of.weights

    @property
    def model(self) -> Mapping[str, Any] | None:
        return self.of.model

    @property
    def is_slow(self) -> bool:
        return self.of.is_slow

    @property
    def full(self) -> RankerStage | None:
        return None if self.of.full is None else self

    @property
    def has_out_of_fold(self) -> bool:
        return self.of.has_out_of_fold

    def load_out_of_fold(self, batch_size: int) -> Ranker:
        return self.of.load_out_of_fold(batch_size)


class OutOfFold(View):
    """A ranker for validation examples: each is scored with what the ranker learnt from other users."""

    has_out_of_fold = False

    @property
    def key(self) -> str:
        return stage_key(crossed=self.of.key)

    def load(self, batch_size: int) -> Ranker:
        return self.of.load_out_of_fold(batch_size)


class Loaded(View):
    """A stage whose ranker is loaded once, on the first query.

    Args:
        of: the stage.
        ranker: its ranker if it is loaded. Default: load it.
        full: its ranker for full ranking if it is loaded. Default: load it.
    """

    def __init__(self, of: RankerStage, ranker: Ranker | None = None, full: Ranker | None = None) -> None:
        super().__init__(of)
        self._ranker, self._full = ranker, full

    def load(self, batch_size: int) -> Ranker:
        if self._ranker is None:
            self._ranker = self.of.load(batch_size)
        return self._ranker

    @cached_property
    def full(self) -> RankerStage | None:
        if self.of.full is None or self.of.full is self.of:
            return self.of.full and self
        return Loaded(self.of.full, self._full)


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Return the dotted names of fields that differ between two JSON values."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [name]
    changed = []
    for field in {**now, **before}:
        changed += differences(before.get(field), now.get(field), f"{name}.{field}".lstrip("."))
    return changed


def _changed_inputs(recorded: Any, inputs: Mapping[str, Any]) -> list[str] | None:
    """Return the dotted names of inputs whose values differ from the recorded ones; None if none were recorded.

    A base model that is not found does not count as changed: it may have been moved.
    """
    if not isinstance(recorded, dict) or "digests" not in recorded:
        return None
    now = json.loads(json.dumps(inputs, default=str))
    if now["digests"]["name"] == now["model"]["name"]:
        now["digests"]["name"] = recorded["digests"]["name"]
    changed = differences(by_content(recorded), by_content(now))
    return [name for name in changed if name != "start"] or changed
