"""`prefrec bench`: what a step and a ranking cost on this machine, beside the ways in use today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from prefrec.cli import _options as o
from prefrec.console import say
from prefrec_lab.bench import BenchSettings, run_bench
from prefrec_lab.bench.report import tables, write_results
from prefrec_lab.bench.results import results_of
from prefrec_lab.bench.settings import QUICK
from prefrec_lab.bench.workload import device_of

_WORK, _LIMITS = "The work", "Limits"


def bench(
    out: Annotated[Path, typer.Option(help="Folder of measurements; the same command goes on with it.")] = Path(
        "runs/bench"
    ),
    negatives: Annotated[str | None, typer.Option(help="N, separated by commas; default: 1,3,7,15,31,63.")] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="published, trl, prefrec, separate (one sequence an answer), separated by commas; +gc after one: "
            "with gradient checkpointing; default: published,trl,prefrec."
        ),
    ] = None,
    sections: Annotated[
        str | None, typer.Option(help="growth, ranking, catalogue, steps, separated by commas; default: all.")
    ] = None,
    repetitions: Annotated[int | None, typer.Option(help="Of each, after one to warm up; default: 5.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A tiny random model: shows that everything works, measures nothing.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="smollm2-135m, a local folder, a hub id, or random weights: random:llama-2-7b, random:tiny; "
            "default: smollm2-135m.",
            rich_help_panel=_WORK,
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32 or bfloat16; default: float32.", rich_help_panel=_WORK)
    ] = None,
    matmul_precision: Annotated[
        str | None,
        typer.Option(help="Of float32 products: highest, high or medium; default: highest.", rich_help_panel=_WORK),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows a step of prefrec; default: 4.", rich_help_panel=_WORK)
    ] = None,
    sequences: Annotated[
        int | None,
        typer.Option(
            help="Full sequences a pass of the other ways: they take fewer rows instead; default: 16.",
            rich_help_panel=_WORK,
        ),
    ] = None,
    pairs: Annotated[
        int | None, typer.Option(help="Pairs TRL takes at most; scaled; default: 16.", rich_help_panel=_WORK)
    ] = None,
    titles: Annotated[
        int | None,
        typer.Option(help="Titles sampled for one sequence a title; scaled; default: 48.", rich_help_panel=_WORK),
    ] = None,
    shown: Annotated[
        int | None, typer.Option(help="Titles in the prompt; default: max(20, N + 1).", rich_help_panel=_WORK)
    ] = None,
    lora_rank: Annotated[int | None, typer.Option(help="Of the adapter; default: 8.", rich_help_panel=_WORK)] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder that `prefrec prepare` wrote; default: MovieLens-100K.", rich_help_panel=_WORK),
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Phrasing, or jinja2 file; default: 1.", rich_help_panel=_WORK)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of rows and random weights; default: 0.", rich_help_panel=_WORK)
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Default: as torch chooses.", rich_help_panel=_LIMITS)] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Leave a GPU alone.", rich_help_panel=_LIMITS)] = False,
    memory_gb: Annotated[
        float | None, typer.Option(help="A worker may take; default: 90% of what is free.", rich_help_panel=_LIMITS)
    ] = None,
    peak_tflops: Annotated[
        float | None,
        typer.Option(help="Of the device, for MFU; default: data sheet, of a known GPU.", rich_help_panel=_LIMITS),
    ] = None,
    budget_minutes: Annotated[
        float | None, typer.Option(help="What would end later is not run, and said so.", rich_help_panel=_LIMITS)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON, for machines.")] = False,
) -> None:
    """Measure a training step and rankings beside other ways to make them, in turn, in one run.

    Ways: the published one (1+N full sequences through policy and reference), TRL's DPOTrainer on pairs, and
    prefrec; on real MovieLens rows. Each way has a process of its own. OUT gets every raw measurement as it comes,
    bench.json, bench.svg and bench.png.

    Examples: prefrec bench --quick

    prefrec bench --negatives 1,3,7,15 --threads 2 --budget-minutes 120

    prefrec bench --model random:llama-2-7b --dtype bfloat16 --negatives 3,7,15,63 --methods prefrec --sections steps
    """
    given: dict[str, Any] = {
        "negatives": _words(negatives),
        "methods": _words(methods),
        "sections": _words(sections),
        "repetitions": repetitions,
        "model": model,
        "dtype": dtype,
        "matmul_precision": matmul_precision,
        "batch_size": batch_size,
        "sequences": sequences,
        "pairs": pairs,
        "titles": titles,
        "shown": shown,
        "lora_rank": lora_rank,
        "data": data,
        "template": template,
        "seed": seed,
        "threads": threads,
        "cpu": cpu,
        "memory_gb": memory_gb,
        "peak_tflops": peak_tflops,
        "budget_minutes": budget_minutes,
    }
    start = QUICK if quick else {}
    settings = o.fill(BenchSettings, **(start | {k: v for k, v in given.items() if v is not None}))
    records = run_bench(settings, out)
    results = results_of(settings, records, gpu=device_of(settings) == "cuda")
    write_results(settings, results, out)
    if as_json:
        typer.echo(json.dumps(results.as_json(), indent=2))
    else:
        sessions = [r["environment"] for r in records if r["kind"] == "session"]
        Console().print(tables(results, sessions))
    say(f"Measurements and plot: {out}")


def _words(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(w.strip() for w in text.split(",") if w.strip())
