"""`prefrec lab doctor`: check the installation and the machine, and say what will be slow."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefrec.cli import _options as o
from prefrec.errors import ConfigError, DataError
from prefrec.lm.scoring import language_model
from prefrec.training.defaults import RANK
from prefrec_lab.bench.settings import BenchSettings
from prefrec_lab.bench.workload import config_of
from prefrec_lab.doctor import Facts, examine, findings, gibibytes
from prefrec_lab.forecast import ANSWER, CARDS, PROMPT, forecast


def doctor(
    *,
    model: Annotated[
        str | None, Parameter(help="Predict a step of this model on a card: hub id, folder or `random:SHAPE`.")
    ] = None,
    negatives: Annotated[
        int, Parameter(validator=Number(gte=1), help="With --model: N, rejected answers per row.")
    ] = 15,
    card: Annotated[str, Parameter(help=f"With --model: one of {', '.join(CARDS)}.")] = "h100-80gb",
    run: Annotated[
        Path | None, Parameter(help="Compare scores of this run's language model in shared calls and alone.")
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Show versions, threads, dtypes, memory and extras, and say what will be slow here and why.

    Products of small matrices are timed, for about a second. Nothing is changed.

    With --model, show the predicted memory and time of an S-DPO step on a card instead, from shapes alone.

    With --run, ask its last language model 256 questions of the test split, together and each alone, and show how far
    the scores differ. In 16 bits this depends on the processor.

    Example: prefrec lab doctor --json > doctor.json

    Example: prefrec lab doctor --run runs/demo

    Example: prefrec lab doctor --model meta-llama/Llama-2-7b-hf --negatives 15 --card h100-80gb
    """
    if model is not None:
        _predict(model, negatives, card, as_json)
        return
    if run is not None:
        _compare(run, as_json)
        return
    facts = examine()
    results = findings(facts)
    if as_json:
        o.print_json(asdict(facts) | {"findings": [asdict(f) for f in results]})
        return
    out = Console()
    out.print(_table(_lines(facts)))
    for finding in results:
        out.print(Text(f"• {finding.what}"), soft_wrap=True)
        out.print(Text(f"  {finding.remedy}", style="dim"), soft_wrap=True)
    if not results:
        out.print("Nothing here will be slow.")


def _compare(folder: Path, as_json: bool) -> None:
    """Print how far scores of a run's last language model depend on the questions that share a call."""
    from prefrec.pipeline.opened import open_run  # here, because transformers takes seconds to import
    from prefrec_lab.sharing import QUESTIONS, TOP, sharing

    opened = open_run(folder)
    rows = opened.data.examples("test", QUESTIONS)
    if not opened.models or not rows:
        raise DataError(f"{folder}: the run has no language model or no test examples to compare scores of")
    name = opened.models[-1]
    lm = opened.ranker(name)
    found = sharing(lm, rows)
    dtype = str(language_model(lm.model).dtype).removeprefix("torch.")
    if as_json:
        o.print_json(asdict(found) | {"ranker": name, "dtype": dtype})
        return
    Console().print(
        f"{name} in {dtype}: in shared calls, scores of {found.questions} questions differ from those of each "
        f"question alone by {found.nats:.1e} nats at most; {found.lists} lists of the best {TOP} changed",
        soft_wrap=True,
        markup=False,
    )


def _predict(model: str, negatives: int, card: str, as_json: bool) -> None:
    """Print the forecast of a step."""
    if card not in CARDS:
        raise ConfigError(f"card {card!r} is unknown: expected one of {', '.join(CARDS)}")
    on = CARDS[card]
    found = forecast(config_of(BenchSettings(model=model)), on, negatives=negatives, rank=RANK)
    if as_json:
        o.print_json(asdict(found) | {"model": model, "negatives": negatives, "card": card})
        return
    least, most = found.seconds
    fits = f"{found.rows} rows per pass" if found.rows else "not even one row per pass: load the base in 4 bits"
    lines = [
        ("model", f"{model} in bfloat16, LoRA of rank {RANK} on all linear layers"),
        (
            "card",
            f"{card}: {gibibytes(int(on.memory))}, {on.flops / 1e12:,.0f} TFLOP/s, {on.bandwidth / 1e12:.2f} TB/s",
        ),
        ("rows", f"a prompt of {PROMPT} tokens, {1 + negatives} answers of {ANSWER}"),
        ("fits", f"{fits}; its peak is {gibibytes(int(found.peak))}"),
        (
            "step",
            f"{found.flops / 1e12:,.1f} TFLOP in {least:.2g} to {most:.2g} s, "
            f"MFU {found.flops / on.flops / most:.2f} to {found.flops / on.flops / least:.2f}",
        ),
    ]
    Console().print(_table(lines))
    Console().print("Predicted from shapes, not measured. On CPUs the memory was within 2% of measured trainings.")


def _table(lines: list[tuple[str, str]]) -> Table:
    """Return names and values as a table."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in lines:
        table.add_row(Text(name), Text(value))
    return table


def _lines(facts: Facts) -> list[tuple[str, str]]:
    """Return name and value of each line."""
    return [
        ("versions", ", ".join(f"{name} {version}" for name, version in facts.versions.items())),
        ("processor", f"{facts.processor}, {facts.threads} of {facts.cores} cores, load {facts.load:.1f} per core"),
        ("settings", ", ".join(f"{k}={v}" for k, v in facts.settings.items()) or "none"),
        ("GPU", ", ".join(facts.gpus) or "none"),
        *((f"GFLOP/s ({device})", _gflops(rates)) for device, rates in facts.rates.items()),
        ("float32 by", f"{facts.linear} ({_gflops(facts.linear_rates)} GFLOP/s)"),
        ("memory free", gibibytes(facts.memory_free)),
        *(("disk free", f"{gibibytes(free)} in {folder}") for folder, free in facts.disk_free.items()),
        ("kernels by", facts.compiler or "nothing"),
    ]


def _gflops(rates: dict[str, float]) -> str:
    return ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in rates.items())
