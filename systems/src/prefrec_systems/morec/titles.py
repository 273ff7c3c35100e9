"""Title vectors, computed once and kept in a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from prefrec.files import write_whole
from prefrec.towers.title_encoder import TitleEncoder


def title_vectors(titles: Iterable[str], known: dict[str, Tensor], encoder: Callable[[], TitleEncoder]) -> Tensor:
    """Return the vectors [T, H] of titles.

    Args:
        titles: T titles.
        known: title → vector, of titles that need not be encoded.
        encoder: makes the encoder; it is only called if titles have to be encoded.
    """
    wanted = list(titles)
    missing = list(dict.fromkeys(t for t in wanted if t not in known))
    new = dict(zip(missing, encoder().encode(missing), strict=True)) if missing else {}
    return torch.stack([known[t] if t in known else new[t] for t in wanted])


def write_titles(titles: Sequence[str], vectors: Tensor, path: Path) -> None:
    """Write titles and their vectors [T, H] to one safetensors file."""
    first = {title: n for n, title in reversed([*enumerate(titles)])}
    rows = vectors[list(first.values())].contiguous()
    metadata = {"titles": json.dumps(list(first), ensure_ascii=False)}
    write_whole(path, lambda p: save_file({"vectors": rows}, p, metadata))


def read_titles(path: Path) -> dict[str, Tensor]:
    """Return title → vector [H], as `write_titles` wrote them.

    Raises:
        OSError, SafetensorError, KeyError, ValueError: the file is missing or damaged.
    """
    with safe_open(path, framework="pt") as file:
        titles = json.loads(file.metadata()["titles"])
        return dict(zip(titles, file.get_tensor("vectors"), strict=True))
