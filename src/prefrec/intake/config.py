"""Settings that define a prepared data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from prefrec.errors import ConfigError, did_you_mean
from prefrec.intake.sources import SourceKind, source_kind
from prefrec.intake.titles import DuplicateTitles
from prefrec.settings import Section

# Fields that only some sources accept. For other sources they must have their default value.
_NOT_FOR_ALL = (
    "interactions", "more_interactions", "items", "users", "columns", "encoding", "row_files", "validation_share",
    "duplicate_titles", "missing_titles", "missing_times", "missing_users", "kinds", "targets", "read_only",
)  # fmt: skip
Kind = Literal["buy", "return", "drop"] | Annotated[float, Field(ge=0, le=1)]
"""What a line of a log is: a purchase, its return, nothing, or another interaction with this weight."""
SplitName = Literal["leave-last-out", "time", "user", "time-share", "given"]


class ColumnNames(Section):
    """Names of the columns in your files."""

    user: str = Field("user_id", description="Log column with the user id.")
    item: str = Field("item_id", description="Log column with the item id.")
    item_list: str | None = Field(
        None,
        description="windows: column with the items of an example. Default: item_ids, item_id_list (RecBole) or "
        "history. The target is in column item or target, if present; otherwise it is the last item of the list.",
    )
    timestamp: str = Field(
        "timestamp",
        description="Log column with the time: seconds, milliseconds or ISO 8601. file-order: use the order of "
        "the lines.",
    )
    # Excluded from dumps if it is not set, so that stage keys are the same as without this field.
    timestamp_format: str | None = Field(
        None,
        min_length=2,
        exclude_if=lambda form: form is None,
        description="strptime format of text times, such as %d.%m.%Y %H:%M. Default: detected.",
    )
    rating: str | None = Field(
        "rating",
        description="Log column with the rating. Needed for min_rating and rated negatives only. null: read no "
        "ratings.",
    )
    # Excluded from dumps if they are not set, so that stage keys are the same as without these fields.
    quantity: str | None = Field(
        None,
        exclude_if=lambda column: column is None,
        description="files: log column with the quantity. A negative one is a return, which takes back the user's "
        "latest earlier purchases of the item. Default: none.",
    )
    kind: str | None = Field(
        None,
        exclude_if=lambda column: column is None,
        description="files: log column with the kind of each line, such as view, purchase or return; kinds says what "
        "each is. file-name: the name of the line's file without its endings, such as views for views.csv.gz. "
        "Default: none.",
    )
    impressions: str | None = Field(
        None,
        description="Log column with the items that were shown but not clicked: a list, JSON text, or ids "
        "separated by spaces. Default: none.",
    )
    skipped: str | None = Field(
        None,
        description="Log column that marks skips or dislikes. A skipped item counts as shown, not clicked, at "
        "the user's next interaction. Default: none.",
    )
    catalogue_item: str | None = Field(
        None, description="Catalogue column with the item id. Default: the value of item."
    )
    title: str = Field("title", description="Catalogue column with the title.")

    @field_validator("timestamp_format")
    @classmethod
    def _check_format(cls, form: str | None) -> str | None:
        """Refuse what polars would read in silence as another time."""
        directives = (form or "").replace("%%", "")
        if "%Z" in directives:
            raise ValueError("names of time zones (%Z) are not read; write offsets such as +0200 and name them %z")
        if "%f" in directives.replace(".%f", ""):
            raise ValueError(
                "%f is read only after a point, as in %S.%f; elsewhere name the number of digits: %3f, %6f or %9f"
            )
        return form


class CandidateConfig(Section):
    """How the candidate set of each example is made."""

    kind: Literal["auto", "uniform", "targets", "popularity", "published"] = Field(
        "auto",
        description="How candidates are sampled. uniform: from all unseen items, which rewards popularity. "
        "targets: from the targets of other examples of the split, seen and new items separately, so "
        "that rules that ignore the user are at chance (training: uniform). popularity: in "
        "proportion to training interactions + 1. published: the S-DPO authors' candidate sets, with "
        "their leaks. auto: targets where new items are more than twice as common among targets as "
        "in the catalogue, otherwise uniform.",
    )
    size: int = Field(20, ge=2, description="Candidates per example, including the target.")


class PrepareConfig(Section):
    """Settings of a prepared data set: its source, and how examples are made from it."""

    source: str = Field(
        "movielens-100k",
        description="Reader of the data. files: your own log and catalogue. windows: ready-made examples. "
        "sequences: a line of items per user, or a JSON object of user → items, as published benchmarks "
        "have them. movielens-100k: without a path, the copy in package recbole. movielens-csv: ratings.csv and "
        "movies.csv. With prefrec-lab also lastfm-hetrec, lastfm-published (leaks), published-json "
        "(train, val and test JSON of the S-DPO scripts), goodreads and goodreads-windows. Other "
        "packages may add more.",
    )
    path: Path | None = Field(None, description="Folder of the source. Default: the embedded MovieLens-100K.")
    interactions: Path | None = Field(
        None,
        description="files, goodreads, sequences: the log (.csv, .tsv, .parquet, RecBole .inter; .gz too; text or "
        "JSON for sequences). files also takes a folder, a pattern or an address of Parquet files.",
    )
    more_interactions: list[Path] = Field([], description="files: later parts of the log, with the same columns.")
    items: Path | None = Field(
        None,
        description="files, goodreads, windows, sequences: the catalogue with titles. lastfm-published: artists.dat.",
    )
    row_files: dict[Literal["train", "validation", "test"], Path] | None = Field(
        None,
        description="windows: files with the examples of train, validation and test. Default: those in path "
        "whose names end in train, valid and test.",
    )
    users: Path | None = Field(
        None, description="files: table of user attributes. Studies group users by them; prompts do not use them."
    )
    columns: ColumnNames = Field(
        default_factory=lambda: ColumnNames(), description="files, windows, sequences: names of the columns."
    )
    encoding: str = Field(
        "utf-8", description="files, windows, sequences, movielens-csv: encoding of text files that are not UTF-8."
    )
    domain: Literal["movies", "music", "books", "generic"] | None = Field(
        None, description="Domain of the prompt templates. Default: the source's domain."
    )
    split: SplitName | None = Field(
        None,
        description="leave-last-out: test on each user's last item. time: cut all users at two points in time; "
        "needs dates. user: test on later users, as in the papers. time-share: train on the first 80% of each "
        "user's interactions; validate on the rest of a fifth of the users, test on the others. "
        "given: the data's own split. Default: given if there is one, otherwise leave-last-out.",
    )
    # Excluded from dumps if it is not set, so that stage keys are the same as without this field.
    fold: int = Field(
        0,
        ge=0,
        le=9,
        exclude_if=lambda fold: fold == 0,
        description="split time: move the cuts back by N test periods. Fold 0 tests the last 10% of the "
        "interactions, fold 1 the 10% before them. Later interactions are not used.",
    )
    windows: Literal["last", "all"] | None = Field(
        None,
        description="split time, user, time-share: validate and test on each user's last example or on all. "
        "Default: all for time, otherwise last.",
    )
    # Excluded from dumps if it is not set, so that stage keys are the same as without this field.
    learn_validation: bool = Field(
        True,
        exclude_if=lambda learn: learn,
        description="Whether rankers may learn or count validation interactions before they answer test examples. "
        "false: they know the training part alone, as in most papers, and the validation items of a user are only "
        "in the histories of the user's own test examples. Needs `refit: false`.",
    )
    candidates: CandidateConfig = Field(
        default_factory=lambda: CandidateConfig(), description="How candidate sets are made."
    )
    history_length: int = Field(10, ge=1, description="Longest history, in items.")
    min_history: int = Field(3, ge=1, description="Drop examples with a shorter history.")
    min_rating: float | None = Field(
        None,
        description="Drop interactions with a lower rating. Default: keep all. Their items are not "
        "recommended to the user.",
    )
    validation_share: float = Field(
        0.08,
        ge=0,
        lt=1,
        description="windows without a validation file: use about this fraction of the training examples, the "
        "most recent, for validation only.",
    )
    read_only: bool = Field(True, description="goodreads: keep only books marked as read.")
    user_core: int = Field(1, ge=1, description="Keep users with at least N items (k-core).")
    item_core: int = Field(1, ge=1, description="Keep items with at least N users (k-core).")
    latest_per_user: int | None = Field(
        None, ge=1, description="Keep each user's N most recent interactions. Default: all."
    )
    # Excluded from dumps if it is not set, so that stage keys are the same as without this field.
    repeats: Literal["drop", "keep"] = Field(
        "drop",
        exclude_if=lambda repeats: repeats == "drop",
        description="Later interactions of a user with the same item. drop: keep the first one only, and recommend "
        "only new items. keep: histories, targets and candidates may be items that the user already has, as in "
        "groceries or music; only interactions at the same time as another with the same item are dropped.",
    )
    unseen_items: bool = Field(
        False,
        description="Keep catalogue items without interactions, such as new products, so that they can be "
        "recommended.",
    )
    duplicate_titles: DuplicateTitles | None = Field(
        None,
        description="What to do with ids that share a title. error: stop. merge: make them one item. number: call "
        "the second 'Title (2)'. Default: error for files, merge for goodreads, number for windows and sequences.",
    )
    missing_titles: Literal["error", "drop"] = Field(
        "error",
        description="files, goodreads, windows, sequences, movielens-*: stop at items without a title, or drop their "
        "interactions.",
    )
    # Excluded from dumps if they are not set, so that stage keys are the same as without these fields.
    missing_times: Literal["error", "drop"] = Field(
        "error",
        exclude_if=lambda missing: missing == "error",
        description="files: stop at interactions without a time, or drop them.",
    )
    missing_users: Literal["error", "drop"] = Field(
        "error",
        exclude_if=lambda missing: missing == "error",
        description="files: stop at interactions without a user, such as purchases of guests, or drop them.",
    )
    kinds: dict[str, Kind] = Field(
        {},
        exclude_if=lambda kinds: not kinds,
        description="files: value of columns.kind → what the line is. buy: an interaction. A number from 0 to 1: an "
        "interaction of this weight, such as 0.1 for a view, where buy has 1; counts add up weights, and 0 is drop. "
        "return: takes back an earlier buy. drop: neither, such as a cancelled order; the user is not offered its "
        "item. Name all values.",
    )
    targets: list[str] = Field(
        [],
        exclude_if=lambda targets: not targets,
        description="files: values of columns.kind that are asked for, such as purchase. Targets of examples are of "
        "these kinds, histories have all kinds. Default: all.",
    )
    max_train_rows: int | None = Field(None, ge=1, description="Keep N random training examples. Default: all.")
    max_validation_rows: int | None = Field(
        None,
        ge=1,
        description="Measure N validation examples, of random whole users. Default: all. The others are learnt and "
        "served all the same.",
    )
    max_test_rows: int | None = Field(
        None,
        ge=1,
        description="Measure N test examples, of random whole users. Default: all. The others are served all the "
        "same.",
    )
    seed: int = Field(0, ge=0, description="Random seed for ties, samples and candidates.")

    @field_validator("source")
    @classmethod
    def _known_source(cls, source: str) -> str:
        source_kind(source)  # raises ValueError if it is unknown
        return source

    @field_validator("kinds", mode="before")
    @classmethod
    def _known_kinds(cls, kinds: Any) -> Any:
        """Refuse what is neither a word nor a weight in one message, where pydantic has one for each."""
        for value, kind in kinds.items() if isinstance(kinds, dict) else ():
            if kind in ("buy", "return", "drop"):
                continue
            try:
                fits = 0 <= float(kind) <= 1
            except (TypeError, ValueError):
                fits = False
            if not fits:
                near = did_you_mean(kind, ["buy", "return", "drop"])
                raise ValueError(f"{value}: expected buy, return, drop or a weight from 0 to 1, got {kind!r}{near}")
        return kinds

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        source, both = self.source, self.interactions is not None and self.items is not None
        all_named = self.items is not None and {"train", "test"} <= {*(self.row_files or {})}
        if source == "windows" and self.path is None and not all_named:
            raise ValueError("path: source windows needs a folder, or items and row_files for train and test")
        if source == "movielens-csv" and self.path is None:
            raise ValueError(f"path: source {source} needs the folder of the data")
        if source == "files" and not both:
            raise ValueError("interactions, items: source files needs a log and a catalogue")
        if source == "files" and self.path is not None:
            raise ValueError("path: source files uses interactions and items instead")
        if (self.split or "given") != "given" and self.kind.given and not self.kind.splits:
            raise ValueError(f"split: {source} comes with its own split; remove this setting or write given")
        if self.split == "given" and not self.kind.given:
            raise ValueError(
                f"split: {source} has no split of its own; choose leave-last-out, time, user or time-share"
            )
        if self.split_name == "given" and max(self.user_core, self.item_core) > 1:
            raise ValueError(f"user_core, item_core: {source} has ready-made examples, which cannot be filtered")
        if self.split_name == "given" and (self.latest_per_user or self.unseen_items):
            raise ValueError(f"latest_per_user, unseen_items: not for {source}, which has ready-made examples")
        if self.repeats == "keep" and self.kind.given:
            raise ValueError(f"repeats: not for {self.source}, which has ready-made examples; keep needs a log")
        for field in _NOT_FOR_ALL:
            default = type(self).model_fields[field].get_default(call_default_factory=True)
            if field not in self.kind.takes and getattr(self, field) != default:
                if "source" not in self.model_fields_set:
                    hint = "name the source that uses it with --source, such as files (`source: files` in a recipe)"
                    raise ValueError(f"{field}: {hint}; without one, it is {source}")
                raise ValueError(f"{field}: source {source} does not use it; remove this setting")
        if bool(self.kinds) != (self.columns.kind is not None):
            raise ValueError("kinds, columns.kind: name the column and what its values mean, or neither")
        if "return" in self.kinds.values() and "buy" not in self.kinds.values():
            raise ValueError("kinds: a return takes back lines that are buy; name the kind of purchases as buy")
        counted = [value for value, kind in self.kinds.items() if kind == "buy" or (isinstance(kind, float) and kind)]
        if unknown := [value for value in self.targets if value not in counted]:
            raise ValueError(
                f"targets: {', '.join(map(repr, unknown))} is not among the interactions that kinds names "
                f"({', '.join(map(repr, counted)) or 'none'})"
            )
        if self.windows and self.split_name not in ("time", "user", "time-share"):
            raise ValueError(f"windows: only for split time, user or time-share, not {self.split_name}")
        if self.fold and self.split_name != "time":
            raise ValueError(f"fold: only for split time, not {self.split_name}")
        return self

    def required(self, field: Literal["path", "interactions", "items"]) -> Path:
        """Return the path in a field. Raise ConfigError if it is None."""
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
        """The split, with the default resolved."""
        return self.split or ("given" if self.kind.given else "leave-last-out")
