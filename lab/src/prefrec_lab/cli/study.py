"""`prefrec lab study`: answer a research question by a grid of runs, as a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prefrec.errors import ConfigError
from prefrec_lab.studies.registry import STUDIES
from prefrec_lab.study_tools.carry_out import analyse_runs, base_recipe, carry_out
from prefrec_lab.study_tools.study import Study
from prefrec_lab.study_tools.write import PAGE


def study(
    name: Annotated[str | None, Parameter(help="Name of the study; --list shows them.")] = None,
    /,
    *,
    recipe: Annotated[
        Path | None, Parameter(help="Recipe to vary. Default: a small one of MovieLens-100K and SmolLM2-135M.")
    ] = None,
    data: Annotated[
        list[str] | None,
        Parameter(
            help="Use another data source: SOURCE or SOURCE=PATH, such as lastfm-hetrec=/data/lastfm. Repeatable for "
            "`transfer`, which compares them with the recipe's own."
        ),
    ] = None,
    seeds: Annotated[str, Parameter(help="Seeds, separated by commas; one run per seed.")] = "0,1,2",
    run: Annotated[
        list[Path] | None,
        Parameter(help="Analyse an existing run instead of a new one. Repeatable, one per seed."),
    ] = None,
    out: Annotated[Path, Parameter(help="Folder of all studies.")] = Path("runs/studies"),
    override: Annotated[
        list[str] | None,
        Parameter("--set", help="Override a field: FIELD=VALUE, such as sft.rows=400. Repeatable."),
    ] = None,
    show: Annotated[bool, Parameter("--list", help="List the studies and their questions.")] = False,
    as_json: Annotated[bool, Parameter("--json", help="Print study.json.")] = False,
) -> None:
    """Answer a question by a grid of runs: table, plots, a page, all numbers with n, seeds and intervals.

    Studies in one folder share what they can (data, SFT, equal alignments). To continue an interrupted study, run the
    same command again.

    Example: prefrec lab study --list

    Example: prefrec lab study ablation --seeds 0,1

    Example: prefrec lab study fairness --run runs/movielens-100k

    Example: prefrec lab study transfer --data lastfm-hetrec=/data/lastfm
    """
    if show:
        _list(as_json)
        return
    chosen = _chosen(name)
    if run:
        given = [option for option, value in (("--recipe", recipe), ("--data", data), ("--set", override)) if value]
        if given:
            raise ConfigError(f"{', '.join(given)} cannot be combined with --run: an existing run has its own recipe")
        summary = analyse_runs(chosen, run, out)
    else:
        overrides = override or []
        others = [base_recipe(chosen, recipe, [*_data(d), *overrides]) for d in data or []]
        summary = carry_out(chosen, base_recipe(chosen, recipe, overrides), _seeds(seeds), out, others)
    if as_json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
        return
    for fact in summary["facts"]:
        print(fact)
    print(f"Page: {Path(summary['folder']) / PAGE}")


def _chosen(name: str | None) -> Study:
    if name in STUDIES:
        return STUDIES[name]
    given = f"unknown study {name!r}" if name else "no study named"
    raise ConfigError(f"{given}: expected one of {', '.join(STUDIES)}")


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds {text!r}: expected numbers with commas between them, such as 0,1") from None


def _data(text: str) -> list[str]:
    """Return the overrides that put another data source, with its own files, split and domain, into a recipe."""
    source, _, path = text.partition("=")
    quoted = json.dumps(str(Path(path).resolve())) if path else "null"
    unset = [f"data.{field}=null" for field in ("interactions", "items", "users", "row_files", "split", "domain")]
    return [f"data.source={source}", f"data.path={quoted}", *unset]


def _list(as_json: bool) -> None:
    if as_json:
        rows = [{"study": s.name, "question": s.question, "varied": s.varied} for s in STUDIES.values()]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    table = Table("study", "question", "varied")
    for one in STUDIES.values():
        table.add_row(one.name, escape(one.question), escape(one.varied))
    Console().print(table)
