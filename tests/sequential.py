"""What tests of GRU4Rec, Caser and SASRec share: the mark for those that need hopwise, small sizes."""

from __future__ import annotations

import pytest

from prefrec.errors import ConfigError
from prefrec_systems.sequential import require_hopwise

SMALL = {
    "GRU4Rec": {"embedding_size": 8, "hidden_size": 8},
    "Caser": {"embedding_size": 8},
    "SASRec": {"hidden_size": 8, "inner_size": 16, "n_layers": 1},
}
"""Model → settings with which a tiny log takes seconds."""

try:
    require_hopwise()
except ConfigError as e:
    needs_hopwise = pytest.mark.skip(reason=str(e))
else:
    needs_hopwise = pytest.mark.filterwarnings("default::UserWarning")
