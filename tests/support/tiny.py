"""Tiny models and a tokenizer for unit tests."""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 400

CORPUS = [
    "A viewer watched these movies, the latest one last:",
    "Which of these movies does the viewer watch next?",
    "The next movie: It Happened One Night",
    "Toy Story Heat Alien Aliens The Matrix Emma Babe Fargo GoldenEye (500) Days: Part Two",
    "…And Justice for All 12 Angry Men Mr. Holland's Opus Café Amélie",
    "user assistant question answer",
]

PROMPT = (1, 2, 3, 4)
ANSWERS = ((5, 6, 9), (5, 9), (7, 9), (7, 8, 9), (10, 11, 12, 9), (10, 11, 13, 9), (14, 9))
"""A catalogue of seven titles as tokens; 9 ends a title."""


def tiny_llama(vocab_size: int = VOCABULARY, *, seed: int = 0, **settings: Any) -> LlamaForCausalLM:
    """A random two-layer Llama whose weights are scaled ×4: with small ones a wrong mask hardly shows."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 512}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **{**sizes, **heads, **settings}))
    return _times(model, 4).eval()


def small_llama() -> LlamaForCausalLM:
    """A tiny Llama with weights of the usual size."""
    return _times(tiny_llama(), 1 / 4)


@torch.no_grad()
def _times(model: LlamaForCausalLM, factor: float) -> LlamaForCausalLM:
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(factor)
    return model


class _Broken(LlamaForCausalLM):
    """A Llama that does not do what it is told, as a model of an unknown architecture might."""

    fault = ""

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, **kwargs: Any
    ) -> Any:
        if attention_mask is not None and attention_mask.dim() == 4:
            if self.fault == "refuses the mask":
                raise ValueError(f"a mask of shape [{attention_mask.shape}] is no mask")
            if self.fault == "ignores the mask":
                attention_mask = None
            if self.fault == "ignores positions":
                position_ids = None
        return super().forward(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )


def broken(model: LlamaForCausalLM, fault: str = "ignores the mask") -> LlamaForCausalLM:
    """`model`, that from now on `ignores the mask` of a packed batch, `ignores positions` or `refuses the mask`."""
    model.__class__ = _Broken
    model.fault = fault
    return model


def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2, Llama 3 and SmolLM use it."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special, alphabet = ["<|im_start|>", "<|im_end|>"], pre_tokenizers.ByteLevel.alphabet()
    given = {"special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    raw.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=VOCABULARY, **given))
    roles = {"bos_token": special[0], "eos_token": special[1], "pad_token": special[1]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **roles)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer
