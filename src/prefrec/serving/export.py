"""A ranker of a run as a folder that other servers and the hub take: adapter or merged model, tokenizer, card."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from prefrec.errors import ConfigError, ModelError
from prefrec.files import clear_drafts, draft_name, storage_error, writing
from prefrec.lm.models import DTYPES, EMBEDDED, EMBEDDED_HUB_ID, load_model, load_tokenizer, resolve_dtype
from prefrec.pipeline.opened import Run
from prefrec.prompts import load_template
from prefrec.runs.contents import read_run
from prefrec.serving.card import model_card
from prefrec.serving.scorer import load_rankers
from prefrec.training.adapters import check_adapter, is_adapter, warn_of_other_base


def export_ranker(run: Run, ranker: str, out: Path, *, merged: bool = False) -> Path:
    """Write a ranker of a run to the folder `out`, which must be new or empty; returns it.

    An adapter comes as `adapter_config.json` and `adapter_model.safetensors`; a merged model as `config.json`
    and `model.safetensors`, merged in float32 and stored in the recipe's dtype. Both come with the tokenizer, the
    prompt (`prompt.jinja2`) and a model card (`README.md`). The folder is there whole or not at all;
    what a killed export to `out` has left beside it goes, as `clear_drafts` says.

    Args:
        run: from `prefrec.pipeline.opened.open_run`.
        ranker: name of one of its language models.
        out: folder to write.
        merged: the adapter added to the base's weights; for `zero-shot`, the base itself.

    Raises:
        DataError: the run has no such ranker.
        ConfigError: `out` is taken or cannot be made, or the bare base is asked for as an adapter.
        ModelError: model or adapter cannot be read.
    """
    adapter = run.entry(ranker).weights
    if adapter is None and not merged:
        raise ConfigError(f"{ranker} is the bare base, which has no adapter: export it with --merged")
    if run.recipe.model.answers == "items":
        raise ConfigError(f"{ranker} answers with items as tokens, which other software does not read: use `serve`")
    if adapter is not None and not is_adapter(adapter) and not merged:
        raise ConfigError(f"{ranker} has no adapter, as all its weights were trained: export it with --merged")
    out = Path(out)
    draft = _draft_of(out)
    try:
        with writing(out):
            if merged:
                _write_merged(run, ranker, adapter, draft)
            else:
                _write_adapter(run, cast(Path, adapter), draft)
            load_tokenizer(run.recipe.model.name).save_pretrained(draft)
            template = load_template(run.recipe.model.templates[0], domain=run.data.domain)
            (draft / "prompt.jinja2").write_text(template.source, encoding="utf-8")
            card = model_card(read_run(run.folder), run.recipe, ranker, base_id(run.recipe.model.name), merged=merged)
            (draft / "README.md").write_text(card, encoding="utf-8")
        _open_to_others(draft)
        try:
            draft.replace(out)
        except OSError as e:
            raise ConfigError(f"{out} cannot be made ({e.strerror}): name a new folder, or one in it") from e
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return out


def base_id(name: str) -> str:
    """How an exported adapter calls its base: a hub id, or the local folder as the recipe names it."""
    return EMBEDDED_HUB_ID if name == EMBEDDED else name


def _draft_of(out: Path) -> Path:
    """A new folder beside `out`, to become it.

    Raises:
        ConfigError: `out` is taken, or no folder can be made there.
        StorageError: there is no room, or no right to write.
    """
    if out.name in ("", ".."):
        raise ConfigError(f"{out}: name a new folder in it, as {out / 'exported'}")
    if out.is_symlink():
        raise ConfigError(f"{out} is a link: name the folder that it leads to, or a new one")
    try:
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise ConfigError(f"{out} exists: name a new folder, or an empty one")
        out.parent.mkdir(parents=True, exist_ok=True)
        clear_drafts(out)
        name = Path(draft_name(out))
        return Path(tempfile.mkdtemp(name.suffix, f"{name.stem}.", out.parent))
    except OSError as e:
        unmade = ConfigError(f"{out.parent} is no folder, and none can be made ({e.strerror}): name another --out")
        raise storage_error(e, out) or unmade from e


def _open_to_others(folder: Path) -> None:
    """Give the folder and its files the rights of what is made the usual way.

    A temporary folder is its maker's alone, and so is what safetensors writes.
    """
    usual = (folder / "README.md").stat().st_mode & 0o666
    for path in folder.iterdir():
        path.chmod(usual)
    folder.chmod(usual | (usual & 0o444) >> 2)


def _write_adapter(run: Run, adapter: Path, out: Path) -> None:
    check_adapter(adapter)
    warn_of_other_base(adapter, run.recipe.model.name)
    try:
        config: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = base_id(run.recipe.model.name)  # not a path in this machine's cache
        config["inference_mode"] = True
        shutil.copyfile(adapter / "adapter_model.safetensors", out / "adapter_model.safetensors")
    except (OSError, ValueError) as e:
        raise storage_error(e, out) or ModelError(f"the adapter in {adapter} cannot be read: {e}") from e
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_merged(run: Run, ranker: str, adapter: Path | None, out: Path) -> None:
    section = run.recipe.model
    model: nn.Module
    if adapter is None:
        model = load_model(section.name, dtype="float32", layers=section.layers)
    else:
        models, _ = load_rankers(section.name, "float32", {ranker: adapter}, layers=section.layers)
        model = models[ranker]
        if isinstance(model, PeftModel):
            _untie_adapted(model)
            model = cast(nn.Module, model.merge_and_unload(safe_merge=True))
    whole: Any = model.to(DTYPES[resolve_dtype(section.dtype)])
    # Weights from a GGUF file are plain by now; a configuration that still says "gguf" would refuse to be saved.
    for owner, attribute in ((whole, "hf_quantizer"), (whole.config, "quantization_config")):
        if hasattr(owner, attribute):
            delattr(owner, attribute)
    whole.save_pretrained(out)


def _untie_adapted(model: PeftModel) -> None:
    """Give the head weights of its own where it shares them with the embedding and one of the two has an adapter.

    What is merged into one of them would change both.
    """
    base: Any = model.get_base_model()
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    if not any(isinstance(layer, BaseTunerLayer) for layer in (embedding, head)):
        return
    below = [layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer for layer in (embedding, head)]
    if below[0].weight is not below[1].weight:
        return
    below[1].weight = nn.Parameter(below[1].weight.detach().clone(), requires_grad=False)
    for config in (base.config, base.config.get_text_config()):
        config.tie_word_embeddings = False
