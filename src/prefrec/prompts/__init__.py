"""Prompts: templates that people can replace, and the one tokenisation of them."""

from prefrec.prompts.encoding import ChoiceSet, PromptEncoder
from prefrec.prompts.templates import PromptTemplate, load_template, template_names

__all__ = ["ChoiceSet", "PromptEncoder", "PromptTemplate", "load_template", "template_names"]
