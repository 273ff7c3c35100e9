"""Tables of metrics, differences, audit and stages, for the report and the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from prefrec.evaluation import Audit, Comparison, Evaluation, Group, Interval, PairedDifference
from prefrec.evaluation.best import Best
from prefrec.evaluation.intervals import too_few_users
from prefrec.evaluation.labels import FULL_METRICS, HEADLINE_METRICS
from prefrec.evaluation.outcome import FAMILY
from prefrec.evaluation.preferences import Preferences
from prefrec.evaluation.targets import FEWEST
from prefrec.rankers.baselines import BASELINES, PopularityRanker
from prefrec.report.wording import (
    clock,
    includes_zero,
    interval_ends,
    label,
    metric_label,
    number,
    signed,
    with_interval,
)
from prefrec.runs.contents import StageLog

MARK, WEAK_MARK = "✱", "∘"
"""Marks of a difference with p < 0.05: after correction for multiple comparisons, and only before it."""
VERDICT_STYLES = {"bad": "bold red", "solved": "bold yellow", "good": "green", "": "yellow"}
"""State of an audit → style of its verdict on a terminal."""
_STYLES = {"best": "bold", "weak": "dim", "leak": "red"}


@dataclass(frozen=True)
class Cell:
    """A number, the small lines below it, and its style (`best`, `weak`, `leak` or "")."""

    text: str
    small: tuple[str, ...] = ()
    style: str = ""


@dataclass(frozen=True)
class Grid:
    """A table: headings of the columns after the row's name, and rows (name, cells, style)."""

    columns: list[str]
    rows: list[tuple[str, list[Cell], str]]


def metrics_grid(
    evaluation: Evaluation, full: Evaluation | None = None, metrics: Sequence[str] | None = None
) -> Grid:
    """Return a grid of rankers × metrics (default: all), with a last row for a random order.

    The highest value of each column has style `best`. Metrics of full ranking (`full`) are a second block of columns.
    """
    columns = _columns(evaluation, metrics or evaluation.measured, "")
    return _grid(evaluation.rankers, columns + (_columns(full, FULL_METRICS, ", full ranking") if full else []))


def groups_grid(
    evaluation: Evaluation, full: Evaluation | None = None, metrics: Sequence[str] = HEADLINE_METRICS
) -> Grid | None:
    """Return metrics on examples with seen and with new targets, and in full ranking also among such items only.

    Return None if a group has fewer examples than `FEWEST`.
    """
    columns = []
    for block, wanted, where in ((evaluation, metrics, ""), (full, FULL_METRICS[: len(metrics)], ", full ranking")):
        if block and len(block.groups) > 1 and min(group.n for group in block.groups.values()) >= FEWEST:
            known = [m for m in wanted if m in block.measured] or block.measured[:1]
            for name, group in block.groups.items():
                kind = (
                    (name if "among" in name else f"{name} targets").replace("warm", "seen").replace("known", "seen")
                )
                columns += _columns(group, known, f"{where}, {kind} (n = {group.n:,})")
    return _grid(evaluation.rankers, columns) if columns else None


MOST_BASELINES = 3
"""Number of baselines up to which a page shows all of them."""


def shown_baselines(evaluation: Evaluation, full: Evaluation | None = None) -> list[str]:
    """Return the baselines to show on a page unfolded: popularity, and the best on candidate sets and in full."""
    best = [block.best_reference for block in (full, evaluation) if block and block.best_reference]
    return [PopularityRanker.name, *best]


def folded(grid: Grid, shown: Sequence[str]) -> tuple[Grid, Grid | None]:
    """Return a grid without the baselines that are not to be shown, and a grid of these; None if there are few."""
    rest = [row for row in grid.rows if row[0] in BASELINES and row[0] not in shown]
    if sum(name in BASELINES for name, *_ in grid.rows) <= MOST_BASELINES or not rest:
        return grid, None
    kept = [row for row in grid.rows if row not in rest]
    return Grid(grid.columns, kept), Grid(grid.columns, rest)


def outcome_grid(block: Evaluation, metrics: Sequence[str], shown: Sequence[str]) -> tuple[Grid, int]:
    """Return a short grid with one line a ranker, and the number of baselines that it leaves out (as `folded`).

    It has the first metric with its interval, the means of the others, and the difference of the first one: of a
    ranker over the best baseline, then of all other compared pairs but a blend and itself without a part.
    """
    first, *others = [m for m in metrics if m in block.measured] or block.measured[:1]
    gains = {(c.ranker, c.against): c for c in block.comparisons if c.metric == first}
    best = max(of[first].mean for of in block.metrics.values() if first in of)
    rows = []
    for ranker, of in block.metrics.items():
        mean, gain = of.get(first), gains.pop((ranker, block.best_reference or ""), None)
        fewer = f" (n = {mean.n:,})" if mean and mean.n != block.n else ""
        style = "best" if mean and mean.mean == best else ""
        cells = [Cell(with_interval(mean) + fewer if mean else "–", style=style)]
        cells += [Cell(number(of[m].mean) if m in of else "–") for m in others]
        rows.append((label(ranker), [*cells, _gain_cell(gain)], ""))
    kept, rest = folded(Grid([], rows), shown)
    empty = [Cell("–")] * (1 + len(others))
    pairs = [
        (f"{label(ranker)} − {label(against)}", [*empty, _gain_cell(gain)], "")
        for (ranker, against), gain in gains.items()
        if not against.startswith(f"{ranker} without ")
    ]
    columns = [*map(metric_label, [first, *others]), "difference"]
    return Grid(columns, kept.rows + pairs), len(rest.rows) if rest else 0


def outcome_note(block: Evaluation, metric: str) -> str:
    """Return the note of `outcome_grid`: sizes, what the differences are of, and their marks."""
    best = block.best_reference
    over = f" over {label(best)}, the best baseline" if best else " of the pair"
    family = sum(c.metric == FAMILY for c in block.comparisons)
    marks = f"{MARK} p < 0.05 after Holm’s correction for {family} comparisons, {WEAK_MARK} without" if family else ""
    compared = f"\ndifference: {metric_label(metric)}{over}. {marks}" if block.comparisons else ""
    return f"{size_of(block)}; 95% intervals {WITH_INTERVALS}{compared}"


def _gain_cell(gain: Comparison | None) -> Cell:
    if gain is None:
        return Cell("–")
    cell = _difference_cell(gain)
    return Cell(" ".join([cell.text, *cell.small]), style=cell.style)


_DEAD = ({0.0}, {1.0})
Column = tuple[str, dict[str, Cell], str | None]
"""Heading, ranker → cell, and the value of a random order (None: unknown)."""


def _columns(block: Group, metrics: Sequence[str], where: str) -> list[Column]:
    columns: list[Column] = []
    for metric in metrics:
        values = {r: of[metric] for r, of in block.metrics.items() if metric in of}
        # If all rankers have 0 or all have 1, such as HR@10 of 10 candidates, the column compares nothing.
        if metric.startswith("hr@") and len(metrics) > 1 < len(values) and {i.mean for i in values.values()} in _DEAD:
            continue
        # A mean over fewer examples cannot be the best of the column.
        most = max((i.n for i in values.values()), default=0)
        best = max((i.mean for i in values.values() if i.n == most), default=0.0)
        expected = block.expected.get(metric)
        cells = {r: _interval_cell(i, best if i.n == most else None, block.n) for r, i in values.items()}
        columns.append((f"{metric_label(metric)}{where}", cells, None if expected is None else number(expected)))
    return columns


def _grid(rankers: Sequence[str], columns: Sequence[Column]) -> Grid:
    rows = [(label(r), [cells.get(r, Cell("–")) for _, cells, _ in columns], "") for r in rankers]
    if any(expected for *_, expected in columns):
        rows.append(("chance", [Cell("–" if e is None else e) for *_, e in columns], "chance"))
    return Grid([heading for heading, *_ in columns], rows)


WITH_INTERVALS = "over users and targets"
"""Words for intervals in notes below tables."""


def size_of(group: Group) -> str:
    """Return the numbers of examples, users and, if known, distinct targets, in words."""
    targets = f" and {group.items:,} distinct targets" if group.items else ""
    return f"n = {group.n:,} examples of {group.users:,} users{targets}"


def metrics_note(evaluation: Evaluation, full: Evaluation | None = None) -> str:
    """Return the numbers of examples and users, and chance."""
    note = f"{size_of(evaluation)}; chance HR@1 {evaluation.chance:.3f}; 95% intervals {WITH_INTERVALS}"
    if full:
        among = "all items" if full.by_repeat else "all unseen items"
        note += f"\nfull ranking: {size_of(full)}, ranked among {among}"
    few = too_few_users(evaluation.users)
    return "\n".join([note, *([few] if few else []), *logs_notes(evaluation.logs)])


def logs_notes(logs: Mapping[str, str]) -> list[str]:
    """Return the sentence that says which interactions the rankers were trained on; [] if that is not known."""
    read: dict[str, list[str]] = {}
    for ranker, log in logs.items():
        read.setdefault(log, []).append(label(ranker))
    if len(read) < 2:
        return [f"All rankers were trained on the same log: {log}" for log in read]
    listed = "; ".join(f"{log}: {', '.join(names)}" for log, names in read.items())
    return [f"The rankers were not trained on the same log, which `refit: true` in the recipe changes. {listed}"]


def targets_grids(
    evaluation: Evaluation, full: Evaluation | None = None, metrics: Sequence[str] = HEADLINE_METRICS
) -> list[tuple[str, Grid]]:
    """Return titled grids of rankers × groups of targets: by class, number of known interactions, and repeats.

    Groups with fewer than `FEWEST` examples are omitted, and so are grids with fewer than two groups.
    """
    grids = []
    for block, wanted, where in ((evaluation, metrics, ""), (full, FULL_METRICS[:1], ", full ranking")):
        kinds = (("class", "by_class"), ("known interactions", "by_count"), ("repeats", "by_repeat"))
        for title, groups in ((title, getattr(block, field)) for title, field in kinds) if block else ():
            shown = {name: group for name, group in groups.items() if group.n >= FEWEST}
            if block and len(shown) > 1:
                known = [m for m in wanted if m in block.measured] or block.measured[:1]
                columns = [
                    column
                    for name, group in shown.items()
                    for column in _columns(group, known, f", {name} (n = {group.n:,})")
                ]
                grids.append((f"Targets by {title}{where}", _grid(evaluation.rankers, columns)))
    return grids


def default_grid(best: Best) -> Grid | None:
    """Return the values by which the default was chosen: for all targets, for repeats, and for those new to the user.

    The chosen ranker of each column has the style `best`. Return None if it was not chosen by kind of target.
    """
    if not best.by_repeat:
        return None
    chosen = {"all": best, **best.by_repeat}
    most = {kind: max(of.rows.values()) for kind, of in chosen.items()}

    def cell(kind: str, ranker: str) -> Cell:
        of = chosen[kind]
        if ranker not in of.values:
            return Cell("–")
        fewer = (f"n = {of.rows[ranker]:,}",) if of.rows[ranker] < most[kind] else ()
        return Cell(number(of.values[ranker]), fewer, "best" if ranker == of.ranker else "")

    columns = [f"{metric_label(best.metric)}, {kind} (n = {most[kind]:,})" for kind in chosen]
    return Grid(columns, [(label(r), [cell(kind, r) for kind in chosen], "") for r in best.values])


def differences_grid(comparisons: Sequence[Comparison], metrics: Sequence[str] | None = None) -> Grid:
    """Return a grid of pairs × metrics: paired differences with marks and intervals."""
    shown = metrics or list(dict.fromkeys(c.metric for c in comparisons))
    pairs: dict[str, dict[str, Cell]] = {}
    for c in comparisons:
        pairs.setdefault(f"{label(c.ranker)} − {label(c.against)}", {})[c.metric] = _difference_cell(c)
    rows = [(pair, [cells.get(m, Cell("–")) for m in shown], "") for pair, cells in pairs.items()]
    return Grid([metric_label(m) for m in shown], rows)


def comparisons_note(evaluation: Evaluation) -> str:
    """Return a note on the number of comparisons, the baseline that models are compared with, and the marks."""
    family = sum(c.metric == FAMILY for c in evaluation.comparisons)
    pairs = len({(c.ranker, c.against) for c in evaluation.comparisons})
    best = evaluation.best_reference
    named = f" Models are compared with {label(best)}, the baseline with the highest NDCG@10." if best else ""
    counted = "one comparison" if family == 1 else f"{family} comparisons"
    holm = f"{MARK} p < 0.05 after Holm’s correction for the {counted} of {metric_label(FAMILY)}. " * bool(family)
    return (
        f"{len(evaluation.comparisons)} comparisons ({pairs} pair{'s' * (pairs != 1)}, all metrics) on the same "
        f"{evaluation.n:,} examples, with 95% intervals {WITH_INTERVALS}.{named} Grey: the interval includes 0. "
        f"{holm}{WEAK_MARK} p < 0.05 without correction."
    )


def beyond_grid(beyond: Mapping[str, Mapping[str, float]]) -> Grid:
    """Return a grid of coverage, novelty and diversity by ranker (`prefrec.evaluation.beyond`)."""
    columns = list(dict.fromkeys(metric for values in beyond.values() for metric in values))
    rows = [(name, [Cell(f"{values[m]:.3f}") for m in columns], "") for name, values in beyond.items()]
    return Grid(columns, rows)


def preference_grids(preferences: Preferences) -> tuple[Grid, Grid]:
    """Return a grid of scores × metrics of preferences, and one of paired differences."""
    block = Group(preferences.metrics, preferences.users, preferences.users, {})
    columns = _columns(block, list(dict.fromkeys(m for of in preferences.metrics.values() for m in of)), "")
    return _grid(list(preferences.metrics), columns), differences_grid(preferences.differences)


def _interval_cell(interval: Interval, best: float | None = None, n: int | None = None) -> Cell:
    # Some metrics were measured on fewer examples than the rest of the table.
    fewer = () if n in (None, interval.n) else (f"n = {interval.n:,}",)
    return Cell(number(interval.mean), (interval_ends(interval), *fewer), "best" if interval.mean == best else "")


def _difference_cell(difference: PairedDifference) -> Cell:
    stands = isinstance(difference, Comparison) and difference.stands
    mark = f"\u00a0{MARK}" if stands else f"\u00a0{WEAK_MARK}" if difference.p_value < 0.05 else ""
    style = "weak" if includes_zero(difference) else "best"
    return Cell(f"{signed(difference.mean)}{mark}", (interval_ends(difference),), style)


def audit_grid(audit: Audit) -> Grid:
    """Return a grid of the baselines, then the shortcuts, each with its baseline."""
    rows = []
    for row in audit.rows:
        gain, style = Cell("–"), "leak" if row.leak or row.solves else ""
        if row.gain:
            ends = f"[{signed(row.gain.low)},\u00a0{signed(row.gain.high)}]"
            gain = Cell(signed(row.gain.mean), (ends, f"over {row.against}"))
        finding = Cell(row.finding, (row.note,) if row.note else (), style)
        values = [_interval_cell(row.hr), _interval_cell(row.ndcg) if row.ndcg else Cell("–")]
        rows.append((row.name, [*values, gain, Cell(row.learnt_from or "–"), finding], style))
    return Grid(["HR@1", "NDCG@10", "gain over baseline", "learnt from", "finding"], rows)


@dataclass(frozen=True)
class Printed:
    """A grid for rich, with small lines below the numbers. Columns that do not fit go to another table below."""

    grid: Grid
    first: str
    note: str = ""
    above: str = ""
    style: str = ""  # style of `above`

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.above:
            yield Text(self.above, self.style)
        names, cells = [name for name, *_ in self.grid.rows], [cells for _, cells, _ in self.grid.rows]
        # Rich breaks lines at spaces of any kind.
        rows = [["\n".join([c.text, *c.small]).replace("\u00a0", "") for c in row] for row in cells]
        columns = [(heading, *(row[i] for row in rows)) for i, heading in enumerate(self.grid.columns)]
        least = [max(len(word) for text in column for word in text.split()) for column in columns]
        most = [max(len(line) for text in column for line in text.splitlines()) for column in columns]
        room = left = options.max_width - max(map(len, [self.first, *names]))
        blocks: list[list[int]] = [[]]
        for i, width in enumerate(least):
            if blocks[-1] and left < width + 2:
                blocks.append([])
                left = room
            blocks[-1].append(i)
            left -= width + 2
        for block in blocks:
            spare, widths = max(0, room - sum(least[i] + 2 for i in block)), {}
            for i in reversed(block):  # the last columns have the longest texts
                widths[i] = min(most[i], least[i] + spare)
                spare -= widths[i] - least[i]
            table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
            table.add_column(self.first, no_wrap=True)
            for i in block:
                table.add_column(self.grid.columns[i], width=widths[i])
            for name, texts, styled in zip(names, rows, cells, strict=True):
                table.add_row(Text(name), *(Text(texts[i], _STYLES.get(styled[i].style, "")) for i in block))
            yield table
        if self.note:
            yield Text(self.note, "table.caption")


def audit_table(audit: Audit) -> Printed:
    """Return the audit as a table for the terminal, with the verdict above and the data set's diagnosis below."""
    note = audit.diagnosis.sentences if audit.diagnosis else []
    return Printed(audit_grid(audit), "shortcut", "\n".join(note), audit.verdict, VERDICT_STYLES[audit.state])


def stages_grid(stages: list[StageLog]) -> Grid:
    """Return a grid with a row per stage: settings, time, and first and last loss."""
    columns = ["loss", "β", "negatives", "learning rate", "steps", "time", "training loss", "validation loss"]
    return Grid(columns, [(label(s.name), [Cell(text) for text in _stage_texts(s)], "") for s in stages])


def _stage_texts(stage: StageLog) -> list[str]:
    names = ("loss", "beta", "num_negatives", "learning_rate")
    loss, beta, negatives, rate = (stage.setting(name) for name in names)
    if stage.kind != "align":
        loss, beta, negatives = "−log π", None, None
    logged = [e.get("step") for e in stage.log]
    steps = max((int(step) for step in logged if isinstance(step, int | float)), default=0)
    return [
        *map(_setting, (loss, beta, negatives, rate)),
        f"{steps:,}" if steps else "–",
        clock(stage.state.get("seconds")) if stage.state.get("finished") else "not finished",
        _course(stage, "loss"),
        _course(stage, "eval_loss"),
    ]


def _setting(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _course(stage: StageLog, key: str) -> str:
    values = [value for _, value in stage.points(key)]
    return f"{number(values[0])} → {number(values[-1])}" if values else "–"
