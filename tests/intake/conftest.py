"""Fixtures for the tests of readers and of `prepare`."""

from small_shop import paths, shop

__all__ = ["paths", "shop"]
