"""The selective scan as one compiled pass on the CPU, forward and backward.

Channels travel in the lanes of vector registers while the states loop outside them; the backward
recomputes states from checkpoints, so little memory is held between the two. Sums are taken in a
fixed order: on one machine equal inputs give equal bytes, whatever else it is doing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

__all__ = ["NumbaScan"]

_LANES = 16
# ^ channels that travel together in the forward pass: one AVX-512 register of float32
_WIDTH = 64
# ^ the same in the backward pass, whose many short loops pay for an overlap check each
_SEGMENT = 64
# ^ tokens between two checkpoints of the backward pass: decay and states of one segment stay in L2


@intrinsic
def _bits_of(_context: Any, value: Any) -> Any:  # pragma: no cover - compiled
    def codegen(_ctx: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), codegen


@intrinsic
def _float_of(_context: Any, value: Any) -> Any:  # pragma: no cover - compiled
    def codegen(_ctx: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


_F = np.float32
_LOG2E, _MAGIC, _LOWEST = _F(1.4426950408889634), _F(12582912.0), _F(-60.0)
_P = tuple(
    _F(c)
    for c in (
        1.0,
        0.6931471805599453,
        0.2402265069591007,
        0.05550410866482158,
        0.009618129107628477,
        0.0013333558146428443,
        0.00015403530393381608,
    )
)
# ^ Taylor series of 2**f: below 2e-8 relative for |f| <= 1/2, so float32 rounding dominates
_P0, _P1, _P2, _P3, _P4, _P5, _P6 = _P
_ONE_BITS = np.int32(0x3F800000)


@njit(inline="always", fastmath={"contract"})
def _exp(x: Any) -> Any:  # pragma: no cover - compiled
    """exp(x) for x <= 0 without a branch or a call, so that the loop around it is vectorised."""
    x = max(x, _LOWEST)
    # Adding 1.5 * 2**23 rounds to the nearest integer and leaves that integer in the low bits.
    shifted = x * _LOG2E + _MAGIC
    f = x * _LOG2E - (shifted - _MAGIC)
    p = _P0 + f * (_P1 + f * (_P2 + f * (_P3 + f * (_P4 + f * (_P5 + f * _P6)))))
    power = _float_of(np.int32((_bits_of(shifted) << np.int32(23)) + _ONE_BITS))
    return p * power


@njit(nogil=True, fastmath={"contract"}, boundscheck=False, cache=True, error_model="numpy")
def _forward(u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, y: Any, save: Any) -> None:
    # pragma: no cover - compiled
    batch, length, channels = u.shape
    states = A.shape[1]
    rates = np.zeros((states, _LANES), np.float32)
    h = np.empty((states, _LANES), np.float32)
    step = np.zeros(_LANES, np.float32)
    drive = np.zeros(_LANES, np.float32)
    out = np.zeros(_LANES, np.float32)
    keep = save.shape[0] > 0
    for b in range(batch):
        for first in range(0, channels, _LANES):
            lanes = min(_LANES, channels - first)
            for n in range(states):
                for i in range(lanes):
                    rates[n, i] = A[first + i, n]
            h[:] = 0
            for t in range(length):
                if keep and t % _SEGMENT == 0:
                    save[b, t // _SEGMENT, :, first : first + lanes] = h[:, :lanes]
                for i in range(lanes):
                    step[i] = delta[b, t, first + i]
                    drive[i] = step[i] * u[b, t, first + i]
                    out[i] = D[first + i] * u[b, t, first + i]
                for n in range(states):
                    bn, cn = B[b, t, n], C[b, t, n]
                    for i in range(_LANES):
                        s = _exp(step[i] * rates[n, i]) * h[n, i] + drive[i] * bn
                        h[n, i] = s
                        out[i] += cn * s
                for i in range(lanes):
                    y[b, t, first + i] = out[i]


@njit(fastmath={"contract", "reassoc", "nsz"}, cache=True)
# ^ not inlined by numba: that would lose these flags, and with them the vectorised sum
def _sum_lanes(x: Any, width: int) -> Any:  # pragma: no cover - compiled
    total = np.float32(0)
    for i in range(width):
        total += x[i]
    return total


@njit(nogil=True, fastmath={"contract"}, boundscheck=False, cache=True, error_model="numpy")
def _backward(
    grad: Any, u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, save: Any,
    du: Any, ddelta: Any, dA: Any, dB: Any, dC: Any,
) -> None:  # fmt: skip  # pragma: no cover - compiled
    batch, length, channels = u.shape
    states = A.shape[1]
    width = min(channels, _WIDTH)
    rates = np.zeros((states, width), np.float32)
    drates = np.zeros((states, width), np.float32)
    g = np.zeros((states, width), np.float32)
    decay = np.zeros((_SEGMENT, states, width), np.float32)
    h = np.zeros((_SEGMENT + 1, states, width), np.float32)
    step = np.zeros((_SEGMENT, width), np.float32)
    x = np.zeros((_SEGMENT, width), np.float32)
    dy = np.zeros(width, np.float32)
    gx = np.zeros(width, np.float32)
    gstep = np.zeros(width, np.float32)
    gh = np.zeros(width, np.float32)
    ga = np.zeros(width, np.float32)
    drive = np.zeros((_SEGMENT, width), np.float32)
    lane_b = np.zeros(width, np.float32)
    lane_c = np.zeros(width, np.float32)
    segments = (length + _SEGMENT - 1) // _SEGMENT
    for b in range(batch):
        for first in range(0, channels, width):
            lanes = min(width, channels - first)
            step[:] = 0
            x[:] = 0
            drive[:] = 0
            dy[:] = 0
            drates[:] = 0
            g[:] = 0
            for n in range(states):
                for i in range(lanes):
                    rates[n, i] = A[first + i, n]
            for segment in range(segments - 1, -1, -1):
                t0 = segment * _SEGMENT
                count = min(_SEGMENT, length - t0)
                h[0, :, :lanes] = save[b, segment, :, first : first + lanes]
                for k in range(count):
                    for i in range(lanes):
                        step[k, i] = delta[b, t0 + k, first + i]
                        x[k, i] = u[b, t0 + k, first + i]
                        drive[k, i] = step[k, i] * x[k, i]
                    for n in range(states):
                        bn = B[b, t0 + k, n]
                        for i in range(width):
                            a = _exp(step[k, i] * rates[n, i])
                            decay[k, n, i] = a
                            h[k + 1, n, i] = a * h[k, n, i] + drive[k, i] * bn
                for k in range(count - 1, -1, -1):
                    t = t0 + k
                    for i in range(lanes):
                        dy[i] = grad[b, t, first + i]
                    for i in range(width):
                        gx[i] = 0
                        gstep[i] = 0
                    for n in range(states):
                        bn, cn = B[b, t, n], C[b, t, n]
                        # Short loops over few arrays: the compiler gives up vectorising where
                        # it would have to check more than a handful of them for overlap.
                        for i in range(width):
                            gh[i] = g[n, i] + cn * dy[i]
                        for i in range(width):
                            g[n, i] = gh[i] * decay[k, n, i]
                        for i in range(width):
                            ga[i] = g[n, i] * h[k, n, i]
                        for i in range(width):
                            drates[n, i] += ga[i] * step[k, i]
                        for i in range(width):
                            gstep[i] += ga[i] * rates[n, i]
                        for i in range(width):
                            gx[i] += gh[i] * bn
                        for i in range(width):
                            lane_c[i] = dy[i] * h[k + 1, n, i]
                        for i in range(width):
                            lane_b[i] = gh[i] * drive[k, i]
                        dC[b, t, n] += _sum_lanes(lane_c, width)
                        dB[b, t, n] += _sum_lanes(lane_b, width)
                    for i in range(lanes):
                        ddelta[b, t, first + i] = gstep[i] + gx[i] * x[k, i]
                        du[b, t, first + i] = gx[i] * step[k, i] + D[first + i] * dy[i]
            for n in range(states):
                for i in range(lanes):
                    dA[first + i, n] += drates[n, i]


class NumbaScan(torch.autograd.Function):
    """Autograd binding of the compiled scan; called through ``selective_scan`` only."""

    @staticmethod
    def forward(ctx: Any, *tensors: torch.Tensor) -> torch.Tensor:
        """Scan float32 tensors ``u, delta, A, B, C, D`` on the CPU."""
        u, delta, A, B, C, D = (t.detach().contiguous() for t in tensors)
        y = torch.empty_like(u)
        batch, length, channels = u.shape
        wanted = any(ctx.needs_input_grad)
        shape = (batch, -(-length // _SEGMENT), A.shape[1], channels)
        save = np.empty(shape if wanted else (0, 0, 0, 0), np.float32)
        _forward(*(t.numpy() for t in (u, delta, A, B, C, D, y)), save)
        if wanted:
            ctx.save_for_backward(u, delta, A, B, C, D, torch.from_numpy(save))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Gradients of all six inputs."""
        u, delta, A, B, C, D, save = ctx.saved_tensors
        grad = grads[0].contiguous()
        du, ddelta = torch.empty_like(u), torch.empty_like(u)
        dA, dB, dC = torch.zeros_like(A), torch.zeros_like(B), torch.zeros_like(C)
        _backward(*(t.numpy() for t in (grad, u, delta, A, B, C, D, save, du, ddelta, dA, dB, dC)))
        return du, ddelta, dA, dB, dC, (grad * u).sum(dim=(0, 1))
