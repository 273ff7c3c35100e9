"""Timing of matrix products on this machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from prefrec.clock import Seconds, Stopwatch
from prefrec.lm.cpu.linear import product


def time_square(square: int, *, device: str, dtype: torch.dtype, least_s: float) -> Seconds:
    """Return the seconds of one product of two matrices of `square` rows and columns (2·square³ FLOPs)."""
    side = torch.randn(square, square, device=device, dtype=dtype)
    return time_product(partial(product, side, side), device=device, least_s=least_s)


def time_product(call: Callable[[], torch.Tensor], *, device: str, least_s: float) -> Seconds:
    """Return the seconds of one product, averaged over at least `least_s` seconds after a warm-up call."""
    call()
    watch = Stopwatch(device)
    while watch.wall < least_s:
        with watch.running():
            for _ in range(3):
                call()
    products = 3 * watch.laps
    return Seconds(watch.wall / products, max(watch.cpu, 1e-9) / products)
