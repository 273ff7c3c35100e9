"""Gradients of looked-up rows that do not depend on the order of threads."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from prefrec.cpu.rows import take_rows


@pytest.fixture
def several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def _gradient(look_up: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the gradient of a table whose few rows are looked up very often, so that threads meet at them."""
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(20, (400, 200), generator=generator)
    weights = torch.randn(400, 200, 32, generator=generator)
    table = torch.zeros(30, 32, requires_grad=True)
    (look_up(table, index) * weights).sum().backward()
    assert table.grad is not None
    return table.grad


def test_rows_and_their_gradient_are_those_of_indexing() -> None:
    table, index = torch.arange(12.0).view(4, 3), torch.tensor([[3, 0], [3, 3]])
    assert torch.equal(take_rows(table, index), table[index])
    torch.testing.assert_close(
        _gradient(take_rows), _gradient(lambda table, index: table[index]), atol=1e-3, rtol=1e-4
    )


@pytest.mark.usefixtures("several_threads")
def test_the_gradient_is_the_same_every_time_with_several_threads() -> None:
    first = _gradient(take_rows)
    assert all(torch.equal(_gradient(take_rows), first) for _ in range(5))
