"""Items as tokens: vectors and logits against their formulas, scores against whole sequences."""

import json
import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from prefrec.data import Catalogue, RankingExample
from prefrec.errors import DataError, ModelError, TokenizerError
from prefrec.lm import items as lm_items
from prefrec.lm.items import ItemEncoder, ItemTable, ItemTrajectoryEncoder, add_items, item_table, load_item_model
from prefrec.prompts import load_template
from prefrec.rankers import CatalogueRanker, LMRanker
from prefrec.training import SFTConfig, SFTTrainer, TrajectoryDataset
from prefrec.training.weights import load_weights
from tiny import VOCABULARY, tiny_llama
from tiny_lists import CATALOGUE, IDS
from tiny_run import TITLES
from tiny_training import settings

VECTORS = torch.randn(len(TITLES), 6, generator=torch.Generator().manual_seed(5))
EXAMPLES = [
    RankingExample("u", tuple(IDS[:4]), tuple(IDS[20:26]), "i21"),
    RankingExample("v", tuple(IDS[9:10]), tuple(IDS[30:34]), "i30"),
]


def item_model(**changes: float) -> Any:
    """A tiny Llama that knows items, whose own vectors and biases have been somewhere."""
    model = tiny_llama(tie_word_embeddings=True)
    table = add_items(model, IDS, VECTORS, **changes)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in (table.own, table.predict.weight, table.bias):
            parameter.normal_()
    return model.eval()


@pytest.fixture
def encoder(bpe_tokenizer: PreTrainedTokenizerBase) -> ItemEncoder:
    return ItemEncoder(CATALOGUE, bpe_tokenizer, VOCABULARY)


def ranker(model: Any, encoder: ItemEncoder) -> LMRanker:
    template = load_template("history")
    return LMRanker("items", model, encoder.tokenizer, CATALOGUE, template, encoder=encoder, objective="catalogue")


@pytest.fixture
def lm(encoder: ItemEncoder) -> LMRanker:
    return ranker(item_model(), encoder)


def slow_scores(model: Any, example: RankingExample, begin: int) -> Tensor:
    ids = torch.tensor([[begin, *(VOCABULARY + IDS.index(i) for i in example.history)]])
    with torch.no_grad():
        logps = model(input_ids=ids).logits[0, -1, VOCABULARY:].log_softmax(0)
    return logps[[IDS.index(c) for c in example.candidates]]


def test_words_stay_what_they_were_and_items_are_title_plus_own_vector() -> None:
    model, plain = item_model(), tiny_llama(tie_word_embeddings=True)
    table = item_table(model)
    ids = torch.tensor([[1, VOCABULARY + 3, 7, VOCABULARY]])
    found = model.get_input_embeddings()(ids)[0]
    torch.testing.assert_close(found[[0, 2]], plain.get_input_embeddings()(torch.tensor([1, 7])))
    for place, item in ((1, 3), (3, 0)):
        torch.testing.assert_close(found[place], table.project.weight @ table.titles[item] + table.own[item])
    words = torch.tensor([[1, 5, 7]])
    torch.testing.assert_close(model(input_ids=words).logits[..., :VOCABULARY], plain(input_ids=words).logits)


def test_logits_of_words_and_then_of_items() -> None:
    model = item_model()
    table, head = item_table(model), model.get_output_embeddings()
    hidden = torch.randn(2, 3, 32)
    found = head(hidden)
    assert found.shape == (2, 3, VOCABULARY + len(IDS))
    predicted = hidden @ table.predict.weight.T
    vectors = [table.project.weight @ title + own for title, own in zip(table.titles, table.own, strict=True)]
    want = [predicted @ vector + bias for vector, bias in zip(vectors, table.bias, strict=True)]
    # Logits near 10 are sums of 40 products in float32, which kernels add in another order.
    torch.testing.assert_close(found[..., VOCABULARY:], torch.stack(want, dim=-1), rtol=0, atol=1e-4)
    some = torch.tensor([VOCABULARY + 7, VOCABULARY + 2])
    torch.testing.assert_close(head.logits_of(hidden, some), found[..., some])


def test_titles_have_a_common_scale_whatever_that_of_their_vectors_is() -> None:
    first, second = (add_items(tiny_llama(), IDS, vectors) for vectors in (VECTORS, 50 * VECTORS + 3))
    torch.testing.assert_close(first.titles, second.titles, rtol=0, atol=1e-4)
    assert first.titles.mean(0).abs().max() < 1e-5
    assert first.titles.norm(dim=1).mean() == pytest.approx(VECTORS.shape[1] ** 0.5)


def test_words_are_frozen_and_items_are_trained() -> None:
    named = dict(item_model().named_parameters())
    assert [n for n, p in named.items() if not p.requires_grad] == [n for n in named if n.endswith("words.weight")]
    trained = {n.rpartition("table.")[2] for n in named if "table" in n}
    assert trained == {"own", "bias", "project.weight", "predict.weight"}


@pytest.mark.parametrize("batch_size", [1, 8])
def test_scores_are_those_of_a_whole_sequence(lm: LMRanker, encoder: ItemEncoder, batch_size: int) -> None:
    lm.batch_size = batch_size
    packed = lm.score_sets(lm._encode(EXAMPLES, "candidates"))
    assert lm.scorer.layout == "packed"
    want = pad_sequence([slow_scores(lm.model, e, encoder.begin) for e in EXAMPLES], True, -torch.inf)
    for scores in (packed, lm.score(EXAMPLES)):
        np.testing.assert_allclose(scores, want, rtol=0, atol=1e-4)


def test_the_catalogue_is_ranked_as_its_items_are_scored(lm: LMRanker, encoder: ItemEncoder) -> None:
    whole = CatalogueRanker(lm)
    np.testing.assert_allclose(whole.score(EXAMPLES), lm.score(EXAMPLES), rtol=0, atol=1e-4)
    everything = RankingExample("u", EXAMPLES[0].history, tuple(IDS), IDS[0])
    want = slow_scores(lm.model, everything, encoder.begin).numpy()
    assert np.exp(want).sum() == pytest.approx(1, abs=1e-5)
    best = whole.recommend(everything.history, 5, without=["i7", "none"])
    assert best.item_ids == [IDS[i] for i in np.argsort(-want) if i != 7][:5]
    assert (best.exact, best.method) == (True, "exact")


def test_one_call_ranks_all_items_in_sixteen_bits_too(encoder: ItemEncoder, saved: Path) -> None:
    whole = CatalogueRanker(ranker(load_item_model(saved, dtype="bfloat16"), encoder))
    history, calls = EXAMPLES[0].history, []
    first = whole.recommend(history, len(IDS))
    whole.lm.model.register_forward_pre_hook(lambda *_: calls.append(1))
    assert whole.recommend(history, 3).item_ids == first.item_ids[:3]
    assert len(calls) == 1
    shown = RankingExample("u", history, tuple(first.item_ids), IDS[0])
    np.testing.assert_array_equal(whole.score([shown])[0].astype(np.float32), first.logps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_histories_share_calls_and_keep_their_scores(lm: LMRanker, encoder: ItemEncoder, dtype: torch.dtype) -> None:
    """Rounding may depend on the number of histories in a call, but no more than the last digits of float32 do."""
    for part in (lm.model.model.layers, lm.model.model.norm, lm.model.get_input_embeddings().words):
        part.to(dtype)
    whole = CatalogueRanker(lm)
    rng = np.random.default_rng(0)
    histories = [tuple(rng.permutation(IDS)[:n].tolist()) for n in (3, 15, 16, 40, 0, 31, 30, 1, *[20] * 26)]
    histories += [histories[5][:n] for n in (30, 17, 25, 12)]  # the first three are read with the one of 31 items
    shapes: list[tuple[int, ...]] = []
    lm.model.model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    together = list(whole.lm.item_logps(histories))
    assert shapes == [(3, 16), (27, 32), (1, 48), (1, 16), (3, 32)]
    for history, logps in zip(histories, together, strict=True):
        np.testing.assert_allclose(next(whole.lm.item_logps([history])), logps, rtol=0, atol=1e-4)
        if dtype == torch.float32:
            want = slow_scores(lm.model, RankingExample("u", history, tuple(IDS), IDS[0]), encoder.begin)
            np.testing.assert_allclose(logps, want, rtol=0, atol=1e-4)
    assert lm.model(torch.tensor([[1, 2]])).logits.shape[1] == 2  # the head is itself again


def test_folded_vectors_give_the_same_scores(lm: LMRanker) -> None:
    want = lm.score(EXAMPLES), CatalogueRanker(lm).score(EXAMPLES)
    table = item_table(lm.model)
    table.merge_titles()
    assert table.titles.shape == (len(IDS), 0)
    for got, before in zip((lm.score(EXAMPLES), CatalogueRanker(lm).score(EXAMPLES)), want, strict=True):
        np.testing.assert_allclose(got, before, rtol=0, atol=1e-4)
    assert table._fixed_vectors().data_ptr() == table.own.data_ptr()  # no further copy


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_model_gives_the_same_scores(encoder: ItemEncoder, tmp_path: Path, dtype: str) -> None:
    model = item_model(vector_dropout=0.5, dropout=0.4)
    lm_items.save_item_model(model, tmp_path / "saved")
    for load_saved in (load_item_model, partial(load_weights, "no base is read")):
        again = load_saved(tmp_path / "saved", dtype=dtype)
        table = item_table(again)
        assert (again.training, table.ids) == (False, IDS)
        assert {p.dtype for p in table.parameters()} == {torch.float32}
        assert again.model.layers[0].mlp.up_proj.weight.dtype == getattr(torch, dtype)
        tolerance = 1e-3 if dtype == "float32" else 1.0
        want = ranker(model, encoder).score(EXAMPLES)
        np.testing.assert_allclose(ranker(again, encoder).score(EXAMPLES), want, rtol=0, atol=tolerance)


def test_items_are_drawn_by_their_probabilities(lm: LMRanker) -> None:
    """Without replacement: the second one by the probabilities of those that are left."""
    whole, left = CatalogueRanker(lm), [*range(2, len(IDS))]
    logps = next(whole.lm.item_logps([IDS[:4]]))
    p = np.exp(logps[left]) / np.exp(logps[left]).sum()
    rngs, times = (np.random.default_rng((0, i)) for i in range(4000)), 4000
    drawn = list(whole.sample([IDS[:4]] * times, 2, rngs, [IDS[:2]] * times))
    second = [sum(p[j] * p[i] / (1 - p[j]) for j in range(len(p)) if j != i) for i in range(len(p))]
    for place, want in enumerate((p, second)):
        seen = Counter(row[place] for row in drawn)
        share = np.array([seen[IDS[i]] for i in left]) / times
        assert abs(share - want).max() < 5 * np.sqrt(max(want) / times)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    lm_items.save_item_model(item_model(), tmp_path)
    return tmp_path


def _asking(**changes: Any) -> Callable[[bytes], bytes]:
    return lambda config: json.dumps(json.loads(config) | changes).encode()


def _without_own(weights: bytes) -> bytes:
    return save({name: tensor for name, tensor in load(weights).items() if "table.own" not in name})


UNREADABLE = "the model with item-ID tokens cannot be read"
HUGE = {"num_hidden_layers": 900, "hidden_size": 1 << 16}
DAMAGE = {
    "half of the weights": ("model.safetensors", lambda whole: whole[:500], f": {UNREADABLE}"),
    "no vectors": ("model.safetensors", _without_own, r"table\.own"),
    "no ids": (lm_items.ITEMS_FILE, lambda whole: b"[", UNREADABLE),
    "too large": ("config.json", _asking(**HUGE), r"config\.json needs .* weights"),
    "no type": ("config.json", _asking(model_type="nonsense"), UNREADABLE),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder(saved: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration is checked before weights are read."""
    file, change, message = DAMAGE[damage]
    (saved / file).write_bytes(change((saved / file).read_bytes()))
    if file == "config.json":
        monkeypatch.setattr("prefrec.lm.items.load_file", lambda *_: pytest.fail("is read"))
    with pytest.raises(ModelError, match=f"{saved}.*{message}"):
        load_item_model(saved)


def test_a_pipe_is_no_weights(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    os.mkfifo(saved / "model.safetensors")
    with pytest.raises(ModelError, match=r"no file model\.safetensors"):
        load_item_model(saved)


def test_own_vectors_are_left_out_in_training_alone() -> None:
    table = ItemTable(IDS, VECTORS, 8, vector_dropout=0.5)
    with torch.no_grad():
        table.own.normal_()
    items, hidden = torch.arange(len(IDS)), torch.randn(4, 8)
    titles_alone = table.project(table.titles)
    table.eval()
    whole, logits = table.vectors_in(items), table.logits(hidden, items)
    torch.testing.assert_close(whole, titles_alone + table.own)
    assert torch.equal(table.vectors_in(items), whole)
    table.train()
    torch.manual_seed(0)
    some = table.vectors_in(items)
    kept, left_out = (some == whole).all(1), (some == titles_alone).all(1)
    assert (kept ^ left_out).all()  # an item has all of its vector, or nothing of it
    assert 15 < int(kept.sum()) < 45
    assert not torch.equal(table.vectors_in(items), some)
    by_title = table.predict(hidden) @ table.project(table.titles).T + table.bias
    found = table.logits(hidden, items)
    # Two orders of summation in float32 differ by the rounding of sums of a few terms near 1.
    kept, left_out = ((found - want).abs().amax(0) < 1e-4 for want in (logits, by_title))
    assert (kept ^ left_out).all()
    assert 15 < int(kept.sum()) < 45
    table.vector_dropout = 0.0
    assert torch.equal(table.vectors_in(items), whole)


def test_dropout_of_vectors_and_states_in_training_alone() -> None:
    table = ItemTable(IDS, VECTORS, 8, dropout=0.5).train()
    items, hidden = torch.arange(len(IDS)), torch.ones(4, 8)
    share = (table.vectors_in(items) == 0).float().mean()
    assert 0.4 < float(share) < 0.6
    assert not torch.equal(table.logits(hidden, items), table.logits(hidden, items))
    table.eval()
    assert (table.vectors_in(items) != 0).all()


def test_a_history_is_a_prompt_and_an_item_a_token(encoder: ItemEncoder, bpe_tokenizer) -> None:
    begin, end = bpe_tokenizer.bos_token_id, bpe_tokenizer.eos_token_id
    choices = encoder.encode(None, TITLES[2:4], [], [TITLES[7], TITLES[0]])
    assert choices.prompt == (begin, VOCABULARY + 2, VOCABULARY + 3)
    assert choices.answers == ((VOCABULARY + 7, end), (VOCABULARY, end))
    history = ItemTrajectoryEncoder(encoder).encode(TITLES[:3])
    assert (history.head, history.joint, history.tail) == ((begin,), (), ())
    assert history.answers == encoder.answers_after("", TITLES[:3])
    assert ItemTrajectoryEncoder(encoder).answers(TITLES) == list(encoder.answers_after("", TITLES))


def test_a_tokenizer_without_a_beginning_token(bpe_tokenizer) -> None:
    plain = SimpleNamespace(bos_token_id=None, eos_token_id=bpe_tokenizer.eos_token_id)
    choices = ItemEncoder(CATALOGUE, plain, VOCABULARY).encode(None, [], [], TITLES[:1])
    assert choices.prompt == (plain.eos_token_id,)


def test_the_oldest_items_of_a_long_history_are_left_out(bpe_tokenizer) -> None:
    encoder = ItemEncoder(CATALOGUE, bpe_tokenizer, VOCABULARY, max_length=8)
    choices, dropped = encoder.fit(None, TITLES[:9], [], TITLES[:2])
    assert (choices.length, dropped, encoder.shortened) == (8, 4, 1)
    assert choices.prompt[1:] == tuple(VOCABULARY + i for i in range(4, 9))
    assert encoder.fit(None, TITLES[:5], [], TITLES[:2])[1] == 0
    assert encoder.shortened == 1


def test_what_is_no_item_is_refused(lm: LMRanker, encoder: ItemEncoder, bpe_tokenizer) -> None:
    with pytest.raises(DataError, match="item 'i999' is not in the catalogue"):
        lm.score([RankingExample("u", ("i1",), ("i2", "i999"), "i2")])
    for history, answers in ((["Shrek"], TITLES[:1]), (TITLES[:1], ["Shrek"])):
        with pytest.raises(DataError, match="title 'Shrek' is not in the catalogue"):
            encoder.encode(None, history, [], answers)
    with pytest.raises(TokenizerError, match="reads histories of items, not text"):
        encoder.encode_text("What next?", ["Heat"])
    twice = Catalogue(pl.DataFrame({"item_id": ["a", "b"], "title": ["Heat", "Heat"]}))
    with pytest.raises(DataError, match="two items of the catalogue share a title"):
        ItemEncoder(twice, bpe_tokenizer, VOCABULARY)


def test_items_learn_at_a_rate_of_their_own(lm: LMRanker, encoder: ItemEncoder, tmp_path: Path) -> None:
    rows = TrajectoryDataset([TITLES[i : i + 6] for i in range(8)], [ItemTrajectoryEncoder(encoder)], titles=6)
    changes = {"learning_rate": 1e-9, "item_learning_rate": 0.03, "weight_decay": 0.1, "max_steps": 4}
    args = SFTConfig(**settings(tmp_path, **changes, optim="adamw_torch", adam_epsilon=1e-7))
    model = lm.model
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    rows.encoded_by(encoder, lm.within)
    trainer = SFTTrainer(model, args, train_dataset=rows, processing_class=encoder.tokenizer)
    trainer.train()
    layers, items = trainer.optimizer.param_groups
    assert (layers["initial_lr"], items["initial_lr"]) == (1e-9, 0.03)
    assert (layers["weight_decay"], items["weight_decay"]) == (0.1, 0.1)
    assert trainer.optimizer.defaults["eps"] == 1e-7
    assert not trainer.optimizer.defaults["fused"]
    assert {id(p) for p in items["params"]} == {id(p) for p in item_table(model).parameters()}
    assert len(layers["params"]) + len(items["params"]) == sum(p.requires_grad for p in model.parameters())
    moved = {n: float((p.detach() - before[n]).abs().max()) for n, p in model.named_parameters()}
    assert all(value < 1e-6 for n, value in moved.items() if "table" not in n)
    assert all(value > 1e-2 for n, value in moved.items() if "table" in n)
    assert next(value for n, value in moved.items() if n.endswith("words.weight")) == 0


def test_few_states_and_many_have_the_same_logits_and_gradients() -> None:
    """Few are projected to the space of the titles; for many, the titles are projected."""
    torch.manual_seed(0)
    table, items = ItemTable([*"abcdef"], torch.randn(6, 5), 4), torch.tensor([0, 1, 3, 5])
    torch.nn.init.normal_(table.own)
    torch.nn.init.normal_(table.bias)
    hidden, slope = torch.randn(2, 4), torch.randn(2, 4)
    found = []
    for times in (1, 3):
        table.zero_grad()
        states = hidden.repeat(times, 1).requires_grad_()
        logits = table.logits(states, items)
        vectors = table.titles @ table.project.weight.T + table.own
        torch.testing.assert_close(logits, table.predict(states) @ vectors[items].T + table.bias[items])
        (logits * slope.repeat(times, 1) / times).sum().backward()
        found.append([states.grad[:2] * times, *(p.grad for p in table.parameters())])
    for few, many in zip(*found, strict=True):
        torch.testing.assert_close(few, many, atol=1e-5, rtol=1e-5)


def test_kept_vectors_follow_the_weights():
    table = ItemTable(["a", "b"], torch.randn(2, 3), 4).eval()
    items = torch.arange(2)
    with torch.no_grad():
        for change in (lambda: table.own.add_(1.0), lambda: table.project.weight.mul_(2.0)):
            table.vectors_in(items)
            change()
            torch.testing.assert_close(table.vectors_in(items), table.project(table.titles) + table.own)
    table.train().vectors_in(items).sum().backward()
    torch.optim.AdamW(table.parameters(), lr=1.0, fused=True).step()  # torch does not count this change
    with torch.no_grad():
        torch.testing.assert_close(table.eval().vectors_in(items), table.project(table.titles) + table.own)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(table.vectors_in(items), table.project(table.titles) + table.own)


def test_known_items_stay_and_new_ones_get_a_place_by_their_titles():
    """All titles in a turned, stretched and shifted basis, in another order, with new items among them."""
    torch.manual_seed(0)
    whole = torch.randn(70, 6)
    ids = [*IDS, *(f"n{i}" for i in range(10))]
    table = add_items(tiny_llama(tie_word_embeddings=True), IDS, whole[:60])
    with torch.no_grad():
        table.own.normal_(), table.bias.normal_()
    before = {name: getattr(table, name).detach().clone() for name in ("titles", "own", "bias")}
    turn = torch.linalg.qr(torch.randn(6, 6))[0]
    order = torch.randperm(70)
    lm_items.extend_items(table, [ids[i] for i in order], (3 * whole @ turn + 1)[order])
    assert table.ids == [ids[i] for i in order]
    place = torch.argsort(order)
    for name, values in before.items():
        assert torch.equal(getattr(table, name)[place[:60]], values)
    assert not table.own[place[60:]].any()
    assert not table.bias[place[60:]].any()
    # The map from raw vectors to those of the table, which the table's own items show exactly.
    raw = torch.cat([whole, torch.ones(70, 1)], 1)
    want = raw[60:] @ torch.linalg.lstsq(raw[:60], before["titles"]).solution
    assert torch.allclose(table.titles[place[60:]], want, atol=0.02)
    assert (table.own.requires_grad, table.bias.requires_grad) == (True, True)


def test_vectors_that_are_kept_are_made_anew_for_more_items():
    table = add_items(tiny_llama(tie_word_embeddings=True), IDS[:50], VECTORS[:50]).eval()
    with torch.no_grad():
        table.vectors_in(torch.tensor([0]))
        lm_items.extend_items(table, IDS, VECTORS)
        assert torch.allclose(table.vectors_in(torch.tensor([59])), table.project(table.titles[59:]))
