"""`prefrec prepare`: a log and a catalogue in, a folder of ranking examples out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from prefrec.data import PrepareConfig, PreparedData, config_error, write_prepared
from prefrec.data import prepare as prepare_data
from prefrec.data.config import CandidateKind, Domain, MissingTitles, SourceName, SplitName, WindowChoice
from prefrec.data.published import write_published_splits
from prefrec.data.titles import DuplicateTitles

_FILES, _ROWS, _FILTERS = "Your own files", "Rows and candidates", "What to keep"


def prepare(
    out: Annotated[Path, typer.Argument(help="Folder to write to; made where it is missing.")],
    source: Annotated[
        SourceName,
        typer.Option(
            help="Which reader. movielens-100k without --path is the copy in the hopwise package; "
            "movielens-csv: ratings.csv + movies.csv; lastfm-hetrec: by tag date; lastfm-published: the S-DPO "
            "family's form (leaky); published-json: the S-DPO scripts' train, val and test JSON, lists as they are; "
            "goodreads: UCSD json.gz files; goodreads-windows: ready windows; windows: ready "
            "rows with their own train and test files; files: your own log and catalogue."
        ),
    ] = "movielens-100k",
    path: Annotated[Path | None, typer.Option(help="Folder with the files of the source.")] = None,
    interactions: Annotated[
        Path | None,
        typer.Option(help="Log: .csv, .tsv, .parquet or RecBole .inter (.gz too).", rich_help_panel=_FILES),
    ] = None,
    items: Annotated[
        Path | None, typer.Option(help="Catalogue with ids and titles, same formats.", rich_help_panel=_FILES)
    ] = None,
    users: Annotated[
        Path | None,
        typer.Option(
            help="Users and their attributes (age, region, …), same formats: groups for studies, in no prompt.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    user_column: Annotated[str, typer.Option(help="Log: the user.", rich_help_panel=_FILES)] = "user_id",
    item_column: Annotated[str, typer.Option(help="Log: the item.", rich_help_panel=_FILES)] = "item_id",
    timestamp_column: Annotated[
        str,
        typer.Option(
            help="Log: the time, in seconds, ms or ISO 8601; file-order: the lines are in order.",
            rich_help_panel=_FILES,
        ),
    ] = "timestamp",
    item_list_column: Annotated[
        str | None,
        typer.Option(
            help="windows: a row's items; default: item_ids, item_id_list or history.", rich_help_panel=_FILES
        ),
    ] = None,
    row_file: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART=FILE",
            help="windows: the file of train, validation or test rows; repeatable. Default: those in --path.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    rating_column: Annotated[
        str, typer.Option(help="Log: a rating, if there is one; none reads none.", rich_help_panel=_FILES)
    ] = "rating",
    impressions_column: Annotated[
        str | None,
        typer.Option(help="Log: items shown then and not taken; default: none read.", rich_help_panel=_FILES),
    ] = None,
    skipped_column: Annotated[
        str | None,
        typer.Option(help="Log: whether it was a skip or dislike; default: none read.", rich_help_panel=_FILES),
    ] = None,
    catalogue_item_column: Annotated[
        str | None, typer.Option(help="Catalogue: the item; default: as --item-column.", rich_help_panel=_FILES)
    ] = None,
    title_column: Annotated[str, typer.Option(help="Catalogue: the title.", rich_help_panel=_FILES)] = "title",
    encoding: Annotated[
        str, typer.Option(help="Encoding of text files that are not UTF-8, as latin-1.", rich_help_panel=_FILES)
    ] = "utf-8",
    domain: Annotated[
        Domain | None, typer.Option(help="Which prompts fit; the source knows its own.", rich_help_panel=_FILES)
    ] = None,
    split: Annotated[
        SplitName | None,
        typer.Option(
            help="leave-last-out: each user's last item is the test; time: two cuts for everybody; user: later users "
            "are the test, as in the papers; time-share: the last 20% of each user's log is; given: the data's own. "
            "Default: given where there is one, else leave-last-out.",
            rich_help_panel=_ROWS,
        ),
    ] = None,
    windows: Annotated[
        WindowChoice | None,
        typer.Option(
            help="Rows of a test user, with --split time (default all), user or time-share (last).",
            rich_help_panel=_ROWS,
        ),
    ] = None,
    candidates: Annotated[
        CandidateKind,
        typer.Option(
            help="Negatives: uniform rewards popularity; popularity draws them by training counts; published "
            "reproduces the S-DPO authors' lists, leak included.",
            rich_help_panel=_ROWS,
        ),
    ] = "uniform",
    num_candidates: Annotated[
        int, typer.Option(help="Items in each list, the target included.", rich_help_panel=_ROWS)
    ] = 20,
    history_length: Annotated[int, typer.Option(help="Items shown at most.", rich_help_panel=_ROWS)] = 10,
    min_history: Annotated[int, typer.Option(help="Rows with less are left out.", rich_help_panel=_ROWS)] = 3,
    validation_share: Annotated[
        float,
        typer.Option(help="windows: share of the last training rows, where no file has any.", rich_help_panel=_ROWS),
    ] = 0.08,
    max_train_rows: Annotated[
        int | None, typer.Option(help="Keep this many, at random.", rich_help_panel=_ROWS)
    ] = None,
    max_validation_rows: Annotated[
        int | None, typer.Option(help="Keep this many, whole users at random.", rich_help_panel=_ROWS)
    ] = None,
    max_test_rows: Annotated[
        int | None, typer.Option(help="Keep this many, whole users at random.", rich_help_panel=_ROWS)
    ] = None,
    seed: Annotated[int, typer.Option(help="Fixes ties, samples and lists.", rich_help_panel=_ROWS)] = 0,
    min_rating: Annotated[
        float | None, typer.Option(help="Keep ratings of at least this.", rich_help_panel=_FILTERS)
    ] = None,
    read_only: Annotated[
        bool,
        typer.Option(
            "--read-only/--all-shelves", help="goodreads: only books marked as read.", rich_help_panel=_FILTERS
        ),
    ] = True,
    user_core: Annotated[
        int, typer.Option(help="Keep users with this many items (k-core).", rich_help_panel=_FILTERS)
    ] = 1,
    item_core: Annotated[
        int, typer.Option(help="Keep items with this many users (k-core).", rich_help_panel=_FILTERS)
    ] = 1,
    duplicate_titles: Annotated[
        DuplicateTitles | None,
        typer.Option(
            help="Two ids, one title: error, merge (same item) or number ('Title (2)').", rich_help_panel=_FILTERS
        ),
    ] = None,
    missing_titles: Annotated[
        MissingTitles, typer.Option(help="Items of the log without a title.", rich_help_panel=_FILTERS)
    ] = "error",
    published_json: Annotated[
        bool, typer.Option("--published-json", help="Also write train/validation/test.json in the S-DPO form.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the protocol as JSON, for machines.")] = False,
) -> None:
    """Make ranking examples (history, candidates, target) from a log and item titles.

    Histories hold only what came before the target; negatives are items that
    the user never touched, drawn by a seed that depends on user and position,
    never on the target. OUT gets Parquet files and protocol.json, which says
    how they were made.

    Examples:

      prefrec prepare data/ml        # MovieLens-100K, no download

      prefrec prepare data/paper --split user --min-rating 3

      prefrec prepare data/office --source windows --path amazon-office

      prefrec prepare data/shop --source files --interactions log.csv
      --items items.csv --user-column customer --title-column name
    """
    config = _config(
        source=source,
        path=path,
        interactions=interactions,
        items=items,
        users=users,
        columns={
            "user": user_column,
            "item": item_column,
            "item_list": item_list_column,
            "timestamp": timestamp_column,
            "rating": None if rating_column == "none" else rating_column,
            "impressions": impressions_column,
            "skipped": skipped_column,
            "catalogue_item": catalogue_item_column,
            "title": title_column,
        },
        row_files=dict(file.partition("=")[::2] for file in row_file) if row_file else None,
        encoding=encoding,
        domain=domain,
        split=split,
        windows=windows,
        candidates={"kind": candidates, "size": num_candidates},
        history_length=history_length,
        min_history=min_history,
        validation_share=validation_share,
        max_train_rows=max_train_rows,
        max_validation_rows=max_validation_rows,
        max_test_rows=max_test_rows,
        seed=seed,
        min_rating=min_rating,
        read_only=read_only,
        user_core=user_core,
        item_core=item_core,
        duplicate_titles=duplicate_titles,
        missing_titles=missing_titles,
    )
    data = prepare_data(config)
    if published_json:
        write_published_splits(data, out)
    write_prepared(data, out)
    if as_json:
        typer.echo(json.dumps(data.protocol, indent=2, ensure_ascii=False))
    else:
        _show(data, out)


def _config(**values: Any) -> PrepareConfig:
    try:
        return PrepareConfig(**values)
    except ValidationError as e:
        raise config_error(e) from None


def _show(data: PreparedData, out: Path) -> None:
    """Print counts and notes to standard output."""
    counts, protocol = data.protocol["counts"], data.protocol
    listed = protocol["candidates"]
    table = Table(title=f"{protocol['source']} → {out}", title_justify="left")
    for column in ("part", "rows", "users"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part, rows in counts["rows"].items():
        table.add_row(part, f"{rows:,}", f"{counts['row_users'][part]:,}")
    console = Console()
    console.print(table)
    lines = [
        f"{counts['users']:,} users, {counts['items']:,} items, {counts['interactions']:,} interactions, "
        f"{counts['train_interactions']:,} of them to learn from",
        f"split {protocol['split']}, {listed['size']} candidates ({listed['kind']}), seed {protocol['seed']}",
    ]
    short = protocol["split_facts"].get("users_too_short", 0)
    lines += [f"{short:,} users left out: too short a history"] if short else []
    lines += [f"{counts['repeats_dropped']:,} repeats left out"] if counts.get("repeats_dropped") else []
    for line in lines + protocol["notes"]:
        console.print(f"• {line}", highlight=False, markup=False, soft_wrap=True)
