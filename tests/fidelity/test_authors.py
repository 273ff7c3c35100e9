"""scripts/fidelity.py: the numbers of the authors' trainer, their tolerances, and the page's table."""

import numpy as np
import pytest


@pytest.mark.parametrize("negatives", [3, 7])
def test_agrees_with_the_authors_trainer(script, negatives):
    theirs = script.stored(negatives)
    found = script.differences(script.scored(negatives, theirs) | script.trained(negatives), theirs)
    for key, (quantity, tolerance) in script.QUANTITIES.items():
        gap, largest = found[key]
        assert gap <= tolerance, quantity
        assert largest > 1e3 * tolerance, quantity
    start = script.lora(script.problem(negatives).model)
    moved = [np.abs(theirs[f"weights {name}"] - w.detach().numpy()).max() for name, w in start.items()]
    assert len(moved) == 42
    assert min(moved) > 1e-3


def test_another_beta_is_noticed(script):
    theirs = script.stored(3)
    found = script.scored(3, theirs, beta=1.001)
    for key in ("losses", "rewards"):
        assert np.abs(found[key] - theirs[key]).max() > script.QUANTITIES[key][1], key


def test_other_arrays_are_refused(script):
    with pytest.raises(ValueError, match="other arrays"):
        script.differences({}, script.stored(3))


def test_the_page_has_every_quantity_and_every_trainer_of_trl(script):
    page = script.PAGE.read_text()
    for name in (*(quantity for quantity, _ in script.QUANTITIES.values()), *script.TRL_QUANTITIES.values()):
        assert f"| {name} |" in page
