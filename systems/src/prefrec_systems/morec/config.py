"""Settings of MoRec."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prefrec.lm.models import EMBEDDED
from prefrec.rankers.config import RankerConfig
from prefrec_systems.sequential.config import NextItemSection


class MoRecConfig(NextItemSection, RankerConfig):
    """MoRec: a title encoder in place of item ids, under a transformer like SASRec, and its training."""

    kind: Literal["morec"] = "morec"
    name: str = Field("MoRec", description="Folder, and name in the tables.")
    encoder: str = Field(EMBEDDED, description="Embedded model, local folder or hub id: a causal LM or a BERT.")
    tune: bool = Field(False, description="Train the encoder too; otherwise each title is encoded once.")
    max_title_tokens: int = Field(32, ge=1, description="Tokens of a title that the encoder reads.")
    softmax: Literal["full", "in-batch"] | None = Field(
        None, description="Over all training items or those of the batch; None: in-batch with tune, else full."
    )
    encoder_learning_rate: float = Field(2e-5, gt=0, description="Of the encoder, with tune.")

    @property
    def in_batch(self) -> bool:
        """True if the softmax goes over the items of the batch."""
        return (self.softmax or ("in-batch" if self.tune else "full")) == "in-batch"
