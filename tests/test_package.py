"""The package as a whole: every module imports, sub-packages export what they promise, importing it is cheap."""

import importlib
import pkgutil
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

import prefrec
import prefrec_lab
import prefrec_server
import prefrec_systems

PACKAGES = (prefrec, prefrec_server, prefrec_systems, prefrec_lab)
LOCUSTFILE = "prefrec_lab.bench.load_clients"
"""Importing locust lets gevent replace the threads and sockets of the whole process, which harms all later tests."""
MODULES = sorted(
    m.name for p in PACKAGES for m in pkgutil.walk_packages(p.__path__, f"{p.__name__}.") if m.name != LOCUSTFILE
)
PARTS = ("data", "intake", "intake.sources", "prompts", "training", "rankers", "evaluation", "report")
EXPORTING = ("prefrec", *(f"prefrec.{part}" for part in PARTS))


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_and_says_what_it_is_for(name):
    module = importlib.import_module(name)
    assert (module.__doc__ or "").strip() or not Path(module.__file__).read_text(encoding="utf-8").strip()


@pytest.mark.parametrize("name", EXPORTING)
def test_exports_exist(name):
    module = importlib.import_module(name)
    assert [n for n in module.__all__ if not hasattr(module, n)] == []
    assert len(set(module.__all__)) == len(module.__all__)


def test_names_of_the_package_load_on_first_use():
    assert sorted(prefrec._HOMES) == sorted(prefrec.__all__)
    with pytest.raises(AttributeError, match="module 'prefrec' has no attribute 'nonsense'"):
        _ = prefrec.nonsense


DATA = "prefrec, prefrec.errors, prefrec.console, prefrec.data, prefrec.cli.prepare"
HEAVY = "m in ('torch', 'transformers', 'peft')"
OURS = "m.startswith('prefrec.')"


@pytest.mark.parametrize(
    ("modules", "asked", "loaded"), [(DATA, HEAVY, "[]"), ("prefrec.losses", OURS, "['prefrec.losses']")]
)
def test_data_need_no_torch_and_losses_import_torch_alone(modules, asked, loaded):
    """A subprocess: this one has imported everything already."""
    code = f"import sys, {modules}; print([m for m in sys.modules if {asked}])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == loaded


def test_version_and_command():
    assert prefrec.__version__ == version("prefrec")
    (script,) = entry_points(group="console_scripts", name="prefrec")
    assert script.value == "prefrec.cli:main"
