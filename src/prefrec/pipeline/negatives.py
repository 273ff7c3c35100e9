"""The rows of an alignment with negatives of its own choice: drawn once, kept in the stage's folder."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from prefrec import processes
from prefrec.console import say
from prefrec.data import PreparedData, RankingExample, examples_to_frame, frame_to_examples
from prefrec.data.readers import read_parquet
from prefrec.files import write_whole
from prefrec.pipeline.entry import Entry, lm_ranker
from prefrec.pipeline.recipe import AlignSection, ModelSection
from prefrec.rankers import CatalogueRanker, Ranker
from prefrec.rankers.lm import BATCH_SIZE
from prefrec.training.negatives import Sampler, redraw_lists

NEGATIVES_FILE = "negatives.parquet"
"""In the folder of an alignment whose lists were drawn again: its training rows."""


def negative_rows(
    data: PreparedData,
    model: ModelSection,
    section: AlignSection,
    rows: Sequence[RankingExample],
    adapter: Path | None,
    judge: Entry | None,
    out: Path,
    *,
    seed: int,
) -> list[RankingExample]:
    """Training rows with the lists that `section.negatives_from` asks for; those of an interrupted stage are kept.

    A list that is drawn again is as long as the row's own, or longer where `section.num_negatives` asks for more.

    Args:
        data: prepared rows.
        model: the base.
        section: of the alignment.
        rows: as the data have them.
        adapter: what the alignment starts from, which judges where `negatives_from` is `hard`; None: the bare base.
        judge: the recommender that judges where `negatives_from` names one.
        out: folder of the stage.
        seed: of the draws.
    """
    if section.drawn_from is None:
        return list(rows)
    path = out / NEGATIVES_FILE
    if not processes.from_first(path.is_file()):
        say(f"{section.name}: negatives from {section.negatives_from}")
        score = hard_judge(data, model, adapter, judge).score if section.is_hard else None
        sampler = _sampler(data, model, adapter) if section.drawn_from == "reference" else None
        size = 1 + section.num_negatives
        if section.drawn_from != "reference":
            size = max([size, *(len(e.candidates) for e in rows)])
        found = redraw_lists(
            rows,
            data,
            section.drawn_from,
            seed=seed,
            size=size,
            pool=section.negatives_pool,
            judge=score,
            sampler=sampler,
        )
        if processes.is_first():
            out.mkdir(parents=True, exist_ok=True)
            write_whole(path, examples_to_frame(found).write_parquet)
        processes.wait()
    return frame_to_examples(read_parquet(path))


def _sampler(data: PreparedData, model: ModelSection, adapter: Path | None) -> Sampler:
    """Return what draws items in proportion to the probabilities of the model that an alignment starts from."""
    ranker = CatalogueRanker(lm_ranker("reference", adapter, data, model))

    def draw(history: Sequence[str], k: int, rng: np.random.Generator, without: Collection[str]) -> list[str]:
        return ranker.sample(history, k, rng, without=without)

    return draw


def hard_judge(data: PreparedData, model: ModelSection, adapter: Path | None, judge: Entry | None) -> Ranker:
    """Return the ranker that says what is hard: the judge, or the language model without a list in its prompt."""
    if judge is not None:
        return judge.load(BATCH_SIZE)
    return CatalogueRanker(lm_ranker("hard negatives", adapter, data, model))
