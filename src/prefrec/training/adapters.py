"""LoRA adapters: a trainable adapter, and its frozen copy `ref` on the same base."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from rich.markup import escape
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from prefrec.console import quiet_libraries, warn
from prefrec.errors import ConfigError, ModelError
from prefrec.lm.lora import use_quick_lora
from prefrec.lm.models import SHOWN, in_one_line
from prefrec.lm.names import canonical_name
from prefrec.lm.scoring import language_model
from prefrec.training.defaults import ALL_LINEAR, RANK

MAX_RANK, MAX_TARGETS, MAX_CONFIG = 1 << 12, 1 << 14, 1 << 20
"""Maximum rank, number of layer names, and bytes of `adapter_config.json`."""
_SETTINGS: dict[str, Callable[[Any], bool]] = {
    "r": lambda v: isinstance(v, int) and 0 < v <= MAX_RANK,
    "lora_alpha": lambda v: isinstance(v, int | float) and 0 < v < 1e6,
    "lora_dropout": lambda v: isinstance(v, int | float) and 0 <= v < 1,
    "target_modules": lambda v: v == ALL_LINEAR or _are_layer_names(v),
    "base_model_name_or_path": lambda v: v is None or isinstance(v, str),
    "task_type": lambda v: v in (None, "CAUSAL_LM"),
    "bias": lambda v: v in ("none", "all", "lora_only"),
    "init_lora_weights": lambda v: v in (True, False, "gaussian"),
    **dict.fromkeys(("fan_in_fan_out", "inference_mode", "use_rslora", "use_dora"), lambda v: isinstance(v, bool)),
    # These have no effect unless the settings to which they belong are on.
    **dict.fromkeys(("peft_type", "peft_version", "revision", "megatron_core", "qalora_group_size"), lambda v: True),
}
"""Setting that an adapter's configuration may contain → check of its value. All other PEFT settings must be off."""
_LAYER_NAME = re.compile(r"\w+(\.\w+)*")
REFERENCE_ADAPTER = "ref"
"""Name of the frozen adapter, as in TRL."""
_INITS_OF_THE_ADAPTER_ALONE = (True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base as it is."""


def _are_layer_names(value: Any) -> bool:
    """Return True for a list of names; PEFT would run a text as a regular expression."""
    names = value if isinstance(value, list) and len(value) <= MAX_TARGETS else [None]
    return all(isinstance(name, str) and _LAYER_NAME.fullmatch(name) for name in names)


def lora_config(
    r: int = RANK, alpha: int | None = None, dropout: float = 0.0, targets: list[str] | str = ALL_LINEAR
) -> LoraConfig:
    """Return a LoRA configuration for a causal language model.

    Args:
        r: rank.
        alpha: numerator of the scale alpha / r. Default: 2·r.
        dropout: dropout probability on the adapter's input.
        targets: names of layers, `all-linear` (all but the head), or a regular expression of full names such as
            `model.layers.0.mlp.up_proj`.

    Raises:
        ConfigError: alpha is not positive.
    """
    if alpha is not None and alpha <= 0:
        raise ConfigError(f"lora.alpha must be positive, got {alpha}")
    if isinstance(targets, str) and targets != ALL_LINEAR and _LAYER_NAME.fullmatch(targets):
        targets = [targets]  # PEFT takes a plain text for a regular expression of the whole name
    alpha = 2 * r if alpha is None else alpha
    return LoraConfig(task_type="CAUSAL_LM", r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets)


@quiet_libraries()
def add_adapter(model: nn.Module, config: PeftConfig) -> PeftModel:
    """Return `model` with a new adapter; raise ConfigError if it does not fit, or adds tokens to the prompt.

    `config` stays as it is, so that further models can be given the same one.
    """
    if config.is_prompt_learning:
        raise ConfigError(f"peft_config: {config.peft_type.value} adds tokens to the prompt; use LoRA or IA3")
    config = copy.deepcopy(config)
    targets = getattr(config, "target_modules", None)
    modules = [f".{name}" for name, _ in model.named_modules()]
    listed = sorted(targets) if isinstance(targets, list | set | tuple) else []
    unknown = [t for t in listed if not any(name.endswith(f".{t}") for name in modules)]
    if unknown and len(unknown) < len(listed):
        warn(escape(_about_targets(model, f"the model has no layer {', '.join(unknown)}")))
    try:
        if isinstance(targets, str) and targets != ALL_LINEAR:
            # Layers are saved by name, so that loading the adapter does not run a regular expression from a file.
            config.target_modules = {n for n, _ in model.named_modules() if re.fullmatch(targets, n)}
        return get_peft_model(model, config)
    except (re.error, ValueError) as e:
        if isinstance(e, ValueError) and "target" not in str(e).lower():
            first = next(iter(str(e).splitlines()), "")
            raise ConfigError(f"peft_config: {shorten(first, SHOWN, placeholder=' …')}") from e
        # PEFT would print the entire module that does not fit, so its message is left out.
        names = ", ".join(listed) or targets or "an empty list"
        raise ConfigError(_about_targets(model, f"cannot add an adapter to {names}")) from e


def check_keeps_base(config: PeftConfig, *, is_new: bool) -> None:
    """Raise ConfigError if an adapter changes the weights of the base, which the reference shares.

    Args:
        config: that of the adapter.
        is_new: the adapter is still to be added to its base, which its initialisation may change.
    """
    bias, init = getattr(config, "bias", "none"), getattr(config, "init_lora_weights", True)
    if config.is_prompt_learning or bias != "none" or (is_new and init not in _INITS_OF_THE_ADAPTER_ALONE):
        raise ConfigError(
            f"the adapter ({config.peft_type.value}, bias {bias}, init_lora_weights {init}) changes more than its "
            "own weights, so the reference would change with the policy: use LoRA with bias='none' and "
            "init_lora_weights=True, or pass a ref_model"
        )


def _about_targets(model: nn.Module, wrong: str) -> str:
    """Return the message about invalid targets of a new adapter, with the valid ones."""
    linear: dict[str, None] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            linear[name.rpartition(".")[2]] = None
    return f"lora.targets: {wrong}; name some of the model's linear layers ({', '.join(linear)}), or {ALL_LINEAR}"


@quiet_libraries()
def load_adapter(model: nn.Module, folder: str | Path, **kwargs: Any) -> PeftModel:
    """Load an adapter into a model; warn if the adapter's configuration names another base.

    Args:
        model: the base, or a model that already has adapters.
        folder: folder of a LoRA adapter in safetensors, as saved by PEFT.
        **kwargs: arguments of `PeftModel.from_pretrained`; a model with adapters needs `adapter_name`.

    Raises:
        ModelError: the folder has no such adapter, or the adapter does not fit the model.
    """
    folder = Path(folder)
    trained_on = check_adapter(folder).get("base_model_name_or_path")
    base = str(getattr(getattr(language_model(model), "config", None), "_name_or_path", None) or "")
    bases = f" (trained on {trained_on}, loaded on {base})" if trained_on and base else ""
    with in_one_line(f"the adapter in {folder} cannot be read, or belongs to another base model{bases}"):
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), **kwargs)
        else:
            model = PeftModel.from_pretrained(model, str(folder), **kwargs)
    warn_of_other_base(folder, trained_on, base)
    use_quick_lora(model)
    return model


def warn_of_other_base(folder: Path, trained_on: str | None, base: str) -> None:
    """Warn if the adapter in `folder` was trained on another model than `base`, and both names are known."""
    if trained_on and base and canonical_name(trained_on) != canonical_name(base):
        bases = f"was trained on {trained_on}, but is loaded on {base}"
        unless = "unless these are copies of the same model, its results are meaningless"
        warn(escape(f"the adapter in {folder} {bases}: {unless}; load it on the base that it was trained on"))


def check_adapter(folder: Path) -> dict[str, Any]:
    """Return the configuration of the adapter in `folder`; raise ModelError if it is not LoRA in safetensors."""
    # PEFT would access the hub, read pickles, which can run code, or import modules named in the configuration.
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise ModelError(f"no adapter in {folder}: expected a folder with adapter_config.json")
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"{folder}: no adapter_model.safetensors; other formats are not supported")
    with in_one_line(f"the adapter in {folder} cannot be read: adapter_config.json"):
        if file.stat().st_size > MAX_CONFIG:
            raise ModelError(f"{file}: longer than {MAX_CONFIG} bytes, too large for a LoRA adapter")
        config = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelError(f"{folder}: adapter_config.json is not that of a LoRA adapter (peft_type LORA); use one")
    for name, value in config.items():
        if not _SETTINGS.get(name, lambda v: not v)(value):
            shown = shorten(f"{name}: {value!r}", SHOWN, placeholder=" …")
            raise ModelError(f"{folder}: adapter_config.json has {shown}; use a plain LoRA adapter")
    return config


def add_reference_adapter(model: PeftModel, source: str | None = None) -> None:
    """Copy an adapter to a frozen adapter named `ref`, which replaces an earlier one.

    `source` is the adapter's name, by default that of the active adapter. If it is `ref`, the adapter is only frozen.
    Raise ConfigError if there is no such adapter.
    """
    active = model.active_adapter
    source = source or active
    if source not in model.peft_config:
        raise ConfigError(f"ref_model: the model has no adapter {source!r}, only {', '.join(model.peft_config)}")
    if source != REFERENCE_ADAPTER:
        if REFERENCE_ADAPTER in model.peft_config:
            model.delete_adapter(REFERENCE_ADAPTER)
        weights = get_peft_model_state_dict(model, adapter_name=source)
        config = copy.deepcopy(model.peft_config[source])
        if hasattr(config, "init_lora_weights"):
            config.init_lora_weights = True  # others, such as PiSSA, would change the base a second time
        model.add_adapter(REFERENCE_ADAPTER, config)
        set_peft_model_state_dict(model, weights, adapter_name=REFERENCE_ADAPTER)
        model.set_adapter(active)
    for name, parameter in model.named_parameters():
        if f".{REFERENCE_ADAPTER}." in name:
            parameter.requires_grad_(False)


def read_reference_adapter(model: PeftModel, folder: Path) -> None:
    """Read the weights of the adapter `ref` from a checkpoint; raise ModelError if they cannot be read."""
    with in_one_line(f"the adapter in {folder} cannot be read, or belongs to another base model"):
        weights = load_file(folder / "adapter_model.safetensors")
        set_peft_model_state_dict(model, weights, adapter_name=REFERENCE_ADAPTER)


@contextmanager
def reference_of(model: nn.Module) -> Iterator[nn.Module]:
    """Make a model compute as the reference inside this context, without dropout.

    The reference is the adapter `ref` if there is one, otherwise the base without adapters.
    """
    was_training = model.training
    model.eval()
    # PEFT's own methods also cast or freeze parameters: autocast would keep stale copies of them, and FSDP would not
    # recognise them.
    layers = [m for m in model.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
    switch: tuple[str, Any] = ("_disable_adapters", True)
    if isinstance(model, PeftModel) and REFERENCE_ADAPTER in model.peft_config:
        switch = ("_active_adapter", [REFERENCE_ADAPTER])
    before = [getattr(layer, switch[0]) for layer in layers]
    try:
        for layer in layers:
            setattr(layer, *switch)
        yield model
    finally:
        for layer, value in zip(layers, before, strict=True):
            setattr(layer, switch[0], value)
        model.train(was_training)
