"""What a recipe may list under `rankers:`: one configuration class a kind."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from prefrec.rankers.chatrec.config import ChatRecConfig
from prefrec.rankers.config import RankerConfig, settings_error
from prefrec.rankers.endpoint import EndpointConfig
from prefrec.rankers.fuse import FuseConfig
from prefrec.rankers.llara.config import LlaraAlignConfig, LlaraConfig
from prefrec.rankers.morec.config import MoRecConfig
from prefrec.rankers.retrieve import RetrieveThenRankConfig
from prefrec.rankers.tallrec.config import TallrecConfig

RANKER_CONFIGS: dict[str, type[RankerConfig]] = {
    "chat-rec": ChatRecConfig,
    "endpoint": EndpointConfig,
    "fuse": FuseConfig,
    "llara": LlaraConfig,
    "llara-s-dpo": LlaraAlignConfig,
    "morec": MoRecConfig,
    "retrieve-then-rank": RetrieveThenRankConfig,
    "tallrec": TallrecConfig,
}
"""Kind → its configuration class."""


def ranker_config(raw: Any) -> RankerConfig:
    """The configuration of one entry of a recipe's `rankers`: a mapping whose `kind` says what the rest means.

    Raises:
        ValueError: there is no such kind, or a field is wrong.
    """
    if isinstance(raw, RankerConfig):
        return raw
    kind = raw.get("kind") if isinstance(raw, dict) else None
    if kind not in RANKER_CONFIGS:
        raise ValueError(f"each entry needs a kind, one of {', '.join(sorted(RANKER_CONFIGS))}; got {kind!r}")
    try:
        return RANKER_CONFIGS[kind].model_validate(raw)
    except ValidationError as e:
        raise ValueError(f"{kind}: {settings_error(e, RANKER_CONFIGS[kind])}") from e
