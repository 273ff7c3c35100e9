"""The audit of the candidate sets under test, made before any training, and what a run does if they are unfair."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from pydantic import ValidationError
from rich.markup import escape

from prefrec.console import say
from prefrec.data import PreparedData
from prefrec.errors import NO_EXAMPLES, DataError
from prefrec.evaluation import Audit, audit_prepared
from prefrec.files import read_json, write_json
from prefrec.processes import from_first, is_first
from prefrec.runs.stage import stage_key
from prefrec.sections import EvaluateSection

AUDIT = "audit.json"


def audit_under_test(
    data: PreparedData, section: EvaluateSection, seed: int, *, key: str = "", folder: Path | None = None
) -> Audit:
    """Return the audit of the candidate sets under test, and print it if it found something.

    With many processes the first one makes it.

    Args:
        data: prepared data.
        section: the split, and what to do after a finding.
        seed: of samples and shuffles.
        key: of the data; a kept audit with another key is made again.
        folder: of the run, which keeps the audit. Default: keep nothing.

    Raises:
        DataError: the split has no examples, or the audit found something and `on_leak` is `stop`.
    """
    audit = cast(Audit, from_first(_made(data, section, seed, key, folder) if is_first() else None))
    if audit.state in ("bad", "solved"):
        say(f"[bold red]{escape(audit.verdict)}[/bold red]")
        if section.on_leak == "stop":
            raise DataError(f"{audit.headline} Nothing was trained (evaluate.on_leak: stop, or --strict)")
    return audit


def _made(data: PreparedData, section: EvaluateSection, seed: int, key: str, folder: Path | None) -> Audit:
    wanted = stage_key(data=key, split=section.split, seed=seed)
    if folder is not None and (kept := read_json(folder / AUDIT)).get("key") == wanted:
        try:
            return Audit.from_json(kept["audit"])
        except (KeyError, ValidationError):
            pass  # damaged: audit again
    if not data.split(section.split):
        raise DataError(f"nothing to evaluate: the data have no {section.split} examples; {NO_EXAMPLES}")
    audit = audit_prepared(data, section.split, "train", seed)
    if folder is not None:
        write_json(folder / AUDIT, {"verdict": audit.verdict, "key": wanted, "audit": audit.to_json()})
    return audit
