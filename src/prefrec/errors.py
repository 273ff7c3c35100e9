"""Errors a user can act on. Each message says what is wrong, where, and what to do."""

from __future__ import annotations


class PrefrecError(Exception):
    """The base of all errors that the command line prints without a traceback."""


class DataError(PrefrecError, ValueError):
    """An error in a log, catalogue or file of examples; the message names file, line and column."""


class StorageError(PrefrecError, OSError):
    """An error on writing a file, such as a full disk or a missing permission."""


class TemplateError(PrefrecError, ValueError):
    """An error in a prompt template; the message names the template."""


class TokenizerError(PrefrecError, ValueError):
    """A tokenizer that lacks something scoring needs, or a row that exceeds the maximal length."""


class ModelError(PrefrecError, ValueError):
    """A language model that cannot be found, loaded or used."""


class ConfigError(PrefrecError, ValueError):
    """A wrong recipe, setting or combination of settings; the message names the field."""
