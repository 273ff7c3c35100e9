"""Items as text in a recipe: what a model reads of them, and whether prompts show candidates."""

from __future__ import annotations

from prefrec.data import Catalogue
from prefrec.errors import TemplateError
from prefrec.prompts import item_texts, load_template
from prefrec.sections import ModelSection


def shown_items(model: ModelSection, catalogue: Catalogue) -> dict[str, str]:
    """Return title → text of each item by `model.item_text`; {} if it is not set.

    Raise TemplateError as `item_texts` does, and if with `answers: titles` a text does not begin with the title.
    """
    if model.item_text is None:
        return {}
    texts = dict(zip(catalogue.titles.values(), item_texts(model.item_text, catalogue.frame), strict=True))
    for title, text in texts.items() if model.answers == "titles" else ():
        # A history is also training text, in which each title is an answer to what precedes it.
        if not text.startswith(title):
            raise TemplateError(
                f"model.item_text: with `answers: titles` a text must begin with the title, but that of {title!r} is "
                f"{text!r}: write {{{{ title }}}} first"
            )
    return texts


def shows_candidates(model: ModelSection, domain: str) -> bool:
    """Return True if the model's prompt shows the candidates."""
    return model.answers == "titles" and load_template(model.templates[0], domain=domain).shows_candidates
