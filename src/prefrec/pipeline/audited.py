"""The audit of the lists under test, made before any training, and what a run does with a bad verdict."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from pydantic import ValidationError
from rich.markup import escape

from prefrec.console import say
from prefrec.data import PreparedData
from prefrec.errors import DataError
from prefrec.evaluation import Audit, audit_prepared
from prefrec.files import read_json, write_json
from prefrec.pipeline.recipe import EvaluateSection
from prefrec.processes import from_first, is_first
from prefrec.runs.stage import stage_key

AUDIT = "audit.json"


def audit_under_test(
    data: PreparedData, section: EvaluateSection, seed: int, *, key: str = "", folder: Path | None = None
) -> Audit:
    """Return the audit of the rows under test, print it if it is bad, and raise DataError if it is to stop the run.

    `folder` keeps it for data with this `key`. Of many processes the first one makes it.
    """
    audit = cast(Audit, from_first(_made(data, section, seed, key, folder) if is_first() else None))
    if audit.state == "bad":
        say(f"[bold red]{escape(audit.verdict)}[/bold red]")
        if section.on_leak == "stop":
            raise DataError(f"{audit.headline} Nothing was trained (evaluate.on_leak: stop, or --strict)")
    return audit


def _made(data: PreparedData, section: EvaluateSection, seed: int, key: str, folder: Path | None) -> Audit:
    made_of = stage_key(data=key, split=section.split, seed=seed)
    if folder is not None and (kept := read_json(folder / AUDIT)).get("key") == made_of:
        try:
            return Audit.from_json(kept["audit"])
        except (KeyError, ValidationError):
            pass  # damaged
    if not data.split(section.split):
        raise DataError(f"nothing to evaluate: the data has no {section.split} rows")
    audit = audit_prepared(data, section.split, "train", seed)
    if folder is not None:
        write_json(folder / AUDIT, {"verdict": audit.verdict, "key": made_of, "audit": audit.to_json()})
    return audit
