"""FlexAttention for tests on a CPU: not compiled, which takes minutes there."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside this context nothing is compiled, and FlexAttention does not complain of it."""
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        yield
