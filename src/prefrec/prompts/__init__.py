"""Prompt templates and their tokenisation."""

from prefrec.prompts.encoding import MAX_LENGTH, ChoiceSet, PromptEncoder
from prefrec.prompts.templates import PromptTemplate, item_texts, load_template, template_names
from prefrec.prompts.trajectories import Trajectory, TrajectoryEncoder

__all__ = [
    "MAX_LENGTH", "ChoiceSet", "PromptEncoder", "PromptTemplate", "Trajectory", "TrajectoryEncoder", "item_texts",
    "load_template", "template_names",
]  # fmt: skip
