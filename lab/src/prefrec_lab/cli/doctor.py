"""`prefrec doctor`: what is installed, what the machine can do, and what will be slow."""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefrec.cli import _options as o
from prefrec_lab.doctor import Facts, examine, findings, gibibytes


def doctor(as_json: o.AsJson = False) -> None:
    """Show versions, threads, dtypes, memory and extras, and say what will be slow here and why.

    Products of small matrices are timed, for about a second. Nothing is changed.

    Example: prefrec doctor --json > doctor.json
    """
    facts = examine()
    results = findings(facts)
    if as_json:
        o.print_json(asdict(facts) | {"findings": [asdict(f) for f in results]})
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _lines(facts):
        table.add_row(Text(name), Text(value))
    out = Console()
    out.print(table)
    for finding in results:
        out.print(Text(f"• {finding.what}"), soft_wrap=True)
        out.print(Text(f"  {finding.remedy}", style="dim"), soft_wrap=True)
    if not results:
        out.print("Nothing here will be slow.")


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
