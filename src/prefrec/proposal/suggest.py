"""A preset that suits what was guessed from a log and a catalogue, for `prefrec init` and `prefrec.fit`."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from prefrec.presets import PresetName, preset_text
from prefrec.proposal.guess import Guess

LARGE = 40_000
"""Interactions from which SFT takes batches of 32 at twice the learning rate, and two epochs instead of four.

With fewer, it would have too few steps.
"""

_FEWER_EPOCHS = "\n  epochs: 2                     # four are not better for large logs\n"
_LARGER_BATCHES = "\n  global_batch_size: 32         # 8 takes up to 1.7 times as long\n  per_device_batch_size: 32"


def longest_history(preset: str) -> int:
    """Return the most items of a history to guess for a preset."""
    # In the paper's prompts, the history shares the space with the candidates.
    return 10 if preset == "paper" else 30


def fitting_preset(name: PresetName, found: Guess) -> str:
    """Return a preset as YAML, adapted to the data.

    It has no more negatives than there are items, larger batches and fewer epochs for a large log, a suggested
    `item_text`, and in its blend the columns of the catalogue that look like attributes.
    """
    text = preset_text(name)

    def fewer(given: re.Match[str]) -> str:
        # With negatives from candidate sets, the others in the set are the limit.
        room = found.values["candidates"]["size"] - 1 if "negatives_from: list" in text else found.room
        return given[0] if int(given[1]) <= room else f"num_negatives: {max(room, 1)} # no more items are left"

    text = re.sub(r"num_negatives: (\d+)( *#.*)?", fewer, text)
    if found.values.get("repeats") == "keep":
        text = text.replace("    parts: [", "    parts: [buy again, ")
    if found.attributes:
        why = "columns of the items, compared with the history"
        line = yaml_line("    attributes", found.attributes, why)
        text = re.sub(r"\n    select: true", lambda select: f"\n{line}{select[0]}", text)
    if found.interactions >= LARGE and "answers: items" in text:
        text = text.replace("\n  epochs: 4\n", _FEWER_EPOCHS)
        text = re.sub(r"\n  per_device_batch_size: 8\b.*", _LARGER_BATCHES, text)
        text = text.replace("\n  learning_rate: 3.0e-4\n", "\n  learning_rate: 6.0e-4\n")
    if found.values.get("unseen_items"):
        why = "remove the first # to give a tenth of the places to items without interactions"
        text += f"\n# {yaml_line('answers', {'new_every': 10}, why)}\n"
    if found.item_text:
        line = yaml_line("item_text", found.item_text, "remove the first # to show items like this to the model")
        text = text.replace("\nmodel:\n", f"\nmodel:\n  # {line}\n")
    return text


def yaml_line(key: str, value: Any, why: str = "") -> str:
    """Return a line of YAML with the reason for the value as a comment."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=math.inf)
    line = f"{key}: {text.removesuffix('...' + chr(10)).strip()}"
    return f"{line:<31} # {' '.join(why.split())}" if why else line
