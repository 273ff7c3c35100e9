"""Estimate the peak of memory of a run, from the sizes of its data and its list of rankers.

Language models and the systems of `prefrec-systems` are not counted: what they took is known after they have run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prefrec.data import PreparedData
from prefrec.pipeline.prepare import PrepareStage
from prefrec.rankers.blend import BlendConfig
from prefrec.rankers.ease import EASERanker, matrix_bytes, too_large
from prefrec.rankers.item_features import time_features
from prefrec.rankers.matrices import CELLS_AT_A_TIME
from prefrec.recipe import Recipe
from prefrec.resources import memory_bytes
from prefrec.stages.blend import MOST_CANDIDATES

BASE = 280_000_000
"""Bytes of Python, its libraries and a small log."""
OF_INTERACTION = 250
"""Bytes of an interaction in the log, in histories and in examples."""
BLOCKS = 4
"""Dense blocks of scores [`CELLS_AT_A_TIME`] in float64 that rankers hold at a time."""
FEATURE_COPIES = 4
"""Copies of a blend's features in float32 while weights are learnt."""
EVALUATED = 550_000_000
"""Bytes that an evaluation takes for any number of examples: rankers, blocks of full ranking, and resampling."""
OF_ANSWER = 2_500
"""Bytes of one ranker's predictions for one example under test, in both kinds of ranking, with resampled means.

`BASE` and the following constants were fitted to four runs of `baselines`, of 943 to 22,363 users and 1,682 to 12,101
items, whose peaks they meet within a tenth.
"""


@dataclass(frozen=True)
class Peak:
    """The expected peak of memory of a run, in bytes: what is always held, and what its two largest steps add.

    Attributes:
        log: Python and the log.
        blend: learning the weights of the largest blend, with EASE's first matrix; 0 without a blend.
        evaluation: the evaluation, with EASE's matrices of both logs.
        ease: one matrix of EASE; 0 without it.
    """

    log: int
    blend: int
    evaluation: int
    ease: int

    @property
    def total(self) -> int:
        """Return the log, with the larger of the two steps."""
        return self.log + max(self.blend, self.evaluation)


def peak_of(recipe: Recipe, data: PreparedData) -> Peak:
    """Return the expected peak of a run of this recipe on its prepared data."""
    log = data.known_interactions("test")
    items, blends = log["item_id"].n_unique(), [r for r in recipe.rankers if isinstance(r, BlendConfig)]
    ease = matrix_bytes(items) if _asks_ease(recipe) and not too_large(items) else 0
    learning = [_learning(blend, data) for blend in blends]
    # Full ranking also scores each blend without each of its parts.
    rankers = len(recipe.evaluate.baselines) + len(recipe.needs)
    rankers += sum(len(blend.parts) + len(blend.attributes) for blend in blends)
    rows = len(data.examples(recipe.evaluate.split, recipe.evaluate.rows))
    return Peak(
        log=BASE + OF_INTERACTION * len(log),
        blend=max(learning) + ease if learning else 0,
        evaluation=2 * ease + EVALUATED + OF_ANSWER * rows * rankers,
        ease=ease,
    )


def _asks_ease(recipe: Recipe) -> bool:
    parts = (part for ranker in recipe.rankers if isinstance(ranker, BlendConfig) for part in ranker.parts)
    return EASERanker.name in [*recipe.evaluate.baselines, *parts]


def _learning(blend: BlendConfig, data: PreparedData) -> int:
    """Return the bytes that it takes to learn the weights of a blend: scores of all parts, features, and blocks."""
    # Weights apart for own items double the features, and halve the candidates.
    own = 2 if data.keeps_repeats else 1
    cells = len(data.examples("validation", blend.rows)) * min(MOST_CANDIDATES // own, len(data.catalogue))
    parts = len(blend.parts) + len(blend.attributes)
    features = (parts + len(time_features(data.has_dates))) * own
    return cells * (8 * parts + 4 * FEATURE_COPIES * features) + 8 * BLOCKS * CELLS_AT_A_TIME


def peak_sentence(recipe: Recipe, folder: Path) -> str:
    """Return the expected peak of memory of a run in a folder, and whether this machine has it.

    It also says why EASE is left out, if it is. "" if the data are not prepared.
    """
    prepare = PrepareStage(recipe, folder / "data")
    if not prepare.is_up_to_date:
        return ""
    data = prepare.read()
    peak, has = peak_of(recipe, data), memory_bytes()
    learnt = f"to learn the blend {_gb(peak.blend)}, " if peak.blend else ""
    matrices = f" (of which EASE {_gb(2 * peak.ease)})" if peak.ease else ""
    besides = ", language models not counted" if recipe.lm_rankers else ""
    told = (
        f"Expected peak of memory: about {_gb(peak.total)}{besides}. With the log {_gb(peak.log)} are held; then "
        f"{learnt}to evaluate {_gb(peak.evaluation)}{matrices}."
    )
    if peak.total > has:
        told += f" This machine has {_gb(has)}: leave out EASE, or lower `evaluate.rows` or the blend's `rows`."
    items = data.known_interactions("test")["item_id"].n_unique()
    if _asks_ease(recipe) and (reason := too_large(items)):
        told += f" EASE will be left out: it {reason}."
    return told


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
