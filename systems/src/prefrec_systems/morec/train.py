"""Train MoRec, with or without its encoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from prefrec.data import PreparedData
from prefrec.files import write_text, write_whole
from prefrec.towers.title_encoder import TitleEncoder, load_encoder
from prefrec_systems.morec.config import MoRecConfig
from prefrec_systems.morec.model import MoRecModel, OnTitles
from prefrec_systems.morec.ranker import ENCODER, MODEL_FILES
from prefrec_systems.morec.titles import read_titles, title_vectors, write_titles
from prefrec_systems.sequential.task import task_of
from prefrec_systems.sequential.train import Training, for_epochs, parameter_group, random_state


def train_morec(data: PreparedData, config: MoRecConfig, out: Path, *, seed: int, epochs: int | None = None) -> Path:
    """Train MoRec and return its folder.

    After each epoch all items, including new ones, are ranked for every validation example, and the best epoch by
    NDCG@10 is kept. Interrupted training resumes after the last finished epoch. On the CPU, the same data,
    configuration and seed give the same weights.

    Args:
        data: prepared data.
        config: settings of the model and its training.
        out: folder for `MODEL_FILES`, `log.json` and a trained encoder.
        seed: of weights and batches.
        epochs: number of epochs, for data whose validation examples were added to training. Default: validation
            chooses.

    Raises:
        DataError: there is nothing to train on, or no validation example to choose the epoch.
        ModelError: the encoder does not exist, or a loss or a score is not finite.
    """
    task = task_of(data, new_items=True, is_refit=epochs is not None)
    work = out / "work"
    config = for_epochs(config, epochs)
    work.mkdir(parents=True, exist_ok=True)
    titles = data.catalogue.titles_of(task.ids)
    encoder = load_encoder(config.encoder, config.max_title_tokens) if config.tune else None
    vectors = _first_vectors(titles, config, encoder, work / "titles.safetensors")
    with random_state(seed):
        inner = MoRecModel(config, vectors.shape[1], task.history_length)
    inner.standardise_by(vectors[: task.known])
    model = OnTitles(inner, vectors, titles, task.shares(), in_batch=config.in_batch, encoder=encoder)
    groups = [parameter_group("learning_rate", inner, config)]
    if encoder is not None:
        groups.append(parameter_group("encoder_learning_rate", encoder, config))
    training = Training(task, config, model, work, seed, groups)
    training.run(config.name)
    training.load_best()
    if encoder is not None:
        encoder.model.save_pretrained(out / ENCODER)
        encoder.tokenizer.save_pretrained(out / ENCODER)
        vectors = encoder.encode(titles)
    weights_file, titles_file, description_file = (out / name for name in MODEL_FILES)
    weights = {name: t.cpu().contiguous() for name, t in inner.state_dict().items()}
    write_whole(weights_file, lambda p: save_file(weights, p))
    write_titles(titles, vectors.cpu(), titles_file)
    write_text(out / "log.json", json.dumps(training.state.log, ensure_ascii=False))
    about = {"config": config.model_dump(), "width": vectors.shape[1], **training.about()}
    write_text(description_file, json.dumps(about, ensure_ascii=False))
    shutil.rmtree(work)
    return out


def _first_vectors(titles: list[str], config: MoRecConfig, encoder: TitleEncoder | None, path: Path) -> Tensor:
    """Return the title vectors [I, H] of the untrained encoder, and keep them in `path` for a resumed run."""
    known = read_titles(path) if path.is_file() else {}
    vectors = title_vectors(titles, known, lambda: encoder or load_encoder(config.encoder, config.max_title_tokens))
    write_titles(titles, vectors, path)
    return vectors
