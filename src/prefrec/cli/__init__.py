"""The command `prefrec`: a thin module per verb, which parses options, calls one function and prints."""

from __future__ import annotations

import ast
import os
import sys
import traceback
import warnings
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from prefrec import __version__
from prefrec.console import console
from prefrec.errors import ConfigError, PrefrecError, did_you_mean, out_of_memory, without_secrets
from prefrec.processes import is_first, leave

VERBS = (
    "init", "plan", "run", "update", "switch", "prune", "prepare", "audit", "evaluate", "recommend", "similar",
    "explain", "report", "export",
)  # fmt: skip
COMMANDS = "prefrec.commands"
"""Group of entry points that add verbs: NAME = "module:function", or GROUP.NAME for a verb of a group."""
ELSEWHERE = {"serve": "./server", "chat": "./systems", "lab": "./lab"}
"""Verb of a sister package → the package's folder in a clone."""
_LOOK: dict[str, Any] = {"context_settings": {"help_option_names": ["-h", "--help"]}, "rich_markup_mode": "markdown"}


@cache
def homes() -> dict[str, tuple[str, str]]:
    """Return verb → (module, function), with verbs of other packages last."""
    ours = {verb: (f"{__name__}.{verb}", verb) for verb in VERBS}
    others = sorted(entry_points(group=COMMANDS), key=lambda e: e.name)
    return ours | {e.name: (e.module, e.attr) for e in others if e.name not in ours}


def load_verb(verb: str) -> Any:
    """Import the module of a verb, and return its command."""
    module, function = homes()[verb]
    alone = typer.Typer(pretty_exceptions_enable=False, add_completion=False, **_LOOK)
    alone.command(verb.rpartition(".")[2])(getattr(import_module(module), function))
    return get_command(alone)


class _Verbs(TyperGroup):
    """A group that imports a verb only when it is called, so that help and version are fast.

    `path` is "" for the command itself, or the name of a group followed by a dot.
    """

    path = ""

    def list_commands(self, ctx: Any) -> list[str]:
        inner = (name.removeprefix(self.path) for name in homes() if name.startswith(self.path))
        return list(dict.fromkeys(name.partition(".")[0] for name in inner))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        # A stub is enough for the help. `resolve_command` imports the verb that is called.
        name = self.path + cmd_name
        home = homes()[name][0] if name in homes() else _home_of_group(name)
        stub = typer.Typer(add_completion=False)
        stub.command(cmd_name, help=_summary(home))(lambda: None)
        return get_command(stub)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = self.list_commands(ctx)
        if args[0] in ELSEWHERE and args[0] not in known:
            raise ConfigError(f"`prefrec {args[0]}` is not installed: pip install {ELSEWHERE[args[0]]} in a clone")
        if args[0] not in known and (hint := did_you_mean(args[0], known)):
            ctx.fail(f"No such command {args[0]!r}{hint}")
        name, _, rest = super().resolve_command(ctx, args)
        full = f"{self.path}{name}"
        return name, load_verb(full) if full in homes() else load_group(full), rest


def load_group(name: str) -> Any:
    """Return the group of the verbs NAME.VERB."""
    home = _home_of_group(name)
    group = type("_Group", (_Verbs,), {"path": f"{name}."})
    alone = typer.Typer(
        cls=group, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, **_LOOK
    )
    alone.callback(help=ast.get_docstring(ast.parse(_text_of(home))))(lambda: None)
    return get_command(alone)


def _home_of_group(name: str) -> str:
    """Return the package with the verbs of a group."""
    modules = [module for verb, (module, _) in homes().items() if verb.startswith(f"{name}.")]
    return modules[0].rpartition(".")[0]


def _text_of(module: str) -> str:
    """Return the source of a module without importing it."""
    spec = find_spec(module)
    return Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""


def _summary(module: str) -> str:
    """Return the first line of a module's docstring."""
    line = (ast.get_docstring(ast.parse(_text_of(module))) or "").partition("\n")[0]
    summary = line.partition(": ")[2] or line
    return summary[:1].upper() + summary[1:]


app = typer.Typer(
    name="prefrec",
    cls=_Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="A first run: `prefrec init --help`, or in a clone `prefrec run recipes/demo.yaml`",
    **_LOOK,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"prefrec {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train, measure and serve language-model recommenders on your own interaction log and item titles.

    `init` writes a recipe, `plan` lists its stages, `run` carries it out, and `update` continues a run with new
    interactions. `switch` lets a link lead to the run to serve, if it is not worse, and `prune` deletes earlier runs.
    `recommend` and `similar` answer, `explain` shows what moved a score, `report` writes a web page,
    `serve` answers over HTTP, and `export` writes a model for other software. Without a recipe, `prepare` makes
    ranking examples from a log, `audit` checks them for leaks, and `evaluate` measures adapters on them.
    """


def main() -> None:
    """Run the command. Expected errors print one message and exit with code 1; `--debug` adds the traceback."""
    # Removed here, so that it may come before or after the verb.
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    # Silence progress bars and notices of libraries. transformers reads these variables when it is imported.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch)\b.*")
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # only the first process of a job prints results
    try:
        app(args=arguments, prog_name="prefrec")
    except (PrefrecError, OSError) as e:
        from prefrec.files import storage_error

        if debug:
            traceback.print_exc()
        console.print("[bold red]error:[/bold red]", end=" ")
        error = e if isinstance(e, PrefrecError) else storage_error(e) or e
        console.print(without_secrets(str(error)), highlight=False, markup=False, soft_wrap=True)
        sys.exit(1)
    except (MemoryError, RuntimeError, ImportError) as e:
        if debug or not (reason := out_of_memory(e)):
            raise
        remedy = "free some, raise the limit (`ulimit -v`), or lower batch sizes or the model's size in the recipe"
        console.print("[bold red]error:[/bold red]", end=" ")
        console.print(f"not enough memory ({reason}); {remedy}", highlight=False, markup=False, soft_wrap=True)
        sys.exit(1)
    except SystemExit as e:
        if not e.code:
            leave()
        if e.code == 130:  # typer's exit code after Ctrl-C
            console.print("stopped; run the same command again to resume")
        raise
