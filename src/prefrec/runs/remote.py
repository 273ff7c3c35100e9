"""Runs on object storage: copy the folder at an address such as `s3://bucket/runs/shop` into the cache.

What is copied is checked when it is opened, as any run is: `stage.json` and `seal.json` hold the SHA-256 of files.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from rich.markup import escape

from prefrec.console import say
from prefrec.errors import DataError, PrefrecError, first_words, without_parts_of, without_secrets
from prefrec.extras import need
from prefrec.files import cache_dir, drafting, writing
from prefrec.intake.readers import ADDRESS
from prefrec.runs.stage import CHECKPOINT, stage_key

_FACTS = ("ETag", "etag", "md5Hash", "crc32c", "mtime", "LastModified", "last_modified", "updated", "created")
"""Fields of a file's description that change with its content, as file systems name them."""


def address_of(place: str | Path) -> str | None:
    """Return a place as an address, also if it has become a path, which has one slash; None if it is a path."""
    found = ADDRESS.match(str(place))
    return "://".join(found.groups()) if found else None


def local_run(place: str | Path) -> Path:
    """Return the folder of a run: the place itself, or a copy of what is at an address.

    The copy is in `runs` in the cache. Its name depends on names, sizes and versions of the files at the address, so
    that a run that has not changed is copied once, and one that has changed gets another folder. Checkpoints are left
    out. The credentials are those that fsspec finds in the environment.

    Raises:
        DataError: there is no run at the address, or it cannot be read.
        StorageError: the copy cannot be written.
    """
    if (address := address_of(place)) is None:
        return Path(place)
    try:
        return _copy_of(address)
    except PrefrecError:  # also an OSError or a ValueError, and it says what is wrong
        raise
    except ImportError as e:
        raise DataError(f"{without_secrets(address)}: {e}") from e
    except (OSError, ValueError) as e:
        raise _unreadable(address, e) from None


def _unreadable(address: str, error: Exception) -> DataError:
    reason = without_parts_of(address, first_words(error))
    return DataError(
        f"{without_secrets(address)} cannot be read ({reason}); check the address, and the credentials in the "
        "environment"
    )


def _copy_of(address: str) -> Path:
    need("s3", "a run at an address")
    import fsspec  # here, because it takes long to import, and few need it

    system, root = fsspec.url_to_fs(address)
    root = root.rstrip("/")
    system.invalidate_cache()
    listed: dict[str, Any] = system.find(root, detail=True)
    files = {name.removeprefix(root).lstrip("/"): facts for name, facts in listed.items()}
    files = {name: facts for name, facts in files.items() if _is_wanted(name)}
    if "recipe.yaml" not in files:
        raise DataError(f"{without_secrets(address)}: there is no run (no recipe.yaml)")
    versions = {name: [facts["size"], *(str(facts.get(f)) for f in _FACTS)] for name, facts in files.items()}
    folder = cache_dir() / "runs" / stage_key(address=address, files=versions)[:16] / PurePosixPath(root).name
    if folder.is_dir():
        return folder
    say(f"Copying {escape(without_secrets(address))} ({sum(f['size'] for f in files.values()) / 1e6:,.0f} MB) …")
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with drafting(folder) as draft:
            if folder.is_dir():  # another process was faster
                return folder
            targets = [draft / name for name in files]
            for target in targets:
                target.parent.mkdir(parents=True, exist_ok=True)
            try:
                system.get([f"{root}/{name}" for name in files], [str(target) for target in targets])
            except PermissionError as e:  # of the address: the folders of the targets have just been created
                raise _unreadable(address, e) from None
            draft.rename(folder)
    return folder


def _is_wanted(name: str) -> bool:
    """Return True for a file of a run; not for checkpoints, hidden files, and names that lead out of the folder."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and not any(p.startswith((".", CHECKPOINT)) for p in parts)
