"""`prefrec export`: export a ranker of a run for vLLM, transformers or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from prefrec.cli import _options as o
from prefrec.pipeline.opened import open_run
from prefrec.runs.lock import reader_lock


def export(
    run: o.RunFolder,
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder to write, new or empty.")],
    ranker: o.RunRanker = None,
    merged: Annotated[bool, Parameter(help="Merge the adapter into the base model's weights.")] = False,
) -> None:
    """Write an adapter (or with --merged the whole model) with tokenizer, prompt, items and model card.

    Files have the layout of PEFT and transformers, with safetensors only. vLLM serves both; llama.cpp converts merged
    models. A blend or a baseline is written with its parts and the interactions that it counts, with numbers instead
    of user ids. Without --ranker, the default for items that are new to the user is written with it, if that is a
    different one. `prefrec.Recommender.from_pretrained` reads all of them.

    Example: prefrec export runs/demo --ranker s-dpo --out exports/s-dpo
    """
    from prefrec.export.ranker import export_ranker  # here, because it needs torch

    with reader_lock(run):
        opened = open_run(run)
        for_new = None if ranker or merged else opened.for_new
        ranker = ranker or opened.default(opened.models if merged else None)
        print(export_ranker(opened, ranker, out, merged=merged, for_new=for_new))
