"""What a case of the corpus is, what it works on, and whether it got the answer that it should."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.testclient import TestClient

from command import prefrec
from prefrec.pipeline.opened import open_run
from prefrec_server.app import Settings, create_app
from prefrec_server.server import open_engine
from served_run import write_run
from tiny import bpe_tokenizer

Command = tuple[Any, ...]
Content = bytes | str


@dataclass(frozen=True)
class Place:
    """Good things to be read only: a shop's files, a model, a run with data and adapters, and the run served."""

    shop: Path
    model: Path
    run: Path
    app: FastAPI

    @property
    def asked(self) -> Command:
        """Options that name the model."""
        return ("--model.name", self.model, "--model.dtype", "float32", "--model.max-length", "400")


Asks = Callable[[Place, Path], Command]


@dataclass(frozen=True)
class Case:
    """A malformed input."""

    name: str  # what is wrong with it
    message: str  # what the answer must hold: the place, and the way out
    tell: Callable[[Place, Path], str]  # gives the input to prefrec, which may write in the folder; its answer


def make_place(folder: Path) -> Place:
    """Everything that the cases read."""
    run = write_run(folder, bpe_tokenizer())
    engine = open_engine(open_run(run))
    return Place(folder / "shop", folder / "model", run, create_app(engine, Settings("tiny", "llama")))


def verdict(case: Case, place: Place, folder: Path) -> str | None:
    """Why a case is lost; None where the answer is as it should be."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        told = case.tell(place, folder)
    except BaseException as e:  # noqa: BLE001  # a panic of polars is no Exception
        return f"{type(e).__name__} escaped: {e}"
    if case.message not in told:
        return f"expected {case.message!r}, was told {told.strip()!r}"
    return "a traceback was shown" if "Traceback (most recent call last)" in told else None


def tell(command: Command) -> str:
    """What a command that must fail says; usage errors end with 2, all others with 1."""
    outcome = prefrec(*command)
    assert outcome.code in (1, 2), f"exit code {outcome.code}: {outcome.out}{outcome.err}"
    return outcome.err


def write(path: Path, content: Content | Callable[[Path], object]) -> Path:
    """Write a file; a function is called with the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def command(name: str, message: str, arguments: Asks) -> Case:
    """A case of the command line."""
    return Case(name, message, lambda place, folder: tell(arguments(place, folder)))


def damaged(name: str, message: str, part: str, files: Mapping[str, Content | None], arguments: Asks) -> Case:
    """A case of the folder `part`, in whose copy some files are damaged, or absent (None)."""

    def give(place: Place, folder: Path) -> Command:
        copy = shutil.copytree(place.run.parent / part, folder / "copy")
        for file, content in files.items():
            if content is None:
                (copy / file).unlink()
            else:
                write(copy / file, content)
        return arguments(place, copy)

    return command(name, message, give)


def posted(path: str, body: Any, name: str, message: str, **options: Any) -> Case:
    """A case of the HTTP interface: a JSON body, or bytes as they are."""

    def give(place: Place, folder: Path) -> str:
        sent = {"content": body, "headers": {"Content-Type": "application/json"}} | options
        answer = TestClient(place.app).post(path, **(sent if isinstance(body, bytes) else {"json": body} | options))
        assert 400 <= answer.status_code < 500, f"status {answer.status_code}: {answer.text}"
        return str(answer.json()["error"]["message"])

    return Case(f"POST {path}: {name}", message, give)
