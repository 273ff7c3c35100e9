"""`prefrec tune`: a search over fields of a recipe on validation rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from prefrec.cli import _options as o
from prefrec.pipeline.recipe import load_recipe
from prefrec.report.tables import Printed
from prefrec_lab.tune import BEST, Search, SearchedField


def tune(
    recipe: Annotated[Path, typer.Argument(help="YAML file whose fields are searched.")],
    field: Annotated[list[str], typer.Option(help="NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=A,B,C; repeatable.")],
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, those of an earlier call included.")] = 20,
    ranker: Annotated[str | None, typer.Option(help="Row of the table to judge; default: the last model.")] = None,
    metric: Annotated[str, typer.Option(help="hr@K, ndcg@K or mrr, on lists.")] = "ndcg@10",
    out: Annotated[Path | None, typer.Option(help="Folder of the search; default runs/NAME.tune.")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="FIELD=VALUE; repeatable.")] = None,
    as_json: o.AsJson = False,
) -> None:
    """Search fields of a recipe with Optuna, and write the recipe with the best values.

    Trials are judged on validation rows; test rows are never asked. The best of many trials looks better than it is:
    `prefrec run` with the written recipe measures it on test rows. The same command continues an interrupted search.

    Example: prefrec tune shop.yaml --field sft.learning_rate=1e-5..1e-3:log --field sft.epochs=1,2,4 --trials 20
    """
    base = load_recipe(recipe, override or [])
    folder = out or Path("runs") / f"{base.name}.tune"
    search = Search(base, [SearchedField.parse(text) for text in field], folder, ranker, metric)
    study = search.run(trials)
    best = study.best_trial
    if as_json:
        o.print_json({"best": best.params, metric: best.user_attrs["interval"], "recipe": str(folder / BEST)})
        return
    found = best.user_attrs["interval"]
    Console().print(Printed(search.table(study), "trial"))
    typer.echo(f"{search.ranker} on {found['n']} validation rows of {found['users']} users, with 95% intervals")
    typer.echo(f"Recipe: {folder / BEST}")
