"""Settings of the bench: what to measure, and with which methods."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from prefrec.lm.names import EMBEDDED

Section = Literal["growth", "ranking", "catalogue", "steps"]
SECTIONS: tuple[Section, ...] = ("growth", "ranking", "catalogue", "steps")
"""The quick ones first: a budget then cuts off the slowest."""

PUBLISHED, TRL, SEPARATE, PREFREC, MATMUL = "published", "trl", "separate", "prefrec", "matmul"
STEP_METHODS = {
    PUBLISHED: "1+N full sequences through policy and reference, logits at all positions in float32",
    TRL: "TRL's DPOTrainer on the row's N pairs, reference log-probs computed beforehand",
    SEPARATE: "SoftmaxDPOTrainer with one sequence per answer: logits at the answers only, nothing shared",
    PREFREC: "SoftmaxDPOTrainer: the prompt once, all answers branching from it",
}
"""Methods to make a training step; `+gc` after a name switches gradient checkpointing on."""

CHECKPOINTED = "+gc"

QUICK: dict[str, Any] = {"model": "random:tiny", "negatives": (1, 3), "repetitions": 2, "batch_size": 2, "titles": 8}
"""Settings of `--quick`: a run of a few minutes to check that everything works. Its times mean nothing."""

_COVERAGE = frozenset({"negatives", "methods", "sections", "repetitions", "budget_minutes", "peak_tflops"})


class BenchSettings(BaseModel):
    """Everything that determines what is measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(EMBEDDED, description="Embedded model, local folder, hub id, or `random:SHAPE`.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Dtype of the base, for all methods.")
    # Defaults as on the command line: `_split` makes tuples of them.
    negatives: tuple[PositiveInt, ...] = Field(
        "1,3,7,15,31,63",
        min_length=1,
        validate_default=True,
        description="Values of N, ascending, separated by commas.",
    )
    methods: tuple[str, ...] = Field(
        f"{PUBLISHED},{SEPARATE},{TRL},{PREFREC}",
        min_length=1,
        validate_default=True,
        description="Of published, trl, prefrec and separate (one sequence per answer), with commas; +gc after a "
        "name: with gradient checkpointing.",
    )
    sections: tuple[Section, ...] = Field(
        ",".join(SECTIONS), min_length=1, validate_default=True, description="Kinds of work, separated by commas."
    )
    repetitions: int = Field(5, ge=1, description="Measurements per method and N, after a warm-up.")
    batch_size: int = Field(4, ge=1, description="Examples per step of prefrec.")
    sequences: int = Field(
        16, ge=2, description="Full sequences per pass of the other methods, which take fewer rows instead."
    )
    pairs: int = Field(16, ge=1, description="Maximum pairs for TRL; its time is scaled to all.")
    titles: int = Field(
        48, ge=1, description="Titles of the whole catalogue that get a sequence each; their time is scaled to all."
    )
    lora_rank: int = Field(8, ge=1, description="Of the adapter on all linear layers but the head.")
    shown: int | None = Field(None, ge=1, description="Titles in the prompt; default: max(20, N + 1).")
    data: Path | None = Field(None, description="Folder that `prefrec prepare` wrote; default: MovieLens-100K.")
    template: str = Field("1", description="Prompt template: a name, or a jinja2 file.")
    threads: int | None = Field(None, ge=1, description="Threads per worker. Default: torch's choice.")
    matmul_precision: Literal["highest", "high", "medium"] = Field(
        "highest", description="Of float32 products (torch.set_float32_matmul_precision)."
    )
    cpu: bool = Field(False, description="Do not use a GPU.")
    memory_gb: float | None = Field(
        None, gt=0, description="Memory that a worker may take; default: 90% of what is free."
    )
    peak_tflops: float | None = Field(
        None, gt=0, description="TFLOP/s of the device, for MFU; default: data sheet of a known GPU, in bfloat16."
    )
    budget_minutes: float | None = Field(None, gt=0, description="What would end later is not run.")
    seed: int = Field(0, ge=0, description="Random seed of examples, weights and adapters.")

    @field_validator("negatives", "methods", "sections", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if not isinstance(value, str | list | tuple):
            return value
        texts = [value] if isinstance(value, str) else map(str, value)
        words = [word.strip() for text in texts for word in text.split(",")]
        return tuple(word for word in words if word)

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if list(self.negatives) != sorted(set(self.negatives)):
            raise ValueError(f"negatives: expected ascending numbers, each once, got {list(self.negatives)}")
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods: expected each once, got {', '.join(self.methods)}")
        for name in self.methods:
            if base_method(name) not in STEP_METHODS:
                known = ", ".join(STEP_METHODS)
                raise ValueError(f"methods: {name!r} is unknown; expected {known}, each also with {CHECKPOINTED}")
        if TRL in map(base_method, self.methods) and "steps" in self.sections and find_spec("trl") is None:
            raise ValueError("methods: trl is not installed: run `pip install trl`, or leave it out")
        return self

    def identity(self) -> dict[str, Any]:
        """Return the settings that must agree for measurements to stand in one table."""
        return {k: v for k, v in self.model_dump(mode="json").items() if k not in _COVERAGE}


def base_method(name: str) -> str:
    """Return the name without `+gc`."""
    return name.removesuffix(CHECKPOINTED)
