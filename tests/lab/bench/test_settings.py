"""What a bench may be asked for."""

import pytest
from pydantic import ValidationError

from prefrec_lab.bench import settings as module
from prefrec_lab.bench.settings import BenchSettings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        *(({"negatives": [3, 1]}, "ascending"), ({"negatives": [0]}, "greater than 0")),
        ({"methods": ["fast"]}, "'fast' is unknown; expected published, trl, separate, prefrec"),
        *(({"methods": ["prefrec"] * 2}, "each once"), ({"sections": ["all"]}, "growth")),
        ({"dtype": "float16"}, "bfloat16"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ValidationError, match=message):
        BenchSettings(**wrong)


def test_trl_must_be_there_only_where_it_is_used(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda package: None)
    with pytest.raises(ValidationError, match="run `pip install trl`"):
        BenchSettings(methods=("trl+gc", "prefrec"))
    BenchSettings(methods=("published", "prefrec"))
    BenchSettings(sections=("ranking",))
