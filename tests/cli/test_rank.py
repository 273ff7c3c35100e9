"""`prefrec rank --catalogue`: all titles for a history."""

import json

import numpy as np
import pytest
import torch

from command import prefrec, succeed
from prefrec.data import read_prepared
from prefrec.pipeline.entry import lm_ranker
from prefrec.pipeline.recipe import ModelSection
from slow import slow_logps_within
from tiny import tiny_llama

HISTORY = ("--history", "red alien", "--history", "i3")


def rank(place, *options):
    return json.loads(succeed("rank", place.data, "--catalogue", *place.asked, "--json", *options))


def logps(items):
    return [item["logp"] for item in items]


def test_the_best_of_the_catalogue_are_those_of_the_slow_twin(place):
    data = read_prepared(place.data)
    asked = ModelSection(name=str(place.model), dtype="float32", max_length=400, templates=["1"])
    lm = lm_ranker("lm", place.s_dpo / "adapter", data, asked)
    titles = data.catalogue.titles_of(data.catalogue.ids)
    shown = data.catalogue.titles_of(["i0", "i3"])
    question = lm.encoder.encode(lm.template, shown, [], titles)
    want = dict(zip(titles, slow_logps_within(lm.model, question.prompt, question.answers), strict=True))
    for title in shown:
        del want[title]
    items = rank(place, *HISTORY, "--adapter", place.s_dpo / "adapter", "--top", 7)
    assert [item["rank"] for item in items] == [*range(1, 8)]
    np.testing.assert_allclose(logps(items), sorted(want.values(), reverse=True)[:7], rtol=0, atol=1e-4)
    for item in items:
        assert item["logp"] == pytest.approx(want[item["title"]], abs=1e-4)
        assert data.catalogue.titles[item["item_id"]] == item["title"]


def test_an_adapter_knows_how_it_is_asked(place):
    """Without an option it gets the model, prompt and dtype of its training; other options win, with a warning."""
    bare = ("rank", place.data, "--catalogue", "--json", *HISTORY, "--adapter", place.s_dpo / "adapter")
    known = prefrec(*bare)
    assert (known.code, "was trained with" in known.err) == (0, False)
    assert json.loads(known.out) == rank(place, *HISTORY, "--adapter", place.s_dpo / "adapter")
    other = prefrec(*bare, "--model.templates", "history")
    assert "--model.templates ['history']: " in " ".join(other.err.split())
    assert "was trained with ['1']; leave --model.templates out" in " ".join(other.err.split())
    assert json.loads(other.out) != json.loads(known.out)


def test_what_was_seen_is_left_out_or_kept(place):
    without = rank(place, *HISTORY, "--top", 100)
    kept = rank(place, *HISTORY, "--top", 100, "--keep-seen")
    assert {i["item_id"] for i in kept} - {i["item_id"] for i in without} == {"i0", "i3"}
    assert len(kept) == 60
    assert logps(kept) == sorted(logps(kept), reverse=True)


def test_tables_for_people(place):
    items = rank(place, *HISTORY, "--top", 4)
    out = " ".join(succeed("rank", place.data, "--catalogue", *place.asked, *HISTORY, "--top", 4).split())
    for item in items:
        assert f"│ {item['rank']} ┆ {item['item_id']} ┆ {item['title']} ┆ {item['logp']:.3f} │" in out


@pytest.mark.parametrize("options", [("--candidate", "i5", "--candidate", "i6"), ("--catalogue",)])
def test_a_model_that_gives_no_numbers_gives_no_ranking(place, tmp_path, bpe_tokenizer, options):
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    model.save_pretrained(tmp_path)
    bpe_tokenizer.save_pretrained(tmp_path)
    done = prefrec("rank", place.data, *place.asked, "--model.name", tmp_path, *HISTORY, *options, "--json")
    assert (done.code, done.out) == (1, "")
    assert "a log-probability is not finite; use another dtype" in " ".join(done.err.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--history", "Heat"), "Invalid value for --candidate: name titles to rank, or rank all"),
        (("--candidate", "Heat"), "Missing option '--history'"),
        (
            ("--catalogue", "--candidate", "Heat", "--history", "Heat"),
            "Invalid value for --candidate: name titles to rank, or rank all",
        ),
        (("--candidate", "Heat", "--history", "Heat", "--top", 10), "Invalid value for --top: needs --catalogue"),
        (("--candidate", "Heat", "--history", "Heat", "--keep-seen"), "for --keep-seen: needs --catalogue"),
        (("--catalogue", "--history", "Heat", "--top", 0), "Invalid value for '--top'"),
    ],
)
def test_wrong_usage(options, message):
    done = prefrec("rank", "data", *options)
    assert (done.code, done.out) == (2, "")
    assert message in " ".join(done.err.replace("│", " ").split())
