"""The web page of a served run: hand-written HTML, CSS and JavaScript that load nothing from other servers."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from prefrec.report.curves import training_plots
from prefrec.report.render import page_environment
from prefrec.report.wording import label
from prefrec.runs.contents import StageLog
from prefrec.sections import SFT
from prefrec_server.engine import Engine

NEIGHBOURS = ("window co-occurrence", "item-kNN", "co-occurrence")
"""Rankers to compare with a language model when the page opens; the first one that is served is used."""
TOGETHER = (*NEIGHBOURS, "EASE", "transition graph")
"""Rankers, also as parts of a blend, whose scores say what is chosen together."""
BY_TITLES = ("title TF-IDF",)
"""Rankers whose scores say that titles are alike."""
VERBS = {"movies": "watched", "music": "played", "books": "read"}
"""Domain of the data → what customers did with the titles. Default: bought."""
_environment = page_environment("prefrec_server.page", "prefrec.report")


def page_files(name: str, model: str, engine: Engine, stages: Sequence[StageLog]) -> dict[str, tuple[str, bytes]]:
    """Return path → (media type, content) of the page's files.

    Args:
        name: name of the run.
        model: name of the base model.
        engine: rankers and items that are served.
        stages: stages of the run, for plots of training.
    """
    frame = engine.items.catalogue.frame
    kinds = ("Language models", engine.models), ("Others", [r for r in engine.rankers if r not in engine.models])
    columns = [c for c in frame.columns if c not in ("item_id", "title")]
    html = _environment.get_template("page.html.jinja2").render(
        name=name,
        model=model,
        items=len(frame),
        kinds=[(kind, [(r, label(r)) for r in rankers]) for kind, rankers in kinds if rankers],
        models=engine.models,
        verb=VERBS.get(engine.data.domain, "bought"),
        together=TOGETHER,
        by_titles=BY_TITLES,
        default=engine.rankers[0],
        default_label=label(engine.rankers[0]),
        for_new=engine.for_new,
        for_new_label=label(engine.for_new),
        sides=list(zip(("left", "right"), side_by_side(engine.rankers), strict=True)),
        columns=frame.columns,
        excludes_seen=not engine.data.keeps_repeats,
        groups=[c for c in columns if not frame.schema[c].is_nested()],
        training=training_plots(stages),
    )
    folder, plots = files(__package__), files("prefrec.report") / "plots.css"
    scripts = [file for file in folder.iterdir() if file.name.endswith(".js")]
    return {
        "/": ("text/html; charset=utf-8", html.encode()),
        "/page.css": ("text/css; charset=utf-8", plots.read_bytes() + (folder / "page.css").read_bytes()),
    } | {f"/{file.name}": ("text/javascript; charset=utf-8", file.read_bytes()) for file in scripts}


def side_by_side(rankers: Sequence[str]) -> tuple[str, str]:
    """Return the two rankers to show when the page opens: the server's default, and one to compare with.

    The second is a neighbour ranker, SFT or any other; if the default is a neighbour ranker, it is the next ranker.
    """
    default, *others = rankers
    beside = others if default in NEIGHBOURS else (*NEIGHBOURS, SFT, *others)
    return default, next((name for name in beside if name in others), default)
