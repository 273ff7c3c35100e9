"""Kept vectors of titles: what was encoded before a stop is there, damage is no error, the oldest go first."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prefrec.towers import title_encoder, title_store
from prefrec.towers.title_encoder import TitleEncoder
from prefrec.towers.title_store import TitleStore


class Counting(TitleEncoder):
    """An encoder of lengths that stops after some batches."""

    def __init__(self, batches: int) -> None:
        model: Any = SimpleNamespace(config=SimpleNamespace(hidden_size=2))
        super().__init__(model, model, 8)
        self.batches = batches

    def forward(self, titles: Sequence[str]) -> Tensor:
        self.batches -= 1
        if self.batches < 0:
            raise KeyboardInterrupt
        return torch.tensor([[len(title), 1.0] for title in titles])


TITLES = ["x" * n for n in range(1, 12)]


def test_what_was_encoded_before_a_stop_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(title_encoder, "_TITLES_AT_A_TIME", 4)
    store = TitleStore("key", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        Counting(2).encode(TITLES, keep=lambda titles, vectors: store.write(titles, vectors.numpy()))
    kept = store.read([*TITLES, "another"])
    assert sorted(map(len, kept)) == [4, 5, 6, 7, 8, 9, 10, 11]
    assert all(vector.tolist() == [len(title), 1.0] for title, vector in kept.items())
    assert TitleStore("other", tmp_path).read(TITLES) == {}


def test_a_damaged_file_is_as_if_it_was_not_there(tmp_path: Path) -> None:
    store = TitleStore("key", tmp_path)
    store.write(["a"], np.ones((1, 3)))
    (store.folder / "damaged.parquet").write_bytes(b"PAR1")
    assert store.read(["a", "b"])["a"].tolist() == [1.0, 1.0, 1.0]


def test_the_oldest_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TitleStore("key", tmp_path)
    for n, name in enumerate("abc"):
        store.write([name], np.ones((1, 3)))
        for path in store.folder.glob("*.parquet"):
            os.utime(path, (n, n)) if path.stat().st_mtime > 10 else None
    monkeypatch.setattr(title_store, "MOST_BYTES", 2 * next(store.folder.glob("*")).stat().st_size)
    store.write(["d"], np.ones((1, 3)))
    assert sorted(store.read([*"abcd"])) == ["c", "d"]
