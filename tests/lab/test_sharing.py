"""prefrec_lab.sharing: differences between shared calls and each question alone are found, and told as they are."""

import numpy as np
import pytest

from prefrec.data import RankingExample
from prefrec_lab.sharing import Sharing, sharing

ROWS = [RankingExample("u", (history,), ("a", "b", "c"), "a") for history in ("x", "y", "z")]


class Rounded:
    """A model whose second question gets other scores in a shared call: the best two change places, or do not."""

    def __init__(self, has_items, gap):
        self.has_items, self.gap = has_items, gap

    def item_logps(self, histories):
        for n, _ in enumerate(histories):
            yield np.array([-1.0 - self.gap * (n == 1), -1.25, -3.0], dtype=np.float32)

    def score(self, examples):
        return np.stack([*self.item_logps([e.history for e in examples])]).astype(float)


@pytest.mark.parametrize("has_items", [True, False])
@pytest.mark.parametrize(("gap", "lists"), [(0.0, 0), (0.125, 0), (0.5, 1)])
def test_the_largest_gap_and_the_changed_lists_are_counted(has_items, gap, lists):
    assert sharing(Rounded(has_items, gap), ROWS) == Sharing(3, gap, lists)
