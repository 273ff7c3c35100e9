"""Title vectors: the mean hidden state of one title at a time, for causal and bidirectional encoders; the cache."""

import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from prefrec.towers.title_encoder import TitleEncoder, load_encoder
from prefrec_systems.morec.titles import read_titles, title_vectors, write_titles
from tiny_run import TITLES, write_model

NAMES = [*TITLES[:7], "", "A much longer title than all the others <|im_end|>", "Red Alien"]


def tiny_bert(folder, tokenizer: PreTrainedTokenizerFast):
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(**sizes, intermediate_size=32, initializer_range=0.3)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=["causal", "bidirectional"])
def encoder(request, tmp_path, bpe_tokenizer) -> TitleEncoder:
    write = write_model if request.param == "causal" else tiny_bert
    return load_encoder(str(write(tmp_path / "model", bpe_tokenizer)), 12).eval()


def slow_vector(encoder: TitleEncoder, title: str) -> torch.Tensor:
    ids = encoder.tokenizer(title, split_special_tokens=True)["input_ids"][:12] or [0]
    with torch.no_grad():
        return encoder.model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(dim=0)


def test_vectors_equal_the_slow_twin(encoder):
    vectors = encoder.encode(NAMES)
    assert vectors.shape == (len(NAMES), encoder.width)
    for title, vector in zip(NAMES, vectors, strict=True):
        torch.testing.assert_close(vector, slow_vector(encoder, title), rtol=0, atol=1e-5)
    assert len({tuple(v.tolist()) for v in vectors.round(decimals=4)}) == len(set(NAMES))


def test_gradients_reach_the_encoder(encoder):
    encoder(NAMES).square().sum().backward()
    first = encoder.model.get_input_embeddings().weight.grad
    used = {i for t in NAMES for i in encoder.tokenizer(t, split_special_tokens=True)["input_ids"][:12]}
    assert {int(i) for i in first.abs().sum(dim=1).nonzero()} - {0} == used - {0}


def test_known_titles_are_read_and_others_encoded_once(encoder, tmp_path):
    path, made = tmp_path / "titles.safetensors", []
    vectors = encoder.encode(["a", "b", "a"])
    write_titles(["a", "b", "a"], vectors, path)
    known = read_titles(path)
    assert list(known) == ["a", "b"]

    def make() -> TitleEncoder:
        made.append(1)
        return encoder

    torch.testing.assert_close(title_vectors(["b", "a", "b"], known, make), vectors[[1, 0, 1]], rtol=0, atol=0)
    assert made == []
    torch.testing.assert_close(title_vectors(["c", "a", "c"], known, make)[0], encoder.encode(["c"])[0])
    assert made == [1]
