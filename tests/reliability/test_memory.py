"""The soak's measure of memory, on a small shop."""

from reliability import memory
from reliability.parts import Part


def test_the_peak_of_a_run_is_measured_and_held_against_the_limit(tmp_path, monkeypatch):
    within = Part("memory")
    memory.within_memory(within, tmp_path / "within", items=60, users=40)
    assert (within.tried, within.lost) == (1, [])
    assert 0.05 < within.facts["peak GB"] < memory.MOST_GB
    monkeypatch.setattr(memory, "MOST_GB", 0.01)
    above = Part("memory")
    memory.within_memory(above, tmp_path / "above", items=60, users=40)
    (lost,) = above.lost
    assert "a run of 60 items takes" in lost
