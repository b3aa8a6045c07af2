"""The gathering of an involution in training, forward and backward, in one pass over its image.

Images are ``(y, x, channel)``; a pixel is read sixteen numbers at a time, whatever its channels.
What is read too much is overwritten by the next pixel, or weighs nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch.autograd.function import once_differentiable

from model_serving.compiled.lanes import WIDTH, fma, load, spread, store, total

__all__ = ["NumbaGather"]

_compiled = njit(nogil=True, boundscheck=False, cache=True, error_model="numpy")
_ZERO = np.float32(0)


@_compiled
def _gather(x: Any, kernels: Any, shape: Any, out: Any) -> None:  # pragma: no cover - compiled
    """Weigh nine neighbours: flat ``x`` and ``out`` with sixteen numbers to spare."""
    batch, height, width, channels = shape
    tall, wide = height // 2, width // 2
    line = width * channels
    for b in range(batch):
        for i in range(tall):
            for j in range(wide):
                place = (b * tall + i) * wide + j
                for c in range(0, channels, WIDTH):
                    value = spread(_ZERO)
                    for k in range(9):
                        row, col = 2 * i + k // 3 - 1, 2 * j + k % 3 - 1
                        if row >= 0 and col >= 0:
                            at = (b * height + row) * line + col * channels + c
                            value = fma(load(x, at), spread(kernels[place, k]), value)
                    store(out, place * channels + c, value)


@_compiled
def _gather_back(
    grad: Any, x: Any, kernels: Any, shape: Any, mask: Any, wanted: Any, dx: Any, dkernels: Any
) -> None:  # pragma: no cover - compiled
    """Gradients of :func:`_gather`; ``mask`` is one for each channel, then zero."""
    batch, height, width, channels = shape
    tall, wide = height // 2, width // 2
    line = width * channels
    for b in range(batch):
        for i in range(tall):
            for j in range(wide):
                place = (b * tall + i) * wide + j
                for k in range(9):
                    row, col = 2 * i + k // 3 - 1, 2 * j + k % 3 - 1
                    if row >= 0 and col >= 0:
                        start = (b * height + row) * line + col * channels
                        weight, sums = spread(kernels[place, k]), spread(_ZERO)
                        for c in range(0, channels, WIDTH):
                            g = load(grad, place * channels + c) * load(mask, c)
                            sums = fma(g, load(x, start + c), sums)
                            if wanted:
                                store(dx, start + c, fma(g, weight, load(dx, start + c)))
                        dkernels[place, k] = total(sums)
                    else:
                        dkernels[place, k] = _ZERO


def _spared(image: torch.Tensor) -> torch.Tensor:
    """``(batch, channel, y, x)`` as flat ``(batch, y, x, channel)`` with sixteen zeros behind."""
    flat = image.permute(0, 2, 3, 1).reshape(-1)
    return torch.cat((flat, flat.new_zeros(WIDTH)))


def _image(flat: torch.Tensor, batch: int, height: int, width: int) -> torch.Tensor:
    """The inverse of :func:`_spared`."""
    return flat[:-WIDTH].view(batch, height, width, -1).permute(0, 3, 1, 2)


class NumbaGather(torch.autograd.Function):
    """Weigh the nine neighbours of every second pixel, float32 on the CPU.

    From ``x`` ``(batch, channel, y, x)`` and ``kernels`` ``(batch, 9, y / 2, x / 2)`` to
    ``(batch, channel, y / 2, x / 2)``, for any number of channels.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
        """Gather."""
        batch, channels, height, width = x.shape
        flat = _spared(x.detach())
        weights = kernels.detach().permute(0, 2, 3, 1).reshape(-1, 9).contiguous()
        out = torch.empty(batch * (height // 2) * (width // 2) * channels + WIDTH)
        _gather(flat.numpy(), weights.numpy(), (batch, height, width, channels), out.numpy())
        ctx.save_for_backward(x, kernels)
        return _image(out, batch, height // 2, width // 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Gradients of both."""
        x, kernels = (t.detach() for t in ctx.saved_tensors)
        batch, channels, height, width = x.shape
        flat, back = _spared(x), _spared(grad)
        weights = kernels.permute(0, 2, 3, 1).reshape(-1, 9).contiguous()
        wanted = ctx.needs_input_grad[0]
        dx = torch.zeros_like(flat) if wanted else flat
        dweights = torch.empty_like(weights)
        mask = np.zeros(-(-channels // WIDTH) * WIDTH, np.float32)
        mask[:channels] = 1
        _gather_back(
            back.numpy(), flat.numpy(), weights.numpy(), (batch, height, width, channels), mask,
            wanted, dx.numpy(), dweights.numpy(),
        )  # fmt: skip
        of_kernels = dweights.view(batch, height // 2, width // 2, 9).permute(0, 3, 1, 2)
        return (_image(dx, batch, height, width) if wanted else None), of_kernels
