"""All ways get the same rows: real ones, of typical length, N negatives each."""

import pytest

from prefrec.errors import ConfigError, DataError
from prefrec.prompts import PromptEncoder
from prefrec_lab.bench import workload
from prefrec_lab.bench.floor import model_shape
from prefrec_lab.bench.job import Job
from prefrec_lab.bench.settings import BenchSettings
from prefrec_lab.bench.workload import catalogue_workload, config_of, make_workload, tokenizer_of


def test_rows_hold_n_negatives_and_their_prompt_shows_the_list(settings):
    work = make_workload(settings(), 5)
    assert len(work.texts) == 3
    for text, choices, example in zip(work.texts, work.choice_sets, work.examples, strict=True):
        titles = work.catalogue.titles_of(example.candidates)
        assert len(titles) == 24
        assert all(title in text["prompt"] for title in titles)
        assert (text["chosen"], len(set(text["rejected"]))) == (work.catalogue.titles[example.target], 5)
        assert text["chosen"] not in text["rejected"]
        assert set(text["rejected"]) <= set(titles)
        assert len(choices.answers) == 6
        encoder = PromptEncoder(tokenizer_of(settings()))
        assert choices == encoder.encode_text(text["prompt"], [text["chosen"], *text["rejected"]])


def test_what_the_data_cannot_give(settings):
    with pytest.raises(ConfigError, match="24 negatives need lists of 25 titles, but the data has one of 24"):
        make_workload(settings(), 24)
    with pytest.raises(DataError, match="1000 rows a batch"):
        make_workload(settings(batch_size=1000), 1)


def test_the_shape_of_llama_2_7b_needs_no_weights_and_no_download(monkeypatch):
    """32 layers of 4 matrices of 4096 × 4096 and 3 of 4096 × 11,008, counted without making one."""
    monkeypatch.setattr(workload, "load_tokenizer", lambda name: tokenizer_of(BenchSettings(model="random:tiny")))
    shape = model_shape(config_of(BenchSettings(model="random:llama-2-7b", dtype="bfloat16")), 8)
    assert shape.body == 32 * (4 * 4096**2 + 3 * 4096 * 11_008)
    assert shape.head == (4096, 32_000)


def test_tokens(job):
    for method, expected in (
        ("prefrec", lambda c: len(c.prompt) + sum(len(a[:-1]) for a in c.answers)),
        ("separate", lambda c: sum(len(c.prompt + a[:-1]) for a in c.answers)),
        ("published+gc", lambda c: sum(len(c.prompt) + len(a) for a in c.answers)),
        ("trl", lambda c: sum(2 * len(c.prompt) + len(c.answers[0]) + len(a) for a in c.answers[1:])),
    ):
        one = job("steps", method, 3)
        assert one.tokens == sum(expected(c) for c in one.choice_sets)
    half = job("steps", "trl", 6, batch_size=1, pairs=3)
    assert half.tokens == pytest.approx(job("steps", "trl", 6, batch_size=1).tokens / 2, abs=1)
    asked = job("catalogue", "published", 1, titles=6)
    ways = ("published", "prefrec")
    whole, trie = (Job(asked.settings, "catalogue", way, 59, catalogue_workload(asked.settings)) for way in ways)
    full = sum(len(c.prompt) + len(a) for c in whole.choice_sets for a in c.answers)
    assert whole.tokens == round(full / 10)
    beginnings = {a[:n] for c in whole.choice_sets for a in c.answers for n in range(1, len(a))}
    assert trie.tokens == len(whole.choice_sets[0].prompt) + len(beginnings)
