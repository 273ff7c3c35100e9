"""`prefrec lab tune`: search fields of a recipe on validation examples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console

from prefrec.cli import _options as o
from prefrec.recipe import load_recipe
from prefrec.report.tables import Printed
from prefrec_lab.tune import BEST, Search, SearchedField


def tune(
    recipe: Annotated[Path, Parameter(help="Recipe (YAML) to search.")],
    /,
    *,
    field: Annotated[
        list[str], Parameter(help="Field to search: NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=A,B,C. Repeatable.")
    ],
    trials: Annotated[
        int, Parameter(validator=Number(gte=1), help="Number of trials, including those of earlier calls.")
    ] = 20,
    ranker: Annotated[str | None, Parameter(help="Ranker to optimise. Default: the last language model.")] = None,
    metric: Annotated[str, Parameter(help="Metric to maximise on candidate sets: hr@K, ndcg@K or mrr.")] = "ndcg@10",
    out: Annotated[Path | None, Parameter(help="Folder of the search. Default: runs/NAME.tune.")] = None,
    override: Annotated[
        list[str] | None, Parameter("--set", help="Override a field: FIELD=VALUE. Repeatable.")
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Search fields of a recipe with Optuna, and write the recipe with the best values.

    Trials are measured on validation examples only. The best of many trials looks better than it is: measure it with
    `prefrec run` on the written recipe, which uses test examples. The same command resumes an interrupted search.

    Example: prefrec lab tune shop.yaml --field sft.learning_rate=1e-5..1e-3:log --field sft.epochs=1,2,4 --trials 20
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
    print(f"{search.ranker} on {found['n']} validation examples of {found['users']} users, with 95% intervals")
    print(f"Recipe: {folder / BEST}")
