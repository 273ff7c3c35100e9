"""Fixtures for the data tests."""

from small_shop import paths, shop

__all__ = ["paths", "shop"]
