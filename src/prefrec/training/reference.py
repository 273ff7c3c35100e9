"""Log-probabilities under the reference, computed once and cached on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft.tuners.lora import LoraLayer
from rich.markup import escape
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from xxhash import xxh3_128_digest, xxh3_128_hexdigest

from prefrec import processes
from prefrec.console import track, warn
from prefrec.files import write_whole
from prefrec.lm.attention import compute_dtype
from prefrec.lm.masks import FLEX, attention_implementation
from prefrec.lm.scorer import ChoiceScorer
from prefrec.lm.scoring import language_model
from prefrec.prompts import ChoiceSet
from prefrec.training.adapters import REFERENCE_ADAPTER, reference_of
from prefrec.training.sampler import own_batches


def reference_logps(
    scorer: ChoiceScorer,
    choice_sets: Sequence[ChoiceSet],
    *,
    batch_size: int,
    precision: Callable[[], torch.autocast],
    folder: Path,
) -> NDArray[np.float32]:
    """Return the log-probabilities [n, C] of all answers under the reference, from a cache if possible.

    Entries beyond the answers of a choice set are −inf. All processes must call this function: each computes its
    share, and the first one reads and writes the file.

    Args:
        scorer: the policy's scorer. The reference is its adapter `ref`, its base, or (without PEFT) the model itself.
        choice_sets: n choice sets with up to C answers.
        batch_size: choice sets per batch.
        precision: returns the autocast context of a batch.
        folder: folder of the cache.
    """
    key = reference_key(scorer, choice_sets, precision) if processes.is_first() else ""
    cache = folder / f"reference-{key[:16]}.safetensors"
    stored = read_logps(cache, key)
    if stored is not None:
        return stored
    with reference_of(scorer.model):
        out = answer_logps(scorer, choice_sets, batch_size, precision, "reference log-probs")
    write_logps(cache, key, out)
    return out


def answer_logps(
    scorer: ChoiceScorer,
    choice_sets: Sequence[ChoiceSet],
    batch_size: int,
    precision: Callable[[], torch.autocast],
    doing: str,
) -> NDArray[np.float32]:
    """Return the log-probabilities [n, C] of all answers, −inf beyond them; all processes share the work."""
    computed = []
    for rows in track(own_batches(choice_sets, batch_size, share=scorer.share), doing):
        with precision():
            computed.append((rows, scorer.score([choice_sets[i] for i in rows]).cpu().numpy()))
    out = np.full((len(choice_sets), max(len(c.answers) for c in choice_sets)), -np.inf, dtype=np.float32)
    for rows, values in processes.pool(computed):
        out[rows, : values.shape[1]] = values
    return out


def reference_key(
    scorer: ChoiceScorer, choice_sets: Sequence[ChoiceSet], precision: Callable[[], torch.autocast]
) -> str:
    """Return a hash of everything on which the log-probabilities under the reference depend.

    These are the weights of the frozen base and of the adapter `ref` with its scaling, the configuration, the tokens,
    layout, dtype and precision, and the attention implementation.
    """
    model = scorer.model
    core = language_model(model)
    with precision():
        dtype = compute_dtype(core, scorer.device)
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    scaling = [layer.scaling[REFERENCE_ADAPTER] for layer in layers if REFERENCE_ADAPTER in layer.scaling]
    kernel = attention_implementation(core.config)
    # Versions up to 0.2.0 let FlexAttention read shared rows, and read them wrongly. Their files must not be found.
    kernel += ", own rows" if kernel == FLEX else ""
    computed = torch.get_float32_matmul_precision(), kernel
    digest = hashlib.sha256(f"{scorer.layout} {dtype} {computed} {scaling}".encode())
    digest.update(json.dumps(core.config.to_diff_dict(), sort_keys=True, default=str).encode())
    if (within := scorer.within) is not None:
        digest.update(within.trie.tokens.tobytes() + within.trie.parents.tobytes())
    for name, tensor in model.state_dict().items():
        if "lora_" in name and f".{REFERENCE_ADAPTER}." not in name:
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        # A fast hash for gigabytes of weights. It need not be cryptographic.
        digest.update(xxh3_128_digest(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()))
    for choices in choice_sets:
        digest.update(np.array([len(choices.prompt), *choices.prompt], dtype=np.int64).tobytes())
        for answer in choices.answers:
            digest.update(np.array([len(answer), *answer], dtype=np.int64).tobytes())
    return digest.hexdigest()


def read_logps(cache: Path, key: str) -> NDArray[np.float32] | None:
    """Return the values that `write_logps` wrote with this key; None if they are missing or damaged.

    The first process reads the file for all.
    """
    return processes.from_first(_read(cache, key) if processes.is_first() else None)


def _read(cache: Path, key: str) -> NDArray[np.float32] | None:
    if not cache.is_file():
        return None
    try:
        with safe_open(cache, framework="numpy") as f:
            metadata = f.metadata() or {}
            values = f.get_tensor("ref_logps")
            is_whole = metadata["digest"] == xxh3_128_hexdigest(values.tobytes())
    except (SafetensorError, OSError, KeyError, ValueError) as e:
        warn(f"{escape(str(cache))} cannot be read and will be computed again: {escape(str(e))}")
        return None
    if not is_whole:
        warn(f"{escape(str(cache))} is damaged and will be computed again")
    return values if is_whole and metadata.get("key") == key else None


def write_logps(cache: Path, key: str, values: NDArray[np.float32]) -> None:
    """Write values with a key, in the first process."""
    if not processes.is_first():
        return
    cache.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"key": key, "digest": xxh3_128_hexdigest(values.tobytes())}
    # `save_file` would use a temporary file of its own, which a kill would leave behind forever.
    write_whole(cache, lambda p: p.write_bytes(save({"ref_logps": values}, metadata)))
