"""Serve a run by Ray Serve: `python examples/ray_serve.py runs/demo --most 4 --gpus 1`.

Ray spreads the requests over the replicas, starts more of them while requests wait, stops those without work, and
replaces those that are lost. Each replica opens the run, or copies it from an address such as `s3://…`, and answers
like `prefrec serve`.
"""

import argparse
import os
from pathlib import Path

from fastapi import FastAPI
from ray import serve

from prefrec.pipeline.opened import open_run
from prefrec.runs.remote import local_run
from prefrec_server.app import Settings, create_app
from prefrec_server.server import open_engine


def application(run: str, fewest: int, most: int, gpus: float = 0) -> serve.Application:
    """Return the application of Ray Serve, with `fewest` to `most` replicas.

    Requests that reach a replica together share passes through the model, so a replica is full with 16 of them.
    """
    place = str(Path(run).resolve()) if Path(run).exists() else run

    def app() -> FastAPI:  # Ray calls it in each replica
        opened = open_run(local_run(place))
        key = os.environ.get("PREFREC_API_KEY")
        settings = Settings(opened.recipe.name, opened.recipe.model.name, api_key=key, folder=opened.folder.name)
        return create_app(open_engine(opened), settings)

    scale = {"min_replicas": fewest, "max_replicas": most, "target_ongoing_requests": 16}
    options = {"autoscaling_config": scale, "max_ongoing_requests": 64, "ray_actor_options": {"num_gpus": gpus}}
    return serve.deployment(serve.ingress(app)(), name="prefrec", **options).bind()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--fewest", type=int, default=1, help="Replicas without requests.")
    parser.add_argument("--most", type=int, default=2, help="Replicas under load.")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs per replica.")
    given = parser.parse_args()
    serve.run(application(given.run, given.fewest, given.most, given.gpus), blocking=True)
