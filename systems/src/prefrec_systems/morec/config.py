"""Settings of MoRec."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from prefrec.lm.models import EMBEDDED
from prefrec.rankers.config import RankerConfig


class MoRecConfig(RankerConfig):
    """MoRec: a title encoder in place of item ids, under a transformer like SASRec, and its training."""

    kind: Literal["morec"] = "morec"
    name: str = Field("MoRec", description="Folder, and name in the tables.")
    encoder: str = Field(EMBEDDED, description="Embedded model, local folder or hub id: a causal LM or a BERT.")
    tune: bool = Field(False, description="Train the encoder too; otherwise each title is encoded once.")
    max_title_tokens: int = Field(32, ge=1, description="Tokens of a title that the encoder reads.")
    hidden_size: int = Field(64, ge=1, description="Width of the item vectors and of the transformer.")
    inner_size: int = Field(256, ge=1, description="Width inside the feed-forward layers.")
    n_layers: int = Field(2, ge=1, description="Blocks of the transformer.")
    n_heads: int = Field(2, ge=1, description="Attention heads; they divide hidden_size.")
    dropout: float = Field(0.2, ge=0, lt=1, description="On item vectors, attention and feed-forward layers.")
    softmax: Literal["full", "in-batch"] | None = Field(
        None, description="Over all training items or those of the batch; None: in-batch with tune, else full."
    )
    epochs: int = Field(200, ge=1, description="Most passes over the training users' sequences.")
    patience: int = Field(10, ge=1, description="Epochs without a better validation NDCG@10 that end training.")
    batch_size: int = Field(64, ge=1, description="Pieces of sequences per optimiser step.")
    learning_rate: float = Field(1e-3, gt=0, description="Of AdamW, constant.")
    encoder_learning_rate: float = Field(2e-5, gt=0, description="Of the encoder, with tune.")
    weight_decay: float = Field(0.0, ge=0, description="Of AdamW.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.hidden_size % self.n_heads:
            raise ValueError(f"n_heads: {self.n_heads} heads do not divide a hidden_size of {self.hidden_size}")
        return self

    @property
    def in_batch(self) -> bool:
        """True if the softmax goes over the items of the batch."""
        return (self.softmax or ("in-batch" if self.tune else "full")) == "in-batch"
