"""Carry out a recipe by Ray Train: `python examples/ray_train.py recipes/demo.yaml runs/demo --workers 4 --gpu`.

Each worker is a process of one job, as under `accelerate launch`. All machines must see the same file system.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer


def train(job: dict[str, Any]) -> None:
    """Carry out a recipe in a worker, which finds the others by the variables that Ray has set."""
    if not job["gpu"]:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    from prefrec.pipeline.run import run_recipe
    from prefrec.recipe import load_recipe

    run_recipe(load_recipe(Path(job["recipe"])), Path(job["out"]))


def launch(recipe: Path, out: Path, workers: int, gpu: bool = False) -> None:
    """Start the workers, and wait for them. Paths are absolute, because workers have a folder of their own."""
    job = {"recipe": str(recipe.resolve()), "out": str(out.resolve()), "gpu": gpu}
    TorchTrainer(train, train_loop_config=job, scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu)).fit()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("recipe", type=Path)
    options.add_argument("out", type=Path)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--gpu", action="store_true")
    launch(**vars(options.parse_args()))
