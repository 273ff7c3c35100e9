"""The command `prefrec`, run inside this process as the console script runs it."""

import contextlib
import io
import sys
import warnings
from dataclasses import dataclass
from typing import Any
from unittest import mock

from prefrec.cli import main


@dataclass(frozen=True)
class Outcome:
    """The outcome of a command: its exit code, and what it wrote for machines (`out`) and for people (`err`)."""

    code: int
    out: str
    err: str


def prefrec(*arguments: Any) -> Outcome:
    """Run `prefrec ARGUMENTS`; wide columns, so that tables and messages are not broken."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with (
        mock.patch.object(sys, "argv", ["prefrec", *map(str, arguments)]),
        mock.patch.dict("os.environ", {"COLUMNS": "200", "TERMINAL_WIDTH": "200"}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        try:
            main()
        except SystemExit as e:
            code = e.code or 0
    return Outcome(int(code), out.getvalue(), err.getvalue())


def succeed(*arguments: Any) -> str:
    """The standard output of a command that must end well."""
    outcome = prefrec(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome.out


def refused(*arguments: Any, code: int = 1) -> str:
    """The error output of a command that must fail and print nothing else."""
    outcome = prefrec(*arguments)
    assert (outcome.code, outcome.out) == (code, "")
    return outcome.err
