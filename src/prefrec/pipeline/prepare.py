"""Preparation of the data as a stage."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from rich.markup import escape

from prefrec.console import say
from prefrec.data import PreparedData, prepared_digest, read_prepared, write_prepared
from prefrec.errors import without_secrets
from prefrec.files import content_digest
from prefrec.intake import prepare
from prefrec.pipeline.update import is_refit, split_change, warn_of_changes
from prefrec.processes import is_first
from prefrec.recipe import Recipe, map_files
from prefrec.runs.stage import read_state, stage_key
from prefrec.stages.base import Stage, differences
from prefrec.stages.item_texts import shown_items


class PrepareStage(Stage):
    """Preparation of a recipe's data in `folder`."""

    name = kind = "prepare"

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe = recipe
        self.config = recipe.data
        self.folder = folder

    @cached_property
    def key(self) -> str:
        config, update = self.recipe.data, self.recipe.update
        more: dict[str, Any] = {}
        if update:
            more["update"] = [prepared_digest(update.run / "data"), update.replay, update.rows]
            more |= {"learnt": "validation, too"} if is_refit(update.run) else {}
        # Earlier data lack the newest interactions of users without examples, and what filters dropped.
        more["log"] = "whole"
        return stage_key(config=config.model_dump(mode="json") | map_files(config, content_digest), **more)

    def make(self) -> None:
        config, update = self.recipe.data, self.recipe.update
        if is_first():
            prepared = prepare(config, split_change(update, config.seed) if update else None, as_codes=True)
            if update:
                warn_of_changes(read_prepared(update.run / "data"), prepared)
            write_prepared(prepared, self.folder)
            say(escape("\n".join(f"• {line}" for line in prepared.summary)))

    def changed(self, otherwise: Any = ()) -> list[str]:
        recorded = read_state(self.folder).get("config")
        return differences(recorded, without_secrets(self.settings), "data") or ["files of the data"]

    @property
    def is_up_to_date(self) -> bool:
        """True if the folder has the data of this recipe."""
        return not self.why() and read_state(self.folder).get("key") == self.key

    def prepared(self) -> PreparedData:
        """Run the stage, and return the data."""
        self.run()
        return self.read()

    def read(self) -> PreparedData:
        """Return the data that were prepared before; raise TemplateError if `model.item_text` does not fit them."""
        data = read_prepared(self.folder)
        shown_items(self.recipe.model, data.catalogue)  # a wrong item_text must fail before any training
        return data
