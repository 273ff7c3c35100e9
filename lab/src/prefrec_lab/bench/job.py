"""One thing to measure, and the result of one measurement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from prefrec.lm.models import DTYPES
from prefrec.lm.packing import tokens_of
from prefrec.lm.trie import Trie
from prefrec.prompts import ChoiceSet
from prefrec.resources import peak_bytes, reset_peak
from prefrec_lab.bench.memory import resident_bytes
from prefrec_lab.bench.settings import CHECKPOINTED, MATMUL, PREFREC, SEPARATE, TRL, BenchSettings, base_method
from prefrec_lab.bench.workload import Workload, device_of
from prefrec_lab.stopwatch import Seconds


@dataclass(frozen=True)
class Job:
    """One method at one N, on its rows."""

    settings: BenchSettings
    section: str  # kind of work
    method: str  # its name; `+gc` at the end stands for gradient checkpointing
    negatives: int  # N; in rankings the number of candidates less one
    work: Workload  # the rows, of which the slow methods take the first ones

    @property
    def key(self) -> tuple[str, int, str]:
        """Section, N and method, which identify its measurements."""
        return self.section, self.negatives, self.method

    @property
    def base(self) -> str:
        """The method without `+gc`."""
        return base_method(self.method)

    @property
    def checkpointed(self) -> bool:
        """True if gradient checkpointing is on."""
        return self.method.endswith(CHECKPOINTED)

    @property
    def device(self) -> str:
        """`cuda` if there is a GPU and the settings allow it, else `cpu`."""
        return device_of(self.settings)

    @property
    def precision(self) -> torch.autocast:
        """The autocast context of a pass; off in float32."""
        dtype = DTYPES[self.settings.dtype]
        if dtype == torch.float32:
            return torch.autocast(self.device, enabled=False)
        return torch.autocast(self.device, dtype=dtype)

    @property
    def rows(self) -> int:
        """Rows per repetition: all, or as many as fill the sequences that a pass may hold, at least one."""
        every = len(self.work.choice_sets)
        if self.base in (PREFREC, MATMUL):
            return every
        return max(1, min(every, self.settings.sequences // len(self.work.choice_sets[0].answers)))

    @property
    def choice_sets(self) -> tuple[ChoiceSet, ...]:
        """The rows of a repetition."""
        return self.work.choice_sets[: self.rows]

    @property
    def pairs(self) -> int:
        """Pairs that TRL takes in a repetition: N per row, or fewer if the settings limit them."""
        return min(self.rows * self.negatives, max(self.settings.pairs, self.rows))

    @property
    def tokens(self) -> int:
        """Tokens that go through the policy in a repetition, without padding."""
        sets = self.choice_sets
        if self.section == "catalogue" and self.base == PREFREC:
            return sum(len(c.prompt) + len(Trie.build(c.answers).inner) - 1 for c in sets)  # the root is the prompt
        if self.base in (PREFREC, MATMUL):
            return sum(map(tokens_of, sets))
        full = sum(len(c.prompt) + len(a) for c in sets for a in c.answers)
        if self.base == SEPARATE:
            return full - sum(len(c.answers) for c in sets)  # last tokens, which predict nothing
        if self.section == "catalogue":
            return round(full * self.sampled / len(sets[0].answers))
        if self.base == TRL:
            chosen = sum(len(c.prompt) + len(c.answers[0]) for c in sets)
            return round((full + (self.negatives - 1) * chosen) * self.pairs / (self.rows * self.negatives))
        return full

    @property
    def sampled(self) -> int:
        """Titles of the catalogue that are scored as separate sequences."""
        return min(self.settings.titles, len(self.work.choice_sets[0].answers))


@dataclass
class Memory:
    """Bytes in use with the model loaded, before the work began, and the most in use during it."""

    resident: int = 0
    peak: int = 0


@dataclass(frozen=True)
class Measured:
    """The result of one repetition."""

    parts: dict[str, Seconds]  # name of a part → seconds; their sum is the repetition's time
    rows: float  # rows that were done: a fraction if TRL took only some of a row's pairs
    memory: Memory = field(default_factory=Memory)  # in use before the first part, and at most
    note: str = ""  # in words, if rows were scaled
    # numbers to check by (the chosen answers' mean log-probability), or rates
    facts: dict[str, float] = field(default_factory=dict)

    @property
    def wall(self) -> float:
        """Seconds of wall time of all parts."""
        return sum(p.wall for p in self.parts.values())

    @property
    def cpu(self) -> float:
        """Seconds of CPU time of all parts."""
        return sum(p.cpu for p in self.parts.values())


@contextmanager
def memory_of(job: Job) -> Iterator[Memory]:
    """Yield the bytes in use before the block; at its end the most in use is added."""
    memory = Memory(resident_bytes(job.device))
    reset_peak(job.device)
    yield memory
    memory.peak = peak_bytes(job.device)
