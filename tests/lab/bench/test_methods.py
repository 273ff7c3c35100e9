"""Each way does the whole work it is timed for, and the same work as the others."""

import pytest

from prefrec_lab.bench import steps
from prefrec_lab.bench.job import Job
from prefrec_lab.bench.methods import measure
from prefrec_lab.bench.workload import catalogue_workload

WAYS = ["published+gc", "separate", "prefrec", "trl"]


@pytest.mark.parametrize("way", WAYS)
def test_steps_score_the_same_rows_alike(job, way):
    plain = measure(job("steps", "published", 3, sequences=16))
    measured = measure(job("steps", way, 3, sequences=16))
    assert measured.rows == 3
    assert measured.facts["logps/chosen"] == pytest.approx(plain.facts["logps/chosen"], abs=1e-3)
    assert measured.cpu > 0
    assert measured.wall == sum(p.wall for p in measured.parts.values())
    assert set(measured.parts) == ({"step"} if way.startswith("published") else {"reference", "step"})
    assert all(part.wall > 0 for part in measured.parts.values())
    assert 0 < measured.memory.resident <= measured.memory.peak + 2**22  # counters of resident memory lag a little


def test_trl_is_given_the_tokens_that_prefrec_scores(job, monkeypatch, tmp_path):
    """Through TRL's own tokenisation; its count of tokens is also that of the job."""
    template = tmp_path / "own.jinja2"
    template.write_text("{{ history | join(', ') }}; of {{ candidates | join(', ') }} next:")
    import trl

    seen = {}

    class Spy(trl.DPOTrainer):
        def train(self, *args, **kwargs):
            out = super().train(*args, **kwargs)
            seen["rows"], seen["log"] = list(self.train_dataset), self.state.log_history
            return out

    monkeypatch.setattr(trl, "DPOTrainer", Spy)
    one = job("steps", "trl", 3, sequences=16, template=str(template))
    measure(one)
    wanted = [(c.prompt, c.answers[0], c.answers[i]) for i in (1, 2, 3) for c in one.choice_sets]
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    assert [tuple(tuple(row[c]) for c in columns) for row in seen["rows"]] == wanted
    assert next(entry["num_tokens"] for entry in seen["log"] if "num_tokens" in entry) == one.tokens


def test_a_trainer_that_no_longer_calls_what_is_timed_is_found_out(job, monkeypatch):
    monkeypatch.setattr(steps.SoftmaxDPOTrainer, "_precomputes", lambda self: False)
    with pytest.raises(RuntimeError, match="timed 0 reference passes and 1 steps"):
        measure(job("steps", "prefrec", 1))


def test_rankings_score_the_same_rows_alike(job):
    """The packed ranker reads text and ranks all candidates; the chosen titles' scores are those of the others."""
    ways = {way: measure(job("ranking", way, 23, sequences=72)) for way in ("published", "separate", "prefrec")}
    assert {m.rows for m in ways.values()} == {3}
    scores = [m.facts["logps/chosen"] for m in ways.values()]
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-3)


def test_the_catalogue_by_a_sample_and_by_its_trie(settings):
    asked = settings(titles=7, sequences=4)
    work = catalogue_workload(asked)
    sampled = measure(Job(asked, "catalogue", "published", 59, work))
    assert (sampled.rows, sampled.note) == (pytest.approx(7 / 60), "7 of 60 titles, scaled")
    whole = measure(Job(asked, "catalogue", "prefrec", 59, work))
    assert (whole.rows, whole.note) == (1, "")
    assert whole.cpu > 0


def test_matmul_gives_rates(job):
    measured = measure(job("steps", "matmul", 1))
    assert set(measured.facts) == {"square", "square_cpu", "layers", "layers_cpu"}
    assert min(measured.facts.values()) > 0
