"""What a bench measures, and by which ways."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from prefrec.lm.models import EMBEDDED

Section = Literal["growth", "ranking", "catalogue", "steps"]
SECTIONS: tuple[Section, ...] = ("growth", "ranking", "catalogue", "steps")
"""The quick ones first: a budget then cuts off what is slowest."""

PUBLISHED, TRL, SEPARATE, PREFREC, MATMUL = "published", "trl", "separate", "prefrec", "matmul"
STEP_METHODS = {
    PUBLISHED: "1+N full sequences through policy and reference, logits at all positions in float32",
    TRL: "TRL's DPOTrainer on the row's N pairs, reference log-probs computed beforehand",
    SEPARATE: "SoftmaxDPOTrainer with one sequence an answer: logits at the answers only, nothing shared",
    PREFREC: "SoftmaxDPOTrainer: the prompt once, all answers branching from it",
}
"""Ways to make a training step; `+gc` after a name switches gradient checkpointing on."""

CHECKPOINTED = "+gc"

QUICK: dict[str, Any] = {
    "model": "random:tiny",
    "negatives": (1, 3),
    "repetitions": 2,
    "batch_size": 2,
    "titles": 8,
}
"""What `--quick` sets: a run of a few minutes that shows that everything works, and measures nothing."""

_COVERAGE = frozenset({"negatives", "methods", "sections", "repetitions", "budget_minutes", "peak_tflops"})


class BenchSettings(BaseModel):
    """Everything that decides what is measured; two runs with the same settings measure the same work."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(EMBEDDED, description="Embedded model, local folder, hub id, or `random:SHAPE`.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Of the base, in all ways alike.")
    negatives: tuple[PositiveInt, ...] = Field((1, 3, 7, 15, 31, 63), min_length=1, description="N, ascending.")
    methods: tuple[str, ...] = Field((PUBLISHED, TRL, PREFREC), min_length=1, description="Ways to make a step.")
    sections: tuple[Section, ...] = Field(SECTIONS, min_length=1, description="What is measured.")
    repetitions: int = Field(5, ge=1, description="Measurements of each, after one that warms up.")
    batch_size: int = Field(4, ge=1, description="Rows a step of prefrec.")
    sequences: int = Field(
        16, ge=2, description="Full sequences that the other ways put into one pass; they take fewer rows instead."
    )
    pairs: int = Field(16, ge=1, description="Pairs of a row that TRL takes at most; its time is scaled to all N.")
    titles: int = Field(48, ge=1, description="Titles sampled for one sequence a title, of the whole catalogue.")
    lora_rank: int = Field(8, ge=1, description="Of the adapter on all linear layers but the head.")
    shown: int | None = Field(None, ge=1, description="Titles shown in the prompt; None: max(20, N + 1).")
    data: Path | None = Field(None, description="Prepared data; None: MovieLens-100K as embedded.")
    template: str = Field("1", description="The prompt.")
    threads: int | None = Field(None, ge=1, description="Of each worker; None: as torch chooses.")
    matmul_precision: Literal["highest", "high", "medium"] = Field(
        "highest", description="torch.set_float32_matmul_precision, in all ways alike."
    )
    cpu: bool = Field(False, description="Leave a GPU alone.")
    memory_gb: float | None = Field(None, gt=0, description="A worker may take; None: 90% of what is free.")
    peak_tflops: float | None = Field(
        None, gt=0, description="Of the device, TFLOP/s; None: by the data sheet of a known GPU, in bfloat16."
    )
    budget_minutes: float | None = Field(None, gt=0, description="Skip what would end later than this.")
    seed: int = Field(0, ge=0, description="Of rows, random weights and adapters.")

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if list(self.negatives) != sorted(set(self.negatives)):
            raise ValueError(f"negatives: expected ascending numbers, each once, got {list(self.negatives)}")
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods: each once, got {', '.join(self.methods)}")
        for name in self.methods:
            if base_method(name) not in STEP_METHODS:
                known = ", ".join(STEP_METHODS)
                raise ValueError(f"methods: {name!r} is unknown; expected {known}, each also with {CHECKPOINTED}")
        if TRL in map(base_method, self.methods) and "steps" in self.sections and not _installed("trl"):
            raise ValueError("methods: trl is not installed: pip install 'prefrec[bench]', or leave it out")
        return self

    def identity(self) -> dict[str, Any]:
        """The settings that must agree for measurements to stand in one table."""
        return {k: v for k, v in self.model_dump(mode="json").items() if k not in _COVERAGE}


def base_method(name: str) -> str:
    """The name without `+gc`."""
    return name.removesuffix(CHECKPOINTED)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
