"""Leave-one-out against its slow twin: one sequence a question, one question an item."""

from dataclasses import replace

import pytest
import torch

from prefrec.data import RankingExample
from prefrec.errors import DataError, TokenizerError
from prefrec.prompts import load_template
from prefrec.rankers import LMRanker
from prefrec.rankers.explain import leave_one_out
from slow import slow_logps
from tiny_lists import CATALOGUE

EXAMPLE = RankingExample("u", ("i1", "i9", "i30", "i44"), ("i2", "i3", "i17", "i50"), "i17")


@pytest.fixture
def ranker(model, bpe_tokenizer):
    def make(template="movies/1", **settings) -> LMRanker:
        lm = settings.pop("model", model)
        return LMRanker(
            "lm", lm, bpe_tokenizer, CATALOGUE, load_template(template), **{"objective": "tokens"} | settings
        )

    return make


def _slow(ranker: LMRanker, history: list[str], candidates: tuple[str, ...], target: str) -> float:
    titles = CATALOGUE.titles_of
    choices = ranker.encoder.encode(ranker.template, titles(history), titles(candidates), titles([target]))
    with torch.no_grad():
        return float(slow_logps(ranker.model, choices)[0])


def _slow_twin(ranker, history, candidates, target):
    whole = _slow(ranker, list(history), candidates, target)
    rest = [[h for h in history if h != item] for item in history]
    return [(item, whole - _slow(ranker, r, candidates, target)) for item, r in zip(history, rest, strict=True)]


def _equal(got, want):
    assert [item for item, _ in got] == [item for item, _ in want]
    assert [d for _, d in got] == pytest.approx([d for _, d in want], abs=2e-4)
    assert max(abs(d) for _, d in want) > 0.01


@pytest.mark.parametrize("settings", [{}, {"chat": True}, {"template": "movies/continue"}, {"batch_size": 1}])
def test_it_equals_the_slow_twin(ranker, settings):
    lm = ranker(**settings)
    _equal(leave_one_out(lm, EXAMPLE), _slow_twin(lm, EXAMPLE.history, EXAMPLE.candidates, "i17"))


def test_items_that_were_not_read_are_left_out(ranker):
    free = ranker()
    titles = CATALOGUE.titles_of
    longest = free.encoder.encode(
        free.template, titles(EXAMPLE.history[2:]), titles(EXAMPLE.candidates), titles(["i17"])
    )
    short = ranker(max_length=longest.length)
    _equal(leave_one_out(short, EXAMPLE), _slow_twin(short, EXAMPLE.history[2:], EXAMPLE.candidates, "i17"))


def test_what_cannot_be_asked(ranker):
    with pytest.raises(DataError, match="item 'nobody' is not in the catalogue"):
        leave_one_out(ranker(), replace(EXAMPLE, target="nobody"))
    with pytest.raises(TokenizerError, match="even without a history, but max_length is 20"):
        leave_one_out(ranker(max_length=20), EXAMPLE)


def test_items_that_the_template_hides_are_not_listed(ranker, tmp_path):
    template = tmp_path / "last.jinja2"
    template.write_text("Seen: {{ history[-2:] | join(', ') }}. Of {{ candidates | join(', ') }} next:")
    lm = ranker(str(template))
    want = _slow_twin(lm, ("i30", "i44"), EXAMPLE.candidates, "i17")
    effects = leave_one_out(lm, EXAMPLE)
    assert [item for item, _ in effects] == ["i30", "i44"]
    assert [value for _, value in effects] == pytest.approx([value for _, value in want], abs=1e-4)
