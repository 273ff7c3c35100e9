"""LLaRA: hybrid prompts and projected items against full sequences of input embeddings; curriculum, S-DPO."""

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from prefrec.data import Catalogue, RankingExample
from prefrec.errors import ConfigError, DataError
from prefrec.lm.models import load_model
from prefrec.lm.packing import pack
from prefrec.lm.scoring import choice_logps
from prefrec.losses import softmax_dpo_loss
from prefrec.prompts import ChoiceSet, PromptEncoder, load_template
from prefrec.rankers import GeneratingRanker, Ranker
from prefrec.rankers.lm import MAX_NEW_TOKENS
from prefrec.training import PreferenceDataset, SoftmaxDPOConfig, SoftmaxDPOTrainer, encode_examples, lora_config
from prefrec.training.adapters import reference_of
from prefrec.training.sampler import StepSampler
from prefrec_systems.llara import (
    CurriculumDataset,
    HybridEncoder,
    ItemVectors,
    LlaraRanker,
    add_items,
    embedding_of,
    hybrid_catalogue,
    load_llara_model,
    save_projector,
)
from slow import slow_greedy
from tiny import VOCABULARY, tiny_llama
from tiny_lists import CATALOGUE, IDS, examples
from tiny_run import write_model
from tiny_training import draw_adapters
from tiny_training import settings as training_settings

TEMPLATE = load_template("movies/1")
UNKNOWN = ("i7", "i22")
KNOWN = tuple(i for i in IDS if i not in UNKNOWN)


def _vectors(size: int = 6, ids=KNOWN) -> ItemVectors:
    return ItemVectors(tuple(ids), torch.randn(len(ids), size, generator=torch.Generator().manual_seed(1)))


def _with_items(model, *, scale: float = 3.0, **settings):
    """The model with items whose embeddings are large enough to matter."""
    torch.manual_seed(3)
    embedding = add_items(model, _vectors(), **settings)
    with torch.no_grad():
        embedding.projector.outer.weight.mul_(scale)
    return model


def _examples(n: int = 4) -> list[RankingExample]:
    return examples(n, long=5)


def _slow_logps(model: nn.Module, choices: ChoiceSet, item_embedding) -> torch.Tensor:
    """Log-probabilities [C]: one full sequence of input embeddings an answer, filled in by a loop.

    `item_embedding(i)` is what stands at the place of item i.
    """
    words = embedding_of(model).words
    out = []
    for answer in choices.answers:
        ids = [*choices.prompt, *answer]
        rows = [item_embedding(i - VOCABULARY) if i >= VOCABULARY else words(torch.tensor([i]))[0] for i in ids]
        logits = model(inputs_embeds=torch.stack(rows)[None]).logits[0].float()
        logps = torch.log_softmax(logits, dim=-1)
        start = len(choices.prompt)
        out.append(sum(logps[start + t - 1, token] for t, token in enumerate(answer)))
    return torch.stack(out)


def _project(model):
    """Item i → its input embedding, by the formula of a two-layer perceptron."""
    embedding = embedding_of(model)
    p, table = embedding.projector, _vectors().table

    def of(item: int) -> torch.Tensor:
        inner = p.inner.weight @ table[item] + p.inner.bias
        return p.outer.weight @ nn.functional.gelu(inner) + p.outer.bias

    return of


# --- prompts


@pytest.fixture(params=["bpe_tokenizer", "sentencepiece_tokenizer"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", ["movies/1", "movies/3", "movies/continue"])
def test_a_hybrid_prompt_is_its_text_with_items_behind_their_titles(bpe_tokenizer, name, chat):
    model = _with_items(tiny_llama())
    encoder = HybridEncoder(bpe_tokenizer, embedding_of(model), chat=chat)
    shown = hybrid_catalogue(CATALOGUE, embedding_of(model))
    history, candidates = ["i1", "i7", "i3"], ["i4", "i22", "i1"]
    template = load_template(name)
    got = encoder.encode(template, shown.titles_of(history), shown.titles_of(candidates), ["Red Alien"])
    want = PromptEncoder(bpe_tokenizer, chat=chat).encode(
        template, CATALOGUE.titles_of(history), CATALOGUE.titles_of(candidates), ["Red Alien"]
    )
    words = [i for i in got.prompt if i < VOCABULARY]
    assert bpe_tokenizer.decode(words) == bpe_tokenizer.decode(want.prompt)
    assert got.answers == want.answers
    seen = []
    for place, i in enumerate(got.prompt):
        if i >= VOCABULARY:
            item = KNOWN[i - VOCABULARY]
            seen.append(item)
            before = bpe_tokenizer.decode([j for j in got.prompt[:place] if j < VOCABULARY])
            assert before.endswith(CATALOGUE.titles[item])
    parts = [i for i in candidates if i not in UNKNOWN], [i for i in history if i not in UNKNOWN]
    assert seen == [i for part in (parts if name == "movies/continue" else parts[::-1]) for i in part]


def test_pieces_of_text_have_no_spaces_of_their_own(tokenizer):
    """Some tokenizers begin every text with a space: not so after an item."""
    embedding = embedding_of(_with_items(tiny_llama(len(tokenizer))))
    films = Catalogue(pl.DataFrame({"item_id": ["i0", "i1"], "title": ["Toy Story", "Heat"]}))
    one, two = hybrid_catalogue(films, embedding).titles_of(["i0", "i1"])
    got = HybridEncoder(tokenizer, embedding).encode_text(f"Seen: {one}, {two}\nNext:\n", ["x"]).prompt
    want = PromptEncoder(tokenizer).encode_text("Seen: Toy Story, Heat\nNext:\n", ["x"]).prompt
    assert tuple(i for i in got if i < embedding.first_item) == want
    assert [i - embedding.first_item for i in got if i >= embedding.first_item] == [0, 1]


def test_a_title_can_not_speak_as_an_item(bpe_tokenizer):
    embedding = embedding_of(_with_items(tiny_llama()))
    forged = hybrid_catalogue(CATALOGUE, embedding).titles["i8"]
    with pytest.raises(DataError, match=r"contains U\+E0D5"):
        hybrid_catalogue(Catalogue(pl.DataFrame({"item_id": ["x"], "title": [forged]})), embedding)
    digits = HybridEncoder(bpe_tokenizer, embedding).encode_text("Film 12 and 13:", ["x"])
    assert max(digits.prompt) < VOCABULARY


# --- embeddings


tokens = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=6).map(tuple)
hybrid_prompts = st.lists(st.integers(0, VOCABULARY + len(KNOWN) - 1), min_size=1, max_size=9).map(tuple)
hybrid_sets = st.lists(
    st.builds(ChoiceSet, hybrid_prompts, st.lists(tokens, min_size=1, max_size=4).map(tuple)), min_size=1, max_size=3
)


@settings(deadline=None, max_examples=25)
@given(hybrid_sets, st.sampled_from(["packed", "separate"]))
def test_scores_equal_full_sequences_of_embeddings(sets, layout):
    model = _with_items(tiny_llama())
    with torch.no_grad():
        got = choice_logps(model, pack(sets, pad_id=0, layout=layout))
        for row, choices in zip(got, sets, strict=True):
            want = _slow_logps(model, choices, _project(model))
            torch.testing.assert_close(row[: len(want)], want, rtol=0, atol=1e-4)


SETS = [
    ChoiceSet((1, VOCABULARY + 3, 2, VOCABULARY + 9, 3), ((4, 9), (5, 6, 9), (7, 9))),
    ChoiceSet((VOCABULARY + 1, 3), ((2, 9), (9,), (1, 1, 9))),
]


def test_gradients_of_the_projector_equal_the_slow_twin_s():
    weights = torch.tensor([[1.0, -0.5, 0.25], [0.3, -1.0, 2.0]])
    grads = []
    for packed in (True, False):
        model = _with_items(tiny_llama())
        project = _project(model)
        logps = (
            choice_logps(model, pack(SETS, pad_id=0))
            if packed
            else torch.stack([_slow_logps(model, c, project) for c in SETS])
        )
        (weights * logps).sum().backward()
        assert embedding_of(model).items.grad is None
        grads.append(torch.cat([p.grad.flatten() for p in embedding_of(model).projector.parameters()]))
    assert grads[1].abs().max() > 0.01
    torch.testing.assert_close(grads[0] / grads[1].abs().max(), grads[1] / grads[1].abs().max(), rtol=0, atol=1e-4)


def test_a_model_that_scales_its_embeddings():
    """Gemma multiplies words by √H where it looks them up: what the projector says goes in as it is."""
    torch.manual_seed(0)
    gemma = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    words = gemma.get_input_embeddings()
    _with_items(gemma)
    five = torch.tensor([[5]])
    torch.testing.assert_close(gemma.get_input_embeddings()(five), words(five))
    assert words(five).std() > 3 * words.weight[5].std()
    with torch.no_grad():
        for layout in ("packed", "separate"):
            got = choice_logps(gemma, pack(SETS, pad_id=0, layout=layout))
            for row, choices in zip(got, SETS, strict=True):
                torch.testing.assert_close(row, _slow_logps(gemma, choices, _project(gemma)), rtol=0, atol=1e-4)


def test_adapters_come_before_items():
    adapted = get_peft_model(tiny_llama(), lora_config(4))
    add_items(adapted, _vectors())
    names = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert {n.rpartition("projector.")[2] for n in names if "projector" in n} == {
        "inner.weight", "inner.bias", "outer.weight", "outer.bias"
    }  # fmt: skip
    assert all("lora_" in n or "projector" in n for n in names)
    frozen = get_peft_model(tiny_llama(), lora_config(4))
    add_items(frozen, _vectors(), trainable=False)
    assert not [n for n, p in frozen.named_parameters() if p.requires_grad and "projector" in n]
    of_words = get_peft_model(tiny_llama(), lora_config(4, targets=["embed_tokens"]))
    with pytest.raises(ConfigError, match=r"remove it from lora\.targets"):
        add_items(of_words, _vectors())


# --- ranker


def test_it_ranks_and_answers_in_text(bpe_tokenizer):
    model = _with_items(tiny_llama())
    ranker = LlaraRanker("LLaRA", model, bpe_tokenizer, CATALOGUE, TEMPLATE, objective="tokens", batch_size=3)
    assert isinstance(ranker, Ranker)
    assert isinstance(ranker, GeneratingRanker)
    scores = ranker.score(_examples())
    assert ranker.scorer.layout == "packed"
    with torch.no_grad():
        for row, example in zip(scores, _examples(), strict=True):
            (choices,) = ranker._encode([example], "candidates")
            want = _slow_logps(model, choices, _project(model)).numpy()
            np.testing.assert_allclose(row[: len(want)], want, rtol=0, atol=1e-4)
            assert (row[len(want) :] == -np.inf).all()
        answers = []
        for example in _examples():
            (choices,) = ranker._encode([example], "target")
            said = slow_greedy(model, choices.prompt, bpe_tokenizer.eos_token_id, MAX_NEW_TOKENS)
            answers.append(bpe_tokenizer.decode(said, skip_special_tokens=True))
    assert ranker.generate(_examples()) == answers
    assert any(answers)


# --- curriculum


def _marked(n: int) -> tuple[list[ChoiceSet], list[ChoiceSet]]:
    """n hybrid choice sets and n of text, told apart by their prompts."""
    return [ChoiceSet((1, i), ((9,),)) for i in range(n)], [ChoiceSet((0, i), ((9,),)) for i in range(n)]


def test_the_share_of_hybrid_prompts_grows_from_none_to_all():
    rows, epochs = 2000, 4
    dataset = CurriculumDataset(*_marked(rows), epochs=epochs, seed=5)
    shares = []
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        order = StepSampler(rows, 16, None, 5)
        order.set_epoch(epoch)
        kinds = [dataset[i]["choices"].prompt[0] for i in order]
        assert all(dataset[i]["choices"].prompt[1] == i for i in range(0, rows, 97))
        shares += np.array(kinds).reshape(4, -1).mean(axis=1).tolist()
    want = (np.arange(16) + 0.5) / 16
    np.testing.assert_allclose(shares, want, rtol=0, atol=0.09)
    assert len(dataset) == rows


# --- S-DPO after it


@pytest.mark.parametrize("precompute", [True, False])
def test_the_reference_is_llara_itself(bpe_tokenizer, tmp_path, precompute):
    folder = write_model(tmp_path / "model", bpe_tokenizer)
    llara = get_peft_model(load_model(str(folder)), lora_config(4))
    draw_adapters(llara, 0.05)
    _with_items(llara).save_pretrained(tmp_path / "adapter")
    save_projector(llara, tmp_path / "adapter")
    model = load_llara_model(str(folder), tmp_path / "adapter", dtype="float32")
    embedding = embedding_of(model)
    rows = encode_examples(
        _examples(8),
        CATALOGUE,
        [TEMPLATE],
        HybridEncoder(bpe_tokenizer, embedding),
        answers="target-first",
        shown=hybrid_catalogue(CATALOGUE, embedding),
    )
    config = training_settings(tmp_path / "work", num_negatives=2, precompute_ref_log_probs=precompute)
    dataset = PreferenceDataset(rows, num_negatives=2)
    trainer = SoftmaxDPOTrainer(
        model, args=SoftmaxDPOConfig(**config), train_dataset=dataset, processing_class=bpe_tokenizer
    )
    sets = trainer.train_dataset.choice_sets
    with torch.no_grad():
        want = choice_logps(llara.eval(), pack(sets, pad_id=0))
    trainer.train()
    if precompute:
        np.testing.assert_allclose(trainer.train_dataset.ref_logps, want.numpy(), rtol=0, atol=1e-4)
    with torch.no_grad(), reference_of(trainer.model) as reference:
        torch.testing.assert_close(choice_logps(reference, pack(sets, pad_id=0)), want, rtol=0, atol=1e-4)
    with torch.no_grad():
        assert (choice_logps(trainer.model.eval(), pack(sets, pad_id=0)) - want).abs().max() > 0.01
    first = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    even = torch.zeros(1, 3)
    assert first == pytest.approx(float(softmax_dpo_loss(even, even, 1.0).losses), abs=1e-3)
