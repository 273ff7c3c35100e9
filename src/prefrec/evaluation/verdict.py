"""The result of an audit: leaks and faults, their causes and remedies, and the verdict above every table."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import Any, ClassVar

import polars as pl

from prefrec.equality import ByValue
from prefrec.evaluation.diagnosis import Diagnosis
from prefrec.evaluation.intervals import Interval, PairedDifference, Result, plain
from prefrec.evaluation.labels import as_table, metric_text
from prefrec.rankers.item_only import ItemOnlyRanker

MIN_USERS = 20
"""Users under test that are needed to call anything a leak."""
LEAST_POPULAR = "least popular first"
ITEM_ONLY = ItemOnlyRanker.name
REWARDED = "rewarded by the candidate sets"
_FULL = (
    "use full ranking (evaluate.full_rows: null), or sample negatives from the targets of other examples "
    "(candidates.kind: targets)"
)
_SEEDED = "seed the sampling with user and example, never with the target (candidates.kind: uniform)"
# Shortcut → why it finds targets, and the remedy; for item properties, if targets and negatives are alike.
_WHY = {
    "target position": (
        "The position of a target gives it away",
        "shuffle each candidate set (candidates.kind: uniform)",
    ),
    "position lookup": ("A target has the same position in all its candidate sets", _SEEDED),
    "list lookup": ("A target has the same negatives in all its candidate sets", _SEEDED),
    LEAST_POPULAR: (
        "The negatives are more popular than the targets because of how they are sampled, for example by popularity: "
        "compare rankers with this HR@1, not with chance",
        _FULL,
    ),
    "title length": ("Titles of targets are longer or shorter than those of negatives", _FULL),
    "in the history": (
        "Targets are in the history more often than training users repeat an item",
        "cut histories before the target",
    ),
    "not in the history": ("Negatives come from the history", "sample unseen items only"),
    "id order": ("Ids follow the items' dates, and targets are newer than negatives", _FULL),
    ITEM_ONLY: ("Item properties separate targets from negatives as well as the user's history does", _FULL),
}
_ORDERED = ("Histories are sorted by item and not by time", "sort the log by time")
_OF_ITEMS = (LEAST_POPULAR, "title length", ITEM_ONLY)
# If more than this share of the steps of histories follow one order of all items, histories are not sorted by time.
_ORDERLY = 0.7


@dataclass(frozen=True, eq=False)
class AuditRow(ByValue):
    """One line of the audit."""

    name: str  # of the shortcut or baseline
    hr: Interval  # HR@1 with its 95% interval
    leak: bool = False  # True if it beats all its rivals
    against: str | None = None  # the rival with the smallest gain (by the interval's low end); None for baselines
    gain: PairedDifference | None = None  # HR@1 minus that rival's, with the family-wise interval
    learnt_from: str = ""  # the split it learnt from; "" if it does not learn
    note: str = ""  # more information, or why it was not tried
    tried: bool = True  # False if there was too little to learn from; `hr` then means nothing
    ndcg: Interval | None = None  # NDCG@10
    share: float | None = None  # for orders: share of steps of histories in this order

    @property
    def finding(self) -> str:
        """`leak`, `no leak`, `baseline` or `not tried`."""
        if not self.tried:
            return "not tried"
        return "leak" if self.leak else "no leak" if self.against else "baseline"


@dataclass(frozen=True, eq=False)
class Audit(Result):
    """The result of an audit.

    Attributes:
        rows: baselines first, then shortcuts.
        faults: faults of the protocol in words.
        diagnosis: numbers that describe the data set; None in files without it.
    """

    rows: list[AuditRow]
    faults: list[str] = field(default_factory=list)
    diagnosis: Diagnosis | None = None

    @property
    def leaks(self) -> list[AuditRow]:
        """Shortcuts that beat all their rivals."""
        return [r for r in self.rows if r.leak]

    @property
    def untried(self) -> list[AuditRow]:
        """Rows with too little data to learn from."""
        return [r for r in self.rows if not r.tried]

    @property
    def state(self) -> str:
        """`bad` after a leak or a fault, `good` if everything was tried and nothing found, else "" (open)."""
        if self.leaks or self.faults:
            return "bad"
        return "" if self.untried or self.rows[0].hr.users < MIN_USERS else "good"

    def row(self, name: str) -> AuditRow:
        """Return the row of that name."""
        return next(r for r in self.rows if r.name == name)

    @property
    def verdict(self) -> str:
        """The result in words: leaks with causes and remedies, and faults of the protocol."""
        faults = f" Faults of the protocol: {'; '.join(self.faults)}." if self.faults else ""
        return self._verdict_on_sets() + faults

    @property
    def headline(self) -> str:
        """The result in a few words, for the line above each table."""
        problems = [f"leaks ({', '.join(r.name for r in self.leaks)})"] if self.leaks else []
        problems += [f"faults of the protocol ({'; '.join(self.faults)})"] if self.faults else []
        if problems:
            return f"Audit: these candidate sets have {' and '.join(problems)}."
        return "Audit: no leak and no fault." if self.state == "good" else "Audit: incomplete, see the verdict."

    @property
    def reasons(self) -> list[str]:
        """A sentence on each cause of the leaks, with its remedy."""
        return [f"{why}. Remedy: {remedy}." for why, remedy in dict.fromkeys(map(self._cause, self.leaks))]

    def _cause(self, row: AuditRow) -> tuple[str, str]:
        is_order = row.share is not None
        if is_order and (row.share or 0) > _ORDERLY:
            return _ORDERED
        if (is_order or row.name in _OF_ITEMS) and self.diagnosis and self.diagnosis.classes_differ:
            return f"Targets are a different kind of item than negatives: {self.diagnosis.classes}", _FULL
        return _WHY["id order"] if is_order else _WHY[row.name]

    def _verdict_on_sets(self) -> str:
        random = self.rows[0].hr
        lists = f"{random.n} candidate sets"
        if random.users < MIN_USERS:
            few = f"{lists} of {random.users} users are too few to distinguish a leak from chance"
            return f"Audit: {few} ({MIN_USERS} users needed)."

        def with_rate(row: AuditRow, words: str = "") -> str:
            more = f", NDCG@10 {row.ndcg.mean:.3f}" if row.ndcg and row.name == ITEM_ONLY else ""
            return f"{row.name}{words} (HR@1 {row.hr.mean:.3f}, chance {random.mean:.3f}{more})"

        notes = dict.fromkeys(r.note for r in self.untried)
        missing = "; ".join(f"{', '.join(r.name for r in self.untried if r.note == n)} ({n})" for n in notes)
        if self.leaks:
            count = "a leak" if len(self.leaks) == 1 else f"{len(self.leaks)} leaks"
            leaks = ", ".join(map(with_rate, self.leaks))
            sentences = [f"Audit: {count} in {lists}, found without knowing the user's taste: {leaks}."]
            return " ".join([*sentences, *self.reasons, *([f"Skipped: {missing}."] if missing else [])])
        if missing:
            return f"Audit: incomplete for {lists}. Skipped: {missing}. The other checks found nothing."
        drawing = {LEAST_POPULAR: ", because of how they are sampled"}
        rewarded = [r for r in self.rows if r.note == REWARDED]
        shown = "".join(f"; {with_rate(r, f' is {REWARDED}')}{drawing.get(r.name, '')}" for r in rewarded)
        return f"Audit: no leak in {lists}{shown}."

    def frame(self) -> pl.DataFrame:
        """Return a row per baseline and shortcut: HR@1 with its interval, gain over its rival, finding."""
        return pl.DataFrame(
            {
                "shortcut": [row.name for row in self.rows],
                "HR@1": [metric_text(row.hr if row.tried else None) for row in self.rows],
                "gain over its rival": [metric_text(row.gain) for row in self.rows],
                "finding": [row.finding for row in self.rows],
            }
        )

    def __repr__(self) -> str:
        return f"{self.verdict}\n{as_table(self.frame())}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.verdict)}</p>{as_table(self.frame(), '_repr_html_')}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        leaks, untried = ([r.name for r in some] for some in (self.leaks, self.untried))
        words = {"verdict": self.verdict, "leaks": leaks, "untried": untried, "faults": self.faults}
        return words | {"diagnosis": plain(self.diagnosis), "rows": plain(self.rows)}


@dataclass(frozen=True, eq=False)
class NoAudit(Result):
    """Replaces the audit of a result that has no candidate sets to audit, with the reason."""

    reason: str
    state: ClassVar[str] = ""  # neither good nor bad

    @property
    def verdict(self) -> str:
        """The reason as a verdict."""
        return f"Not audited: {self.reason}."

    headline = verdict

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"verdict": self.verdict, "reason": self.reason}


FULL_RANKING = NoAudit("full ranking has no candidate sets that could give the target away")
Verdict = Audit | NoAudit
"""The audit of a result's candidate sets, or why there is none."""
