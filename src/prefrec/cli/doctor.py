"""`prefrec doctor`: what is installed, what the machine can do, and what will be slow."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefrec.doctor import Facts, examine, findings, gibibytes


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False) -> None:
    """Show versions, threads, dtypes, memory and extras, and say what will be slow here and why.

    Products of small matrices are timed, for about a second. Nothing is changed.

    Example: prefrec doctor --json > doctor.json
    """
    facts = examine()
    found = findings(facts)
    if as_json:
        typer.echo(json.dumps(facts.to_json() | {"findings": [asdict(f) for f in found]}, indent=2))
        return
    out = Console()
    out.print(_facts_table(facts))
    for finding in found:
        out.print(Text(f"• {finding.what}"), soft_wrap=True)
        out.print(Text(f"  {finding.remedy}", style="dim"), soft_wrap=True)
    if not found:
        out.print("Nothing here will be slow.")


def _facts_table(facts: Facts) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _lines(facts):
        table.add_row(Text(name), Text(value))
    return table


def _lines(facts: Facts) -> list[tuple[str, str]]:
    """What is shown, as name and value."""
    versions = ", ".join(f"{name} {version or '–'}" for name, version in facts.versions.items() if name != "platform")
    load = "" if facts.load is None else f", load {facts.load:.1f}"
    lines = [
        ("versions", versions),
        ("platform", facts.versions["platform"] or ""),
        ("processor", " ".join([facts.processor, *facts.features])),
        ("threads", f"{facts.threads} of {facts.cores} cores{load}"),
        ("settings", ", ".join(f"{k}={v}" for k, v in facts.settings.items()) or "none"),
    ]
    for gpu in facts.gpus:
        kind = "" if gpu.bfloat16 else ", no bfloat16"
        lines.append(("GPU", f"{gpu.name}, {gibibytes(gpu.free)} of {gibibytes(gpu.total)} free{kind}"))
    if not facts.gpus:
        lines.append(("GPU", "none"))
    for device, rates in facts.rates.items():
        shown = ", ".join(f"{dtype} {rate / 1e9:,.0f}" for dtype, rate in rates.items())
        lines.append((f"GFLOP/s ({device})", shown))
    ways = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in facts.linear_rates.items())
    lines.append(("float32 by", f"{facts.linear} ({ways} GFLOP/s)"))
    if facts.memory_free is not None:
        lines.append(("memory free", gibibytes(facts.memory_free)))
    lines += [("disk free", f"{gibibytes(free)} in {folder}") for folder, free in facts.disk_free.items()]
    lines.append(("extras", ", ".join(e.name for e in facts.extras if not e.missing) or "none"))
    lines.append(("embedded model", facts.embedded or "not installed"))
    lines.append(("kernels by", facts.compiler or "nothing"))
    return lines
