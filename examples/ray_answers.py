"""Answer for all users by Ray Data: `python examples/ray_answers.py runs/demo users.csv answers --workers 8`.

`users.csv` has a column `user_id`; `answers` is a folder of Parquet files. Ray replaces workers that are lost. After
a stop the same command goes on with the users who have no answers yet.
"""

import argparse
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet
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


def answered_users(out: str) -> set[str]:
    """Return the users whose answers are in the folder, after removing files that a stop has cut off."""
    filesystem, folder = fsspec.core.url_to_fs(out)
    users: set[str] = set()
    for file in filesystem.glob(f"{folder}/*.parquet"):
        try:
            table = pyarrow.parquet.read_table(file, columns=["user_id"], filesystem=filesystem)
        except pyarrow.ArrowInvalid:
            filesystem.rm(file)
        else:
            users.update(table["user_id"].unique().to_pylist())
    return users


def answer(run: str, users: str, out: str, workers: int, gpus: float = 0, batch: int = 256) -> None:
    """Write the answers for the users of a CSV file. Each machine copies a run at an address such as `s3://…`.

    The users are divided into blocks of at most `batch`, so that all workers have work even if the file is small, and
    what is finished is written.
    """
    done = ray.put(answered_users(out))

    def without_answers(rows: dict[str, Any]) -> dict[str, Any]:
        answered = ray.get(done)
        is_left = [str(user) not in answered for user in rows["user_id"]]
        return {"user_id": rows["user_id"][is_left]}

    left = ray.data.read_csv(users).map_batches(without_answers).materialize()
    if left.count() == 0:
        return
    pool = ray.data.ActorPoolStrategy(size=workers)
    each: Any = {"fn_constructor_args": (run,), "batch_size": batch, "compute": pool, "num_gpus": gpus}
    blocks = left.repartition(-(-left.count() // batch))
    blocks.map_batches(Answers, **each).write_parquet(out)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("run")
    options.add_argument("users")
    options.add_argument("out")
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--gpus", type=float, default=0, help="GPUs per worker.")
    options.add_argument("--batch", type=int, default=256, help="Users in a block.")
    answer(**vars(options.parse_args()))
