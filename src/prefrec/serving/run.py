"""A run's folder as something that answers: its rankers on one base, its catalogue, its prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from prefrec.lm.models import load_tokenizer
from prefrec.lm.packing import LayoutChoice
from prefrec.pipeline.encoders import prompt_encoder
from prefrec.pipeline.opened import Run
from prefrec.pipeline.recipe import ZERO_SHOT
from prefrec.prompts import load_template
from prefrec.rankers import LMRanker
from prefrec.rankers.catalogue import CatalogueRanker
from prefrec.rankers.lm import default_device
from prefrec.serving.batcher import Pass
from prefrec.serving.engine import Engine
from prefrec.serving.items import ItemIndex
from prefrec.serving.scorer import Scorer, load_rankers


def adapters_of(run: Run, names: Sequence[str] = ()) -> dict[str, Path | None]:
    """Ranker → folder of its weights (None: the bare base), in the order of `names`; all, the last stage first,
    where none is named.

    Raises:
        DataError: the run has no such ranker, or none.
    """
    wanted = list(names) or run.models[::-1] or [ZERO_SHOT]
    return {name: run.entry(name).weights for name in wanted}


def open_engine(
    run: Run,
    rankers: Sequence[str] = (),
    *,
    max_queue: int = 256,
    max_batch: int | None = None,
    max_tokens: int | None = None,
    layout: LayoutChoice = "auto",
    on_pass: Callable[[Pass], None] = lambda done: None,
) -> Engine:
    """The rankers of a run, loaded on one base and ready to answer; on a GPU if there is one.

    Args:
        run: from `prefrec.pipeline.opened.open_run`.
        rankers: names of those to load, the default first; all where none is named.
        max_queue: requests that may wait.
        max_batch: requests that may share a pass; None: as many as `max_tokens` hold.
        max_tokens: padded tokens of a pass; None: as suits the device.
        layout: of rows of candidates, see `Scorer`.
        on_pass: told of every pass.

    Raises:
        DataError: the run has no such ranker.
        ModelError: model or adapter cannot be read.
    """
    section = run.recipe.model
    models, adapters = load_rankers(section.name, weights=adapters_of(run, rankers), **section.loading())
    for model in models.values():
        model.to(default_device())
    encoder = prompt_encoder(section, run.data.catalogue)
    template = load_template(section.templates[0], domain=run.data.domain)
    # With a tokenizer of its own: the worker's thread must not meet those of the clients in one.
    asked = LMRanker(
        "catalogue",
        next(iter(models.values())),
        load_tokenizer(section.name),
        run.data.catalogue,
        template,
        objective=section.objective,
        encoder=prompt_encoder(section, run.data.catalogue),
    )
    scorer = Scorer(
        models,
        adapters,
        encoder.end,
        max_tokens=max_tokens,
        layout=layout,
        catalogue=CatalogueRanker(asked),
        within=asked.within,
    )
    engine = Engine(
        scorer,
        ItemIndex(run.data.catalogue),
        encoder,
        template,
        examples=run.data.split(run.recipe.evaluate.split),
        max_queue=max_queue,
        max_batch=max_batch,
        on_pass=on_pass,
    )
    engine.warm_up()
    return engine
