"""The audit before training: kept beside the data, loud if it is bad, and able to stop the run."""

from dataclasses import replace

import numpy as np
import pytest

from clean_lists import made_up
from prefrec.data import PreparedData, RankingExample
from prefrec.errors import DataError
from prefrec.evaluation import Audit
from prefrec.files import read_json, write_json
from prefrec.pipeline import audited
from prefrec.pipeline.audited import AUDIT, audit_under_test
from prefrec.sections import EvaluateSection


@pytest.fixture
def clean() -> PreparedData:
    return made_up(0)


def target_first(e: RankingExample) -> RankingExample:
    return replace(e, candidates=(e.target, *(c for c in e.candidates if c != e.target)))


def test_a_leak_is_loud_and_may_stop_the_run(clean, capsys):
    assert audit_under_test(clean, EvaluateSection(on_leak="stop"), 0).state != "bad"
    assert "leak" not in capsys.readouterr().err
    leaking = replace(clean, train=[*map(target_first, clean.train)], test=[*map(target_first, clean.test)])
    assert audit_under_test(leaking, EvaluateSection(), 0).state == "bad"
    assert "target position (HR@1 1.000" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"these candidate sets have leaks \(target position.*Nothing was trained"):
        audit_under_test(leaking, EvaluateSection(on_leak="stop"), 0)


def test_a_fault_is_as_loud_as_a_leak(clean, capsys):
    again = replace(clean, test=[*clean.test, *clean.test[:9]])
    with pytest.raises(DataError, match=r"protocol errors \(examples that occur twice"):
        audit_under_test(again, EvaluateSection(on_leak="stop"), 0)
    assert "examples that occur twice" in capsys.readouterr().err


def test_the_audit_of_the_same_data_is_kept(clean, tmp_path, monkeypatch):
    first = audit_under_test(clean, EvaluateSection(), 0, key="a", folder=tmp_path)
    kept = read_json(tmp_path / AUDIT)
    assert (next(iter(kept)), Audit.from_json(kept["audit"])) == ("verdict", first)
    made, inner = [], audited.audit_prepared
    monkeypatch.setattr(audited, "audit_prepared", lambda *args: made.append(1) or inner(*args))
    assert audit_under_test(clean, EvaluateSection(), 0, key="a", folder=tmp_path) == first
    assert not made
    audit_under_test(clean, EvaluateSection(), 0, key="b", folder=tmp_path)
    write_json(tmp_path / AUDIT, {"key": read_json(tmp_path / AUDIT)["key"]})  # damaged
    audit_under_test(clean, EvaluateSection(), 0, key="b", folder=tmp_path)
    assert len(made) == 2


def test_data_without_rows_are_named(clean):
    with pytest.raises(DataError, match=r"the data have no validation examples; lower data\.min_history"):
        audit_under_test(clean, EvaluateSection(split="validation"), 0)
    assert np.mean([len(e.candidates) for e in clean.test]) == 6
