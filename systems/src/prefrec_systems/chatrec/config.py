"""Settings of Chat-REC."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from prefrec.rankers.config import RankerConfig
from prefrec_systems.endpoint import ServerSettings


class ChatRecConfig(RankerConfig):
    """Chat-REC: a retriever narrows the candidates, and a language model reorders them."""

    kind: Literal["chat-rec"] = "chat-rec"
    name: str = Field("Chat-REC", description="Name in tables, and of the ranker's folder.")
    retriever: str = Field("item-kNN", description="Baseline or earlier ranker that retrieves.")
    keep: int = Field(20, ge=2, description="Retrieved items to show to the language model.")
    model: str | None = Field(
        None, description="Local model with a chat template. Default: the recipe's model, without an adapter."
    )
    server: ServerSettings | None = Field(
        None, description="OpenAI-compatible server to use instead of a local model."
    )
    users: Path | None = Field(
        None, description="Table with user_id and user attributes such as age (CSV, Parquet or RecBole .user)."
    )
    max_new_tokens: int = Field(400, ge=1, description="Maximum tokens of an answer (titles and a reason).")
    max_length: int = Field(4096, ge=64, description="Local model: maximum tokens of a prompt with its answer.")
    batch_size: int = Field(4, ge=1, description="Local model: questions per pass.")

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if self.server is not None and self.model is not None:
            raise ValueError("model cannot be combined with server: name the server's model in `server.model`")
        return self

    def needs(self) -> dict[str, list[str]]:
        return {"retriever": [self.retriever]}
