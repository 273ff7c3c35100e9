"""prefrec.lm.head: a head computes what its thread asks, is itself to others, and travels with its model."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import nn

from prefrec.lm.head import restricted_head
from tiny import tiny_llama

HIDDEN = torch.randn(1, 3, 32)


def test_only_the_thread_that_asks_gets_what_it_asks():
    head = tiny_llama().lm_head
    whole = head(HIDDEN)
    with ThreadPoolExecutor(1) as other, restricted_head(head, torch.tensor([3, 1])) as is_restricted:
        assert is_restricted
        torch.testing.assert_close(head(HIDDEN), whole[..., [3, 1]])
        assert torch.equal(other.submit(head, HIDDEN).result(), whole)
    assert torch.equal(head(HIDDEN), whole)


def test_after_an_error_it_is_itself():
    head = tiny_llama().lm_head
    want = head(HIDDEN)
    with pytest.raises(KeyError), restricted_head(head, torch.tensor([3])):
        raise KeyError
    assert torch.equal(head(HIDDEN), want)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_a_head_of_its_own(copied):
    model = tiny_llama()
    with restricted_head(model.lm_head, torch.tensor([3])):
        pass
    other = copied(model)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert other.lm_head(HIDDEN).any()
    with restricted_head(other.lm_head, torch.tensor([3])):
        assert (other.lm_head(HIDDEN).shape, model.lm_head(HIDDEN).shape) == ((1, 3, 1), (1, 3, 400))


def test_a_forward_that_another_library_gave_a_head_stays():
    head = nn.Linear(32, 5, bias=False)
    head.forward = partial(lambda own, hidden: own(hidden) + 1, head.forward)
    want = head(HIDDEN)
    with restricted_head(head, None, lambda hidden: hidden[:, -1:]) as is_restricted:
        assert not is_restricted
        torch.testing.assert_close(head(HIDDEN), want[:, -1:])
    assert torch.equal(head(HIDDEN), want)
