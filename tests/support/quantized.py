"""Whether 4-bit layers work here, for tests of QLoRA."""

from functools import cache

import pytest
import torch


@cache
def _reason() -> str | None:
    try:
        import bitsandbytes as bnb

        device = "cuda" if torch.cuda.is_available() else "cpu"
        layer = bnb.nn.Linear4bit(64, 64, compute_dtype=torch.float32, quant_type="nf4").to(device)
        layer(torch.ones(2, 64, device=device, requires_grad=True)).sum().backward()
    except (ImportError, RuntimeError, NotImplementedError, AttributeError, OSError) as e:
        return f"bitsandbytes does not run here: {type(e).__name__}: {e}"
    return None


def skip_where_it_does_not_run() -> None:
    """Skips a test, with the reason, where bitsandbytes is missing or has no kernels for this machine."""
    if reason := _reason():
        pytest.skip(reason)
