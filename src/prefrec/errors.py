"""Errors a user can act on: each message says what was given, what was expected and what to do."""

from __future__ import annotations


class PrefrecError(Exception):
    """Base of all errors that the command line prints without a traceback."""


class DataError(PrefrecError, ValueError):
    """A log, catalogue or example file cannot be used; the message names file, line and column."""


class StorageError(PrefrecError, OSError):
    """A file cannot be written: no room, or no right to; the message names the file and the way out."""


class TemplateError(PrefrecError, ValueError):
    """A prompt template cannot be used; the message names the template."""


class TokenizerError(PrefrecError, ValueError):
    """A tokenizer lacks what scoring needs, or a row cannot fit its length."""


class ModelError(PrefrecError, ValueError):
    """A language model cannot be found or loaded."""


class ConfigError(PrefrecError, ValueError):
    """A recipe, setting or combination of settings is wrong; the message names the field."""
