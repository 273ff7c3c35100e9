"""The result of an audit: its findings, their causes and remedies, and the verdict above every table."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import Any, ClassVar

import polars as pl

from prefrec.equality import ByValue
from prefrec.evaluation.diagnosis import Diagnosis
from prefrec.evaluation.intervals import MIN_USERS, Interval, PairedDifference, Result, plain
from prefrec.evaluation.labels import as_table, metric_text
from prefrec.rankers.item_only import ItemOnlyRanker

LEAST_POPULAR = "least popular first"
ITEM_ONLY = ItemOnlyRanker.name
TITLE_LENGTH = "title length"
REWARDED = "rewarded by the candidate sets"
SOLVED = "can be solved without the user"
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
    TITLE_LENGTH: ("Titles of targets are longer or shorter than those of negatives", _FULL),
    "in the history": (
        "Targets are in the history more often than training users repeat an item",
        "cut histories before the target",
    ),
    "not in the history": ("Negatives come from the history", "sample unseen items only"),
    "id order": ("Ids follow the items' dates, and targets are newer than negatives", _FULL),
    ITEM_ONLY: ("Item properties separate targets from negatives as well as the user's history does", _FULL),
}
_ORDERED = ("Histories are sorted by item and not by time", "sort the log by time")
_RARE = ("Targets are less popular than negatives, because users choose new or rare items", _FULL)
_UNEXPLAINED = ("A rule finds the targets without knowing the user", _FULL)
_OF_ITEMS = (LEAST_POPULAR, TITLE_LENGTH, ITEM_ONLY)
ORDERLY = 0.7
"""Largest share of the steps of histories that follow one order of all items if histories are sorted by time."""


@dataclass(frozen=True, eq=False)
class AuditRow(ByValue):
    """One line of the audit."""

    name: str  # of the shortcut or baseline
    hr: Interval  # HR@1 with its 95% interval
    leak: bool = False  # True if it beats all its baselines and is a rule of positions or of sampling
    against: str | None = None  # the baseline with the smallest gain (by the interval's low end); None for baselines
    gain: PairedDifference | None = None  # HR@1 minus that of the baseline, with the family-wise interval
    learnt_from: str = ""  # the split it learnt from; "" if it does not learn
    note: str = ""  # more information, or why it was not tried
    tried: bool = True  # False if there was too little to learn from; `hr` then means nothing
    ndcg: Interval | None = None  # NDCG@10
    share: float | None = None  # for orders: share of steps of histories in this order
    solves: bool = False  # True if it beats all its baselines and is a rule of item properties

    @property
    def finding(self) -> str:
        """`leak`, `solves without the user`, `no leak`, `baseline` or `not tried`."""
        if not self.tried:
            return "not tried"
        if self.leak or self.solves:
            return "leak" if self.leak else "solves without the user"
        return "no leak" if self.against else "baseline"


@dataclass(frozen=True, eq=False)
class Audit(Result):
    """The result of an audit.

    Attributes:
        rows: baselines first, then shortcuts.
        faults: protocol errors in words.
        diagnosis: numbers that describe the data set; None in files without it.
    """

    rows: list[AuditRow]
    faults: list[str] = field(default_factory=list)
    diagnosis: Diagnosis | None = None

    @property
    def leaks(self) -> list[AuditRow]:
        """Rules of positions or of sampling that beat all their baselines: errors of the protocol."""
        return [r for r in self.rows if r.leak]

    @property
    def solving(self) -> list[AuditRow]:
        """Rules of item properties that beat all their baselines: the sets can be solved without the user.

        No error of the protocol is needed for this, only users who choose similar items, such as recent ones.
        """
        return [r for r in self.rows if r.solves]

    @property
    def untried(self) -> list[AuditRow]:
        """Rows with too little data to learn from."""
        return [r for r in self.rows if not r.tried]

    @property
    def state(self) -> str:
        """The state of the candidate sets.

        `bad` after a leak or a fault, `solved` if they can be solved without the user, `good` if everything was tried
        and nothing found, else "" (open).
        """
        if self.leaks or self.faults:
            return "bad"
        if self.solving:
            return "solved"
        return "" if self.untried or self.rows[0].hr.users < MIN_USERS else "good"

    def row(self, name: str) -> AuditRow:
        """Return the row of that name."""
        return next(r for r in self.rows if r.name == name)

    @property
    def verdict(self) -> str:
        """The result in words: leaks with causes and remedies, and protocol errors."""
        faults = f" Protocol errors: {'; '.join(self.faults)}." if self.faults else ""
        return self._verdict_on_sets() + faults

    @property
    def headline(self) -> str:
        """The result in a few words, for the line above each table."""
        problems = [f"leaks ({', '.join(r.name for r in self.leaks)})"] if self.leaks else []
        problems += [f"protocol errors ({'; '.join(self.faults)})"] if self.faults else []
        words = [f"have {' and '.join(problems)}"] if problems else []
        words += [f"{SOLVED} ({', '.join(r.name for r in self.solving)})"] if self.solving else []
        if words:
            return f"Audit: these candidate sets {' and '.join(words)}."
        is_clean = self.state == "good"
        return "Audit: no leak and no protocol error." if is_clean else "Audit: incomplete, see the verdict."

    @property
    def reasons(self) -> list[str]:
        """A sentence on each cause of what was found, with its remedy."""
        found = [*self.leaks, *self.solving]
        return [f"{why}. Remedy: {remedy}." for why, remedy in dict.fromkeys(map(self._cause, found))]

    def _cause(self, row: AuditRow) -> tuple[str, str]:
        is_order = row.share is not None
        if is_order and (row.share or 0) > ORDERLY:
            return _ORDERED
        if (is_order or row.name in _OF_ITEMS) and self.diagnosis and self.diagnosis.classes_differ:
            return f"Targets are a different kind of item than negatives: {self.diagnosis.classes}", _FULL
        if row.name == LEAST_POPULAR and row.solves:
            return _RARE
        return _WHY.get("id order" if is_order else row.name, _UNEXPLAINED)

    def _verdict_on_sets(self) -> str:
        random = self.rows[0].hr
        lists = f"{random.n} candidate sets"
        if random.users < MIN_USERS:
            few = f"{lists} of {random.users} users are too few to distinguish a leak from chance"
            return f"Audit: {few} ({MIN_USERS} users needed)."

        def with_rate(row: AuditRow, words: str = "") -> str:
            more = f", NDCG@10 {row.ndcg.mean:.3f}" if row.ndcg and row.name == ITEM_ONLY else ""
            return f"{row.name}{words} (HR@1 {row.hr.mean:.3f}, chance {random.mean:.3f}{more})"

        by_note: dict[str, list[str]] = {}
        for row in self.untried:
            by_note.setdefault(row.note, []).append(row.name)
        missing = "; ".join(f"{', '.join(names)} ({note})" for note, names in by_note.items())
        leaks, solving = (", ".join(map(with_rate, some)) for some in (self.leaks, self.solving))
        if leaks or solving:
            count = "a leak" if len(self.leaks) == 1 else f"{len(self.leaks)} leaks"
            sentence = f"Audit: {count} in {lists}, found without knowing the user's taste: {leaks}."
            sentences = [sentence] if leaks else []
            if solving:
                words = "They can also be solved without the user" if leaks else f"Audit: {lists} {SOLVED}"
                sentences.append(f"{words}: {solving}.")
            return " ".join([*sentences, *self.reasons, *([f"Skipped: {missing}."] if missing else [])])
        if missing:
            return f"Audit: incomplete for {lists}. Skipped: {missing}. The other checks found nothing."
        drawing = {LEAST_POPULAR: ", because of how they are sampled"}
        rewarded = [r for r in self.rows if r.note == REWARDED]
        shown = "".join(f"; {with_rate(r, f' is {REWARDED}')}{drawing.get(r.name, '')}" for r in rewarded)
        return f"Audit: no leak in {lists}{shown}."

    def frame(self) -> pl.DataFrame:
        """Return a row per baseline and shortcut: HR@1 with its interval, gain over its baseline, finding."""
        return pl.DataFrame(
            {
                "shortcut": [row.name for row in self.rows],
                "HR@1": [metric_text(row.hr if row.tried else None) for row in self.rows],
                "gain over its baseline": [metric_text(row.gain) for row in self.rows],
                "finding": [row.finding for row in self.rows],
            }
        )

    def __repr__(self) -> str:
        return f"{self.verdict}\n{as_table(self.frame())}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.verdict)}</p>{as_table(self.frame(), '_repr_html_')}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        leaks, solving, untried = ([r.name for r in some] for some in (self.leaks, self.solving, self.untried))
        found = {"leaks": leaks, "solved_without_the_user": solving, "untried": untried, "faults": self.faults}
        return {"verdict": self.verdict, **found, "diagnosis": plain(self.diagnosis), "rows": plain(self.rows)}


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
