"""Names that would lead out of a run's folder: of runs, stages, rankers, studies, and paths of the page."""

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from prefrec.errors import DataError
from prefrec.pipeline.opened import open_run
from prefrec.recipe import Recipe
from prefrec_server.app import Settings, create_app
from prefrec_server.page import page_files
from prefrec_server.server import open_engine

NAMES = ["../x", "..", ".", "", "/etc", "a/b", "a\\b", "a\n", "~root", "-rf", "a\0b", ".hidden", "${HOME}", "a b"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("of", ["run", "alignment"])
def test_names_of_folders_are_names(name, of):
    raw = {"name": name} if of == "run" else {"name": "x", "align": [{"name": name}]}
    with pytest.raises(ValidationError, match="pattern"):
        Recipe.model_validate(raw)


def test_sound_names_are_taken():
    assert Recipe.model_validate({"name": "ml-100k_v1.2", "align": [{"name": "s-dpo.3"}]}).name == "ml-100k_v1.2"


@pytest.mark.parametrize("name", [n for n in NAMES if n])
def test_rankers_are_those_of_the_run(adapted_run, name):
    run = open_run(adapted_run)
    (adapted_run.parent / "x" / "adapter").mkdir(parents=True, exist_ok=True)
    for ask in (lambda: open_engine(run, [name]), lambda: run.ranker(name)):
        with pytest.raises(DataError, match="no trained model"):
            ask()


def test_the_server_makes_no_path_of_what_it_is_sent(adapted_run):
    engine = open_engine(open_run(adapted_run), ["sft"])
    app = create_app(engine, Settings("tiny", "llama", page=page_files("tiny", "llama", engine, [])))
    with TestClient(app) as client:
        assert client.get("/page.js").status_code == 200
        for path in (
            *("/../page.html.jinja2", "/%2e%2e/%2e%2e/recipe.yaml", "/..%2frecipe.yaml", "/recipe.yaml"),
            *("/page.js/../../recipe.yaml", "//etc/passwd", "/page.html.jinja2", "/page.js%00.css"),
        ):
            answer = client.get(path)
            assert answer.status_code == 404, path
            assert answer.json()["error"]["code"] == "not_found"
        for name in ("../../model", "sft/../sft", "/etc/passwd"):
            answer = client.post("/v1/rank", json={"history": [], "candidates": ["Red Emma"], "ranker": name})
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_ranker")
