"""Carry out a recipe by Ray Train: `python examples/ray_train.py recipes/demo.yaml runs/demo --workers 4 --gpu`.

Each worker is a process of one job, as under `accelerate launch`. All machines must see the same file system. If a
worker is lost, Ray starts all of them again, and the run goes on from its last checkpoint.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def train(job: dict[str, Any]) -> None:
    """Carry out a recipe in a worker, which finds the others by the variables that Ray has set."""
    if not job["gpu"]:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    from prefrec.pipeline.run import run_recipe
    from prefrec.recipe import load_recipe

    run_recipe(load_recipe(Path(job["recipe"])), Path(job["out"]))


def launch(recipe: Path, out: Path, workers: int, gpu: bool = False, restarts: int = 3) -> None:
    """Start the workers, and wait for them; start them again after a failure, at most `restarts` times.

    Paths are absolute, because workers have a folder of their own. Ray's records go beside the run, into `OUT.ray`.
    """
    out = out.resolve()
    records = RunConfig(
        name=out.name,
        storage_path=str(out.with_name(f"{out.name}.ray")),
        failure_config=FailureConfig(max_failures=restarts),
    )
    TorchTrainer(
        train,
        train_loop_config={"recipe": str(recipe.resolve()), "out": str(out), "gpu": gpu},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
        run_config=records,
    ).fit()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("recipe", type=Path)
    options.add_argument("out", type=Path)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--gpu", action="store_true")
    options.add_argument("--restarts", type=int, default=3, help="Most restarts after lost workers.")
    launch(**vars(options.parse_args()))
