"""The order of the measurements, what an interrupted run keeps, and what a budget leaves out."""

import pytest

from prefrec.errors import ConfigError
from prefrec_lab.bench import progress, run
from prefrec_lab.bench.job import Measured, Memory
from prefrec_lab.bench.records import append_record
from prefrec_lab.bench.worker import WorkerEndedError
from prefrec_lab.stopwatch import Seconds


@pytest.fixture
def workers(monkeypatch):
    """Workers that measure nothing; `fails` names those that end, `calls` what was asked, in its order."""

    class Fake:
        calls, fails, opened = [], {}, []

        def __init__(self, job, log, memory):
            self.job, self.memory = job, memory
            Fake.opened.append(job.key)

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            Fake.opened.remove(self.job.key)

        def ready(self):
            pass

        def measure(self):
            Fake.calls.append(self.job.key)
            if self.job.key in Fake.fails:
                raise WorkerEndedError("no luck", final=Fake.fails[self.job.key])
            return Measured({"step": Seconds(1.0, 2.0)}, self.job.rows, Memory(1, 2))

    monkeypatch.setattr(run, "Worker", Fake)
    return Fake


def taken(records, kind="measurement"):
    return [(r["negatives"], r["method"], r["repetition"]) for r in records if r["kind"] == kind]


def test_ways_take_turns_and_the_order_is_rotated(settings, workers, tmp_path):
    asked = settings(negatives=(1, 3), methods=("published", "prefrec"), sections=("steps",), repetitions=3)
    records = run.run_bench(asked, tmp_path / "out")
    order = ["matmul", "published", "prefrec"]
    turns = [order, [*order[1:], *order[:1]], [*order[2:], *order[:2]], order]
    assert taken(records) == [(n, m, r) for n in (1, 3) for r, methods in enumerate(turns) for m in methods]
    assert (workers.opened, [r["kind"] for r in records].count("session")) == ([], 1)
    (workload,) = [r for r in records if r["kind"] == "workload" and r["negatives"] == 3]
    assert workload["floor_flops"] > 0
    assert workload["shown"] == 24


def test_the_same_command_goes_on_where_it_was_stopped(settings, workers, tmp_path):
    asked = settings(negatives=(1,), methods=("published", "prefrec"), sections=("steps",), repetitions=2)
    whole = run.run_bench(asked, tmp_path / "whole")
    for record in whole[:-2]:  # the last two measurements are lost
        append_record(tmp_path, record)
    (tmp_path / "settings.json").write_text((tmp_path / "whole" / "settings.json").read_text())
    lost = {(r["method"], r["repetition"]) for r in whole[-2:]}
    workers.calls.clear()
    new = taken(run.run_bench(asked, tmp_path))[len(taken(whole)) - 2 :]
    assert {(m, r) for _, m, r in new if r > 0} == lost
    assert {m for _, m, r in new if r == 0} == {m for m, _ in lost}  # those that go on warm up anew
    workers.calls.clear()
    run.run_bench(asked, tmp_path)
    assert workers.calls == []
    run.run_bench(asked.model_copy(update={"repetitions": 3}), tmp_path)
    assert {key[2] for key in workers.calls} == {"matmul", "published", "prefrec"}


def test_other_settings_need_another_folder(settings, workers, tmp_path):
    run.run_bench(settings(negatives=(1,), methods=("prefrec",), sections=("steps",), repetitions=1), tmp_path)
    with pytest.raises(ConfigError, match=r"other settings \(batch_size 3, now 2\): name another folder"):
        run.run_bench(settings(negatives=(1,), methods=("prefrec",), sections=("steps",), batch_size=2), tmp_path)


def test_measurements_of_another_version_are_said(settings, workers, tmp_path, monkeypatch, capsys):
    asked = settings(negatives=(1,), methods=("prefrec",), sections=("steps",), repetitions=1)
    for commit, warned in (("a" * 40, False), ("a" * 40, False), ("b" * 40, True)):
        monkeypatch.setattr(run, "machine", lambda commit=commit: {"commit": commit})
        run.run_bench(asked, tmp_path)
        said = " ".join(capsys.readouterr().err.split())
        assert ("measurements of commit aaaaaaaaaaaa; now it is bbbbbbbbbbbb" in said) == warned


@pytest.mark.parametrize("final", [True, False])
def test_a_way_that_ends_is_left_out_and_the_others_go_on(settings, workers, tmp_path, final):
    asked = settings(negatives=(1, 3), methods=("published", "prefrec"), sections=("steps",), repetitions=2)
    workers.fails["steps", 1, "published"] = final
    records = run.run_bench(asked, tmp_path)
    failures = [(r["negatives"], r["method"], r["final"]) for r in records if r["kind"] == "failure"]
    assert failures == [(1, "published", final)]
    assert [n for n, m, _ in taken(records) if m == "published"] == [3, 3, 3]
    assert [n for n, m, _ in taken(records) if m == "prefrec"] == [1, 1, 1, 3, 3, 3]
    workers.calls.clear()
    run.run_bench(asked, tmp_path)
    assert workers.calls == ([] if final else [("steps", 1, "published")])


def test_a_budget_leaves_out_what_would_end_after_it(settings, workers, tmp_path, monkeypatch):
    """A clock by which each reading is a second later: every measurement takes a second or a few."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(ticks)))
    asked = settings(negatives=(1, 3, 7, 15), methods=("published", "prefrec"), sections=("steps",), repetitions=1)
    records = run.run_bench(asked.model_copy(update={"budget_minutes": 0.5}), tmp_path)
    assert {1, 15} & {n for n, m, r in taken(records) if m == "published" and r > 0} == {1}
    everything = run.run_bench(asked, tmp_path)  # what was left out is measured later
    assert {n for n, m, r in taken(everything) if m == "published" and r > 0} == {1, 3, 7, 15}


def test_growth_takes_turns_over_n_and_rankings_over_ways(settings, workers, tmp_path):
    ways, sections = ("published", "trl", "separate", "prefrec"), ("growth", "ranking", "catalogue")
    run.run_bench(settings(negatives=(1, 3), methods=ways, sections=sections, repetitions=1), tmp_path)
    assert workers.calls[:4] == [("growth", n, "prefrec") for n in (1, 3, 3, 1)]
    asked = {section: [key for key in workers.calls if key[0] == section] for section in sections}
    assert [key[2] for key in asked["ranking"]][:4] == ["matmul", "published", "separate", "prefrec"]
    assert set(asked["catalogue"]) == {("catalogue", 59, way) for way in ("published", "prefrec")}


def test_a_worker_may_take_what_was_said(settings):
    assert run._memory(settings(memory_gb=2.5)) == 2.5 * 2**30
    free = run._memory(settings())
    assert free is None or 2**28 < free < 2**45
