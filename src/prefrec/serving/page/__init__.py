"""The page of a served run: one HTML file, its style and its script, written by hand; they need no other server."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from prefrec.pipeline.recipe import SFT
from prefrec.report import curves
from prefrec.report.render import page_environment
from prefrec.report.wording import label
from prefrec.runs.contents import Stage

_environment = page_environment("prefrec.serving.page")


def page_files(
    name: str, model: str, items: int, rankers: Sequence[str], stages: Sequence[Stage]
) -> dict[str, tuple[str, bytes]]:
    """Return path → (media type, content) of the page's files; the default is the first of `rankers`."""
    html = _environment.get_template("page.html.jinja2").render(
        name=name,
        model=model,
        items=items,
        rankers=[(r, label(r)) for r in rankers],
        sides=list(zip(("left", "right"), side_by_side(rankers), strict=True)),
        sft=curves.plots(stages, "sft"),
        align=curves.plots(stages, "align"),
        colours=curves.stage_colours(stages),
    )
    folder = files(__package__)
    return {
        "/": ("text/html; charset=utf-8", html.encode()),
        "/page.css": ("text/css; charset=utf-8", (folder / "page.css").read_bytes()),
        "/page.js": ("text/javascript; charset=utf-8", (folder / "page.js").read_bytes()),
    }


def side_by_side(rankers: Sequence[str]) -> tuple[str, str]:
    """Return the two rankers that the page begins with: SFT or another one, and the default beside it."""
    default, *others = rankers
    return SFT if SFT in others else [*others, default][0], default
