"""LLaRA: hybrid prompts and projected items against full sequences of input embeddings; curriculum, S-DPO."""

import math

import hypothesis
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Gemma2Config, Gemma2ForCausalLM

from prefrec.data import Catalogue
from prefrec.errors import ConfigError, DataError
from prefrec.lm.models import load_model
from prefrec.lm.packing import pack
from prefrec.lm.scoring import choice_logps
from prefrec.prompts import ChoiceSet, PromptEncoder, load_template
from prefrec.rankers import GeneratingRanker, Ranker
from prefrec.rankers.lm import MAX_NEW_TOKENS
from prefrec.training import PreferenceDataset, SoftmaxDPOConfig, SoftmaxDPOTrainer, encode_examples, lora_config
from prefrec.training.adapters import reference_of
from prefrec.training.sampler import StepSampler
from prefrec_systems.llara.embedding import ItemVectors, add_items, embedding_of, save_projector
from prefrec_systems.llara.prompts import HybridEncoder, hybrid_catalogue
from prefrec_systems.llara.ranker import LlaraRanker, load_llara_model
from prefrec_systems.llara.train import CurriculumDataset
from slow import slow_greedy
from tiny import VOCABULARY, tiny_llama
from tiny_lists import CATALOGUE, IDS, examples
from tiny_run import write_model
from tiny_training import draw_adapters, losses, settings

TEMPLATE = load_template("movies/1")
EXAMPLES = examples(8, long=5)
UNKNOWN = ("i7", "i22")
KNOWN = tuple(i for i in IDS if i not in UNKNOWN)
VECTORS = ItemVectors(KNOWN, torch.randn(len(KNOWN), 6, generator=torch.Generator().manual_seed(1)))


def _with_items(model):
    """The model with items whose embeddings are large enough to matter."""
    torch.manual_seed(3)
    embedding = add_items(model, VECTORS)
    with torch.no_grad():
        embedding.projector.outer.weight.mul_(3.0)
    return model


def _slow_logps(model: nn.Module, sets: list[ChoiceSet]) -> torch.Tensor:
    """Log-probabilities [B, C]: a sequence of embeddings per answer, an item's by the two-layer perceptron."""
    words, p = embedding_of(model).words, embedding_of(model).projector

    def embedding(i: int) -> torch.Tensor:
        if i < VOCABULARY:
            return words(torch.tensor([i]))[0]
        inner = p.inner.weight @ VECTORS.table[i - VOCABULARY] + p.inner.bias
        return p.outer.weight @ nn.functional.gelu(inner) + p.outer.bias

    def score(prompt: tuple[int, ...], answer: tuple[int, ...]) -> torch.Tensor:
        rows = torch.stack([embedding(i) for i in (*prompt, *answer)])
        logps = torch.log_softmax(model(inputs_embeds=rows[None]).logits[0].float(), dim=-1)
        return sum(logps[len(prompt) + t - 1, token] for t, token in enumerate(answer))

    rows = [torch.stack([score(c.prompt, answer) for answer in c.answers]) for c in sets]
    return pad_sequence(rows, True, -torch.inf)


@pytest.fixture(params=["bpe_tokenizer", "sentencepiece_tokenizer"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", ["movies/1", "movies/3", "movies/continue"])
def test_a_hybrid_prompt_is_its_text_with_items_behind_their_titles(bpe_tokenizer, name, chat):
    embedding = embedding_of(_with_items(tiny_llama()))
    encoder, shown = HybridEncoder(bpe_tokenizer, embedding, chat=chat), hybrid_catalogue(CATALOGUE, embedding)
    history, candidates = ["i1", "i7", "i3"], ["i4", "i22", "i1"]
    got, want = (
        by.encode(load_template(name), of.titles_of(history), of.titles_of(candidates), ["Red Alien"])
        for by, of in ((encoder, shown), (PromptEncoder(bpe_tokenizer, chat=chat), CATALOGUE))
    )
    assert bpe_tokenizer.decode([i for i in got.prompt if i < VOCABULARY]) == bpe_tokenizer.decode(want.prompt)
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


tokens = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=6).map(tuple)
hybrid_prompts = st.lists(st.integers(0, VOCABULARY + len(KNOWN) - 1), min_size=1, max_size=9).map(tuple)
answers = st.lists(tokens, min_size=1, max_size=4).map(tuple)
hybrid_sets = st.lists(st.builds(ChoiceSet, hybrid_prompts, answers), min_size=1, max_size=3)


@hypothesis.settings(deadline=None, max_examples=25)
@given(hybrid_sets, st.sampled_from(["packed", "separate"]))
def test_scores_equal_full_sequences_of_embeddings(sets, layout):
    model = _with_items(tiny_llama())
    with torch.no_grad():
        got = choice_logps(model, pack(sets, pad_id=0, layout=layout))
        torch.testing.assert_close(got, _slow_logps(model, sets), rtol=0, atol=1e-4)


SETS = [
    ChoiceSet((1, VOCABULARY + 3, 2, VOCABULARY + 9, 3), ((4, 9), (5, 6, 9), (7, 9))),
    ChoiceSet((VOCABULARY + 1, 3), ((2, 9), (9,), (1, 1, 9))),
]


def test_gradients_of_the_projector_equal_the_slow_twin_s():
    weights = torch.tensor([[1.0, -0.5, 0.25], [0.3, -1.0, 2.0]])
    grads = []
    for packed in (True, False):
        model = _with_items(tiny_llama())
        logps = choice_logps(model, pack(SETS, pad_id=0)) if packed else _slow_logps(model, SETS)
        (weights * logps).sum().backward()
        assert embedding_of(model).items.grad is None
        grads.append(torch.cat([p.grad.flatten() for p in embedding_of(model).projector.parameters()]))
    assert grads[1].abs().max() > 0.01
    torch.testing.assert_close(grads[0] / grads[1].abs().max(), grads[1] / grads[1].abs().max(), rtol=0, atol=1e-4)


def test_a_model_that_scales_its_embeddings():
    """Gemma multiplies words by √H where it looks them up: what the projector says goes in as it is."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "attn_implementation": "eager"}
    gemma = Gemma2ForCausalLM(Gemma2Config(**sizes, **heads)).eval()
    words = gemma.get_input_embeddings()
    _with_items(gemma)
    five = torch.tensor([[5]])
    torch.testing.assert_close(gemma.get_input_embeddings()(five), words(five))
    assert words(five).std() > 3 * words.weight[5].std()
    with torch.no_grad():
        for layout in ("packed", "separate"):
            got = choice_logps(gemma, pack(SETS, pad_id=0, layout=layout))
            torch.testing.assert_close(got, _slow_logps(gemma, SETS), rtol=0, atol=1e-4)


def test_adapters_come_before_items():
    adapted, frozen = (get_peft_model(tiny_llama(), lora_config(4)) for _ in range(2))
    add_items(adapted, VECTORS)
    names = [n for n, p in adapted.named_parameters() if p.requires_grad]
    of_items = {n.rpartition("projector.")[2] for n in names if "projector" in n}
    assert of_items == {"inner.weight", "inner.bias", "outer.weight", "outer.bias"}
    assert all("lora_" in n or "projector" in n for n in names)
    add_items(frozen, VECTORS, trainable=False)
    assert not [n for n, p in frozen.named_parameters() if p.requires_grad and "projector" in n]
    with pytest.raises(ConfigError, match=r"remove it from lora\.targets"):
        add_items(get_peft_model(tiny_llama(), lora_config(4, targets=["embed_tokens"])), VECTORS)


def test_it_ranks_and_answers_in_text(bpe_tokenizer):
    model = _with_items(tiny_llama())
    ranker = LlaraRanker("LLaRA", model, bpe_tokenizer, CATALOGUE, TEMPLATE, objective="tokens", batch_size=3)
    assert isinstance(ranker, Ranker)
    assert isinstance(ranker, GeneratingRanker)
    scores, rows = ranker.score(EXAMPLES[:4]), [ranker._encode([e], "candidates")[0] for e in EXAMPLES[:4]]
    assert ranker.scorer.layout == "packed"
    with torch.no_grad():
        np.testing.assert_allclose(scores, _slow_logps(model, rows), rtol=0, atol=1e-4)
        answers = []
        for example in EXAMPLES[:4]:
            (choices,) = ranker._encode([example], "target")
            said = slow_greedy(model, choices.prompt, bpe_tokenizer.eos_token_id, MAX_NEW_TOKENS)
            answers.append(bpe_tokenizer.decode(said, skip_special_tokens=True))
    assert ranker.generate(EXAMPLES[:4]) == answers
    assert any(answers)


def test_the_share_of_hybrid_prompts_grows_from_none_to_all():
    rows, shares = 2000, []
    hybrid, text = ([ChoiceSet((kind, i), ((9,),)) for i in range(rows)] for kind in (1, 0))
    dataset = CurriculumDataset(hybrid, text, epochs=4, seed=5)
    for epoch in range(4):
        dataset.set_epoch(epoch)
        order = StepSampler(rows, 16, None, 5)
        order.set_epoch(epoch)
        kinds = [dataset[i]["choices"].prompt[0] for i in order]
        assert all(dataset[i]["choices"].prompt[1] == i for i in range(0, rows, 97))
        shares += np.array(kinds).reshape(4, -1).mean(axis=1).tolist()
    np.testing.assert_allclose(shares, (np.arange(16) + 0.5) / 16, rtol=0, atol=0.09)
    assert len(dataset) == rows


@pytest.mark.parametrize("precompute", [True, False])
def test_the_reference_is_llara_itself(bpe_tokenizer, tmp_path, precompute):
    folder = write_model(tmp_path / "model", bpe_tokenizer)
    llara = get_peft_model(load_model(str(folder)), lora_config(4))
    draw_adapters(llara, 0.05)
    _with_items(llara).save_pretrained(tmp_path / "adapter")
    save_projector(llara, tmp_path / "adapter")
    model = load_llara_model(str(folder), tmp_path / "adapter", dtype="float32")
    embedding = embedding_of(model)
    encoder, shown = HybridEncoder(bpe_tokenizer, embedding), hybrid_catalogue(CATALOGUE, embedding)
    rows = encode_examples(EXAMPLES, CATALOGUE, [TEMPLATE], encoder, answers="target-first", shown=shown)
    dataset = PreferenceDataset(rows, num_negatives=2)
    args = SoftmaxDPOConfig(**settings(tmp_path / "work", num_negatives=2, precompute_ref_log_probs=precompute))
    trainer = SoftmaxDPOTrainer(model, args=args, train_dataset=dataset, processing_class=bpe_tokenizer)
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
    assert losses(trainer)[0] == pytest.approx(math.log(3), abs=1e-3)
