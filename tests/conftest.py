"""Which tests run, and what all of them need; fixtures of language models are in `lm_fixtures`."""

import gc
import os
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported

import pytest
from hypothesis import Phase, settings

import needs_torch

if not needs_torch.IS_INSTALLED:
    from needs_torch import absent

    for name in needs_torch.FIXTURES:
        globals()[name] = absent(name)

# A mutant is noticed by the first example that fails; to make that one small takes a minute.
settings.register_profile("mutants", settings.get_profile("ci"), phases=(Phase.explicit, Phase.generate))
settings.load_profile("ci")  # the same examples on every machine; `make soak` draws new ones

SHARED_DATA = Path(os.environ.get("PREFREC_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


HERE = Path(__file__).parent
SLOW = ("cli", "lab", "pipeline", "reliability", "runs", "server", "stages", "systems", "training")
"""Folders whose tests train models, run commands or start servers."""


FAST = ("test_errors.py", "test_losses.py", "test_resources.py")
"""The other files beside this one are slow, too."""


LONG = (
    *("cli/test_same_again.py", "pipeline/test_quantized.py", "training/test_quantization.py"),
    *("lab/bench", "lab/cli", "lab/studies", "lab/study_tools", "lab/trials"),
    *("reliability/test_answers.py", "reliability/test_fuzz.py", "reliability/test_hostile.py"),
    *("reliability/test_memory.py", "reliability/test_nothing_lost.py", "reliability/test_soak.py"),
    *("reliability/test_three_nights.py", "test_core.py", "test_examples.py", "test_negatives_theory.py"),
    *("test_plugins.py", "test_processes.py", "test_ray.py", "test_site.py", "test_threads.py", "test_wheel.py"),
)
"""Folders and files that `make test` leaves out and `make test-all` runs.

These are whole trials and studies, kills, several processes, Ray, the site, wheels and simulations. `make test-core`
runs `test_core.py`, too. Single tests of the same kind elsewhere have the marker `long`, as have, by
`pytest_collection_modifyitems`, those that read the public data sets.
"""


def is_slow(path: Path) -> bool:
    first, *more = path.relative_to(HERE).parts
    return first in SLOW if more or path.is_dir() else first not in FAST


def is_long(path: Path) -> bool:
    inside = path.relative_to(HERE)
    return any(part.as_posix() in LONG for part in (inside, *inside.parents))


def pytest_configure(config: pytest.Config) -> None:
    """Load the fixtures of language models, which take seconds, where tests run and not where they are handed out."""
    hands_out = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if needs_torch.IS_INSTALLED and not hands_out:
        config.pluginmanager.import_plugin("lm_fixtures")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import what `make check` and `make test` leave out."""
    left_out = {"not slow": is_slow, "not long": is_long}.get(config.option.markexpr)
    return True if left_out and collection_path != HERE and left_out(collection_path) else None


if not needs_torch.IS_INSTALLED:

    def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
        """Skip files that cannot be imported here."""
        return needs_torch.CoreModule.from_parent(parent, path=module_path)


LONGEST = ("test_processes.py", "test_examples.py", "test_docs.py", "test_nothing_lost.py")
"""Files of a minute and more. They come first, so that no process works on them when the others have ended."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make check` leaves out as slow and what `make test` does as long; put the longest files first."""
    for item in items:
        if is_slow(item.path) or any(map(item.get_closest_marker, ("real_model", "shared_data", "long"))):
            item.add_marker(pytest.mark.slow)
        if is_long(item.path) or item.get_closest_marker("shared_data"):
            item.add_marker(pytest.mark.long)
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
