"""What a model costs: parameters, multiply-accumulates, and time of one window on one core."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["latency_ms", "multiply_accumulates", "one_thread", "parameters"]

_SCAN = 3
# ^ multiply-accumulates of a scan per token, channel and state: input, recurrence, output


def parameters(network: nn.Module) -> int:
    """Trained numbers of a network."""
    return sum(p.numel() for p in network.parameters())


def multiply_accumulates(network: nn.Module, *, channels: int, px: int) -> int:
    """Multiply-accumulates of one window.

    Convolutions, linear layers and attention are counted by torch's own counter, which sees every
    operation as it is dispatched (half of its floating-point operations). It does not see selective
    scans, which may run compiled: these are counted as three a token, channel and state, and their
    convolution over tokens as its taps, where the network does it by hand. What works element by
    element (normalisation, gates, pooling, the products of an involution) is left out, as is usual.

    Parameters
    ----------
    network
        Whose scans hold their rates ``(channel, state)`` in a parameter ``log_rate``.
    channels, px
        Of the window.
    """
    counted = 0

    def scan(module: nn.Module, inputs: tuple[torch.Tensor, ...], _output: Any) -> None:
        nonlocal counted
        tokens = inputs[0].shape[0] * inputs[0].shape[1]
        rates, taps = module.get_parameter("log_rate"), getattr(module, "taps", None)
        counted += tokens * (_SCAN * rates.numel() + (taps.numel() if taps is not None else 0))

    network = copy.deepcopy(network).double().eval()
    # ^ in double precision no product of matrices is hidden in a compiled kernel
    with ExitStack() as stack:
        for module in network.modules():
            if "log_rate" in dict(module.named_parameters(recurse=False)):
                stack.callback(module.register_forward_hook(scan).remove)
        # Fused forms of attention are not counted; taken apart it is two products of matrices.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        fused = torch.backends.mha.get_fastpath_enabled()  # type: ignore[no-untyped-call]
        torch.backends.mha.set_fastpath_enabled(False)  # type: ignore[no-untyped-call]
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        counter = stack.enter_context(FlopCounterMode(display=False))
        stack.enter_context(torch.no_grad())
        network(torch.zeros(1, channels, px, px, dtype=torch.float64))
    return int(counter.get_total_flops()) // 2 + counted


def latency_ms(call: Callable[[], object], *, repeats: int) -> float:
    """Median time of a call, milliseconds, after two that are not counted."""
    times = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return median(times[2:]) * 1e3


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
