"""`prefrec align`: preference alignment on prepared data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefrec.cli import _options as o
from prefrec.cli.sft import begin
from prefrec.pipeline.plan import align_step
from prefrec.pipeline.recipe import SEED, AlignSection, LoraSection, ModelSection
from prefrec.runs.lock import stage_lock


@o.from_sections
def align(
    data: o.DataFolder,
    out: o.StageFolder,
    section: AlignSection,
    model: ModelSection,
    lora: LoraSection,
    adapter: Annotated[
        Path | None, typer.Option(help="SFT adapter to start from, also the reference. Default: the base model.")
    ] = None,
    seed: o.Seed = SEED,
) -> None:
    """Align an adapter by Softmax DPO: one chosen item against N rejected items.

    The adapter is copied for training and kept frozen as the reference. The same command resumes from the last
    checkpoint.

    Example: prefrec align data/ml runs/s-dpo --adapter runs/sft/adapter --num-negatives 15 --rows 1000
    """
    with stage_lock(out):
        ingredients, start = begin(data, section, model, lora, adapter, seed)
        typer.echo(f"Adapter: {align_step(ingredients, section, out, start).run().weights}")
