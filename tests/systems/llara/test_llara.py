"""LLaRA: hybrid prompts and projected items against full sequences of input embeddings; curriculum, resume, S-DPO."""

import copy
import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from safetensors import safe_open
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from prefrec.data import Catalogue, RankingExample
from prefrec.errors import ConfigError, DataError
from prefrec.lm.models import load_model
from prefrec.lm.packing import pack
from prefrec.lm.scoring import choice_logps
from prefrec.losses import softmax_dpo_loss
from prefrec.prompts import ChoiceSet, PromptEncoder, load_template
from prefrec.rankers import GeneratingRanker, LMRanker, Ranker
from prefrec.rankers.lm import MAX_NEW_TOKENS
from prefrec.training import (
    PreferenceDataset,
    SFTConfig,
    SoftmaxDPOConfig,
    SoftmaxDPOTrainer,
    encode_examples,
    lora_config,
)
from prefrec.training.adapters import reference_of
from prefrec.training.sampler import StepSampler
from prefrec_systems.llara import (
    PROJECTOR_FILE,
    CurriculumDataset,
    HybridEncoder,
    ItemVectors,
    LlaraRanker,
    LlaraTrainer,
    add_items,
    embedding_of,
    hybrid_catalogue,
    load_llara,
    load_llara_model,
    load_projector,
    save_projector,
)
from tiny import VOCABULARY, tiny_llama
from tiny_run import TITLES, write_model

IDS = [f"i{i}" for i in range(len(TITLES))]
CATALOGUE = Catalogue(pl.DataFrame({"item_id": IDS, "title": TITLES}))
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
    """Histories of 1 to n items, lists of 5 and 3 candidates by turns."""
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(IDS).tolist() for _ in range(n)]
    return [
        RankingExample(f"u{u}", tuple(d[: u + 1]), tuple(d[20 : 25 - 2 * (u % 2)]), d[21])
        for u, d in enumerate(drawn)
    ]


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


def test_the_oldest_items_make_room(bpe_tokenizer):
    embedding = embedding_of(_with_items(tiny_llama()))
    shown = hybrid_catalogue(CATALOGUE, embedding)
    whole = encode_examples(_examples()[3:], CATALOGUE, [TEMPLATE], HybridEncoder(bpe_tokenizer, embedding),
                            answers="candidates", shown=shown)[0]  # fmt: skip
    short = HybridEncoder(bpe_tokenizer, embedding, max_length=whole.length - 1)
    got = encode_examples(_examples()[3:], CATALOGUE, [TEMPLATE], short, answers="candidates", shown=shown)[0]
    items = [[i for i in c.prompt if i >= VOCABULARY] for c in (whole, got)]
    assert items[1] == items[0][1:]
    assert short.shortened == 1


# --- embeddings


def test_words_are_the_model_s_own_and_items_are_projected():
    model = _with_items(tiny_llama())
    embedding, project = embedding_of(model), _project(model)
    ids = torch.tensor([[5, VOCABULARY + 2, 9], [VOCABULARY, 5, VOCABULARY + 57]])
    out = embedding(ids)
    for row, column in np.ndindex(2, 3):
        i = int(ids[row, column])
        want = embedding.words.weight[i] if i < VOCABULARY else project(i - VOCABULARY)
        torch.testing.assert_close(out[row, column], want, rtol=0, atol=1e-5)
    assert embedding.weight is embedding.words.weight
    assert model.lm_head.weight.shape[0] == VOCABULARY


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


def test_with_a_zeroed_projector_places_are_blank(bpe_tokenizer):
    """What the ranker says then is what the prompt says with zeros where items stand."""
    model = _with_items(tiny_llama())
    with torch.no_grad():
        for p in embedding_of(model).projector.outer.parameters():
            p.zero_()
    ranker = LlaraRanker("LLaRA", model, bpe_tokenizer, CATALOGUE, TEMPLATE, objective="tokens")
    plain = LMRanker("lm", tiny_llama(), bpe_tokenizer, CATALOGUE, TEMPLATE, objective="tokens")
    scores, text = ranker.score(_examples()), plain.score(_examples())
    width = model.config.hidden_size
    with torch.no_grad():
        for row, alone, example in zip(scores, text, _examples(), strict=True):
            (choices,) = ranker._encode([example], "candidates")
            want = _slow_logps(model, choices, lambda item: torch.zeros(width)).numpy()
            np.testing.assert_allclose(row[: len(want)], want, rtol=0, atol=1e-4)
            assert np.abs(want - alone[: len(want)]).max() > 1e-3  # a blank place is a place all the same


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


# --- files


def test_projector_and_items_are_read_as_they_were_written(tmp_path):
    model = _with_items(tiny_llama())
    save_projector(model, tmp_path)
    with safe_open(tmp_path / PROJECTOR_FILE, framework="pt") as f:
        assert json.loads(f.metadata()["items"]) == list(KNOWN)
    again = tiny_llama()
    embedding = load_projector(again, tmp_path)
    assert embedding.ids == KNOWN
    assert not any(p.requires_grad for p in embedding.projector.parameters())
    ids = torch.tensor([[1, VOCABULARY + 5]])
    torch.testing.assert_close(embedding(ids), embedding_of(model)(ids), rtol=0, atol=0)


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
            ids = list(choices.prompt)
            for _ in range(MAX_NEW_TOKENS):
                token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
                if token == bpe_tokenizer.eos_token_id:
                    break
                ids.append(token)
            answers.append(bpe_tokenizer.decode(ids[len(choices.prompt) :], skip_special_tokens=True))
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


def test_draws_depend_on_seed_epoch_and_row_alone():
    def kinds(seed, epochs, seen):
        dataset = CurriculumDataset(*_marked(200), epochs=4, seed=seed)
        for epoch in epochs:
            dataset.set_epoch(epoch)
        return [dataset[i]["choices"].prompt[0] for i in seen]

    straight = kinds(0, [0, 1, 2], range(200))
    assert kinds(0, [2], reversed(range(200))) == straight[::-1]
    assert kinds(1, [2], range(200)) != straight
    assert kinds(0, [1], range(200)) != straight


# --- training


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bpe_tokenizer):
    return write_model(tmp_path_factory.mktemp("lm") / "model", bpe_tokenizer)


def _arguments(out, kind=SFTConfig, **changes):
    usual = {
        "output_dir": str(out), "learning_rate": 5e-3, "num_train_epochs": 4, "per_device_train_batch_size": 4,
        "use_cpu": True, "save_strategy": "no", "logging_steps": 1, "seed": 0,
    }  # fmt: skip
    return kind(**(usual | changes))


def _sets(model, tokenizer, answers, *, text=False, examples=None):
    embedding = embedding_of(model)
    shown = None if text else hybrid_catalogue(CATALOGUE, embedding)
    encoder = HybridEncoder(tokenizer, embedding)
    return encode_examples(examples or _examples(8), CATALOGUE, [TEMPLATE], encoder, answers=answers, shown=shown)


def _trainer(folder, tokenizer, out, **changes) -> LlaraTrainer:
    torch.manual_seed(0)
    model = get_peft_model(load_model(str(folder)), lora_config(4))
    add_items(model, _vectors())
    pair = _sets(model, tokenizer, "target"), _sets(model, tokenizer, "target", text=True)
    arguments = _arguments(out, **changes)
    dataset = CurriculumDataset(*pair, epochs=arguments.num_train_epochs, seed=0)
    return LlaraTrainer(model, arguments, train_dataset=dataset, processing_class=tokenizer)


@pytest.fixture(scope="module")
def trained(folder, bpe_tokenizer, tmp_path_factory):
    """A trained LLaRA: adapter and projector in one folder, and the model in memory."""
    out = tmp_path_factory.mktemp("llara")
    trainer = _trainer(folder, bpe_tokenizer, out / "work", save_strategy="steps", save_steps=4)
    start = {n: p.detach().clone() for n, p in embedding_of(trainer.model).projector.named_parameters()}
    trainer.train()
    trainer.model.save_pretrained(out / "adapter")
    save_projector(trainer.model, out / "adapter")
    return out, trainer, start


def test_adapter_and_projector_are_trained_and_items_are_not(trained):
    _, trainer, start = trained
    embedding = embedding_of(trainer.model)
    assert all(not torch.equal(p, start[n]) for n, p in embedding.projector.named_parameters())
    assert torch.equal(embedding.items, _vectors().table)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert trainer.state.global_step == 8


def test_the_saved_ranker_is_the_trained_model(trained, folder, bpe_tokenizer):
    out, trainer, _ = trained
    want = LlaraRanker("a", copy.deepcopy(trainer.model), bpe_tokenizer, CATALOGUE, TEMPLATE).score(_examples())
    ranker = load_llara("a", str(folder), out / "adapter", CATALOGUE, TEMPLATE, loading={"dtype": "float32"})
    np.testing.assert_allclose(ranker.score(_examples()), want, rtol=0, atol=1e-4)
    half = load_llara("a", str(folder), out / "adapter", CATALOGUE, TEMPLATE, loading={"dtype": "bfloat16"}).score(
        _examples()
    )
    there = np.isfinite(want)
    assert 0 < np.abs(half[there] - want[there]).max() < 0.5


def test_a_stopped_training_goes_on_and_ends_alike(trained, folder, bpe_tokenizer, tmp_path):
    out, whole, _ = trained
    shutil.copytree(out / "work" / "checkpoint-4", tmp_path / "checkpoint-4")
    assert (tmp_path / "checkpoint-4" / PROJECTOR_FILE).is_file()
    again = _trainer(folder, bpe_tokenizer, tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    for name, want in whole.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], want, rtol=0, atol=1e-6, msg=name)


# --- S-DPO after it


def _align(folder, adapter, tokenizer, out, **changes) -> SoftmaxDPOTrainer:
    model = load_llara_model(str(folder), adapter, dtype="float32")
    arguments = _arguments(out, SoftmaxDPOConfig, num_negatives=2, num_train_epochs=2, **changes)
    dataset = PreferenceDataset(_sets(model, tokenizer, "target-first"), num_negatives=2)
    return SoftmaxDPOTrainer(model, args=arguments, train_dataset=dataset, processing_class=tokenizer)


@pytest.mark.parametrize("precompute", [True, False])
def test_the_reference_is_llara_itself(trained, folder, bpe_tokenizer, tmp_path, precompute):
    out, whole, _ = trained
    trainer = _align(folder, out / "adapter", bpe_tokenizer, tmp_path, precompute_ref_log_probs=precompute)
    sets = trainer.train_dataset.choice_sets
    with torch.no_grad():
        want = choice_logps(whole.model.eval(), pack(sets, pad_id=0))
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


def test_alignment_leaves_the_projector_as_it_is(trained, folder, bpe_tokenizer, tmp_path):
    out, whole, _ = trained
    trainer = _align(folder, out / "adapter", bpe_tokenizer, tmp_path)
    trainer.train()
    for name, want in embedding_of(whole.model).state_dict().items():
        torch.testing.assert_close(embedding_of(trainer.model).state_dict()[name], want, rtol=0, atol=0)
    names = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert names
    assert all("lora_" in n and ".default." in n for n in names)
    accuracies = [e["rewards/accuracies"] for e in trainer.state.log_history if "rewards/accuracies" in e]
    assert accuracies[-1] > 0.5
