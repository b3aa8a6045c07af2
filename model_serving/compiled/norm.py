"""Root-mean-square normalisation in training, forward and backward, one pass each."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch.autograd.function import once_differentiable

from model_serving.compiled.lanes import WIDTH, fma, load, spread, store, total

__all__ = ["NumbaRMSNorm"]

_compiled = njit(nogil=True, boundscheck=False, cache=True, error_model="numpy")
_ZERO, _ONE = np.float32(0), np.float32(1)


@_compiled
def _forward(x: Any, weight: Any, epsilon: Any, scales: Any, out: Any) -> None:
    # pragma: no cover - compiled
    tokens, channels = x.shape
    for t in range(tokens):
        square = spread(_ZERO)
        for c in range(t * channels, (t + 1) * channels, WIDTH):
            value = load(x, c)
            square = fma(value, value, square)
        scale = _ONE / np.sqrt(total(square) / np.float32(channels) + epsilon)
        scales[t] = scale
        for c in range(0, channels, WIDTH):
            at = t * channels + c
            store(out, at, load(x, at) * spread(scale) * load(weight, c))


@_compiled
def _backward(grad: Any, x: Any, weight: Any, scales: Any, dx: Any, dweight: Any) -> None:
    # pragma: no cover - compiled
    tokens, channels = x.shape
    for t in range(tokens):
        scale, along = spread(scales[t]), spread(_ZERO)
        for c in range(0, channels, WIDTH):
            at = t * channels + c
            g, normal = load(grad, at), load(x, at) * scale
            store(dweight, c, fma(g, normal, load(dweight, c)))
            along = fma(g * load(weight, c), normal, along)
        mean = spread(total(along) / np.float32(channels))
        for c in range(0, channels, WIDTH):
            at = t * channels + c
            normal = load(x, at) * scale
            store(dx, at, scale * (load(grad, at) * load(weight, c) - mean * normal))


class NumbaRMSNorm(torch.autograd.Function):
    """Zhang and Sennrich (2019), eq. 4, over the last axis, a multiple of 16; float32 on the CPU.

    Takes ``x`` ``(..., channel)``, the weight of each channel, and what is added to the mean of
    the squares.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Normalise."""
        flat = x.detach().reshape(-1, len(weight)).contiguous()
        scales, out = torch.empty(len(flat)), torch.empty(flat.shape)
        weights = weight.detach().numpy()
        _forward(flat.numpy(), weights, np.float32(epsilon), scales.numpy(), out.numpy())
        ctx.save_for_backward(x, weight, scales)
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Gradients of ``x`` and the weight."""
        x, weight, scales = (t.detach() for t in ctx.saved_tensors)
        flat, back = (t.reshape(-1, len(weight)).contiguous() for t in (x, grad))
        # ^ that of a single image may be a view with its channels apart
        dx, dweight = torch.empty(flat.shape), torch.zeros_like(weight)
        _backward(
            back.numpy(), flat.numpy(), weight.numpy(), scales.numpy(), dx.numpy(), dweight.numpy()
        )
        return dx.view(x.shape), dweight, None
