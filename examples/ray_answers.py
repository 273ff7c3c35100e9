"""Answer for all users by Ray Data: `python examples/ray_answers.py runs/demo users.csv answers --workers 8`.

`users.csv` has a column `user_id`; `answers` is a folder of Parquet files. Ray replaces workers that are lost.
"""

import argparse
from typing import Any

import ray

from prefrec import Recommender


class Answers:
    """A worker with the run's default ranker."""

    def __init__(self, run: str) -> None:
        self.recommender = Recommender.from_run(run)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the ten best items for the users of a batch."""
        answers = self.recommender.recommend_all(users=[str(user) for user in batch["user_id"]], k=10)
        return {column: answers[column].to_numpy() for column in answers.columns}


def answer(run: str, users: str, out: str, workers: int, gpus: float = 0, batch: int = 256) -> None:
    """Write the answers for the users of a CSV file. Each machine copies a run at an address such as `s3://…`."""
    pool = ray.data.ActorPoolStrategy(size=workers)
    each: Any = {"fn_constructor_args": (run,), "batch_size": batch, "compute": pool, "num_gpus": gpus}
    ray.data.read_csv(users).map_batches(Answers, **each).write_parquet(out)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("run")
    options.add_argument("users")
    options.add_argument("out")
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--gpus", type=float, default=0, help="GPUs per worker.")
    answer(**vars(options.parse_args()))
