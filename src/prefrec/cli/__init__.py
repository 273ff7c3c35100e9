"""The command `prefrec`: one thin module a verb; it parses, calls one function, prints."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from typing import Annotated

import typer

from prefrec import __version__
from prefrec.console import console
from prefrec.errors import PrefrecError
from prefrec.processes import is_first

app = typer.Typer(
    name="prefrec",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="A first run: prefrec run recipes/demo.yaml",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"prefrec {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """From interaction logs and item titles to a language-model recommender aligned to its users.

    Everything at once is `prefrec run RECIPE.yaml`. Step by step: `prepare` makes ranking questions of a log,
    `audit` looks for leaks in them, `sft` and `align` train, `evaluate` measures, `rank` answers one
    question, `explain` says what moved it, `chat` talks about it, `report` draws it all, `study` compares settings,
    `serve` answers over HTTP, `export` hands a model on. `doctor` says what this machine can do.
    """


def register_verbs() -> None:
    """Give `app` its verbs; apart from the import of this module, which must be quick."""
    if app.registered_commands:
        return
    from prefrec.cli import (
        align,
        audit,
        bench,
        chat,
        doctor,
        evaluate,
        explain,
        export,
        prepare,
        rank,
        report,
        run,
        sequential,
        serve,
        sft,
        study,
    )

    app.command()(run.run)
    app.command()(prepare.prepare)
    app.command()(audit.audit)
    app.command()(sequential.sequential)
    app.command()(sft.sft)
    app.command()(align.align)
    app.command()(evaluate.evaluate)
    app.command()(rank.rank)
    app.command()(report.report)
    app.command()(serve.serve)
    app.command()(export.export)
    app.command()(explain.explain)
    app.command()(chat.chat)
    app.command()(study.study)
    app.command()(bench.bench)
    app.command()(doctor.doctor)


def main() -> None:
    """Entry point: errors that a user can act on are one message and exit code 1; `--debug` shows all."""
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    _quiet()
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # one process of a job prints what it found
    register_verbs()
    try:
        app(args=arguments, prog_name="prefrec")
    except (PrefrecError, OSError) as e:
        from prefrec.files import storage_error

        if debug:
            traceback.print_exc()
        console.print("[bold red]error:[/bold red]", end=" ")
        told = e if isinstance(e, PrefrecError) else storage_error(e) or e
        console.print(str(told), highlight=False, markup=False, soft_wrap=True)
        sys.exit(1)
    except SystemExit as e:
        if e.code == 130:  # how typer ends on Ctrl-C
            console.print("stopped; the same command goes on from here")
        raise


def _quiet() -> None:
    """Keep the libraries' own bars and notices out of ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch)\b.*")
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
