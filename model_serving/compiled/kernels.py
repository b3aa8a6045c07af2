"""Compiled kernels of the network's inference form; images are ``(y, x, channel)`` float32.

All channel counts are multiples of 16, the width of :mod:`model_serving.compiled.lanes`. Everything
that is no matrix product is here, fused so that each pass over memory does as much as it can.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from model_serving.compiled.lanes import (
    WIDTH,
    exp,
    fma,
    larger,
    load,
    magnitude,
    signed,
    silu,
    spread,
    store,
    total,
)

__all__ = [
    "add",
    "add_normalised",
    "bend",
    "convolve",
    "doubled",
    "fuse_row",
    "gelu",
    "interleave",
    "involve",
    "neighbours",
    "normalise",
    "part",
    "patches",
    "winograd_in",
    "winograd_out",
]

_compiled = njit(nogil=True, boundscheck=False, cache=True, error_model="numpy")
_F = np.float32
_ZERO, _HALF, _ONE, _QUARTER = _F(0), _F(0.5), _F(1), _F(0.25)


@_compiled
def interleave(planes: Any, first: Any, last: Any, out: Any) -> None:
    # pragma: no cover - compiled
    """Rows of ``(channel, y, x)`` planes into the first channels of ``(y, x, channel)``."""
    channels, _, width = planes.shape
    for y in range(first, last):
        for x in range(width):
            for c in range(channels):
                out[y, x, c] = planes[c, y, x]


@_compiled
def normalise(x: Any, out: Any, epsilon: Any) -> None:  # pragma: no cover - compiled
    """Divide each token ``(token, channel)`` by its root mean square."""
    tokens, channels = x.shape
    for t in range(tokens):
        square = spread(_ZERO)
        for c in range(t * channels, (t + 1) * channels, WIDTH):
            value = load(x, c)
            square = fma(value, value, square)
        scale = spread(_ONE / np.sqrt(total(square) / _F(channels) + epsilon))
        for c in range(t * channels, (t + 1) * channels, WIDTH):
            store(out, c, load(x, c) * scale)


@_compiled
def add_normalised(x: Any, more: Any, out: Any, epsilon: Any) -> None:
    # pragma: no cover - compiled
    """Add a residual branch to the tokens in place, then as :func:`normalise`."""
    tokens, channels = x.shape
    for t in range(tokens):
        square = spread(_ZERO)
        for c in range(t * channels, (t + 1) * channels, WIDTH):
            value = load(x, c) + load(more, c)
            store(x, c, value)
            square = fma(value, value, square)
        scale = spread(_ONE / np.sqrt(total(square) / _F(channels) + epsilon))
        for c in range(t * channels, (t + 1) * channels, WIDTH):
            store(out, c, load(x, c) * scale)


@_compiled
def add(x: Any, more: Any, bias: Any) -> None:  # pragma: no cover - compiled
    """Add a residual branch and its bias to the tokens in place."""
    tokens, channels = x.shape
    for t in range(tokens):
        for c in range(0, channels, WIDTH):
            at = t * channels + c
            store(x, at, load(x, at) + load(more, at) + load(bias, c))


@_compiled
def bend(x: Any, bias: Any) -> None:  # pragma: no cover - compiled
    """Add a bias, then ReLU, in place."""
    tokens, channels = x.shape
    for t in range(tokens):
        for c in range(0, channels, WIDTH):
            at = t * channels + c
            store(x, at, larger(load(x, at) + load(bias, c), spread(_ZERO)))


@_compiled
def convolve(inputs: Any, taps: Any, bias: Any, out: Any) -> None:  # pragma: no cover - compiled
    """Causal depthwise convolution along the tokens, then SiLU.

    ``inputs`` is ``(taps - 1 + token, >= channel)``: the tokens before the first come first. Its
    further columns are left alone.
    """
    tokens, channels = out.shape
    columns = inputs.shape[1]
    count = taps.shape[0]
    for t in range(tokens):
        for c in range(0, channels, WIDTH):
            value = load(bias, c)
            for k in range(count):
                value = fma(
                    load(inputs, (t + k) * columns + c), load(taps, k * channels + c), value
                )
            store(out, t * channels + c, silu(value))


@_compiled
def gelu(x: Any, bias: Any) -> None:  # pragma: no cover - compiled
    """Add a bias, then the exact GELU, in place.

    The error function by Abramowitz and Stegun (1964), 7.1.26: absolute error 1.5e-7.
    """
    tokens, channels = x.shape
    for t in range(tokens):
        for c in range(0, channels, WIDTH):
            at = t * channels + c
            value = load(x, at) + load(bias, c)
            z = magnitude(value) * spread(_F(0.7071067811865476))
            s = spread(_ONE) / fma(spread(_F(0.3275911)), z, spread(_ONE))
            p = fma(spread(_F(1.061405429)), s, spread(_F(-1.453152027)))
            p = fma(p, s, spread(_F(1.421413741)))
            p = fma(p, s, spread(_F(-0.284496736)))
            p = fma(p, s, spread(_F(0.254829592)))
            erf = spread(_ONE) - p * s * exp(spread(_ZERO) - z * z)
            half = value * spread(_HALF)
            store(x, at, fma(half, signed(erf, value), half))


@_compiled
def involve(
    x: Any, reduce: Any, reduce_bias: Any, span: Any, span_bias: Any, row: Any, out: Any
) -> None:  # pragma: no cover - compiled
    """Involution of stride 2 for one output row: ``(y, x, channel)`` to ``(x / 2, channel)``.

    ``reduce`` is ``(hidden, channel)``; ``span`` ``(hidden, 16)`` and its bias hold nine weights.
    """
    _, width, channels = x.shape
    weights = np.zeros(WIDTH, np.float32)
    line = width * channels
    for j in range(width // 2):
        corner = (2 * row) * line + 2 * j * channels
        kernel = load(span_bias, 0)
        for k in range(reduce.shape[0]):
            inner = spread(_ZERO)
            for c in range(0, channels, WIDTH):
                at = corner + c
                pooled = load(x, at) + load(x, at + channels)
                pooled = pooled + load(x, at + line) + load(x, at + line + channels)
                inner = fma(pooled * spread(_QUARTER), load(reduce, k * channels + c), inner)
            hidden = max(total(inner) + reduce_bias[k], _ZERO)
            kernel = fma(spread(hidden), load(span, k * WIDTH), kernel)
        store(weights, 0, kernel)
        for c in range(0, channels, WIDTH):
            value = spread(_ZERO)
            for k in range(9):
                y, z = 2 * row + k // 3 - 1, 2 * j + k % 3 - 1
                if y >= 0 and z >= 0:
                    value = fma(load(x, y * line + z * channels + c), spread(weights[k]), value)
            store(out, j * channels + c, value)


@_compiled
def patches(x: Any, row: Any, out: Any) -> None:  # pragma: no cover - compiled
    """3 x 3 neighbourhoods at stride 2 of one output row, ``(x / 2, 9 * channel)``."""
    _, width, channels = x.shape
    for j in range(width // 2):
        for k in range(9):
            y, z = 2 * row + k // 3 - 1, 2 * j + k % 3 - 1
            to = (j * 9 + k) * channels
            for c in range(0, channels, WIDTH):
                if y >= 0 and z >= 0:
                    store(out, to + c, load(x, (y * width + z) * channels + c))
                else:
                    store(out, to + c, spread(_ZERO))


@_compiled
def neighbours(above: Any, here: Any, below: Any, out: Any) -> None:
    # pragma: no cover - compiled
    """3 x 3 neighbourhoods of one row of an image, ``(x, 9 * channel)``; zero beside the image.

    All three rows are ``(x, channel)``.
    """
    width, channels = here.shape
    rows = (above, here, below)
    three, last = 3 * channels, width * channels
    for k in range(3):
        line = rows[k]
        for c in range(0, channels, WIDTH):
            store(out, k * three + c, spread(_ZERO))
            store(out, (3 * width + k - 2) * three - channels + c, spread(_ZERO))
        for x in range(width):
            # Three neighbours stand beside each other in the row as in the result.
            first, to = (x - 1) * channels, (3 * x + k) * three
            for c in range(max(0, -first), min(three, last - first), WIDTH):
                store(out, to + c, load(line, first + c))


@njit(inline="always")
def _between(target: Any, factor: Any, size: Any) -> Any:  # pragma: no cover - compiled
    """Bilinear neighbours of a pixel in an image ``factor`` times coarser, and their weight."""
    source = max((_F(target) + _HALF) / _F(factor) - _HALF, _ZERO)
    low = int(source)
    return low, min(low + 1, size - 1), source - _F(low)


@_compiled
def fuse_row(row: Any, coarse: Any, line: Any, bias: Any, out: Any) -> None:
    # pragma: no cover - compiled
    """Add bilinearly enlarged coarser images to one row, then ReLU.

    Parameters
    ----------
    row
        Number of the row.
    coarse : tuple of ``(y, x, channel)``
        Images that are 2, 4, 8, … times coarser.
    line : ``(x, channel)``
        The row at full resolution; overwritten.
    bias : ``(channel,)``
        Added once.
    out : ``(x, channel)``
        Result.
    """
    width, channels = line.shape
    for s in range(len(coarse)):
        image = coarse[s]
        factor = 2 << s
        lower, upper, down = _between(row, factor, image.shape[0])
        below, above = spread(down), spread(_ONE - down)
        size = image.shape[1]
        for x in range(width):
            left, right, along = _between(x, factor, size)
            b, a = spread(along), spread(_ONE - along)
            for c in range(0, channels, WIDTH):
                top = (lower * size + left) * channels + c
                bottom = (upper * size + left) * channels + c
                step = (right - left) * channels
                near = fma(load(image, top), above, load(image, bottom) * below)
                far = fma(load(image, top + step), above, load(image, bottom + step) * below)
                at = x * channels + c
                store(line, at, fma(near, a, fma(far, b, load(line, at))))
    for x in range(width):
        for c in range(0, channels, WIDTH):
            at = x * channels + c
            store(out, at, larger(load(line, at) + load(bias, c), spread(_ZERO)))


@njit(inline="always")
def _six(d0: Any, d1: Any, d2: Any, d3: Any, d4: Any, d5: Any) -> Any:
    # pragma: no cover - compiled
    """One side of the input transform of F(4, 3), points 0, 1, -1, 2, -2 and infinity."""
    even, odd = fma(spread(_F(-4)), d2, d4), fma(spread(_F(-4)), d1, d3)
    near, far = d4 - d2, spread(_F(2)) * (d3 - d1)
    first = fma(spread(_F(-5)), d2, fma(spread(_F(4)), d0, d4))
    last = fma(spread(_F(-5)), d3, fma(spread(_F(4)), d1, d5))
    return first, even + odd, even - odd, near + far, near - far, last


@njit(inline="always")
def _four(m0: Any, m1: Any, m2: Any, m3: Any, m4: Any, m5: Any) -> Any:
    # pragma: no cover - compiled
    """One side of the output transform of F(4, 3)."""
    a, b, c, d = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return (
        m0 + a + c,
        fma(spread(_F(2)), d, b),
        fma(spread(_F(4)), c, a),
        fma(spread(_F(8)), d, b) + m5,
    )


@_compiled
def winograd_in(rows: Any, first: Any, out: Any) -> None:  # pragma: no cover - compiled
    """Input transform of six rows of 4 x 4 output tiles (Lavin and Gray 2016, F(4 x 4, 3 x 3)).

    ``rows`` is a ring of six ``(6, 4 * tile + 2, channel)`` whose uppermost is ``first``; ``out``
    is ``(36, tile, channel)``.
    """
    _, tiles, channels = out.shape
    line = rows.shape[1] * channels
    half = np.empty((6, 6, WIDTH), np.float32)
    for t in range(tiles):
        for c in range(0, channels, WIDTH):
            for k in range(6):
                at = (4 * t + k) * channels + c
                d0 = load(rows, (first + 0) % 6 * line + at)
                d1 = load(rows, (first + 1) % 6 * line + at)
                d2 = load(rows, (first + 2) % 6 * line + at)
                d3 = load(rows, (first + 3) % 6 * line + at)
                d4 = load(rows, (first + 4) % 6 * line + at)
                d5 = load(rows, (first + 5) % 6 * line + at)
                v0, v1, v2, v3, v4, v5 = _six(d0, d1, d2, d3, d4, d5)
                store(half, (0 + k) * WIDTH, v0)
                store(half, (6 + k) * WIDTH, v1)
                store(half, (12 + k) * WIDTH, v2)
                store(half, (18 + k) * WIDTH, v3)
                store(half, (24 + k) * WIDTH, v4)
                store(half, (30 + k) * WIDTH, v5)
            for k in range(6):
                at = k * 6 * WIDTH
                d0, d1 = load(half, at), load(half, at + WIDTH)
                d2, d3 = load(half, at + 2 * WIDTH), load(half, at + 3 * WIDTH)
                d4, d5 = load(half, at + 4 * WIDTH), load(half, at + 5 * WIDTH)
                v0, v1, v2, v3, v4, v5 = _six(d0, d1, d2, d3, d4, d5)
                to = (6 * k * tiles + t) * channels + c
                step = tiles * channels
                store(out, to, v0)
                store(out, to + step, v1)
                store(out, to + 2 * step, v2)
                store(out, to + 3 * step, v3)
                store(out, to + 4 * step, v4)
                store(out, to + 5 * step, v5)


@_compiled
def winograd_out(products: Any, bias: Any, out: Any) -> None:  # pragma: no cover - compiled
    """Output transform, bias and ReLU: ``(36, tile, channel)`` to ``(4, 4 * tile, channel)``."""
    _, tiles, channels = products.shape
    half = np.empty((4, 6, WIDTH), np.float32)
    step = tiles * channels
    for t in range(tiles):
        for c in range(0, channels, WIDTH):
            for k in range(6):
                at = (k * tiles + t) * channels + c
                m0, m1 = load(products, at), load(products, at + 6 * step)
                m2, m3 = load(products, at + 12 * step), load(products, at + 18 * step)
                m4, m5 = load(products, at + 24 * step), load(products, at + 30 * step)
                y0, y1, y2, y3 = _four(m0, m1, m2, m3, m4, m5)
                store(half, (0 + k) * WIDTH, y0)
                store(half, (6 + k) * WIDTH, y1)
                store(half, (12 + k) * WIDTH, y2)
                store(half, (18 + k) * WIDTH, y3)
            more = load(bias, c)
            for k in range(4):
                at = k * 6 * WIDTH
                m0, m1 = load(half, at), load(half, at + WIDTH)
                m2, m3 = load(half, at + 2 * WIDTH), load(half, at + 3 * WIDTH)
                m4, m5 = load(half, at + 4 * WIDTH), load(half, at + 5 * WIDTH)
                y0, y1, y2, y3 = _four(m0, m1, m2, m3, m4, m5)
                to = (k * tiles + t) * 4 * channels + c
                store(out, to, larger(y0 + more, spread(_ZERO)))
                store(out, to + channels, larger(y1 + more, spread(_ZERO)))
                store(out, to + 2 * channels, larger(y2 + more, spread(_ZERO)))
                store(out, to + 3 * channels, larger(y3 + more, spread(_ZERO)))


@_compiled
def part(line: Any, bias: Any, row: Any, out: Any) -> None:  # pragma: no cover - compiled
    """Add a bias to ``(x, >= class)`` and put it into a row of ``(class, y, x)`` planes."""
    for c in range(out.shape[0]):
        for x in range(line.shape[0]):
            out[c, row, x] = line[x, c] + bias[c]


@_compiled
def doubled(image: Any, first: Any, last: Any, out: Any) -> None:
    # pragma: no cover - compiled
    """Enlarge rows of ``(y, x, >= class)`` twice, bilinearly, into ``(class, 2 * y, 2 * x)``."""
    height, width, _ = image.shape
    line = np.empty(width, np.float32)
    for c in range(out.shape[0]):
        for y in range(2 * first, 2 * last):
            lower, upper, down = _between(y, 2, height)
            for x in range(width):
                line[x] = image[lower, x, c] * (_ONE - down) + image[upper, x, c] * down
            out[c, y, 0], out[c, y, 2 * width - 1] = line[0], line[width - 1]
            for x in range(width - 1):
                out[c, y, 2 * x + 1] = line[x] * _F(0.75) + line[x + 1] * _QUARTER
                out[c, y, 2 * x + 2] = line[x] * _QUARTER + line[x + 1] * _F(0.75)
