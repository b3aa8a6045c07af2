"""The mixer of a stage in training, forward and backward, in few passes over its tokens.

What autograd would do between the matrix products, one operation a pass and a copy for every slice,
is done here while the numbers are in registers. Sums are taken in a fixed order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch.autograd.function import once_differentiable

from model_serving.compiled.lanes import WIDTH, exp, fma, load, silu, softplus, spread, store
from model_serving.compiled.scan import scan_backward, scan_forward

__all__ = ["NumbaMixer"]

_compiled = njit(nogil=True, boundscheck=False, cache=True, error_model="numpy")
_ZERO, _ONE = np.float32(0), np.float32(1)


@njit(inline="always")
def _sigmoid(x: Any) -> Any:  # pragma: no cover - compiled
    return spread(_ONE) / (spread(_ONE) + exp(spread(_ZERO) - x))


@njit(inline="always")
def _slope(x: Any) -> Any:  # pragma: no cover - compiled
    """Derivative of SiLU."""
    s = _sigmoid(x)
    return s * fma(x, spread(_ONE) - s, spread(_ONE))


@njit(inline="always")
def _convolved(
    both: Any, taps: Any, bias: Any, start: Any, t: Any, c: Any
) -> Any:  # pragma: no cover - compiled
    """Causal depthwise convolution at one token of the sequence that begins at ``start``."""
    columns, count, channels = both.shape[1], taps.shape[0], taps.shape[1]
    value = load(bias, c)
    for k in range(count):
        source = t - (count - 1) + k
        if source >= 0:
            tap = load(taps, k * channels + c)
            value = fma(load(both, (start + source) * columns + c), tap, value)
    return value


@_compiled
def _before(both: Any, length: Any, taps: Any, bias: Any, u: Any) -> None:
    # pragma: no cover - compiled
    """``u`` from the first half of the columns of ``both``."""
    tokens, channels = u.shape
    for start in range(0, tokens, length):
        for t in range(length):
            for c in range(0, channels, WIDTH):
                store(
                    u, (start + t) * channels + c, silu(_convolved(both, taps, bias, start, t, c))
                )


@_compiled
def _steps(selected: Any, weight: Any, bias: Any, delta: Any) -> None:
    # pragma: no cover - compiled
    """Step sizes from the first columns of ``selected``; ``weight`` is ``(rank, channel)``."""
    tokens, channels = delta.shape
    for t in range(tokens):
        for c in range(0, channels, WIDTH):
            step = load(bias, c)
            for k in range(weight.shape[0]):
                step = fma(spread(selected[t, k]), load(weight, k * channels + c), step)
            store(delta, t * channels + c, softplus(step))


@_compiled
def _gated(y: Any, both: Any, out: Any) -> None:  # pragma: no cover - compiled
    tokens, channels = y.shape
    for t in range(tokens):
        for c in range(0, channels, WIDTH):
            gate = load(both, t * 2 * channels + channels + c)
            store(out, t * channels + c, load(y, t * channels + c) * silu(gate))


@_compiled
def _gated_back(grad: Any, y: Any, both: Any, dy: Any, dboth: Any) -> None:
    # pragma: no cover - compiled
    tokens, channels = y.shape
    for t in range(tokens):
        for c in range(0, channels, WIDTH):
            at, own = t * channels + c, t * 2 * channels + channels + c
            gate, g = load(both, own), load(grad, at)
            s = _sigmoid(gate)
            store(dy, at, g * gate * s)
            slope = s * fma(gate, spread(_ONE) - s, spread(_ONE))
            store(dboth, own, g * load(y, at) * slope)


@_compiled
def _steps_back(selected: Any, weight: Any, bias: Any, ddelta: Any, dbias: Any) -> None:
    # pragma: no cover - compiled
    """Turn gradients of the step sizes into those before the softplus, in place."""
    tokens, channels = ddelta.shape
    for t in range(tokens):
        for c in range(0, channels, WIDTH):
            step = load(bias, c)
            for k in range(weight.shape[0]):
                step = fma(spread(selected[t, k]), load(weight, k * channels + c), step)
            at = t * channels + c
            back = load(ddelta, at) * _sigmoid(step)
            store(ddelta, at, back)
            store(dbias, c, load(dbias, c) + back)


@_compiled
def _before_back(
    both: Any, length: Any, taps: Any, bias: Any, du: Any, dboth: Any, dtaps: Any, dbias: Any
) -> None:  # pragma: no cover - compiled
    """Gradients of :func:`_before`; ``du`` becomes that before the SiLU."""
    tokens, channels = du.shape
    count, columns = taps.shape[0], both.shape[1]
    for start in range(0, tokens, length):
        for t in range(length):
            for c in range(0, channels, WIDTH):
                at = (start + t) * channels + c
                back = load(du, at) * _slope(_convolved(both, taps, bias, start, t, c))
                store(du, at, back)
                store(dbias, c, load(dbias, c) + back)
                for k in range(count):
                    source = t - (count - 1) + k
                    if source >= 0:
                        own = k * channels + c
                        seen = load(both, (start + source) * columns + c)
                        store(dtaps, own, fma(back, seen, load(dtaps, own)))
        for t in range(length):
            for c in range(0, channels, WIDTH):
                value = spread(_ZERO)
                for k in range(count):
                    later = t + (count - 1) - k
                    if later < length:
                        back = load(du, (start + later) * channels + c)
                        value = fma(back, load(taps, k * channels + c), value)
                store(dboth, (start + t) * columns + c, value)


class NumbaMixer(torch.autograd.Function):
    """From the first to the last projection of :class:`model_serving.glacier_seg.Mamba`.

    Takes ``both`` ``(batch, token, 2 * channel)``, what is mixed and its gate, and the mixer's
    ``taps``, ``taps_bias``, weight of ``select``, weight and bias of ``step``, rates and direct
    path; all float32 on the CPU, the channels a multiple of 16.
    """

    @staticmethod
    def forward(ctx: Any, *tensors: torch.Tensor) -> torch.Tensor:
        """``(batch, token, channel)``."""
        both, taps, taps_bias, select, step, step_bias, A, D = (t.detach() for t in tensors)
        batch, length, columns = both.shape
        channels, rank, states = columns // 2, step.shape[1], A.shape[1]
        flat = both.reshape(-1, columns).contiguous()
        shape = (len(flat), channels)
        u, delta, out = (torch.empty(shape) for _ in range(3))
        turned = taps.T.contiguous()
        low = step.T.contiguous()
        _before(flat.numpy(), length, turned.numpy(), taps_bias.numpy(), u.numpy())
        selected = u @ select.T
        _steps(selected.numpy(), low.numpy(), step_bias.numpy(), delta.numpy())
        B, C = (
            selected[:, at : at + states].reshape(batch, length, states)
            for at in (rank, rank + states)
        )
        wanted = any(ctx.needs_input_grad)
        whole = (batch, length, channels)
        y, save = scan_forward(u.view(whole), delta.view(whole), A, B, C, D, keep=wanted)
        _gated(y.view(shape).numpy(), flat.numpy(), out.numpy())
        if wanted:
            ctx.save_for_backward(*tensors, u, delta, selected, B, C, y, save)
        return out.view(whole)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Gradients of all inputs."""
        *tensors, u, delta, selected, B, C, y, save = ctx.saved_tensors
        both, taps, taps_bias, select, step, step_bias, A, D = (t.detach() for t in tensors)
        batch, length, columns = both.shape
        channels, rank = columns // 2, step.shape[1]
        flat, shape = both.reshape(-1, columns).contiguous(), (batch * length, channels)
        grad = grads[0].contiguous().view(shape)
        turned, low = taps.T.contiguous(), step.T.contiguous()
        dboth, dy = torch.empty_like(flat), torch.empty(shape)
        dtaps, dtaps_bias = torch.zeros_like(turned), torch.zeros_like(taps_bias)
        dstep_bias = torch.zeros_like(step_bias)
        seen = flat.numpy()
        _gated_back(grad.numpy(), y.view(shape).numpy(), seen, dy.numpy(), dboth.numpy())
        whole = (batch, length, channels)
        du, ddelta, dA, dB, dC, dD = scan_backward(
            dy.view(whole), u.view(whole), delta.view(whole), A, B, C, D, save=save
        )
        du, dz = du.view(shape), ddelta.view(shape)
        _steps_back(
            selected.numpy(), low.numpy(), step_bias.numpy(), dz.numpy(), dstep_bias.numpy()
        )
        states = A.shape[1]
        chosen = torch.cat((dz @ step, dB.view(-1, states), dC.view(-1, states)), dim=1)
        du = torch.addmm(du, chosen, select)
        _before_back(
            seen, length, turned.numpy(), taps_bias.numpy(), du.numpy(), dboth.numpy(),
            dtaps.numpy(), dtaps_bias.numpy(),
        )  # fmt: skip
        return (
            dboth.view(both.shape),
            dtaps.T.contiguous(),
            dtaps_bias,
            chosen.T @ u,
            dz.T @ selected[:, :rank],
            dstep_bias,
            dA,
            dD,
        )
