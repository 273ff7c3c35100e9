"""Vectors of texts: TF-IDF reduced by an SVD, or those of an encoder, which are kept between runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prefrec.extras import need
from prefrec.lm.names import base_digest
from prefrec.rankers.words import TFIDF, tfidf_svd
from prefrec.runs.stage import stage_key
from prefrec.towers.title_store import TitleStore

if TYPE_CHECKING:
    from torch import Tensor

TFIDF_SIZE = 256
"""Dimensions of TF-IDF title vectors after the SVD."""
_TITLE_TOKENS = 64


def text_vectors(encoder: str, texts: Sequence[str], dtype: str) -> NDArray[np.float32]:
    """Return vectors [I, T] of texts by `TFIDF`, or by an encoder that computes in `dtype`."""
    if encoder == TFIDF:
        return tfidf_svd(texts, TFIDF_SIZE)
    need("lm", f"title vectors of {encoder}")
    from prefrec.lm.models import resolve_dtype

    return _encoded(encoder, base_digest(encoder), tuple(texts), resolve_dtype(dtype))


@lru_cache(maxsize=1)
def _encoded(name: str, digest: str, titles: tuple[str, ...], dtype: str) -> NDArray[np.float32]:
    # An update needs the vectors twice: for its training, and for the comparison with the earlier model.
    store = title_store(digest, dtype)
    known = store.read(titles)
    missing = list(dict.fromkeys(title for title in titles if title not in known))
    if missing:
        from prefrec.towers.title_encoder import load_encoder  # here, because transformers takes seconds to import

        def keep(some: Sequence[str], vectors: Tensor) -> None:
            store.write(some, vectors.float().numpy())

        vectors = load_encoder(name, _TITLE_TOKENS, dtype).encode(missing, keep=keep).float().numpy()
        known |= zip(missing, vectors, strict=True)
    return np.stack([known[title] for title in titles])


def title_store(digest: str, dtype: str) -> TitleStore:
    """Return the store of title vectors of the encoder with this digest and dtype."""
    return TitleStore(stage_key(encoder=digest, dtype=dtype, tokens=_TITLE_TOKENS))
