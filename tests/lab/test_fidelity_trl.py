"""The numbers of TRL's trainers beside ours, and whether TRL, where it is installed, still computes them."""

import numpy as np
import pytest

from prefrec_lab import fidelity


def test_agrees_with_trl():
    for key, (gap, largest) in fidelity.trl_differences(fidelity.beside_trl(), fidelity.stored_trl()).items():
        tolerance = fidelity.LOSS_TOLERANCE if key.endswith("loss") else fidelity.GRADIENT_TOLERANCE
        assert gap <= tolerance, key
        assert largest > 1e3 * tolerance, key


def test_another_margin_is_noticed():
    found = fidelity.trl_differences(fidelity.beside_trl(gamma=0.501), fidelity.stored_trl())
    assert found["simpo loss"][0] > fidelity.LOSS_TOLERANCE
    assert found["dpo loss"][0] <= fidelity.LOSS_TOLERANCE


@pytest.mark.filterwarnings("ignore")
def test_trl_computes_the_stored_numbers():
    pytest.importorskip("trl")
    from prefrec_lab.fidelity_trl import theirs

    now, stored = theirs(), fidelity.stored_trl()
    assert now.keys() == stored.keys()
    assert len(now) == 3 * (1 + 42)
    for name, values in now.items():
        np.testing.assert_allclose(values, stored[name], rtol=0, atol=fidelity.GRADIENT_TOLERANCE, err_msg=name)
