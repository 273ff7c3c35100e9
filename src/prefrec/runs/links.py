"""The link that names the run to serve, and the runs beside it that are no longer needed.

The runs of a link `shop` are the folders beside it whose names begin with `shop.`, such as `shop.2026-11-30`, except
those of a link with a longer name, such as `shop.eu`.
"""

from __future__ import annotations

import os
import shutil
from glob import escape
from pathlib import Path

from prefrec.errors import ConfigError, PrefrecError
from prefrec.files import SEAL, drafting, writing
from prefrec.runs.contents import is_evaluated
from prefrec.runs.lock import is_used, run_lock

_RECIPE, _PRUNED = "recipe.yaml", ".pruned"


def check_link(link: Path) -> None:
    """Raise ConfigError if something other than a link is where a link should be."""
    if link.exists() and not link.is_symlink():
        link = named(link)
        if not link.name:
            raise ConfigError(f"{link} is not a link to a run")
        first = link.with_name(f"{link.name}.first")
        raise ConfigError(
            f"{link} is not a link to a run: move it (`mv {link} {first}`), and link to it (`prefrec switch {link} "
            f"{first}`)"
        )


def named(folder: Path) -> Path:
    """Return a path of the same folder that ends in its name, which `.` and `..` lack, as the root does."""
    return folder if folder.name not in ("", "..") else Path(os.path.abspath(folder))


def target_of(link: Path) -> Path | None:
    """Return the folder that a link leads to; None if there is no link, or no such folder."""
    return link.resolve() if link.is_symlink() and link.is_dir() else None


def point(link: Path, folder: Path) -> None:
    """Let a link lead to a folder, in one step; raise StorageError if the link cannot be written."""
    check_link(link)
    with writing(link), drafting(link) as draft:
        new = draft / link.name
        new.symlink_to(os.path.relpath(folder.resolve(), link.parent.resolve()), target_is_directory=True)
        new.replace(link)


def runs_of(link: Path) -> list[Path]:
    """Return the folders of a link's runs, the newest evaluation first."""
    beside = []
    for folder in _named_after(link, f"{escape(link.name)}.*"):
        if (folder / _RECIPE).is_file() and not folder.is_symlink():
            beside.append(folder)
    return sorted(beside, key=lambda folder: (_time_of(folder), folder.name), reverse=True)


def _named_after(link: Path, pattern: str) -> list[Path]:
    """Return the files beside a link that match a pattern, without those of links with longer names."""
    longer = [f"{p.name}." for p in link.parent.glob(f"{escape(link.name)}.*") if p.is_symlink()]
    return [p for p in link.parent.glob(pattern) if not p.name.removeprefix(".").startswith(tuple(longer))]


def _time_of(folder: Path) -> int:
    seal = folder / SEAL
    return (seal if seal.is_file() else folder / _RECIPE).stat().st_mtime_ns


def prune(link: Path, keep: int, *, dry_run: bool = False) -> dict[Path, str]:
    """Delete the runs of a link that are not needed, and return each run with the reason why it is kept, or "".

    Kept are the run that the link leads to, the `keep` newest others with a finished evaluation, those to which
    another link in the same folder leads, and those that a server or another command uses. A run whose evaluation is
    not finished, such as that of a night that failed, cannot be served. It is kept beside them until a later run has
    been evaluated, because `prefrec run` can resume it.

    Args:
        link: the link.
        keep: number of runs to keep, beside the one that the link leads to.
        dry_run: delete nothing.

    Raises:
        ConfigError: the link leads nowhere.
    """
    served = target_of(link)
    if served is None:
        check_link(link)
        raise ConfigError(f"{link} leads to no run, so nothing is deleted: `prefrec switch {link} RUN`")
    linked = {p.resolve(): p.name for p in link.parent.iterdir() if p.is_symlink()} | {served: link.name}
    for left in [] if dry_run else _named_after(link, f".{escape(link.name)}.*{_PRUNED}"):
        shutil.rmtree(left)  # a deletion that was interrupted
    outcome: dict[Path, str] = {}
    is_newest = True
    for folder in runs_of(link):
        is_finished = is_evaluated(folder)
        is_newest = is_newest and not is_finished
        if name := linked.get(folder.resolve()):
            outcome[folder] = f"{name} leads to it"
        elif is_finished and keep > 0:
            outcome[folder] = "one of the newest"
            keep -= 1
        elif is_newest:
            outcome[folder] = "its evaluation is not finished, and `prefrec run` can resume it"
        else:
            outcome[folder] = "a server uses it" if is_used(folder) else _delete(folder, dry_run)
    return outcome


def _delete(folder: Path, dry_run: bool) -> str:
    """Delete a run that no command works in; return "", or why it is kept."""
    try:
        with run_lock(folder):
            if not dry_run:
                # Without its name it cannot be taken for a run while it is deleted.
                gone = folder.with_name(f".{folder.name}{_PRUNED}")
                with writing(folder):
                    folder.rename(gone)
                    shutil.rmtree(gone)
    except PrefrecError as e:
        return str(e)
    return ""
