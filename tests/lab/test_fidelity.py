"""The numbers of the authors' trainer, their tolerances, and the page's table."""

import numpy as np
import pytest

from prefrec_lab import fidelity


@pytest.mark.parametrize("negatives", [3, 7])
def test_agrees_with_the_authors_trainer(negatives):
    theirs = fidelity.stored(negatives)
    found = fidelity.differences(fidelity.scored(negatives, theirs) | fidelity.trained(negatives), theirs)
    for key, (quantity, tolerance) in fidelity.QUANTITIES.items():
        gap, largest = found[key]
        assert gap <= tolerance, quantity
        assert largest > 1e3 * tolerance, quantity
    start = fidelity.lora(fidelity.problem(negatives).model)
    moved = [np.abs(theirs[f"weights {name}"] - w.detach().numpy()).max() for name, w in start.items()]
    assert len(moved) == 42
    assert min(moved) > 1e-3


def test_another_beta_is_noticed():
    theirs = fidelity.stored(3)
    found = fidelity.scored(3, theirs, beta=1.001)
    for key in ("losses", "rewards"):
        assert np.abs(found[key] - theirs[key]).max() > fidelity.QUANTITIES[key][1], key


def test_other_arrays_are_refused():
    with pytest.raises(ValueError, match="other arrays"):
        fidelity.differences({}, fidelity.stored(3))


def test_the_page_has_every_quantity_and_every_trainer_of_trl():
    page = fidelity.PAGE.read_text()
    for name in (*(quantity for quantity, _ in fidelity.QUANTITIES.values()), *fidelity.TRL_QUANTITIES.values()):
        assert f"| {name} |" in page
