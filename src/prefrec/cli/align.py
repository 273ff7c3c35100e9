"""`prefrec align`: preference alignment on prepared data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefrec.cli import _options as o
from prefrec.cli.sft import Rank, lora_section
from prefrec.data import prepared_digest, read_prepared
from prefrec.pipeline.ingredients import Ingredients
from prefrec.pipeline.recipe import AlignSection
from prefrec.pipeline.rows import check_section
from prefrec.pipeline.run import align_stage


def align(
    data: Annotated[Path, typer.Argument(help="Folder that `prefrec prepare` wrote.")],
    out: Annotated[Path, typer.Argument(help="Folder for adapter, log and checkpoints.")],
    adapter: Annotated[
        Path | None, typer.Option(help="SFT adapter to go on from, which is the reference; default: the bare base.")
    ] = None,
    loss: Annotated[str, typer.Option(help="softmax_dpo, dpo, dmpo, bpr or softmax.")] = "softmax_dpo",
    beta: Annotated[float, typer.Option(help="Pull to the reference.")] = 1.0,
    num_negatives: Annotated[int, typer.Option(help="Rejected titles a row.")] = 3,
    negatives: Annotated[str, typer.Option(help="fixed, or per_epoch (drawn anew).")] = "fixed",
    negatives_from: Annotated[
        str, typer.Option(help="list (the row's candidates), or drawn again: uniform, popularity, in-batch, hard.")
    ] = "list",
    negatives_pool: Annotated[
        int, typer.Option(help="For hard: items drawn a row of which those with the highest scores are taken.")
    ] = 64,
    max_tokens_per_pass: Annotated[
        int | None, typer.Option(help="Tokens a pass, for many negatives: less memory, the same gradient.")
    ] = None,
    model: o.Model = "smollm2-135m",
    dtype: o.Dtype = "auto",
    max_length: o.MaxLength = 1024,
    chat: o.Chat = False,
    template: o.Templates = None,
    rows: o.Rows = None,
    skip_rows: o.SkipRows = 0,
    latest_per_user: o.LatestPerUser = None,
    epochs: o.Epochs = 1.0,
    learning_rate: o.LearningRate = 1e-4,
    global_batch_size: o.GlobalBatch = 16,
    per_device_batch_size: o.DeviceBatch = 4,
    lora_rank: Rank = None,
    seed: o.Seed = 0,
) -> None:
    """Align an adapter on the item taken and N items not taken: Softmax DPO.

    The adapter given is copied and kept, frozen, as the reference. The same command goes on from the last checkpoint.

    Example: prefrec align data/ml runs/s-dpo --adapter runs/sft/adapter --num-negatives 15 --rows 1000
    """
    settings = {
        "loss": loss,
        "beta": beta,
        "num_negatives": num_negatives,
        "negatives": negatives,
        "negatives_from": negatives_from,
        "negatives_pool": negatives_pool,
        "max_tokens_per_pass": max_tokens_per_pass,
        "rows": rows,
        "skip_rows": skip_rows,
        "latest_per_user": latest_per_user,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "global_batch_size": global_batch_size,
        "per_device_batch_size": per_device_batch_size,
    }
    prepared = read_prepared(data)
    section = o.fill(AlignSection, **settings)
    asked = o.model_section(model, dtype, max_length, chat, template)
    check_section(section, prepared, asked, seed, o.option)
    made_of = Ingredients(prepared, prepared_digest(data), asked, lora_section(lora_rank, adapter), seed)
    entry = align_stage(made_of, section, o.start_of(adapter, prepared, asked), out)
    typer.echo(f"Adapter: {entry.weights}")
