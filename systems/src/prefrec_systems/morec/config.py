"""Settings of MoRec."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prefrec.lm.names import EMBEDDED
from prefrec.rankers.config import RankerConfig
from prefrec_systems.sequential.config import NextItemSection


class MoRecConfig(NextItemSection, RankerConfig):
    """MoRec: a transformer like SASRec, with title vectors instead of item ids."""

    kind: Literal["morec"] = "morec"
    name: str = Field("MoRec", description="Name in tables, and of the ranker's folder.")
    encoder: str = Field(
        EMBEDDED,
        description="Title encoder: embedded model, local folder or Hugging Face id of a causal language model "
        "or a BERT.",
    )
    tune: bool = Field(False, description="Also train the encoder. false: encode each title once.")
    max_title_tokens: int = Field(32, ge=1, description="Maximum tokens of a title to encode.")
    softmax: Literal["full", "in-batch"] | None = Field(
        None,
        description="full: softmax over all training items. in-batch: over the items of the batch. Default: "
        "in-batch with tune, otherwise full.",
    )
    encoder_learning_rate: float = Field(2e-5, gt=0, description="Learning rate of the encoder, with tune.")

    @property
    def in_batch(self) -> bool:
        """True if the softmax is over the items of the batch."""
        return (self.softmax or ("in-batch" if self.tune else "full")) == "in-batch"
