"""The selective scan as one compiled pass on the CPU, forward and backward.

Sixteen channels travel together, the states loop outside them; the backward recomputes states from
checkpoints, so little memory is held between the two. Sums are taken in a fixed order: on one
machine equal inputs give equal bytes, whatever else it is doing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch.autograd.function import once_differentiable

from model_serving.compiled.lanes import (
    WIDTH,
    exp2_negative,
    fma,
    load,
    silu,
    softplus,
    spread,
    store,
    total,
)

__all__ = ["NumbaScan", "rate_lanes", "scan_backward", "scan_forward", "scan_gated"]

Array = npt.NDArray[Any]

_SEGMENT = 32
# ^ tokens between two checkpoints of the backward pass: its four buffers of a segment stay in L2
_AHEAD = 32
# ^ tokens whose step sizes are found ahead of the scan, and which are gated after it: both are long
#   chains of operations, which overlap from token to token only where no state stands between them
_ZERO, _LN2 = np.float32(0), np.float32(0.6931471805599453)


def rate_lanes(rates: Array) -> Array:
    """Lay ``(channel, state)`` rates out as ``(channel / 16, state, 16)``, in powers of two."""
    channels, states = rates.shape
    scaled = (rates / np.log(2)).astype(np.float32)
    return np.ascontiguousarray(scaled.reshape(channels // WIDTH, WIDTH, states).swapaxes(1, 2))


@njit(inline="always")
def _token(
    step: Any, drive: Any, out: Any, rates: Any, h: Any, at: Any, B: Any, C: Any, states: Any
) -> Any:  # pragma: no cover - compiled
    """Advance sixteen channels by one token; returns ``out`` plus what the states give."""
    for n in range(states):
        here = at + n * WIDTH
        decay = exp2_negative(step * load(rates, here))
        s = fma(decay, load(h, here), drive * spread(B[n]))
        store(h, here, s)
        out = fma(spread(C[n]), s, out)
    return out


@njit(nogil=True, boundscheck=False, cache=True, error_model="numpy")
def _forward(u: Any, delta: Any, rates: Any, B: Any, C: Any, D: Any, y: Any, save: Any) -> None:
    # pragma: no cover - compiled
    batch, length, channels = u.shape
    groups, states, _ = rates.shape
    h = np.empty((groups, states, WIDTH), np.float32)
    size = states * WIDTH
    keep = save.shape[0] > 0
    for b in range(batch):
        h[:] = 0
        for g in range(groups):
            for t in range(length):
                if keep and t % _SEGMENT == 0:
                    save[b, t // _SEGMENT, g] = h[g]
                at = (b * length + t) * channels + g * WIDTH
                x, step = load(u, at), load(delta, at)
                out = load(D, g * WIDTH) * x
                out = _token(step, step * x, out, rates, h, g * size, B[b, t], C[b, t], states)
                store(y, at, out)


@njit(nogil=True, boundscheck=False, cache=True, error_model="numpy")
def scan_gated(
    u: Any, gate: Any, select: Any, weight: Any, bias: Any, rates: Any, direct: Any,
    h: Any, y: Any,
) -> None:  # fmt: skip  # pragma: no cover - compiled
    """Step size, scan and gate of a run of tokens in one pass; ``h`` carries the state along.

    Parameters
    ----------
    u, y : ``(token, channel)`` float32
        Input and output; the channels are a multiple of 16.
    gate : ``(token, >= 2 * channel)`` float32
        The gate stands in the second ``channel`` columns.
    select : ``(token, >= rank + 2 * state)`` float32
        Low-rank step, input projection and output projection of each token.
    weight, bias : ``(rank, channel)``, ``(channel,)`` float32
        From the low-rank step to the step before its softplus.
    rates
        See :func:`rate_lanes`.
    direct : ``(channel,)`` float32
        Direct path.
    h : ``(channel / 16, state, 16)`` float32
        State before the first token; afterwards that of the last.
    """
    length, channels = u.shape
    states = rates.shape[1]
    rank = weight.shape[0]
    size = states * WIDTH
    columns = gate.shape[1]
    steps = np.empty((_AHEAD, WIDTH), np.float32)
    for g in range(channels // WIDTH):
        own = g * WIDTH
        for start in range(0, length, _AHEAD):
            stop = min(start + _AHEAD, length)
            for t in range(start, stop):
                step = load(bias, own)
                for k in range(rank):
                    step = fma(spread(select[t, k]), load(weight, k * channels + own), step)
                store(steps, (t - start) * WIDTH, softplus(step))
            for t in range(start, stop):
                at = t * channels + own
                x, step = load(u, at), load(steps, (t - start) * WIDTH)
                out = load(direct, own) * x
                B, C = select[t, rank : rank + states], select[t, rank + states : rank + 2 * states]
                store(y, at, _token(step, step * x, out, rates, h, g * size, B, C, states))
            for t in range(start, stop):
                at = t * channels + own
                store(y, at, load(y, at) * silu(load(gate, t * columns + channels + own)))


@njit(nogil=True, boundscheck=False, cache=True, error_model="numpy")
def _backward(
    grad: Any, u: Any, delta: Any, rates: Any, B: Any, C: Any, D: Any, save: Any,
    du: Any, ddelta: Any, drates: Any, dB: Any, dC: Any, dD: Any,
) -> None:  # fmt: skip  # pragma: no cover - compiled
    batch, length, channels = u.shape
    groups, states, _ = rates.shape
    size = states * WIDTH
    ahead = np.empty((groups, states, WIDTH), np.float32)
    decay = np.empty((_SEGMENT, states, WIDTH), np.float32)
    h = np.empty((_SEGMENT + 1, states, WIDTH), np.float32)
    lane_b = np.empty((_SEGMENT, states, WIDTH), np.float32)
    lane_c = np.empty((_SEGMENT, states, WIDTH), np.float32)
    segments = (length + _SEGMENT - 1) // _SEGMENT
    for b in range(batch):
        ahead[:] = 0
        for segment in range(segments - 1, -1, -1):
            t0 = segment * _SEGMENT
            count = min(_SEGMENT, length - t0)
            lane_b[:] = 0
            lane_c[:] = 0
            for g in range(groups):
                h[0] = save[b, segment, g]
                for k in range(count):
                    at = (b * length + t0 + k) * channels + g * WIDTH
                    step = load(delta, at)
                    drive = step * load(u, at)
                    for n in range(states):
                        here = k * size + n * WIDTH
                        a = exp2_negative(step * load(rates, g * size + n * WIDTH))
                        store(decay, here, a)
                        store(
                            h, here + size, fma(a, load(h, here), drive * spread(B[b, t0 + k, n]))
                        )
                for k in range(count - 1, -1, -1):
                    at = (b * length + t0 + k) * channels + g * WIDTH
                    dy, x, step = load(grad, at), load(u, at), load(delta, at)
                    drive = step * x
                    gx = gstep = spread(_ZERO)
                    for n in range(states):
                        here, own = k * size + n * WIDTH, g * size + n * WIDTH
                        gh = fma(spread(C[b, t0 + k, n]), dy, load(ahead, own))
                        store(lane_c, here, fma(dy, load(h, here + size), load(lane_c, here)))
                        store(lane_b, here, fma(gh, drive, load(lane_b, here)))
                        gx = fma(gh, spread(B[b, t0 + k, n]), gx)
                        back = gh * load(decay, here)
                        store(ahead, own, back)
                        ga = back * load(h, here)
                        store(drates, own, fma(ga, step, load(drates, own)))
                        gstep = fma(ga, load(rates, own), gstep)
                    store(ddelta, at, fma(gstep, spread(_LN2), gx * x))
                    store(du, at, fma(gx, step, load(D, g * WIDTH) * dy))
                    store(dD, g * WIDTH, fma(dy, x, load(dD, g * WIDTH)))
            for k in range(count):
                for n in range(states):
                    dB[b, t0 + k, n] = total(load(lane_b, k * size + n * WIDTH))
                    dC[b, t0 + k, n] = total(load(lane_c, k * size + n * WIDTH))


def _padded(tensor: torch.Tensor, channels: int, axis: int) -> Array:
    """Fill up to whole groups of channels; a channel of zeros gives and takes nothing."""
    missing = channels - tensor.shape[axis]
    if missing:
        widths = [0, 0] * (tensor.ndim - 1 - axis % tensor.ndim) + [0, missing]
        tensor = torch.nn.functional.pad(tensor, widths)
    array: Array = tensor.detach().contiguous().numpy()
    return array


def _laid_out(tensors: tuple[torch.Tensor, ...]) -> list[Array]:
    """``u, delta, A, B, C, D`` as contiguous arrays of whole groups of channels."""
    channels = -(-tensors[0].shape[2] // WIDTH) * WIDTH
    u, delta, A, B, C, D = tensors
    wide = [_padded(t, channels, axis) for t, axis in ((u, 2), (delta, 2), (A, 0), (D, 0))]
    u_, delta_, A_, D_ = wide
    B_, C_ = (t.detach().contiguous().numpy() for t in (B, C))
    return [u_, delta_, rate_lanes(A_), B_, C_, D_]


def scan_forward(*tensors: torch.Tensor, keep: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Scan, and the states that the way back starts from where they are to be kept.

    Parameters
    ----------
    tensors
        ``u, delta, A, B, C, D`` of :func:`model_serving.selective_scan.selective_scan`, float32 on
        the CPU.
    keep
        Whether there will be a way back.
    """
    arrays = _laid_out(tensors)
    u, _, rates = arrays[:3]
    y = np.empty_like(u)
    shape = (len(u), -(-u.shape[1] // _SEGMENT), *rates.shape)
    save = np.empty(shape if keep else (0,) * 5, np.float32)
    _forward(*arrays, y, save)
    return torch.from_numpy(y)[..., : tensors[0].shape[2]], torch.from_numpy(save)


def scan_backward(
    grad: torch.Tensor, *tensors: torch.Tensor, save: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Gradients of ``u, delta, A, B, C, D`` from that of the result of :func:`scan_forward`."""
    u, delta, rates, B, C, D = _laid_out(tensors)
    channels = grad.shape[2]
    back = _padded(grad, u.shape[2], 2)
    du, ddelta, dB, dC = (np.empty_like(a) for a in (u, delta, B, C))
    drates, dD = np.zeros_like(rates), np.zeros_like(D)
    inputs = (back, u, delta, rates, B, C, D, save.numpy())
    _backward(*inputs, du, ddelta, drates, dB, dC, dD)
    dA = drates.swapaxes(1, 2).reshape(-1, rates.shape[1])[:channels]
    parts = (du[..., :channels], ddelta[..., :channels], dA, dB, dC, dD[:channels])
    return tuple(torch.from_numpy(np.ascontiguousarray(p)) for p in parts)


class NumbaScan(torch.autograd.Function):
    """Autograd binding of the compiled scan; called through ``selective_scan`` only."""

    @staticmethod
    def forward(ctx: Any, *tensors: torch.Tensor) -> torch.Tensor:
        """Scan float32 tensors ``u, delta, A, B, C, D`` on the CPU."""
        y, save = scan_forward(*tensors, keep=any(ctx.needs_input_grad))
        ctx.save_for_backward(*tensors, save)
        # ^ the inputs themselves, so that a change of them in between is noticed
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Gradients of all six inputs."""
        *tensors, save = ctx.saved_tensors
        return scan_backward(grads[0], *tensors, save=save)
