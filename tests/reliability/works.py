"""Commands that are killed right after each change of their folder, and what must stand there in the end."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import optuna
import polars as pl
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from command import Outcome, prefrec
from prefrec import recommender
from prefrec.files import file_digest, folder_files, read_json, write_json
from prefrec_lab.tune import BEST, JOURNAL
from reliability.children import call
from reliability.whole_runs import END, PARTS, arguments, differences, unfinished

CHUNK = 10
"""Users of a part of the answers for all users: the tiny log has 40."""
NEW = "new.csv"
"""New interactions, for an update."""


@dataclass(frozen=True)
class Work:
    """`prefrec run` of a small recipe; what other commands read is made in `folder`."""

    recipe: Path
    folder: Path
    parts: ClassVar[tuple[str, ...]] = (*PARTS, END)

    def prepare(self) -> None:
        """Make what the command reads."""

    def command(self, out: Path) -> tuple[Any, ...]:
        """Arguments of the command that works in `out`."""
        return arguments(self.recipe, out)

    def at(self, out: Path) -> str:
        """The part that was interrupted, of `parts`."""
        return unfinished(out)

    def disturb(self, out: Path, rng: random.Random) -> None:
        """Damage what the killed command left and must check itself."""

    def lost(self, out: Path, whole: Path) -> list[str]:
        """What is not as an undisturbed command left it in `whole`."""
        return differences(out, whole) + left_over(out, whole)

    def carry_out(self, out: Path) -> Outcome:
        """Run the command, in a child."""
        recommender.CHUNK = recommender.QUICK_CHUNK = CHUNK
        return prefrec(*self.command(out))


@dataclass(frozen=True)
class OnRun(Work):
    """A command that reads a finished run, which must stay as it is."""

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def prepare(self) -> None:
        made = call(prefrec, *arguments(self.recipe, self.run))
        assert made.code == 0, made.err
        write_json(self.folder / "before.json", self._digests())

    def _digests(self) -> dict[str, str]:
        return {name: file_digest(self.run / name) for name in folder_files(self.run)}

    def lost(self, out: Path, whole: Path) -> list[str]:
        changed = read_json(self.folder / "before.json") != self._digests()
        return left_over(out, whole) + ["the run that is read has changed"] * changed


def write_new(recipe: Path, folder: Path) -> Path:
    """Write a few interactions that are later than all of the recipe's log to the file `NEW`."""
    log = yaml.safe_load(recipe.read_text(encoding="utf-8"))["data"]["interactions"]
    end = pl.read_csv(log)["timestamp"].max()
    rows = [(f"u{u:02}", f"i{(7 * u + k) % 60}", end + 3600 * (k + 1)) for u in range(8) for k in range(3)]
    pl.DataFrame(rows, ["user_id", "item_id", "timestamp"], orient="row").write_csv(folder / NEW)
    return folder / NEW


@dataclass(frozen=True)
class Update(OnRun):
    """`prefrec update` with a few new interactions."""

    def prepare(self) -> None:
        super().prepare()
        write_new(self.recipe, self.folder)

    def command(self, out: Path) -> tuple[Any, ...]:
        return ("update", self.run, "--interactions", self.folder / NEW, "--out", out)

    def at(self, out: Path) -> str:
        part = unfinished(out)
        return "evaluate" if part == END and not (out / "report.html").exists() else part

    def lost(self, out: Path, whole: Path) -> list[str]:
        gains = [read_json(folder / "update.json") for folder in (out, whole)]
        wrong = ["update.json"] * (gains[0] != gains[1] or not gains[0])
        return differences(out, whole) + wrong + super().lost(out, whole)


@dataclass(frozen=True)
class Tune(Work):
    """`prefrec lab tune` with two trials of SFT; equal values must have equal results, whenever they are tried."""

    parts: ClassVar[tuple[str, ...]] = ("trials", END)

    def prepare(self) -> None:
        raw: dict[str, Any] = yaml.safe_load(self.recipe.read_text(encoding="utf-8"))
        raw |= {"align": [], "sft": raw["sft"] | {"eval_rows": 0}}
        raw["evaluate"] |= {"rows": 8}
        (self.folder / "tuned.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")

    def command(self, out: Path) -> tuple[Any, ...]:
        fields = ("--field", "sft.epochs=1,2", "--trials", 2, "--metric", "mrr")
        return ("lab", "tune", self.folder / "tuned.yaml", *fields, "--out", out)

    def at(self, out: Path) -> str:
        return END if (out / BEST).exists() else "trials"

    def lost(self, out: Path, whole: Path) -> list[str]:
        table, known = trials(out), self.folder / "known.json"
        truth = read_json(known) | dict(trials(whole).values())
        wrong = [f"{e} epochs: {v}, not {truth[e]}" for e, v in table.values() if truth.get(e, v) != v]
        write_json(known, dict(table.values()) | truth)
        most = max(value for _, value in table.values())
        chosen = str(int(yaml.safe_load((out / BEST).read_text(encoding="utf-8"))["sft"]["epochs"]))
        wrong += [f"{BEST} has {chosen} epochs"] * ((chosen, most) not in table.values())
        wrong += [f"{len(table)} trials"] * (len(table) < 2)
        kept = [p.name for p in (out / "trials").iterdir()]
        wrong += [f"{len(kept)} runs are kept"] * (len(kept) != 1)
        return wrong + [f"{p.relative_to(out)} is left over" for p in out.rglob("*.tmp")]


def trials(out: Path) -> dict[int, tuple[str, float]]:
    """Number → epochs and result of each finished trial in a search's folder."""
    storage = JournalStorage(JournalFileBackend(str(out / JOURNAL)))
    done = optuna.load_study(study_name="tune", storage=storage).get_trials(states=[optuna.trial.TrialState.COMPLETE])
    return {t.number: (str(t.params["sft.epochs"]), float(t.value or 0)) for t in done}


@dataclass(frozen=True)
class Recommend(OnRun):
    """`prefrec recommend --all-users`; after every second kill a bit of a part is flipped, too."""

    parts: ClassVar[tuple[str, ...]] = ("parts", END)

    def command(self, out: Path) -> tuple[Any, ...]:
        return ("recommend", self.run, "--all-users", "--k", 3, "--out", out / "top.parquet")

    def at(self, out: Path) -> str:
        return END if (out / "top.parquet").exists() else "parts"

    def disturb(self, out: Path, rng: random.Random) -> None:
        parts = sorted(out.glob(".*/*.parquet"))
        if parts and rng.random() < 0.5:
            part = rng.choice(parts)
            content = bytearray(part.read_bytes())
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            part.write_bytes(content)

    def lost(self, out: Path, whole: Path) -> list[str]:
        frames = [pl.read_parquet(folder / "top.parquet") for folder in (out, whole)]
        return ["top.parquet"] * (not frames[0].equals(frames[1])) + super().lost(out, whole)


def left_over(out: Path, whole: Path) -> list[str]:
    """Drafts that the second command did not clear away."""
    mine, theirs = ({str(p.relative_to(r)) for p in r.rglob("*")} for r in (out, whole))
    return [f"{name} is left over" for name in sorted(mine - theirs)]


WORKS: dict[str, type[Work]] = {"update": Update, "tune": Tune, "recommend": Recommend}
