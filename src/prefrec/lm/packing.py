"""Layouts of choice sets for one model call: packed (answers share a prompt), or one row per answer.

In the packed layout, a choice set is one row. The prompt occurs once, and the answers branch from it:

    row   = [ pad | prompt | y_0 | y_1 | … | y_N | pad ]      y_i without its last token
    pos   = prompt 0..P−1; every answer restarts at P
    a query q may attend to a key k if  k ≤ q  and  (k is in the prompt, or k and q are in the same answer)

The last token of an answer predicts nothing, so it does not go through the model in either layout. Prompts are padded
on the left, so that the answers of all rows start at the same column and the head is needed only from the prompts'
last token on. In the separate layout, rows are padded on the right, where padding cannot affect earlier tokens. That
layout is for models that may ignore padding or positions.

Choice sets whose prompts have a common beginning, such as those for all items of one history, can also share a row:

    row   = [ pad | longest prompt | rest of prompt 1 | its answers | rest of prompt 2 | … | pad ]
    a query of choice set b may attend to the part of the longest prompt that is also in prompt b, to the rest of
    prompt b, and to its own answer
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from prefrec.lm.catalogue_softmax import CatalogueSoftmax
from prefrec.prompts import ChoiceSet, Trajectory

Layout = Literal["packed", "separate"]
LayoutChoice = Literal["auto", "packed", "separate"]
"""Values of the setting `layout`. `auto`: packed if it is correct for the model."""
LENGTHS = 64
"""Rows of trajectories are padded to a multiple of this length."""
SHARED_TOKENS = 2048
"""Approximate limit on the tokens of a shared row: the cost of attention grows with the square of the length."""


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """The tensors of one model call, which scores B choice sets in R rows of length L with M answer tokens.

    Attributes:
        input_ids: [R, L] token ids.
        position_ids: [R, L] positions.
        attention_mask: bool [R, 1, L, L] (True: may attend) in the packed layout; bool [R, L] (True: a token) in the
            separate layout.
        rows: [M] row of the logits of each answer token.
        columns: [M] column of these logits among the kept ones (that of the token before the answer token).
        positions: [M] index of each token's (row, column) among the P distinct ones, which are sorted.
        first_tokens: [P] index of one token for each of these positions.
        targets: [M] id of each answer token.
        choices: [M] flat index b·C + c of the answer to which the token belongs.
        choice_mask: bool [B, C], True for the answers that this call scores. It is False beyond the answers of a
            choice set, and for answers of other calls (`pack_passes`).
        logits_to_keep: number of columns, counted from the right, that need logits.
        nodes: [M] trie node before each answer token, for the catalogue-constrained softmax, which has only the
            answer tokens where a path branches. None: softmax over all tokens.
        competing: bool [P, U], True for the catalogue's `words` that can follow at each position. Default: all.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    rows: Tensor
    columns: Tensor
    positions: Tensor
    first_tokens: Tensor
    targets: Tensor
    choices: Tensor
    choice_mask: Tensor
    logits_to_keep: int
    nodes: Tensor | None = None
    competing: Tensor | None = None

    def to(self, device: torch.device | str) -> PackedBatch:
        """Return the batch with its tensors on `device`."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in self.as_dict().items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def as_dict(self) -> dict[str, Any]:
        """Return field name → value, for a data collator."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}


def pack(choice_sets: Sequence[ChoiceSet], *, pad_id: int, layout: Layout = "packed") -> PackedBatch:
    """Lay out choice sets for one call of the model.

    Args:
        choice_sets: B prompts with up to C answers each, as token ids.
        pad_id: any token id; padding is masked by length, not by id.
        layout: `packed`: one row per choice set. `separate`: one row per answer, for models that cannot branch.

    Raises:
        ValueError: there is no choice set, or one has an empty prompt, no answer or an empty answer.

    Two rows with the prompts `1 2 3` and `1 2` and the answers `4 9`/`5 6 9` and `7 9`/`8 9`:

        >>> batch = pack([ChoiceSet((1, 2, 3), ((4, 9), (5, 6, 9))), ChoiceSet((1, 2), ((7, 9), (8, 9)))],
        ...              pad_id=0)
        >>> batch.input_ids.tolist()
        [[1, 2, 3, 4, 5, 6], [0, 1, 2, 7, 8, 0]]
        >>> batch.position_ids.tolist()
        [[0, 1, 2, 3, 3, 4], [0, 0, 1, 2, 2, 0]]
        >>> batch.logits_to_keep
        4
        >>> batch.columns.tolist(), batch.targets.tolist(), batch.choices.tolist()
        ([0, 1, 0, 2, 3, 0, 1, 0, 2], [4, 9, 5, 6, 9, 7, 9, 8, 9], [0, 0, 1, 1, 1, 2, 2, 3, 3])
    """
    (batch,) = pack_passes(choice_sets, pad_id=pad_id, layout=layout)
    return batch


def pack_passes(
    choice_sets: Sequence[ChoiceSet],
    *,
    pad_id: int,
    layout: Layout = "packed",
    max_tokens: int | None = None,
    within: CatalogueSoftmax | None = None,
    share: bool = False,
) -> list[PackedBatch]:
    """Lay out choice sets for as few model calls as a token budget per call allows.

    The `choice_mask`s [B, C] of all calls together cover each answer once. A choice set stays in one row if it fits;
    otherwise its answers are distributed over several rows, each with the prompt.

    Args:
        choice_sets, pad_id, layout: as for `pack`.
        max_tokens: tokens per call, including padding; a longer prompt with one answer is a separate call. Default:
            no limit.
        within: restrict the softmax to this catalogue. Default: all tokens.
        share: let successive choice sets whose prompts have a common beginning share a row (`alike`). This needs the
            packed layout without `max_tokens`. FlexAttention reads such rows wrongly.

    Raises:
        ValueError: as for `pack`, or an answer is not in the catalogue.

    Three answers of two tokens after a prompt of three tokens, with five tokens per call:

        >>> passes = pack_passes([ChoiceSet((1, 2, 3), ((4, 9), (5, 9), (6, 9)))], pad_id=0, max_tokens=5)
        >>> [p.input_ids.tolist() for p in passes]
        [[[1, 2, 3, 4, 5]], [[1, 2, 3, 6]]]
        >>> [p.choice_mask.tolist() for p in passes]
        [[[True, True, False]], [[False, False, True]]]
    """
    _check(choice_sets)
    shape = len(choice_sets), max(len(c.answers) for c in choice_sets)
    branching = layout == "packed"
    room = max_tokens if branching else 0  # no room means one answer per row
    if within is not None:
        choice_sets = [replace(c, answers=tuple(map(within.cut, c.answers))) for c in choice_sets]
    if share and branching and max_tokens is None:
        rows = [_shared_row([choice_sets[b] for b in group], group[0], shape[1]) for group in alike(choice_sets)]
    else:
        rows = [row for b, c in enumerate(choice_sets) for row in _rows(c, b * shape[1], room)]
    return [_lay_out(some, shape, pad_id, within, branching=branching) for some in _share_out(rows, max_tokens)]


def pack_trajectories(
    trajectories: Sequence[Trajectory],
    *,
    pad_id: int,
    layout: Layout = "packed",
    within: CatalogueSoftmax | None = None,
) -> PackedBatch:
    """Lay out histories so that one causal pass scores each title given all titles before it.

    A row is one trajectory as running text, or several short ones that do not attend to each other (packed
    sequences), padded on the right. The titles of trajectory b are the C answers of choice set b. The end token of a
    title is predicted where the title ends although the text continues, so a title has the same loss as an answer to
    the same prompt.

    The layout `separate` has one row per trajectory, and a mask [R, L].

    A head `1 2`, two titles `5` and `6 7`, joined by `3`; the end token is 9:

        >>> batch = pack_trajectories([Trajectory((1, 2), (3,), (3,), ((5, 9), (6, 7, 9)))], pad_id=0)
        >>> batch.input_ids[0, :6].tolist()
        [1, 2, 5, 3, 6, 7]
        >>> batch.columns.tolist(), batch.targets.tolist(), batch.choices.tolist()
        ([1, 2, 3, 4, 5], [5, 9, 6, 7, 9], [0, 0, 1, 1, 1])
    """
    lengths = [t.length for t in trajectories]
    # Allocators keep blocks of every size that was used. With few lengths, memory does not grow.
    length = -(-max(lengths) // LENGTHS) * LENGTHS
    rows = _bins(lengths, length) if layout == "packed" else [[b] for b in range(len(trajectories))]
    most = max(len(t.answers) for t in trajectories)
    draft = _Draft(len(rows), length, (len(trajectories), most), pad_id, within)
    for r, row in enumerate(rows):
        start = 0
        for i, b in enumerate(row):
            text = list(trajectories[b].head)
            for j, answer in enumerate(trajectories[b].answers):
                before = start + len(text) - 1
                draft.predict(r, range(before, before + len(answer)), answer, b * most + j)
                text += answer[:-1]  # the end token is only predicted; the text continues with the joint
                text += trajectories[b].joint_after(j)
            start = draft.write(r, start, text, 0, i + 1)
    return draft.batch(branching=layout == "packed")


def _bins(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Return the indices of `lengths` in groups that sum to at most `room`: first-fit, longest first."""
    bins: list[list[int]] = []
    left: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        k = next((k for k, free in enumerate(left) if free >= lengths[i]), len(bins))
        if k == len(bins):
            bins.append([])
            left.append(room)
        bins[k].append(i)
        left[k] -= lengths[i]
    return bins


def tokens_of(choice_set: ChoiceSet | Trajectory) -> int:
    """Return the number of tokens of a packed row: prompt and answers without their last tokens, or a trajectory."""
    if isinstance(choice_set, Trajectory):
        return choice_set.length
    return len(choice_set.prompt) + _fed(choice_set.answers)


def _padded(length: int) -> int:
    """Return `length` with at most a sixteenth of padding, which leaves 16 lengths per doubling."""
    # The allocator and oneDNN keep memory for every length that was used.
    step = 1 << max(length.bit_length() - 5, 0)
    return -(-length // step) * step


def _fed(answers: Iterable[Sequence[int]]) -> int:
    """Return the number of answer tokens that go through the model."""
    return sum(len(a) - 1 for a in answers)


@dataclass(frozen=True, slots=True)
class _Branch:
    """A choice set in a row. Its prompt is the first `shared` tokens of the row's prompt, followed by `rest`."""

    shared: int
    rest: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    first_choice: int


@dataclass(frozen=True, slots=True)
class _Row:
    prompt: tuple[int, ...]
    branches: tuple[_Branch, ...]

    @property
    def fed(self) -> int:
        """Number of tokens after the prompt."""
        return sum(len(b.rest) + _fed(b.answers) for b in self.branches)


def _rows(choice_set: ChoiceSet, first_choice: int, room: int | None) -> Iterator[_Row]:
    """Yield one choice set as rows of at most `room` tokens (unlimited if None), with at least one answer each."""
    prompt, answers = choice_set.prompt, choice_set.answers

    def row(start: int, end: int) -> _Row:
        return _Row(prompt, (_Branch(len(prompt), (), answers[start:end], first_choice + start),))

    start, length = 0, len(prompt)
    for i, answer in enumerate(answers):
        more = _fed([answer])
        if room is not None and i > start and _padded(length + more) > room:
            yield row(start, i)
            start, length = i, len(prompt)
        length += more
    yield row(start, len(answers))


def alike(choice_sets: Sequence[ChoiceSet]) -> list[list[int]]:
    """Return groups of indices of successive choice sets that can share a row of about `SHARED_TOKENS` tokens.

    In a group, each prompt shares at least half of the preceding prompt as a common beginning.
    """
    groups: list[list[int]] = []
    length = 0
    for i, choices in enumerate(choice_sets):
        before = choice_sets[i - 1].prompt if i else ()
        same = _common(before, choices.prompt)
        more = len(choices.prompt) - same + _fed(choices.answers)
        if groups and 2 * same >= len(before) and length + more <= SHARED_TOKENS:
            groups[-1].append(i)
            length += more
        else:
            groups.append([i])
            length = tokens_of(choices)
    return groups


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _shared_row(choice_sets: Sequence[ChoiceSet], first: int, width: int) -> _Row:
    """Return a row shared by successive choice sets, which begin at `first` in a batch of `width` answers each."""
    trunk = max((c.prompt for c in choice_sets), key=len)
    branches = (
        _Branch(n := _common(trunk, c.prompt), c.prompt[n:], c.answers, (first + i) * width)
        for i, c in enumerate(choice_sets)
    )
    return _Row(trunk, tuple(branches))


def _share_out(rows: Sequence[_Row], max_tokens: int | None) -> list[list[_Row]]:
    """Distribute the rows, in order, over calls that stay within `max_tokens` after padding."""
    calls: list[list[_Row]] = [[]]
    prompt = answers = 0
    for row in rows:
        # All rows of a call are padded to the longest one, so a long row also raises the cost of the rows before it.
        prompt, answers = max(prompt, len(row.prompt)), max(answers, row.fed)
        if max_tokens is not None and calls[-1] and (len(calls[-1]) + 1) * _padded(prompt + answers) > max_tokens:
            calls.append([])
            prompt, answers = len(row.prompt), row.fed
        calls[-1].append(row)
    return calls


class _Draft:
    """A batch under construction, of R rows of length L for choices [B, C]."""

    def __init__(
        self, rows: int, length: int, shape: tuple[int, int], pad_id: int, within: CatalogueSoftmax | None
    ) -> None:
        self.ids = torch.full((rows, length), pad_id)
        self.positions = torch.zeros(rows, length, dtype=torch.long)
        # −1: padding; 0: the row's prompt; otherwise the rest of a prompt, an answer, or a trajectory
        self.segments = torch.full((rows, length), -1)
        self.parents = self.segments.clone()  # a further segment to attend to
        self.seen = torch.zeros(rows, length, dtype=torch.long)  # attend to the prompt before this column
        self.choice_mask = torch.zeros(shape, dtype=torch.bool)
        self.within = within
        self.tokens: list[tuple[int, int, int, int, int]] = []  # row, column, target, choice, node

    def write(
        self,
        row: int,
        start: int,
        text: Sequence[int],
        position: int,
        segment: int,
        parent: int | None = None,
        seen: int = 0,
    ) -> int:
        """Write tokens from column `start` on, with positions from `position` on; return the column after them.

        They attend to their own segment, to the segment `parent`, and to the row's prompt before the column `seen`.
        """
        end = start + len(text)
        self.ids[row, start:end] = torch.tensor(text, dtype=torch.long)
        self.positions[row, start:end] = torch.arange(position, position + len(text))
        self.segments[row, start:end] = segment
        self.parents[row, start:end] = segment if parent is None else parent
        self.seen[row, start:end] = seen
        return end

    def predict(self, row: int, columns: Sequence[int], answer: Sequence[int], choice: int) -> None:
        """Score the tokens of an answer at `columns`; with a catalogue, only those where its path branches."""
        self.choice_mask.view(-1)[choice] = True
        route = ((o, 0) for o in range(len(answer))) if self.within is None else self.within.route(answer)
        self.tokens += [(row, columns[o], answer[o], choice, node) for o, node in route]

    def _branch_mask(self) -> Tensor:
        """Return bool [R, 1, L, L], True where a query may attend to a key."""
        length = self.segments.shape[1]
        query, key = self.segments[:, :, None], self.segments[:, None, :]
        columns = torch.arange(length)
        in_prompt = (key == 0) & ((query == 0) | (columns < self.seen[:, :, None]))
        seen = (in_prompt | (key == query) | (key == self.parents[:, :, None])) & (key >= 0) & (query >= 0)
        # Padding attends to itself: the softmax of an empty row would be NaN.
        return (seen & (columns <= columns[:, None]) | torch.eye(length, dtype=torch.bool))[:, None]

    def batch(self, *, branching: bool, first_kept: int = 0) -> PackedBatch:
        """Return the batch. Its columns from `first_kept` on need logits."""
        index = torch.tensor(self.tokens, dtype=torch.long).view(-1, 5)
        rows, columns, targets, choices, nodes = index.T.contiguous()
        # Answers that branch at the same position use the same logits. On a GPU, `unique` would synchronise.
        flat = (rows * self.ids.shape[1] + columns).numpy()
        _, first, positions = np.unique(flat, return_index=True, return_inverse=True)
        return PackedBatch(
            input_ids=self.ids,
            position_ids=self.positions,
            attention_mask=self._branch_mask() if branching else self.segments >= 0,
            rows=rows,
            columns=columns - first_kept,
            positions=torch.from_numpy(positions),
            first_tokens=torch.from_numpy(first),
            targets=targets,
            choices=choices,
            choice_mask=self.choice_mask,
            logits_to_keep=self.ids.shape[1] - first_kept,
            nodes=None if self.within is None else nodes,
            competing=None if self.within is None else self.within.competing(nodes.numpy()[first]),
        )


def _lay_out(
    rows: Sequence[_Row], shape: tuple[int, int], pad_id: int, within: CatalogueSoftmax | None, *, branching: bool
) -> PackedBatch:
    longest = max(len(row.prompt) for row in rows)
    # The column after each prompt. If it is the same for all rows, fewer columns need logits.
    starts = [longest if branching else len(row.prompt) for row in rows]
    length = _padded(max(starts[r] + row.fed for r, row in enumerate(rows)))
    draft, first_kept = _Draft(len(rows), length, shape, pad_id, within), length
    for r, row in enumerate(rows):
        begin = starts[r] - len(row.prompt)
        # Positions start at 0 after the padding. Otherwise a prompt's score would depend on the padding.
        at = draft.write(r, begin, row.prompt, 0, 0)
        segment = 0
        for branch in row.branches:
            # The prompt's last token predicts the first token of each answer.
            before, after, seen = begin + branch.shared - 1, branch.shared, begin + branch.shared
            parent = None
            if branch.rest:
                segment += 1
                parent, at = segment, draft.write(r, at, branch.rest, after, segment, seen=seen)
                before, after = at - 1, after + len(branch.rest)
            first_kept = min(first_kept, before)
            for i, answer in enumerate(branch.answers):
                segment += 1
                end = draft.write(r, at, answer[:-1], after, segment, parent, seen)
                draft.predict(r, [before, *range(at, end)], answer, branch.first_choice + i)
                at = end
    return draft.batch(branching=branching, first_kept=first_kept)


def _check(choice_sets: Sequence[ChoiceSet]) -> None:
    if not choice_sets:
        raise ValueError("no choice sets to lay out")
    for b, c in enumerate(choice_sets):
        if not c.prompt:
            raise ValueError(f"choice set {b} has an empty prompt")
        if not c.answers or not all(c.answers):
            raise ValueError(f"choice set {b} has no answer, or an empty one")
