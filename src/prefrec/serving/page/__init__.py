"""The page of a served run: one HTML file, its style and its script, that need no other server.

Written by hand and not with a page builder: it weighs no packages, a strict content security policy can stand
over it, and every control is a plain element that a keyboard and a screen reader know.
"""

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
    """Path → (media type, content) of the page's files.

    Args:
        name: of the run.
        model: name of the base.
        items: size of the catalogue.
        rankers: that can be asked, the default first.
        stages: whose curves are drawn.
    """
    left, right = side_by_side(rankers)
    html = _environment.get_template("page.html.jinja2").render(
        name=name,
        model=model,
        items=items,
        rankers=[(r, label(r)) for r in rankers],
        sides=[("left", left), ("right", right)],
        sft=curves.sft_plots(stages),
        align=curves.align_plots(stages),
        colours=curves.stage_colours(stages),
    )
    found = {"/": ("text/html; charset=utf-8", html.encode())}
    for file, kind in (("page.css", "text/css"), ("page.js", "text/javascript")):
        found[f"/{file}"] = (f"{kind}; charset=utf-8", (files(__package__) / file).read_bytes())
    return found


def side_by_side(rankers: Sequence[str]) -> tuple[str, str]:
    """The two rankers that the page begins with: SFT where there is one, and the default beside it."""
    default, *others = rankers
    before = SFT if SFT in others else [*others, default][0]
    return before, default
