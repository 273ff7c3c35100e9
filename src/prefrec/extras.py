"""Extras: packages that only some features need, and the command that installs them."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from prefrec.errors import PrefrecError

PACKAGES = {
    "lm": ("torch", "transformers", "peft", "accelerate", "huggingface_hub", "tokenizers"),
    "plots": ("matplotlib",),
    "s3": ("fsspec", "s3fs"),
}
"""Extra of pyproject.toml → modules that it installs. The first one shows whether it is there."""


class MissingExtraError(PrefrecError, ImportError):
    """A feature needs packages that are not installed; the message has the command that installs them."""


def is_installed(extra: str) -> bool:
    """Return True if the packages of an extra are installed, without importing them."""
    try:
        return find_spec(PACKAGES[extra][0]) is not None
    except ModuleNotFoundError:
        return False


def need(extra: str, feature: str) -> None:
    """Raise MissingExtraError if a feature's extra is not installed. `feature` begins the message."""
    if not is_installed(extra):
        raise MissingExtraError(_sentence(extra, feature))


def missing_extra(error: BaseException | None) -> str:
    """Return what to install after a failed import of a package of an extra; "" after any other error."""
    name = (getattr(error, "name", None) or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    for extra, packages in PACKAGES.items():
        if name in packages:
            return _sentence(extra, "This")
    return ""


def imported(module: str) -> Any:
    """Import a module; raise MissingExtraError if it needs a package of an extra that is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as e:
        if message := missing_extra(e):
            raise MissingExtraError(message) from e
        raise


def _sentence(extra: str, feature: str) -> str:
    return f"{feature} needs {PACKAGES[extra][0]}, which is not installed: pip install '.[{extra}]' in a clone"
