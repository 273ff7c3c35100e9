"""The fuzzer, for seconds; `make soak` lets it run."""

import pytest

from reliability.fuzzing import fuzz

pytest.importorskip("atheris", reason="atheris is not installed: pip install atheris", exc_type=ImportError)


def test_no_parser_crashes(tmp_path):
    found = fuzz(tmp_path, seconds=5)
    assert not found.crash
    assert found.inputs > 20
