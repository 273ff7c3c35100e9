"""Settings of TALLRec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from prefrec.data import PreparedData
from prefrec.rankers.config import RankerConfig
from prefrec.training.section import TrainSection
from prefrec_systems.start import START, check_start, start_needs
from prefrec_systems.tallrec.questions import Opinions, training_questions

if TYPE_CHECKING:
    from prefrec.recipe import Recipe


class TallrecConfig(RankerConfig, TrainSection):
    """TALLRec: instruction tuning on likes and dislikes, then ranking by P(Yes).

    `rows` counts questions: one per training example if the log has dislikes, otherwise 1 + `negatives`. With
    dislikes, `eval_rows` has no effect, because training must not see the ratings of validation examples.
    """

    kind: Literal["tallrec"] = "tallrec"
    name: str = Field("TALLRec", description="Name in tables, and of the ranker's folder.")
    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate.")
    liked: float = Field(4.0, description="Lowest rating that counts as liked.")
    negatives: int = Field(
        1, ge=1, description="Unseen items per example that count as disliked if no rating is below liked."
    )
    template: str | None = Field(
        None, description="jinja2 file with the variables liked, disliked and item. Default: that of the domain."
    )

    start: str | None = START

    def idle_settings(self) -> set[str]:
        """Return settings that are not part of keys. The key has that of the starting model instead of its name."""
        return super().idle_settings() | {"start"}

    def available_rows(self, data: PreparedData, seed: int) -> int:
        """Return the number of questions that training chooses from."""
        opinions = Opinions(data.opinions, self.liked)
        return len(training_questions(data.train, opinions, negatives=self.negatives, seed=seed))

    def needs(self) -> dict[str, list[str]]:
        return start_needs(self)

    def check_recipe(self, recipe: Recipe, before: Sequence[str]) -> None:
        check_start(self, recipe)
