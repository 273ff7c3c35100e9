"""Settings that define a prepared data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from prefrec.data.sources import SourceKind, source_kind
from prefrec.data.titles import DuplicateTitles
from prefrec.errors import ConfigError

# Fields that only some sources take. Others accept only the default.
_NOT_FOR_ALL = (
    "interactions", "more_interactions", "items", "users", "columns", "encoding", "row_files", "validation_share",
    "duplicate_titles", "missing_titles", "read_only",
)  # fmt: skip
SplitName = Literal["leave-last-out", "time", "user", "time-share", "given"]


MOST = 2**32 - 1
"""The highest of all whole numbers in a recipe."""


class Section(BaseModel):
    """Settings of a recipe; an unknown field, NaN, infinity and a whole number above `MOST` are errors."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _in_range(cls, value: Any) -> Any:
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        for number in parts:
            if isinstance(number, int) and abs(number) > MOST:
                raise ValueError(f"{number} is too large; whole numbers go up to {MOST}")
        return value


class ColumnNames(Section):
    """Names of the columns in the user's files."""

    user: str = Field("user_id", description="Column of the log with the user's id.")
    item: str = Field("item_id", description="Column of the log with the item's id.")
    item_list: str | None = Field(
        None,
        description="windows: column with a row's items; None: item_ids, item_id_list (RecBole) or history. The "
        "target is in `item` or in target where the file has such a column, else the last of the list.",
    )
    timestamp: str = Field(
        "timestamp",
        description="Column of the log with the time: seconds, ms, or ISO 8601; file-order: the order of the lines.",
    )
    rating: str | None = Field(
        "rating",
        description="Column of the log with a rating; needed only with min_rating and rated negatives. None: read no "
        "ratings.",
    )
    impressions: str | None = Field(
        None,
        description="Column of the log with the items that were shown at an interaction and not taken: a list, JSON "
        "text, or ids with spaces between them. None: read none.",
    )
    skipped: str | None = Field(
        None,
        description="Column of the log that says whether an interaction was a skip or dislike. Its item then counts "
        "as shown and not taken at the user's next interaction. None: read none.",
    )
    catalogue_item: str | None = Field(
        None, description="Column of the catalogue with the item's id; None: as `item`."
    )
    title: str = Field("title", description="Column of the catalogue with the title.")


class CandidateConfig(Section):
    """The lists to choose from."""

    kind: Literal["auto", "uniform", "targets", "popularity", "published"] = Field(
        "auto",
        description="uniform: all untouched items alike, which rewards popularity; targets: the targets of other "
        "rows of the split, known with known and new with new, so that rules that do not know the user are at chance "
        "(training rows: uniform); popularity: in proportion to training interactions + 1; published: the S-DPO "
        "authors' lists, leaks included. auto: targets where items without training interactions are more than twice "
        "as common among targets as in the catalogue, else uniform.",
    )
    size: int = Field(20, ge=2, description="Candidates a row, the target included.")


class PrepareConfig(Section):
    """Settings of a prepared data set: the source and how rows are made from it."""

    source: str = Field(
        "movielens-100k",
        description="Which reader to use. movielens-100k: without a path, the copy in the recbole package; "
        "movielens-csv: ratings.csv and movies.csv; windows: ready rows; files: your own log and catalogue; or the "
        "name of a source that another package adds. The lab adds lastfm-hetrec: by tag date; lastfm-published: the "
        "S-DPO authors' form, which leaks; published-json: train, val and test JSON of the S-DPO scripts, lists as "
        "they are; goodreads: the json.gz files of UCSD; goodreads-windows: ready rows.",
    )
    path: Path | None = Field(None, description="Folder of the source; None takes the embedded MovieLens-100K.")
    interactions: Path | None = Field(
        None,
        description="Log (files, goodreads): .csv, .tsv, .parquet or RecBole .inter, also .gz; files: or a folder of "
        "them, one after another.",
    )
    more_interactions: list[Path] = Field([], description="files: later parts of the log, with the same columns.")
    items: Path | None = Field(
        None, description="Catalogue with titles (files, goodreads, windows); artists.dat (lastfm-published)."
    )
    row_files: dict[Literal["train", "validation", "test"], Path] | None = Field(
        None, description="windows: files of rows; None: those in path whose names end in train, valid and test."
    )
    users: Path | None = Field(
        None, description="Table of users and their attributes (files): groups for studies, in no prompt."
    )
    columns: ColumnNames = Field(default_factory=lambda: ColumnNames(), description="Column names (files, windows).")
    encoding: str = Field(
        "utf-8", description="Encoding of text files that are not UTF-8 (files, windows, movielens-csv)."
    )
    domain: Literal["movies", "music", "books", "generic"] | None = Field(
        None, description="Which prompt templates fit; None: what the source says."
    )
    split: SplitName | None = Field(
        None,
        description="leave-last-out: each user's last item is the test; time: two cuts for everybody; user: later "
        "users are the test, as in the papers; time-share: the first 80% of each user's interactions are for "
        "training, the rest for validation (a fifth of the users) or test; given: the data's own (windows takes "
        "other splits, too). None: given where there is one, else leave-last-out.",
    )
    # Left out where it is not set, so that keys of stages are those of recipes without it.
    fold: int = Field(
        0,
        ge=0,
        le=9,
        exclude_if=lambda fold: fold == 0,
        description="split time: how many earlier tests to leave out of the log's end. Fold 0 tests the last 10% of "
        "the interactions, fold 1 the 10% before them, and so on; later interactions are not learnt from.",
    )
    windows: Literal["last", "all"] | None = Field(
        None,
        description="Validation and test rows of a user, for split time (default: all), user and time-share (last).",
    )
    candidates: CandidateConfig = Field(
        default_factory=lambda: CandidateConfig(), description="Of each row: the lists to choose from."
    )
    history_length: int = Field(10, ge=1, description="Items of history shown at most.")
    min_history: int = Field(3, ge=1, description="Rows with a shorter history are left out.")
    min_rating: float | None = Field(None, description="Keep interactions rated at least this.")
    validation_share: float = Field(
        0.08,
        ge=0,
        lt=1,
        description="windows: where no file has validation rows, about this share of the training rows, the last by "
        "time, become them and are not learnt from.",
    )
    read_only: bool = Field(True, description="goodreads: keep only books marked as read.")
    user_core: int = Field(1, ge=1, description="Keep users with at least this many items (k-core).")
    item_core: int = Field(1, ge=1, description="Keep items with at least this many users (k-core).")
    latest_per_user: int | None = Field(None, ge=1, description="Interactions of each user to keep, the last ones.")
    unseen_items: bool = Field(
        False,
        description="Keep catalogue items without interactions, such as new products, so that they are recommended.",
    )
    duplicate_titles: DuplicateTitles | None = Field(
        None,
        description="Two ids with one title: error (default for files), merge into one item (default for "
        "goodreads), or number the second 'Title (2)' (default for windows).",
    )
    missing_titles: Literal["error", "drop"] = Field(
        "error",
        description="Items of the log without a title (files, goodreads, windows, movielens-*): error, or drop their "
        "interactions.",
    )
    max_train_rows: int | None = Field(None, ge=1, description="Random training rows to keep.")
    max_validation_rows: int | None = Field(None, ge=1, description="Validation rows to keep, whole users at random.")
    max_test_rows: int | None = Field(None, ge=1, description="Test rows to keep, whole users at random.")
    seed: int = Field(0, ge=0, description="Of ties, samples and candidates.")

    @field_validator("source")
    @classmethod
    def _known_source(cls, source: str) -> str:
        source_kind(source)  # raises ValueError if it is unknown
        return source

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        source, both = self.source, self.interactions is not None and self.items is not None
        all_named = self.items is not None and {"train", "test"} <= {*(self.row_files or {})}
        if source == "windows" and self.path is None and not all_named:
            raise ValueError("path: source windows needs a folder, or items and row_files of train and test")
        if source == "movielens-csv" and self.path is None:
            raise ValueError(f"path: source {source} needs the folder of the data")
        if source == "files" and not both:
            raise ValueError("interactions, items: source files needs a log and a catalogue")
        if source == "files" and self.path is not None:
            raise ValueError("path: source files takes interactions and items instead")
        if (self.split or "given") != "given" and self.kind.given and not self.kind.splits:
            raise ValueError(f"split: {source} comes with its own split; leave it out or write given")
        if self.split == "given" and not self.kind.given:
            raise ValueError(
                f"split: {source} has no split of its own; choose leave-last-out, time, user or time-share"
            )
        if self.split_name == "given" and max(self.user_core, self.item_core) > 1:
            raise ValueError(f"user_core, item_core: the windows of {source} are given and cannot be filtered")
        if self.split_name == "given" and (self.latest_per_user or self.unseen_items):
            raise ValueError(f"latest_per_user, unseen_items: not for {source}, whose rows are given")
        for field in _NOT_FOR_ALL:
            default = type(self).model_fields[field].get_default(call_default_factory=True)
            if field not in self.kind.takes and getattr(self, field) != default:
                raise ValueError(f"{field}: source {source} does not take it; leave it out")
        if self.windows and self.split_name not in ("time", "user", "time-share"):
            raise ValueError(f"windows: only for split time, user or time-share, not {self.split_name}")
        if self.fold and self.split_name != "time":
            raise ValueError(f"fold: only for split time, not {self.split_name}")
        return self

    def required(self, field: Literal["path", "interactions", "items"]) -> Path:
        """Return the path in this field. Raise ConfigError if it is None."""
        path: Path | None = getattr(self, field)
        if path is None:
            raise ConfigError(f"{field}: source {self.source} needs it")
        return path

    @property
    def kind(self) -> SourceKind:
        """The source."""
        return source_kind(self.source)

    @property
    def split_name(self) -> SplitName:
        """The split to make, with None resolved."""
        return self.split or ("given" if self.kind.given else "leave-last-out")


def config_error(error: ValidationError, named: Callable[[tuple[Any, ...]], str] | None = None) -> ConfigError:
    """Return a `ConfigError` that names each wrong field, what it was given and what it takes.

    `named` returns what the user calls the location of an error, by default its dotted name.
    """
    lines = []
    for e in error.errors():
        where = named(e["loc"]) if named else ".".join(map(str, e["loc"]))
        message = e["msg"].removeprefix("Value error, ")
        given = "" if e["type"] in ("missing", "value_error") else f" (given: {e['input']!r})"
        lines.append(f"{where}: {message}{given}" if where else message)
    return ConfigError("; ".join(lines))
