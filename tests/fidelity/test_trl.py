"""The numbers of TRL's trainers beside ours, and whether TRL, where it is installed, still computes them."""

import runpy

import numpy as np
import pytest


def test_agrees_with_trl(script):
    for key, (gap, largest) in script.trl_differences(script.beside_trl(), script.stored_trl()).items():
        tolerance = script.LOSS_TOLERANCE if key.endswith("loss") else script.GRADIENT_TOLERANCE
        assert gap <= tolerance, key
        assert largest > 1e3 * tolerance, key


def test_another_margin_is_noticed(script):
    found = script.trl_differences(script.beside_trl(gamma=0.501), script.stored_trl())
    assert found["simpo loss"][0] > script.LOSS_TOLERANCE
    assert found["dpo loss"][0] <= script.LOSS_TOLERANCE


@pytest.mark.filterwarnings("ignore")
def test_trl_computes_the_stored_numbers(script):
    pytest.importorskip("trl")
    theirs = runpy.run_path(str(script.ROOT / "scripts" / "fidelity_trl.py"))["theirs"]
    now, stored = theirs(), script.stored_trl()
    assert now.keys() == stored.keys()
    assert len(now) == 3 * (1 + 42)
    for name, values in now.items():
        np.testing.assert_allclose(values, stored[name], rtol=0, atol=script.GRADIENT_TOLERANCE, err_msg=name)
