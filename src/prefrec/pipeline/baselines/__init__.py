"""The recipe's `rankers:`: further systems beside the main line, each trained or set up in its own stage.

A kind is plugged in at three places:

- its configuration, a `RankerConfig`, in `prefrec.rankers.kinds.RANKER_CONFIGS`;
- a module here with a function of the form of `StageFunction`, which does its work in the folder it is given
  (through `prefrec.pipeline.ingredients.due` and `prefrec.runs.stage.stage`, so that a finished stage is
  skipped and an interrupted one goes on) and returns a `RankerEntry`, whose `load` makes the ranker;
- that function in `STAGE_FUNCTIONS`.

Entries that were made before it (sequential recommenders, SFT, S-DPO, earlier `rankers`) are given by name, so
that one system may build on another.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from prefrec.pipeline.baselines.chat_rec import chat_rec_stage
from prefrec.pipeline.baselines.endpoint import endpoint_stage
from prefrec.pipeline.baselines.fuse import fuse_stage
from prefrec.pipeline.baselines.llara import llara_align_stage, llara_stage
from prefrec.pipeline.baselines.morec import morec_stage
from prefrec.pipeline.baselines.retrieve import retrieve_stage
from prefrec.pipeline.baselines.tallrec import tallrec_stage
from prefrec.pipeline.ingredients import Ingredients
from prefrec.pipeline.score import Entry


class StageFunction(Protocol):
    """Carries out the stage of one ranker.

    Args of a call: what the run is made of; the ranker's configuration; its folder; the entries made before it.
    """

    def __call__(self, made_of: Ingredients, config: Any, folder: Path, before: Mapping[str, Entry], /) -> Entry: ...


STAGE_FUNCTIONS: dict[str, StageFunction] = {
    "chat-rec": chat_rec_stage,
    "endpoint": endpoint_stage,
    "fuse": fuse_stage,
    "llara": llara_stage,
    "llara-s-dpo": llara_align_stage,
    "morec": morec_stage,
    "retrieve-then-rank": retrieve_stage,
    "tallrec": tallrec_stage,
}
"""Kind → the function that carries it out."""
