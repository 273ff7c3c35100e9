"""Load language models by name: the embedded SmolLM2, a local folder, or a hub id."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, cast

import torch
from rich.markup import escape
from torch import nn
from torch.nn import ModuleList

from prefrec.console import quiet_libraries, warn
from prefrec.cpu.linear import use_onednn
from prefrec.cpu.timing import processor_seconds
from prefrec.errors import ModelError, did_you_mean
from prefrec.lm.liger import use_liger
from prefrec.lm.names import random_and_quantized, resolve

if TYPE_CHECKING:
    # transformers takes seconds to import, so functions do it: commands that load no model start at once.
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SAFE = {"use_safetensors": True, "trust_remote_code": False}
"""Default options for loading weights: no pickle, and no code from the checkpoint."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTENTION = ("auto", "sdpa", "eager", "flex_attention")
QUANTIZATION = ("none", "nf4", "nf4-double")
SIZES = {
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 10,
    "num_key_value_heads": 1 << 10,
    "head_dim": 1 << 12,
    "num_experts": 1 << 12,
    "num_local_experts": 1 << 12,
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 20,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 24,
}
"""Upper limits on model sizes: a configuration of a few bytes could demand any number of layers."""
SHOWN = 300
"""Maximum characters of a library's message; torch lists every weight that does not fit."""
FASTER = 1.3
"""`auto` chooses bfloat16 if its products are this many times as fast as those in float32."""


@cache
def resolve_dtype(dtype: str) -> str:
    """Return `dtype`, with `auto` resolved to the fastest dtype on this machine.

    A CPU is timed once per process, in seconds of the processor, so that other processes do not change the choice and
    with it the results. A GPU gets bfloat16 if it supports it natively.
    """
    if dtype != "auto":
        return dtype
    if default_device().type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if FASTER * _product_seconds(torch.bfloat16) < _product_seconds(torch.float32) else "float32"


def _product_seconds(dtype: torch.dtype) -> float:
    """Return the processor time of a matrix product of a layer's size."""
    left, right = torch.ones(512, 768, dtype=dtype), torch.ones(768, 1536, dtype=dtype)
    return processor_seconds(lambda: left @ right)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model `name` (see `load_model`); raise ModelError if it cannot be read."""
    from transformers import AutoTokenizer

    folder = resolve(name)
    with in_one_line(f"no tokenizer could be read from {folder!r}"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


@quiet_libraries()
def load_model(
    name: str,
    *,
    dtype: str | torch.dtype = "auto",
    attn_implementation: str = "auto",
    quantization: str = "none",
    layers: int | Sequence[int] | None = None,
    random_weights: bool = False,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a causal language model in evaluation mode, with the fastest linear layers for this machine.

    Args:
        name: `smollm2-135m` (the embedded model), a local folder, or a hub id.
        dtype: one of `DTYPES`, as a name or as torch's dtype, or `auto` (see `resolve_dtype`).
        attn_implementation: one of `ATTENTION`; `auto`: the choice of transformers (`sdpa` for most models).
        quantization: `nf4`: store the layers' matrices in 4 bits (`bitsandbytes`), on this process's GPU if there is
            one, to train adapters on them; products are computed in `dtype`. `nf4-double`: also store their scales in
            8 bits.
        layers: keep the first N layers, or the layers with these 0-based indices. Default: all.
        random_weights: initialise the weights at random, as a control.
        **kwargs: passed to `AutoModelForCausalLM.from_pretrained`.

    Raises:
        ModelError: the model does not exist, or cannot be loaded in this form.
    """
    from transformers import AutoModelForCausalLM

    dtype = resolve_dtype(str(dtype).removeprefix("torch."))
    for value, known, what in (
        (dtype, DTYPES, "dtype"),
        (attn_implementation, ATTENTION, "attn_implementation"),
        (quantization, QUANTIZATION, "quantization"),
    ):
        if value not in known:
            raise ModelError(
                f"unknown {what} {value!r}: expected one of {', '.join(known)}{did_you_mean(value, known)}"
            )
    if random_weights and quantization != "none":
        raise ModelError(random_and_quantized(quantization))
    folder = resolve(name)
    options = SAFE | ({} if attn_implementation == "auto" else {"attn_implementation": attn_implementation})
    with in_one_line(f"no causal language model could be read from {folder!r}"):
        config = read_config(folder)
        if Path(folder).is_dir():
            check_size(Path(folder), config)
        if quantization != "none":
            options |= _nf4(folder, config, DTYPES[dtype], quantization == "nf4-double")
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=DTYPES[dtype], output_loading_info=True, **(options | kwargs)
        )
    if missing := sorted(info["missing_keys"]):
        count = f"{len(missing)} weights are not in the checkpoint and start at random"
        warn(f"{escape(folder)}: {count}, {missing[0]} first")
    if quantization != "none":
        _compute_alike(model)
    if layers is not None:
        _keep_layers(model, layers)
    if random_weights:
        model = AutoModelForCausalLM.from_config(model.config).to(DTYPES[dtype])
    use_onednn(model)
    model.eval()
    return model


def vocabulary_size(name: str) -> int:
    """Return the number of word vectors of the model `name` (see `load_model`)."""
    folder = resolve(name)
    with in_one_line(f"no configuration of a model could be read from {folder!r}"):
        return int(read_config(folder).get_text_config().vocab_size)


@contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """Turn any library's exception in this context into a ModelError of one line, which begins with `what`."""
    # Invalid files make transformers, tokenizers and PEFT raise any class of exception.
    try:
        yield
    except ModelError:
        raise
    except BaseException as e:
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":  # raised by Rust code
            raise
        kind = f"{type(e).__name__}: " if isinstance(e, LookupError | TypeError | AttributeError) else ""
        reason = shorten(str(e).strip() or type(e).__name__, SHOWN, placeholder=" …")
        raise ModelError(f"{what}: {kind}{reason}") from e


def read_config(folder: str) -> PreTrainedConfig:
    """Return the configuration of a model at `folder` (or a hub id); raise ModelError if it exceeds `SIZES`."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    text = config.get_text_config()
    for name, most in SIZES.items():
        value = getattr(text, name, None)  # None if the architecture has no such size, a list for one per layer
        values = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(v, int) and 0 < v <= most for v in values):
            shown = shorten(repr(value), 50, placeholder="…")
            raise ModelError(f"{folder}: config.json: {name} is {shown}; expected an integer from 1 to {most}")
    return config


def check_size(folder: Path, config: PreTrainedConfig) -> None:
    """Raise ValueError if a configuration has more weights than the safetensors in `folder` can contain."""
    from transformers import AutoModelForCausalLM

    # Even within `SIZES`, a configuration could demand more memory than a machine has. A weight has at least 4 bits.
    held = 2 * sum(file.stat().st_size for file in folder.glob("*.safetensors") if file.is_file())
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(deepcopy(config), attn_implementation="eager")
    needed = sum(p.numel() for p in model.parameters())
    if held and needed > held:
        raise ValueError(f"config.json needs {needed:,} weights, but the safetensors contain at most {held:,}")


def default_device() -> torch.device:
    """Return this process's GPU, or the CPU if there is none or `accelerate launch --cpu` is in use."""
    use_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    if use_cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def hold_weights(model: nn.Module) -> nn.Module:
    """Move a model to the default device, and copy memory-mapped weights into memory."""
    # Weights on a CPU are mapped from their files. A file that changes would change results, and one that becomes
    # shorter would kill the process.
    model.to(default_device())
    use_liger(model, default_device())
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()
    return model


def is_quantized(model: Any) -> bool:
    """Return True if the matrices of a transformers model are in 4 or 8 bits."""
    return bool(getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False))


def _nf4(folder: str, config: PreTrainedConfig, dtype: torch.dtype, double: bool) -> dict[str, Any]:
    """Return the options of `from_pretrained` for NF4 (arXiv 2305.14314); with `double`, scales are in 8 bits."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("quantization 'nf4' needs bitsandbytes: pip install bitsandbytes")
    if "quantization_config" in config.to_dict():
        raise ModelError(f"{folder!r} is already quantised: set `quantization` to none, or use unquantised weights")
    from transformers import BitsAndBytesConfig

    settings = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": double, "bnb_4bit_compute_dtype": dtype}
    form = BitsAndBytesConfig(load_in_4bit=True, **settings)
    return {"quantization_config": form, "device_map": {"": default_device()}}


def _keep_layers(model: PreTrainedModel, layers: int | Sequence[int]) -> None:
    config = model.config.get_text_config()
    count = config.num_hidden_layers
    kept = range(layers) if isinstance(layers, int) else list(layers)
    if list(kept) != sorted(set(kept)) or not kept or not 0 <= kept[0] <= kept[-1] < count:
        way_out = "0-based indices in ascending order"
        if isinstance(layers, int):
            way_out = f"a number from 1 to {count}, or a list of {way_out}"
        raise ModelError(f"layers: got {layers}, but the model has {count} layers: give {way_out}")
    children = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    for parent, name, stack in children:
        if isinstance(stack, ModuleList) and len(stack) == count:
            setattr(parent, name, ModuleList(stack[i] for i in kept))
            for number, i in enumerate(kept):
                for module in stack[i].modules():
                    if hasattr(module, "layer_idx"):  # a layer's index in the cache of keys and values
                        cast(Any, module).layer_idx = number
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in kept]


def _compute_alike(model: PreTrainedModel) -> None:
    """Make 4-bit layers on a CPU compute in evaluation mode as they do in training."""
    # bitsandbytes would evaluate in bfloat16, whatever the dtype: at step 0 the reference would differ from the
    # policy. It also fails for matrices whose rows are not a multiple of its blocks.
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
