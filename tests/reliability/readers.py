"""Damaged copies of a finished run and an export, asked by every reader: the answers of the whole, or a refusal."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from prefrec import Recommender
from prefrec.errors import PrefrecError
from prefrec.export.ranker import export_ranker
from prefrec.files import digests, folder_files
from prefrec.pipeline.opened import open_run
from prefrec.runs.contents import read_run
from prefrec.runs.stage import STAGE_FILE
from prefrec_server.app import Settings, create_app
from prefrec_server.server import open_engine
from reliability.damage import UNSEALED, WAYS, damage
from reliability.limits import Hung, within

REFUSED = "refused"
LIMIT_S = 60.0
"""Seconds that a reader may take on a busy machine."""

NOT_CHECKED = ("recipe.yaml", "environment.json", "report.html", "README.md")
"""Files that say what the user asks for, or that people read."""

HISTORY, LISTED = ["i1", "i2", "i3"], ["i4", "i5", "i6", "i7"]


def _report(run: Path) -> list[Any]:
    contents = read_run(run)
    parts = [contents.results.evaluation, contents.results.full_catalogue]
    frame = contents.results.predictions
    return [part.to_json() if part else REFUSED for part in parts] + [REFUSED if frame is None else frame.to_dicts()]


def _export(run: Path) -> list[Any]:
    out = run.with_name(f"{run.name}-export")
    try:
        export_ranker(open_run(run), "s-dpo", out)
        made = digests(out, [name for name in folder_files(out) if name.endswith((".safetensors", ".jinja2"))])
        results = (out / "README.md").read_text(encoding="utf-8").partition("## Results")[2]
        return [made, results.partition("\n## ")[0] if "|" in results else REFUSED]
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _serve(run: Path) -> Any:
    engine = open_engine(open_run(run))
    try:
        body = {"history": [{"item_id": i} for i in HISTORY], "candidates": [{"item_id": i} for i in LISTED]}
        answer = TestClient(create_app(engine, Settings("tiny", "llama"))).post("/v1/rank", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["ranking"]
    finally:
        engine.close()


RUN_READERS: dict[str, Callable[[Path], Any]] = {
    "recommend": lambda run: Recommender.from_run(run).recommend(user="u01", k=5),
    "rank with SFT": lambda run: Recommender.from_run(run, "sft").rank(HISTORY, LISTED),
    "all users": lambda run: Recommender.from_run(run, "popularity").recommend_all(k=3).to_dicts(),
    "export": _export,
    "report": _report,
    "serve": _serve,
}
EXPORT_READERS: dict[str, Callable[[Path], Any]] = {
    "from_pretrained": lambda folder: Recommender.from_pretrained(folder).rank(HISTORY, LISTED)
}


def answers(readers: dict[str, Callable[[Path], Any]], folder: Path) -> dict[str, Any]:
    """What each reader says: its answer, `REFUSED`, or the error that escaped."""
    told: dict[str, Any] = {}
    for name, ask in readers.items():
        try:
            with within(LIMIT_S):
                told[name] = ask(folder)
        except PrefrecError:
            told[name] = REFUSED
        except Hung as e:
            return told | {name: f"Hung escaped: {e}"}  # the others would hang likewise
        except Exception as e:  # noqa: BLE001
            told[name] = f"{type(e).__name__} escaped: {e}"
    return told


def ask_damaged(whole: Path, folder: Path, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Damage copies of the run `whole`, and of an export of it, in random order; yield the case and what was lost."""
    folder.mkdir(parents=True, exist_ok=True)
    exported = export_ranker(open_run(whole), "s-dpo", folder / "exported")
    rng, kinds = random.Random(seed), ((whole, RUN_READERS), (exported, EXPORT_READERS))
    cases = [(n, file, way) for n, (source, _) in enumerate(kinds) for file, way in _cases(source)]
    want = [answers(readers, source) for source, readers in kinds]
    wrong = [f"{name}: {told}" for told in want for name, told in told.items() if "escaped" in str(told)[:60]]
    yield "nothing damaged", wrong
    for number, (n, file, way) in enumerate(rng.sample(cases, len(cases))):
        source, readers = kinds[n]
        copy = Path(shutil.copytree(source, folder / str(number)))
        damage(copy / file, way, rng)
        if way in UNSEALED:  # what an unsealed stage vouches for may be anything
            for weights in sorted(copy.joinpath(file).parent.glob("adapter/*.safetensors")):
                damage(weights, "flipped", rng)
        told = answers(readers, copy)
        yield f"{file} {way}", [f"{name}: {_short(t)}" for name, t in told.items() if not _same(t, want[n][name])]
        shutil.rmtree(copy)


def _cases(source: Path) -> Iterator[tuple[str, str]]:
    for file in folder_files(source):
        if Path(file).name not in NOT_CHECKED and (source / file).stat().st_size:
            yield from ((file, way) for way in (*WAYS, "lost", "a pipe"))
            if Path(file).name == STAGE_FILE:
                yield from ((file, way) for way in UNSEALED)


def _same(told: Any, want: Any) -> bool:
    """True for the answer of the whole, and for a refusal of it or of its parts."""
    if told == REFUSED:
        return True
    if isinstance(told, list) and isinstance(want, list) and len(told) == len(want) and REFUSED in told:
        return all(part in (REFUSED, wanted) for part, wanted in zip(told, want, strict=True))
    return bool(told == want)


def _short(told: Any) -> str:
    return str(told)[:300] if "escaped" in str(told)[:60] else f"other answers without a word ({str(told)[:100]})"
