"""Measurements survive a run that is killed, and become medians a row."""

from pathlib import Path
from typing import Any

import pytest

from bench_records import measured
from prefrec.errors import StorageError
from prefrec_lab.bench import records as module
from prefrec_lab.bench.records import RECORDS, Figure, append_record, failure, is_final, read_records, summarise

KEY = ("steps", 3, "published")


def failed(*, final: bool) -> dict[str, Any]:
    names = {"section": "steps", "negatives": 3, "method": "published"}
    return {"kind": "failure", **names, "reason": "out of memory", "final": final}


def test_half_a_line_is_passed_over_and_not_appended_to(tmp_path):
    assert read_records(tmp_path) == []
    append_record(tmp_path, {"kind": "a", "titles": "Amélie"})
    with (tmp_path / module.RECORDS).open("a") as file:
        file.write('{"kind": "b", "hal')
    append_record(tmp_path, {"kind": "c"})
    assert [r["kind"] for r in read_records(tmp_path)] == ["a", "c"]
    assert read_records(tmp_path)[0]["titles"] == "Amélie"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this needs /dev/full")
def test_a_full_disk_is_told_by_the_file(tmp_path):
    (tmp_path / RECORDS).symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"records.jsonl cannot be written: No space left on device; free some"):
        append_record(tmp_path, {"kind": "a"})


def test_medians_are_a_row_and_without_what_warmed_up():
    records = [measured(0, 1000.0), measured(1, 2.0), measured(2, 8.0), measured(3, 4.0)]
    records.append(measured(1, 500.0, method="trl"))
    assert [r["repetition"] for r in module.measurements(records, KEY)] == [1, 2, 3]
    summary = summarise(records, KEY)
    assert (summary.cpu, summary.wall) == (Figure(2.0, 1.0, 4.0, 3), Figure(1.0, 0.5, 2.0, 3))
    assert (summary.peak, summary.rows, summary.tokens, summary.note) == (400.0, 2, 50, "")


def test_a_failure_lasts_until_an_attempt_succeeds():
    assert failure([failed(final=False)], KEY) == "out of memory"
    assert failure([failed(final=False), measured(1, 2.0)], KEY) is None
    assert is_final([failed(final=True)], KEY)
    assert not is_final([failed(final=False)], KEY)
    assert not is_final([failed(final=True), measured(1, 2.0)], KEY)
