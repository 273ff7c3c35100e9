"""Which tests run, and what all of them need; fixtures of language models are in `lm_fixtures`."""

import gc
import os
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported

import pytest
from hypothesis import Phase, settings

import needs_torch

if needs_torch.IS_INSTALLED:
    from lm_fixtures import *  # noqa: F403
else:
    from needs_torch import absent

    for name in needs_torch.FIXTURES:
        globals()[name] = absent(name)

# A mutant is noticed by the first example that fails; to make that one small takes a minute.
settings.register_profile("mutants", settings.get_profile("ci"), phases=(Phase.explicit, Phase.generate))
settings.load_profile("ci")  # the same examples on every machine; `make soak` draws new ones

SHARED_DATA = Path(os.environ.get("PREFREC_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


SLOW = ("cli", "lab", "pipeline", "reliability", "runs", "server", "stages", "systems", "training")
"""Folders whose tests train models, run commands or start servers."""


FAST = ("test_errors.py", "test_losses.py", "test_resources.py")
"""The other files beside this one are slow, too."""


def is_slow(path: Path) -> bool:
    first, *more = path.relative_to(Path(__file__).parent).parts
    return first in SLOW if more or path.is_dir() else first not in FAST


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import what `make check` leaves out."""
    here = Path(__file__).parent
    asked = config.option.markexpr == "not slow" and collection_path != here
    return True if asked and is_slow(collection_path) else None


if not needs_torch.IS_INSTALLED:

    def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
        """Skip files that cannot be imported here."""
        return needs_torch.CoreModule.from_parent(parent, path=module_path)


LONGEST = ("test_processes.py", "test_examples.py", "test_docs.py", "test_nothing_lost.py")
"""Files of a minute and more. They come first, so that no process works on them when the others have ended."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make check` leaves out as slow, and put the longest files first."""
    for item in items:
        if is_slow(item.path) or any(map(item.get_closest_marker, ("real_model", "shared_data"))):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish() -> None:
    """Keep what the libraries hold out of garbage collections, of which each training makes one: a quarter second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def no_plots():
    """No plots in the reports of runs: they take a second each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefrec.report.svg.find_spec", lambda name: None)
        yield


@pytest.fixture(scope="module")
def plots(no_plots):
    """With plots, for the tests that look at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefrec.report.svg.find_spec", find_spec)
        yield


@pytest.fixture(autouse=True, scope="session")
def own_titles(tmp_path_factory):
    """Vectors of titles are kept for this session alone."""
    folder = tmp_path_factory.mktemp("titles")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefrec.towers.title_store.cache_dir", lambda: folder)
        yield


@pytest.fixture
def shared_data() -> Path:
    """Folder of the public data sets; skips where it is absent."""
    if not SHARED_DATA.is_dir():
        where = "the folder that PREFREC_SHARED_DATA names (default: ../shared/data)"
        pytest.skip(f"needs the public data sets in {where}; there is no {SHARED_DATA}")
    return SHARED_DATA
