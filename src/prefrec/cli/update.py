"""`prefrec update`: continue a finished run with new interactions, in a new folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.types import ExistingPath

from prefrec.cli import _options as o
from prefrec.cli._carry_out import carry_out
from prefrec.errors import ConfigError
from prefrec.files import content_digest
from prefrec.pipeline.opened import open_run
from prefrec.recipe import checked_recipe, map_files, set_field
from prefrec.runs.links import named
from prefrec.runs.remote import address_of
from prefrec.runs.stage import stage_key
from prefrec.sections import SFT


def update(
    run: o.RunFolder,
    /,
    *,
    interactions: Annotated[
        list[ExistingPath] | None,
        Parameter(help="File with new interactions. Repeatable. Default: read the log again."),
    ] = None,
    items: Annotated[ExistingPath | None, Parameter(help="Catalogue that includes the new items.")] = None,
    replay: Annotated[float, Parameter(help="Old interactions to replay per new one.")] = 1,
    out: Annotated[Path | None, Parameter(help="Folder of the new run. Default: RUN.updated-DIGEST.")] = None,
    override: o.Override = None,
    as_json: o.AsJson = False,
) -> None:
    """Continue a run's training with new interactions, and measure what it gains and forgets.

    SFT continues from the run's SFT weights, on new interactions and a replay of old ones. Then the later stages of
    the recipe run, and the default rankers of both runs answer the newest test examples. The old run is not changed.
    The same command resumes an interrupted update.

    Example: prefrec update runs/shop --interactions january.csv
    """
    if address := address_of(run):
        raise ConfigError(
            f"{address}: an update needs the log and the weights of its run: copy the run to a folder first"
        )
    earlier = open_run(run)
    if earlier.recipe.sft is None:
        raise ConfigError(
            f"{run}: this run has no SFT whose training could continue. Other rankers learn the whole log in little "
            f"time: add the new files to `data.more_interactions` of {run / 'recipe.yaml'}, or replace the log, and "
            "carry it out in a new folder (`prefrec run RECIPE.yaml --out FOLDER`)"
        )
    earlier.stage(SFT)  # raise an error if it is missing, unfinished or damaged
    raw = earlier.recipe.model_dump(mode="json")
    raw["data"]["more_interactions"] += _new_files(raw["data"], interactions or [])
    raw["data"] |= {"items": str(items.resolve())} if items else {}
    raw["update"] = {"run": str(run.resolve()), "replay": replay}
    for field in override or []:
        set_field(raw, field)
    recipe = checked_recipe(raw)
    digest = stage_key(**map_files(recipe.data, content_digest))[:8]
    earlier_name = named(run).name.partition(".updated-")[0]
    folder = out or named(run).with_name(f"{earlier_name}.updated-{digest}")
    if folder.resolve() == run.resolve():
        raise ConfigError(f"{folder} is the run to update; name another folder with --out")
    carry_out(recipe, folder, "report", as_json)


def _new_files(data: dict[str, Any], files: list[Path]) -> list[str]:
    """Return the paths of files with new interactions; raise ConfigError if the run has read one of them.

    An update reads all files of the log again. What a file had before it was overwritten would be lost.
    """
    earlier = list(data["more_interactions"])
    if data["interactions"]:
        earlier.append(data["interactions"])
    known = {Path(file).resolve() for file in earlier}
    for file in files:
        if file.resolve() in known:
            raise ConfigError(
                f"{file}: this run has read that file already, and will read it again. If new interactions were "
                "appended to it, leave out --interactions. If they have replaced what was in it, the earlier ones "
                "would be lost: write the new ones to a file of another name"
            )
    return [str(file.resolve()) for file in files]
