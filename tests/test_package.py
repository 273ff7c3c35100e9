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
MODULES = sorted(m.name for p in PACKAGES for m in pkgutil.walk_packages(p.__path__, f"{p.__name__}."))
EXPORTING = (
    "prefrec",
    "prefrec.data",
    "prefrec.data.sources",
    "prefrec.prompts",
    "prefrec.training",
    "prefrec.rankers",
    "prefrec.evaluation",
    "prefrec.report",
)


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_and_says_what_it_is_for(name):
    module = importlib.import_module(name)
    says = (module.__doc__ or "").strip()
    assert says or not Path(module.__file__).read_text(encoding="utf-8").strip()


@pytest.mark.parametrize("name", EXPORTING)
def test_exports_exist(name):
    module = importlib.import_module(name)
    exported = module.__all__
    assert [n for n in exported if not hasattr(module, n)] == []
    assert len(set(exported)) == len(exported)


def test_names_of_the_package_load_on_first_use():
    assert sorted(prefrec._HOMES) == sorted(prefrec.__all__)
    with pytest.raises(AttributeError, match="module 'prefrec' has no attribute 'nonsense'"):
        _ = prefrec.nonsense


def test_data_needs_no_torch():
    """A subprocess: this one has imported everything already."""
    modules = "prefrec, prefrec.errors, prefrec.console, prefrec.data, prefrec.cli.prepare"
    code = f"import sys, {modules}; sys.exit(' '.join({{'torch', 'transformers', 'peft'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_losses_import_torch_alone():
    code = "import sys, prefrec.losses; sys.exit(str({m for m in sys.modules if m.startswith('prefrec.')}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "{'prefrec.losses'}"


def test_version_and_command():
    assert prefrec.__version__ == version("prefrec")
    (script,) = entry_points(group="console_scripts", name="prefrec")
    assert script.value == "prefrec.cli:main"
