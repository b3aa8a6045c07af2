"""The selective scan on a CUDA GPU, forward and backward, as Triton kernels.

A pass over tokens is sequential: one sequence of a few channels would leave a GPU idle. So tokens
are cut into chunks: (1) each chunk runs from a state of zero and keeps its last state and the
product of its decays, (2) a short pass over the chunks carries the true states along, (3) each
chunk runs again from the state that enters it. The backward does the same from the last token to
the first, and recomputes the states between two marks of the forward. Only products of factors in
(0, 1] are formed, so any length is safe. All arithmetic is float32, and sums are taken in a fixed
order, without atomics: on one GPU equal inputs give equal bytes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

__all__ = ["TritonScan"]

_SEGMENT = 8
# ^ tokens between two marks: the backward holds the states of a segment in registers
_CHANNELS = 8
# ^ channels of a program: with 16 states its tile is four numbers for each thread of a warp
_ENOUGH = 4096
# ^ programs that fill a GPU without cutting the sequence, which costs a second pass over it
_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _row(
    base: tl.tensor, row: tl.tensor, at: tl.tensor, width: tl.tensor, inside: tl.tensor
) -> tl.tensor:
    """Load one token's numbers as float32; zeros beyond the width and outside the sequence."""
    return tl.load(base + row * width + at, mask=(at < width) & inside, other=0.0).to(tl.float32)


@triton.jit
def _tile(
    base: tl.tensor, block: tl.tensor, d: tl.tensor, n: tl.tensor, channels: tl.tensor,
    states: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """Load the ``(channel, state)`` tile of one block; zeros beyond the edges."""
    at = (block * channels + d)[:, None] * states + n[None, :]
    mask = (d < channels)[:, None] & (n < states)[None, :]
    return tl.load(base + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _put(
    base: tl.tensor, block: tl.tensor, d: tl.tensor, n: tl.tensor, channels: tl.tensor,
    states: tl.tensor, tile: tl.tensor,
) -> None:  # fmt: skip
    """Store the ``(channel, state)`` tile of one block."""
    at = (block * channels + d)[:, None] * states + n[None, :]
    tl.store(base + at, tile, mask=(d < channels)[:, None] & (n < states)[None, :])


@triton.jit
def _chunk_ends(
    x: tl.tensor, delta: tl.tensor, A: tl.tensor, weight: tl.tensor, ends: tl.tensor,
    gains: tl.tensor, length: tl.tensor, channels: tl.tensor, states: tl.tensor, chunk: tl.tensor,
    REVERSE: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr,
) -> None:  # fmt: skip
    """Step 1: what a chunk makes of a state of zero, and the product of its decays.

    Forward, ``x`` is the input and ``weight`` its projection ``B``; in reverse, ``x`` is the
    gradient of the output and ``weight`` its projection ``C``.
    """
    c, b = tl.program_id(0), tl.program_id(2).to(tl.int64)
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.arange(0, STATES)
    rates = _tile(A, 0, d, n, channels, states) * _LOG2E
    h = tl.zeros((CHANNELS, STATES), tl.float32)
    gain = h + 1.0
    start = c * chunk
    stop = tl.minimum(start + chunk, length)
    for k in range(stop - start):
        row = b * length + (stop - 1 - k if REVERSE else start + k)
        step = _row(delta, row, d, channels, True)
        drive = _row(x, row, d, channels, True)
        if not REVERSE:
            drive *= step
        decay = tl.exp2(step[:, None] * rates)
        added = drive[:, None] * _row(weight, row, n, states, True)[None, :]
        h = decay * (h + added) if REVERSE else decay * h + added
        gain *= decay
    block = b * tl.num_programs(0) + c
    _put(ends, block, d, n, channels, states, h)
    _put(gains, block, d, n, channels, states, gain)


@triton.jit
def _carry_over(
    ends: tl.tensor, gains: tl.tensor, carries: tl.tensor, chunks: tl.tensor, channels: tl.tensor,
    states: tl.tensor, REVERSE: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr,
) -> None:  # fmt: skip
    """Step 2: the state that enters each chunk."""
    b = tl.program_id(1).to(tl.int64)
    d = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.arange(0, STATES)
    carry = tl.zeros((CHANNELS, STATES), tl.float32)
    for k in range(chunks):
        block = b * chunks + (chunks - 1 - k if REVERSE else k)
        _put(carries, block, d, n, channels, states, carry)
        gain = _tile(gains, block, d, n, channels, states)
        carry = gain * carry + _tile(ends, block, d, n, channels, states)


@triton.jit
def _outputs(
    u: tl.tensor, delta: tl.tensor, A: tl.tensor, B: tl.tensor, C: tl.tensor, D: tl.tensor,
    carries: tl.tensor, y: tl.tensor, marks: tl.tensor, length: tl.tensor, channels: tl.tensor,
    states: tl.tensor, chunk: tl.tensor, segments: tl.tensor,
    SAVE: tl.constexpr, SEGMENT: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr,
) -> None:  # fmt: skip
    """Step 3 of the forward: outputs of a chunk, and its state at the start of each segment."""
    c, b = tl.program_id(0), tl.program_id(2).to(tl.int64)
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.arange(0, STATES)
    rates = _tile(A, 0, d, n, channels, states) * _LOG2E
    direct = _row(D, 0, d, channels, True)
    h = _tile(carries, b * tl.num_programs(0) + c, d, n, channels, states)
    first = c * chunk // SEGMENT
    for segment in range(first, tl.minimum(first + chunk // SEGMENT, segments)):
        if SAVE:
            _put(marks, b * segments + segment, d, n, channels, states, h)
        start = segment * SEGMENT
        for t in range(start, tl.minimum(start + SEGMENT, length)):
            row = b * length + t
            step = _row(delta, row, d, channels, True)
            x = _row(u, row, d, channels, True)
            decay = tl.exp2(step[:, None] * rates)
            h = decay * h + (step * x)[:, None] * _row(B, row, n, states, True)[None, :]
            out = tl.sum(h * _row(C, row, n, states, True)[None, :], axis=1) + direct * x
            tl.store(y + row * channels + d, out, mask=d < channels)


@triton.jit
def _gradients(
    grad: tl.tensor, u: tl.tensor, delta: tl.tensor, A: tl.tensor, B: tl.tensor, C: tl.tensor,
    D: tl.tensor, marks: tl.tensor, carries: tl.tensor, du: tl.tensor, ddelta: tl.tensor,
    dA: tl.tensor, dB: tl.tensor, dC: tl.tensor, dD: tl.tensor, length: tl.tensor,
    channels: tl.tensor, states: tl.tensor, chunk: tl.tensor, segments: tl.tensor,
    SEGMENT: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr,
) -> None:  # fmt: skip
    """Step 3 of the backward: all gradients of a chunk; those that are sums as partial sums."""
    c, b = tl.program_id(0), tl.program_id(2).to(tl.int64)
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.arange(0, STATES)
    rates = _tile(A, 0, d, n, channels, states) * _LOG2E
    direct = _row(D, 0, d, channels, True)
    block = b * tl.num_programs(0) + c
    ahead = _tile(carries, block, d, n, channels, states)
    d_rates = tl.zeros((CHANNELS, STATES), tl.float32)
    d_direct = tl.zeros((CHANNELS,), tl.float32)
    part = (tl.program_id(1) * tl.num_programs(2) + b) * length
    first = c * chunk // SEGMENT
    last = tl.minimum(first + chunk // SEGMENT, segments)
    for k in range(last - first):
        segment = last - 1 - k
        h = _tile(marks, b * segments + segment, d, n, channels, states)
        # A tuple, since registers cannot be indexed by a number known only when it runs.
        before = (h,)
        for i in tl.static_range(SEGMENT):
            t = segment * SEGMENT + i
            row, inside = b * length + t, t < length
            step = _row(delta, row, d, channels, inside)
            drive = step * _row(u, row, d, channels, inside)
            decay = tl.exp2(step[:, None] * rates)
            h = decay * h + drive[:, None] * _row(B, row, n, states, inside)[None, :]
            before += (h,)  # type: ignore[assignment]
        for i in tl.static_range(SEGMENT):
            t = segment * SEGMENT + SEGMENT - 1 - i
            row, inside = b * length + t, t < length
            dy = _row(grad, row, d, channels, inside)
            x = _row(u, row, d, channels, inside)
            step = _row(delta, row, d, channels, inside)
            gh = ahead + dy[:, None] * _row(C, row, n, states, inside)[None, :]
            gx = tl.sum(gh * _row(B, row, n, states, inside)[None, :], axis=1)
            ahead = gh * tl.exp2(step[:, None] * rates)
            ga = ahead * before[SEGMENT - 1 - i]
            d_rates += ga * step[:, None]
            d_direct += dy * x
            here, on = row * channels + d, (d < channels) & inside
            tl.store(ddelta + here, tl.sum(ga * rates, axis=1) * _LN2 + gx * x, mask=on)
            tl.store(du + here, gx * step + direct * dy, mask=on)
            here, on = (part + t) * states + n, (n < states) & inside
            tl.store(dB + here, tl.sum(gh * (step * x)[:, None], axis=0), mask=on)
            tl.store(dC + here, tl.sum(before[SEGMENT - i] * dy[:, None], axis=0), mask=on)
    _put(dA, block, d, n, channels, states, d_rates)
    tl.store(dD + block * channels + d, d_direct, mask=d < channels)


class _Plan:
    """How a scan is cut into programs; a function of its shape only."""

    def __init__(self, u: torch.Tensor, A: torch.Tensor) -> None:
        self.batch, self.length, self.channels = u.shape
        self.states = A.shape[1]
        self.blocks = triton.cdiv(self.channels, _CHANNELS)
        self.segments = triton.cdiv(self.length, _SEGMENT)
        whole = self.batch * self.blocks >= _ENOUGH
        # About as many chunks as tokens in a chunk: steps 1 and 2 are then equally long.
        tokens = self.length if whole else math.isqrt(self.length - 1) + 1
        self.chunk = triton.cdiv(tokens, _SEGMENT) * _SEGMENT
        self.chunks = triton.cdiv(self.length, self.chunk)
        self.grid = (self.chunks, self.blocks, self.batch)
        self.tile = {"CHANNELS": _CHANNELS, "STATES": triton.next_power_of_2(self.states)}

    def tiles(self, like: torch.Tensor, count: int) -> torch.Tensor:
        """Room for ``(batch, count, channel, state)`` float32."""
        shape = (self.batch, count, self.channels, self.states)
        return torch.empty(shape, dtype=torch.float32, device=like.device)

    def carries(
        self, x: torch.Tensor, delta: torch.Tensor, *, A: torch.Tensor, weight: torch.Tensor,
        reverse: bool,
    ) -> torch.Tensor:  # fmt: skip
        """Steps 1 and 2: the state that enters each chunk, ``(batch, chunk, channel, state)``."""
        carries = self.tiles(x, self.chunks)
        if self.chunks == 1:
            return carries.zero_()
        ends, gains = torch.empty_like(carries), torch.empty_like(carries)
        sizes = (self.channels, self.states)
        _chunk_ends[self.grid](
            x, delta, A, weight, ends, gains, self.length, *sizes, self.chunk,
            REVERSE=reverse, num_warps=1, **self.tile,
        )  # fmt: skip
        _carry_over[self.blocks, self.batch](
            ends, gains, carries, self.chunks, *sizes, REVERSE=reverse, num_warps=1, **self.tile
        )
        return carries


def _current(tensor: torch.Tensor) -> Any:
    """Make the GPU of a tensor the current one, on which Triton launches."""
    return torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]


class TritonScan(torch.autograd.Function):
    """Autograd binding of the Triton kernels; called through ``selective_scan`` only."""

    @staticmethod
    def forward(ctx: Any, *tensors: torch.Tensor) -> torch.Tensor:
        """Scan float32, bfloat16 or float16 tensors ``u, delta, A, B, C, D`` on a GPU."""
        u, delta, A, B, C, D = (t.contiguous() for t in tensors)
        plan = _Plan(u, A)
        y = torch.empty_like(u)
        wanted = any(ctx.needs_input_grad)
        with _current(u):
            carries = plan.carries(u, delta, A=A, weight=B, reverse=False)
            marks = plan.tiles(u, plan.segments) if wanted else carries
            _outputs[plan.grid](
                u, delta, A, B, C, D, carries, y, marks,
                plan.length, plan.channels, plan.states, plan.chunk, plan.segments,
                SAVE=wanted, SEGMENT=_SEGMENT, num_warps=1, **plan.tile,
            )  # fmt: skip
        if wanted:
            ctx.save_for_backward(*tensors, marks)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Gradients of all six inputs."""
        *tensors, marks = ctx.saved_tensors
        u, delta, A, B, C, D = (t.contiguous() for t in tensors)
        grad = grads[0].contiguous()
        plan = _Plan(u, A)
        du, ddelta = torch.empty_like(u), torch.empty_like(delta)
        dA = plan.tiles(u, plan.chunks)
        dD = torch.empty_like(dA[..., 0])
        dB, dC = (u.new_empty(plan.blocks, *B.shape, dtype=torch.float32) for _ in range(2))
        with _current(u):
            carries = plan.carries(grad, delta, A=A, weight=C, reverse=True)
            _gradients[plan.grid](
                grad, u, delta, A, B, C, D, marks, carries, du, ddelta, dA, dB, dC, dD,
                plan.length, plan.channels, plan.states, plan.chunk, plan.segments,
                SEGMENT=_SEGMENT, num_warps=1, **plan.tile,
            )  # fmt: skip
        sums = (dA.sum((0, 1)), dB.sum(0), dC.sum(0), dD.sum((0, 1)))
        return du, ddelta, *(s.to(t.dtype) for s, t in zip(sums, tensors[2:], strict=True))
