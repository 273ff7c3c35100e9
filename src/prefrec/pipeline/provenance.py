"""Changes since a stage was made, in plain words: a key shows that there is one, but not which."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from prefrec.pipeline.entry import Entry, by_content

MADE_WITH = "made_with"
"""Key in `stage.json` for the inputs of a stage that trains a language model (`Ingredients.inputs`)."""


def changed_since(state: Mapping[str, Any], planned: Entry) -> list[str] | None:
    """Return the dotted names of inputs whose value differs from the one a stage was made with.

    A base that is not found does not count: it may have been moved. None: the stage did not record its inputs.
    `state` is the content of its `stage.json`, and `planned` the ranker that a run would have now.
    """
    if state.get("key") == planned.key:
        return []
    recorded = state.get(MADE_WITH)
    if not isinstance(recorded, dict) or "digests" not in recorded:
        return None
    now = json.loads(json.dumps(planned.inputs, default=str))
    if now["digests"]["name"] == now["model"]["name"]:
        now["digests"]["name"] = recorded["digests"]["name"]
    changed = _differences(by_content(recorded), by_content(now))
    return [name for name in changed if name != "start"] or changed


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [name]
    fields = {**now, **before}
    inner = [_differences(before.get(f), now.get(f), f"{name}.{f}".lstrip(".")) for f in fields]
    return [changed for names in inner for changed in names]
