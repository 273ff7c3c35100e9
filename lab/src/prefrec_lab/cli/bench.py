"""`prefrec lab bench`: the cost of a training step and of a ranking on this machine, compared with other methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from prefrec.cli import _options as o
from prefrec.console import say
from prefrec_lab.bench import BenchSettings, run_bench
from prefrec_lab.bench.report import tables, write_results
from prefrec_lab.bench.results import results_of
from prefrec_lab.bench.settings import QUICK
from prefrec_lab.bench.workload import device_of


def bench(
    *,
    out: Annotated[Path, Parameter(help="Folder of the measurements. The same command resumes them.")] = Path(
        "runs/bench"
    ),
    quick: Annotated[
        bool,
        Parameter(help="Use a tiny random model, to check that everything works. Its times mean nothing."),
    ] = False,
    as_json: Annotated[bool, Parameter("--json", help="Print the results as JSON.")] = False,
    section: o.Own[BenchSettings] = o.untouched(BenchSettings),
) -> None:
    """Measure a training step and rankings with several methods, in turn, in one run.

    Methods: the published one (1+N full sequences through policy and reference), the same with what prefrec does
    without packing (stored reference, logits at the answers only), TRL's DPOTrainer on pairs with a stored reference,
    and prefrec; on real MovieLens rows. Each method has a process of its own. OUT gets every raw measurement as it
    comes, bench.json, bench.svg and bench.png.

    Example: prefrec lab bench --quick

    Example: prefrec lab bench --negatives 1,3,7,15 --threads 2 --budget-minutes 120

    Example: prefrec lab bench --model random:llama-2-7b --dtype bfloat16 --negatives 7,63 --methods prefrec
    --sections steps
    """
    given = {name: getattr(section, name) for name in section.model_fields_set}
    settings = o.fill(BenchSettings, **(QUICK | given)) if quick else section
    records = run_bench(settings, out)
    results = results_of(settings, records, gpu=device_of(settings) == "cuda")
    write_results(settings, results, out)
    if as_json:
        print(json.dumps(results.as_json(), indent=2))
    else:
        sessions = [r["environment"] for r in records if r["kind"] == "session"]
        Console().print(tables(results, sessions))
    say(f"Measurements and plot: {out}")
