"""Leave-one-out against its slow twin: one sequence a question, one question an item."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from prefrec.data import Query
from prefrec.errors import DataError, TokenizerError
from prefrec.rankers import LMRanker
from prefrec.recommend.explain import leave_one_out, reasons
from slow import slow_logps
from tiny_lists import CATALOGUE

QUERY, ITEM = Query(("i1", "i9", "i30", "i44"), ("i2", "i3", "i17", "i50")), "i17"


def _slow_twin(ranker: LMRanker, history: tuple[str, ...]) -> list[tuple[str, float]]:
    """The effect of each item: scores with it minus scores without it, one sequence per question."""

    def score(items) -> float:
        of = CATALOGUE.titles_of
        choices = ranker.encoder.encode(ranker.template, of(items), of(QUERY.candidates), of([ITEM]))
        with torch.no_grad():
            return float(slow_logps(ranker.model, choices)[0])

    return [(item, score(history) - score([h for h in history if h != item])) for item in history]


def _equal(got, want):
    assert [item for item, _ in got] == [item for item, _ in want]
    assert [d for _, d in got] == pytest.approx([d for _, d in want], abs=1e-4)
    assert max(abs(d) for _, d in want) > 0.01


@pytest.mark.parametrize("settings", [{}, {"chat": True}, {"template": "movies/continue"}, {"batch_size": 1}])
def test_it_equals_the_slow_twin(lm_of, settings):
    lm = lm_of(**settings)
    _equal(leave_one_out(lm, QUERY, ITEM), _slow_twin(lm, QUERY.history))


def test_items_that_were_not_read_are_left_out(lm_of):
    free, of = lm_of(), CATALOGUE.titles_of
    longest = free.encoder.encode(free.template, of(QUERY.history[2:]), of(QUERY.candidates), of(["i17"]))
    short = lm_of(max_length=longest.length)
    _equal(leave_one_out(short, QUERY, ITEM), _slow_twin(short, QUERY.history[2:]))


def test_the_last_items_are_explained_by_scores_of_the_whole_history(lm_of, monkeypatch):
    monkeypatch.setattr("prefrec.recommend.explain.EXPLAINED", 2)
    lm = lm_of()
    _equal(leave_one_out(lm, QUERY, ITEM), _slow_twin(lm, QUERY.history)[2:])
    assert reasons(lm, QUERY, ITEM).not_explained == 2


def test_what_cannot_be_asked(lm_of):
    with pytest.raises(DataError, match="item 'nobody' is not in the catalogue"):
        leave_one_out(lm_of(), QUERY, "nobody")
    with pytest.raises(TokenizerError, match="even without a history, but max_length is 20"):
        leave_one_out(lm_of(max_length=20), QUERY, ITEM)


def test_items_that_the_template_hides_are_not_listed(lm_of, tmp_path):
    template = tmp_path / "last.jinja2"
    template.write_text("Seen: {{ history[-2:] | join(', ') }}. Of {{ candidates | join(', ') }} next:")
    lm = lm_of(template=str(template))
    _equal(leave_one_out(lm, QUERY, ITEM), _slow_twin(lm, ("i30", "i44")))


def test_an_item_is_left_out_with_its_time():
    asked = []

    class Asking:
        name = "asking"

        def score(self, queries):
            asked.extend((q.history, q.history_times) for q in queries)
            return np.zeros((len(queries), len(QUERY.candidates)))

    reasons(Asking(), replace(QUERY, history=("i1", "i9", "i1"), history_times=(5, 7)), ITEM)
    assert asked[-4:] == [
        (("i1", "i9", "i1"), (5, 7)),
        (("i9", "i1"), (7,)),
        (("i1", "i1"), (5,)),
        (("i1", "i9"), (5, 7)),  # the last item has no time
    ]
