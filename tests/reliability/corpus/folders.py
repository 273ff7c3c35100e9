"""Folders that a command reads: prepared data, models, adapters, runs, records of measurements."""

# ruff: noqa: E501  # a case a line is a table that can be read

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import torch

from reliability.corpus.case import Case, Content, command, damaged, write

MEASURED = '{"kind": "measurement"}\n'
LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
FEW = ("--rows", "1", "--baselines", "random")


def _data(name: str, message: str, files: Mapping[str, Content | None]) -> Case:
    return damaged(f"prepared data: {name}", message, "run/data", files, lambda p, f: ("audit", f))


def _adapter(name: str, message: str, files: Mapping[str, Content | None]) -> Case:
    def arguments(place: Any, copy: Path) -> tuple[Any, ...]:
        out = ("--no-zero-shot", "--out", copy.parent / "out")
        return ("evaluate-adapters", place.run / "data", *FEW, *place.asked, *out, "--adapter", f"a={copy}")

    return damaged(f"adapter: {name}", message, "run/sft/adapter", files, arguments)


def _model(name: str, message: str, files: Mapping[str, Content | None]) -> Case:
    def arguments(place: Any, copy: Path) -> tuple[Any, ...]:
        asked = ("--model.name", copy, "--model.dtype", "float32", "--model.max-length", "400")
        return ("evaluate-adapters", place.run / "data", *FEW, *asked, "--out", copy.parent / "out")

    return damaged(f"model: {name}", message, "model", files, arguments)


def _run(name: str, message: str, files: Mapping[str, Content | None], *verb: str) -> Case:
    def arguments(place: Any, copy: Path) -> tuple[Any, ...]:
        return tuple(str(copy) if part == "RUN" else part for part in verb or ("explain", "RUN", "--row", "0"))

    return damaged(f"run: {name}", message, "run", files, arguments)


def _rows(**columns: Any) -> bytes:
    good = {"user_id": ["u"], "history": [["i1"]], "candidates": [["i2", "i3"]], "target": ["i2"]}
    return _parquet(**(good | columns))


def _parquet(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(columns).write_parquet(buffer)
    return buffer.getvalue()


def _changed_stage(place: Any, folder: Path) -> Path:
    """A copy of the stage SFT, whole but for one bit of its weights."""
    stage = Path(shutil.copytree(place.run / "sft", folder / "sft"))
    weights = stage / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    return stage


def _pickle() -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(1)}, buffer)
    return buffer.getvalue()


def _records(name: str, message: str, files: Mapping[str, Content]) -> Case:
    def arguments(place: Any, folder: Path) -> tuple[Any, ...]:
        for file, content in files.items():
            write(folder / "bench" / file, content)
        given = ("--out", folder / "bench", "--quick", "--sections", "ranking", "--data", place.run / "data")
        return ("lab", "bench", *given)

    return command(f"records: {name}", message, arguments)


CASES = [
    command("prepared data: not there", "none: no such folder; create it with `prefrec prepare", lambda p, f: ("audit", f / "none")),
    command("prepared data: an empty folder", "is not prepared data (protocol.json is missing); run `prefrec prepare", lambda p, f: ("audit", f)),
    _data("not written to its end", "is unfinished (protocol.json is missing); run `prefrec prepare", {"protocol.json": None}),
    _data("half a protocol", "protocol.json: not valid JSON", {"protocol.json": '{"format_version": 1'}),
    _data("a protocol nested without end", "protocol.json: not valid JSON", {"protocol.json": "[" * 100_000}),
    _data("without its settings", "protocol.json: the settings of the training examples are missing; prepare the data again", {"protocol.json": '{"format_version": 3}'}),
    _data("of another version", "format version 99, but this prefrec reads version 3; prepare the data again", {"protocol.json": '{"format_version": 99}'}),
    _data("a table missing", "items.parquet: missing; prepare the data again", {"items.parquet": None}),
    _data("a table damaged", "test.parquet: damaged (", {"test.parquet": b"PAR1" + bytes(50) + b"PAR1"}),
    _data("a column missing", "test.parquet: no column 'target' of type String; prepare the data again", {"test.parquet": _parquet(user_id=["u"], history=[["a"]], candidates=[["b"]])}),
    _data("a target not in its list", "test.parquet, row 0: the target is not among the candidates; prepare the data again", {"test.parquet": _rows(target=["i9"])}),
    _data("an item unknown", "test.parquet, row 0: item 'ghost' is not in items.parquet; prepare the data again", {"test.parquet": _rows(history=[["ghost"]])}),
    command("adapter: not there", "none: expected a folder with adapter_config.json", lambda p, f: ("evaluate-adapters", p.run / "data", *FEW, *p.asked, "--no-zero-shot", "--out", f / "out", "--adapter", f"a={f / 'none'}")),
    _adapter("no configuration", "expected a folder with adapter_config.json", {"adapter_config.json": None}),
    _adapter("of a kind that there is not", "adapter_config.json is not that of a LoRA adapter", {"adapter_config.json": '{"peft_type": "MAGIC", "task_type": "CAUSAL_LM"}'}),
    _adapter("no weights", "copy", {"adapter_model.safetensors": None}),
    _adapter("half the weights", "copy cannot be read", {"adapter_model.safetensors": b"\x10\0\0\0\0\0\0\0{"}),
    _adapter("weights as pickle", "copy", {"adapter_model.safetensors": None, "adapter_model.bin": _pickle()}),
    _adapter("of another size", "copy cannot be read, or belongs to another base model", {"adapter_config.json": json.dumps(LORA)}),
    _adapter("an expression that would be run", 'adapter_config.json has target_modules: ', {"adapter_config.json": json.dumps(LORA | {"target_modules": "(.*)*!"})}),
    _adapter("settings that would import a module", "adapter_config.json has megatron_config: ", {"adapter_config.json": json.dumps(LORA | {"megatron_config": {"a": 1}})}),
    _adapter("a rank without bound", "adapter_config.json has r: 1000000000; use a plain LoRA adapter", {"adapter_config.json": json.dumps(LORA | {"r": 10**9})}),
    command("adapter: of a stage that changed", "sft is damaged or unfinished (adapter/adapter_model.safetensors)", lambda p, f: ("evaluate-adapters", p.run / "data", *FEW, *p.asked, "--no-zero-shot", "--out", f / "out", "--adapter", f"a={_changed_stage(p, f) / 'adapter'}")),
    command("model: not there", "expected a local folder with config.json, a hub id such as", lambda p, f: ("evaluate-adapters", p.run / "data", *FEW, "--out", f / "out", "--model.name", f / "none")),
    command("model: an adapter", "is an adapter, not a model: give its base as the model", lambda p, f: ("evaluate-adapters", p.run / "data", *FEW, "--out", f / "out", "--model.name", p.run / "sft" / "adapter")),
    _model("half a configuration", "copy", {"config.json": '{"model_type": "llama"'}),
    _model("of a kind that there is not", "copy", {"config.json": '{"model_type": "magic"}'}),
    _model("no weights", "copy", {"model.safetensors": None}),
    _model("weights as pickle", "copy", {"model.safetensors": None, "pytorch_model.bin": _pickle()}),
    _model("code of its own", "copy", {"config.json": '{"model_type": "magic", "auto_map": {"AutoConfig": "x.Y", "AutoModelForCausalLM": "x.Z"}}', "x.py": "raise SystemExit(9)"}),
    _model("half a tokenizer", "no tokenizer could be read from", {"tokenizer.json": '{"version"'}),
    command("run: not there", "none: there is no such folder; `prefrec run RECIPE.yaml` makes one", lambda p, f: ("explain", f / "none", "--row", "0")),
    command("run: no run", "is not the folder of a run: expected at least one of recipe.yaml", lambda p, f: ("report", p.shop)),
    _run("no recipe", "recipe.yaml: No such file or directory", {"recipe.yaml": None}),
    _run("data unfinished", "data cannot be read: data is damaged or unfinished (protocol.json)", {"data/protocol.json": None}),
    _run("a model not trained", "no trained model 'orpo'; there are zero-shot, sft, dpo, s-dpo", {}, "explain", "RUN", "--row", "0", "--ranker", "orpo"),
    _run("weights damaged", "sft is damaged (adapter/adapter_model.safetensors)", {"sft/adapter/adapter_model.safetensors": b"{"}, "serve", "RUN", "--ranker", "sft"),
    _run("exported over another folder", "exists: name a new folder, or an empty one", {}, "export", "RUN", "--out", "RUN"),
    _run("a base exported as an adapter", "zero-shot has no adapter: export it with --merged", {}, "export", "RUN", "--ranker", "zero-shot", "--out", "RUN/out"),
    _run("not evaluated", "predictions.parquet is missing, damaged or of an evaluation that did not finish", {}, "lab", "study", "fairness", "--run", "RUN", "--out", "RUN/studies"),
    _run("predictions of no kind", "predictions.parquet is missing, damaged or of an evaluation that did not finish", {"predictions.parquet": b"PAR1"}, "lab", "study", "fairness", "--run", "RUN", "--out", "RUN/studies"),
    _records("of other settings", "bench holds measurements with other settings (model 'other', now 'random:tiny'", {"settings.json": '{"model": "other"}', "records.jsonl": MEASURED}),
    _records("half the settings", "settings.json is damaged, so the settings of its measurements are unknown: choose another folder", {"settings.json": '{"model"', "records.jsonl": MEASURED}),
    _records("a line of no kind", "records.jsonl, line 2: expected a JSON object with kind, found dict", {"records.jsonl": MEASURED + "{}\n"}),
]  # fmt: skip
