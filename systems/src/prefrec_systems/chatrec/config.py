"""What Chat-REC is made of, checked by pydantic."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from prefrec.rankers.config import RankerConfig
from prefrec.rankers.openai_api import ServerSettings


class ChatRecConfig(RankerConfig):
    """A retriever that narrows the candidates, and a language model that reorders them."""

    kind: Literal["chat-rec"] = "chat-rec"
    name: str = "Chat-REC"
    retriever: str = Field(
        "item-kNN", description="A reference row, or a ranker of the recipe that is made before this one."
    )
    keep: int = Field(20, ge=2, description="Items of the retriever that the language model is shown.")
    model: str | None = Field(
        None, description="Local model with a chat template; None: the recipe's model as it is, without adapter."
    )
    server: ServerSettings | None = Field(None, description="An OpenAI-compatible server instead of a local model.")
    users: Path | None = Field(
        None, description="Table with user_id and columns to tell of each user, such as age; CSV, Parquet, .user."
    )
    max_new_tokens: int = Field(400, ge=1, description="Longest answer: titles, then the reason.")
    max_length: int = Field(4096, ge=64, description="Tokens of a local model's question with its answer.")
    batch_size: int = Field(4, ge=1, description="Questions a pass of a local model.")

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if self.server is not None and self.model is not None:
            raise ValueError("model: leave it out where a server answers; its model is `server.model`")
        return self
