"""The command `prefrec`: a thin module per verb, which parses options, calls one function and prints."""

from __future__ import annotations

import os
import re
import sys
import traceback
import warnings
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from inspect import cleandoc
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn

from cyclopts import App, CycloptsError, Parameter, UnknownCommandError, UnknownOptionError, ValidationError

from prefrec import __version__
from prefrec.cli._parsing import Help, as_values, shown_default
from prefrec.console import console
from prefrec.errors import PrefrecError, did_you_mean, out_of_memory, without_secrets
from prefrec.extras import missing_extra
from prefrec.processes import is_first, leave

VERBS = (
    "init", "plan", "run", "update", "switch", "prune", "prepare", "audit", "evaluate", "evaluate-adapters",
    "recommend", "rank", "also-bought", "similar", "explain", "report", "export",
)  # fmt: skip
COMMANDS = "prefrec.commands"
"""Group of entry points that add verbs: NAME = "module:function", or GROUP.NAME for a verb of a group."""
ELSEWHERE = {"serve": "./server", "chat": "./systems", "lab": "./lab"}
"""Verb of a sister package → the package's folder in a clone."""
HELP = (
    "Train a recommender on your own log, and learn what each part of it is worth.\n\n"
    "`init` writes a recipe, `plan` lists its stages, `run` carries it out, and `update` continues a run with new "
    "interactions. `switch` lets a link lead to the run to serve, if it is not worse, and `prune` deletes earlier "
    "runs. `recommend`, `rank`, `also-bought` and `similar` answer, `explain` shows what moved a score, `report` "
    "writes a web page, `serve` answers over HTTP, and `export` writes a model for other software. Without a recipe, "
    "`prepare` makes ranking examples from a log, `audit` checks them for leaks, and `evaluate-adapters` measures "
    "adapters on them. `evaluate` measures the scores of any software.\n\n"
    "`prefrec COMMAND --help` shows options of a command, `--help-all` all of them. `--debug`, anywhere, shows the "
    "traceback of an error.\n\n"
    "A first run: `prefrec init --help`, or in a clone `prefrec run recipes/demo.yaml`"
)
GONE = {
    "run --dry-run": "`prefrec plan RECIPE` lists the stages of a run without running them",
    "recommend --candidate": "`prefrec rank RUN` ranks given items",
}
"""Verb and option that an earlier version had → what there is in its place."""
HELP_FLAGS = ("--help", "-h", "--help-all")


@cache
def homes() -> dict[str, str]:
    """Return verb → "module:function", with verbs of other packages last."""
    modules = {verb: verb.replace("-", "_") for verb in VERBS}
    ours = {verb: f"{__name__}.{module}:{module}" for verb, module in modules.items()}
    others = sorted(entry_points(group=COMMANDS), key=lambda e: e.name)
    return ours | {e.name: e.value for e in others if e.name not in ours}


def command_line() -> App:
    """Return the command with all verbs. The module of a verb is imported when the verb is called."""
    app = App(
        name="prefrec",
        help=HELP,
        help_flags=HELP_FLAGS,
        help_format="plaintext",  # of the list of verbs; Markdown takes 30 ms to import
        help_formatter=Help(),
        version=f"prefrec {__version__}",
        config=as_values,
        default_parameter=Parameter(
            negative_bool=(), negative_iterable=(), allow_repeating=True, show_default=shown_default
        ),
        print_error=False,
        exit_on_error=False,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    app.command(
        f"{__name__}._completion:install_completion",
        name="--install-completion",
        help="Install shell completion for this application.",
        group="Options",
    )
    for flag in ("--help", "--version"):
        app[flag].group = ("Options",)
    for place, (name, home) in enumerate(homes().items()):
        group, _, verb = name.rpartition(".")
        if group and group not in app:
            package = home.partition(":")[0].rpartition(".")[0]
            app.command(App(name=group, help=_docstring(package), help_flags=HELP_FLAGS, sort_key=place))
        above = app[group] if group else app
        above.command(home, name=verb, help=_docstring(home), help_format="markdown", sort_key=place)
    return app


def _docstring(home: str) -> str | None:
    """Return the docstring of "module:function" or of a module, without importing it; None if there is none."""
    module, _, function = home.partition(":")
    spec = find_spec(module)
    text = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
    before = rf"^def {function}\((?:(?!^def ).)*?:\n    " if function else "^"
    found = re.search(rf'{before}"""(.*?)"""', text, re.DOTALL | re.MULTILINE)
    return cleandoc(found[1]) if found else None


def main() -> None:
    """Run the command. An expected error prints one message and exits with 1, wrong usage with 2.

    `--debug` adds the traceback.
    """
    # Removed here, so that it may come before or after the verb.
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    # Silence progress bars and notices of libraries. transformers reads these variables when it is imported.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch)\b.*")
    if isinstance(sys.stdout, TextIOWrapper):
        # An encoding such as ASCII lacks the lines of tables, and characters of titles.
        sys.stdout.reconfigure(errors="backslashreplace")
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # only the first process of a job prints results
    try:
        app = command_line()
        _, path, rest = app.parse_commands(arguments)
        app(arguments)
        sys.stdout.flush()  # here, where an error is told
        if not rest and path[-1].default_command is None:  # no verb is named, and the help was shown
            sys.exit(2)
    except CycloptsError as e:
        message, code = _explained(e)
        _fail(message, code, debug)
    except BrokenPipeError:  # as of `prefrec --help | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (PrefrecError, OSError) as e:
        from prefrec.files import storage_error

        told = e if isinstance(e, PrefrecError) else storage_error(e) or e
        _fail(without_secrets(str(told)), 1, debug)
    except (MemoryError, RuntimeError, ImportError) as e:
        # The error of cyclopts about a verb's module has the reason as its cause.
        cause = e.__cause__ if isinstance(e.__cause__, ImportError) else e
        if missing := missing_extra(cause):
            _fail(missing, 1, debug)
        reason = out_of_memory(cause)
        if debug or not reason:
            raise
        remedy = "free some, raise the limit (`ulimit -v`), or lower batch sizes or the model's size in the recipe"
        _fail(f"not enough memory ({reason}); {remedy}", 1)
    except KeyboardInterrupt:
        console.print("stopped; run the same command again to resume")
        sys.exit(130)
    leave()


def _explained(error: CycloptsError) -> tuple[str, int]:
    """Return message and exit code for arguments that cyclopts refuses."""
    above = error.command_chain or ()
    if isinstance(error, UnknownCommandError):
        # The message of cyclopts would import all verbs.
        name = error.unused_tokens[0] if error.unused_tokens else ""
        if name in ELSEWHERE and not above:
            return f"`prefrec {name}` is not installed: pip install {ELSEWHERE[name]} in a clone", 1
        message = f"No such command {name!r}{did_you_mean(name, error.app or ())}"
    elif isinstance(error, ValidationError) and error.argument and error.argument.children:
        from prefrec.cli._options import section_error

        return str(section_error(error)), 1
    elif isinstance(error, UnknownOptionError) and (
        gone := GONE.get(" ".join([*above[-1:], str(error.token.keyword)]))
    ):
        return f"{error.token.keyword} was removed: {gone}", 2
    else:
        message = str(error)
    return f"{message} (help: `{' '.join(['prefrec', *above, '--help'])}`)", 2


def _fail(message: str, code: int, debug: bool = False) -> NoReturn:
    """Print an error, with the traceback if `debug`, and exit."""
    if debug:
        traceback.print_exc()
    console.print("[bold red]error:[/bold red]", end=" ")
    console.print(message, highlight=False, markup=False, soft_wrap=True)
    sys.exit(code)
