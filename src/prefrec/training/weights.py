"""Load trained weights: an adapter, or an entire model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from prefrec.lm.items import ITEMS_FILE, load_item_model
from prefrec.lm.models import load_model


def is_adapter(folder: Path) -> bool:
    """Return True if a folder of trained weights contains an adapter and not an entire model."""
    return not (folder / "config.json").is_file()


def load_weights(base: str, weights: Path | None, *, is_trainable: bool = False, **loading: Any) -> nn.Module:
    """Load a base model with trained weights.

    Args:
        base: name of the base for `load_model`.
        weights: folder of an adapter, or of the entire model if all weights were trained. None: only the base.
        is_trainable: keep the adapter trainable, in float32.
        **loading: further arguments of `load_model`.

    Raises:
        ModelError: the weights cannot be read.
    """
    if weights is None:
        return load_model(base, **loading)
    if (weights / ITEMS_FILE).is_file():
        only_dtype = {"dtype": loading["dtype"]} if "dtype" in loading else {}
        return load_item_model(weights, **only_dtype)
    if not is_adapter(weights):
        return load_model(str(weights), **loading | {"layers": None, "random_weights": False})
    from prefrec.training.adapters import load_adapter  # here, because PEFT takes seconds to import

    model: nn.Module = load_model(base, **loading)
    if is_trainable:
        return load_adapter(model, weights, is_trainable=True)
    # In the base's precision, results equal those of autocast in training, without its casts.
    return load_adapter(model, weights, autocast_adapter_dtype=False)
