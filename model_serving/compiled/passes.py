"""Whole passes of the inference form, each one call: Python between kernels costs as much as some.

Images are ``(y, x, channel)`` and tokens ``(token, channel)`` float32; matrices are packed, see
:mod:`model_serving.compiled.products`.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from model_serving.compiled.kernels import (
    add,
    add_normalised,
    bend,
    convolve,
    fuse_row,
    gelu,
    involve,
    neighbours,
    normalise,
    part,
    patches,
    winograd_in,
    winograd_out,
)
from model_serving.compiled.products import product, products

__all__ = [
    "RING",
    "TILE",
    "after_scan",
    "before_scan",
    "classify_rows",
    "convolved_rows",
    "drawn_rows",
    "involved_rows",
]

_compiled = njit(nogil=True, boundscheck=False, cache=True, error_model="numpy")
TILE, RING = 4, 6
# ^ output rows of a Winograd tile, and the rows that it needs


@_compiled
def involved_rows(
    image: Any, first: Any, last: Any, reduce: Any, reduce_bias: Any, span: Any, span_bias: Any,
    mix: Any, shift: Any, gathered: Any, out: Any,
) -> None:  # fmt: skip  # pragma: no cover - compiled
    """Rows of an image halved by an involution."""
    for row in range(first, last):
        involve(image, reduce, reduce_bias, span, span_bias, row, gathered)
        product(gathered, mix, out[row])
        out[row] += shift


@_compiled
def convolved_rows(
    image: Any, first: Any, last: Any, mix: Any, shift: Any, gathered: Any, out: Any
) -> None:  # pragma: no cover - compiled
    """Rows of an image halved by a 3 x 3 convolution."""
    for row in range(first, last):
        patches(image, row, gathered)
        product(gathered, mix, out[row])
        out[row] += shift


@_compiled
def before_scan(
    tokens: Any, lead: Any, inwards: Any, taps: Any, taps_bias: Any, select: Any, epsilon: Any,
    normal: Any, split: Any, u: Any, selected: Any,
) -> None:  # fmt: skip  # pragma: no cover - compiled
    """Everything up to the scan, for a run of tokens and the ``lead`` before them."""
    reach, count = lead.shape[0], tokens.shape[0]
    normalise(lead, normal[:reach], epsilon)
    normalise(tokens, normal[reach : reach + count], epsilon)
    product(normal[: reach + count], inwards, split[: reach + count])
    convolve(split[: reach + count], taps, taps_bias, u[:count])
    product(u[:count], select, selected[:count])


@_compiled
def after_scan(
    tokens: Any, mixed: Any, outwards: Any, rise: Any, rise_bias: Any, fall: Any, fall_bias: Any,
    epsilon: Any, branch: Any, normal: Any, hidden: Any,
) -> None:  # fmt: skip  # pragma: no cover - compiled
    """Everything after the scan; changes the tokens."""
    count = tokens.shape[0]
    product(mixed[:count], outwards, branch[:count])
    add_normalised(tokens, branch[:count], normal[:count], epsilon)
    product(normal[:count], rise, hidden[:count])
    gelu(hidden[:count], rise_bias)
    product(hidden[:count], fall, branch[:count])
    add(tokens, branch[:count], fall_bias)


@_compiled
def classify_rows(
    fine: Any, coarse: Any, first: Any, last: Any, share: Any, bias: Any, smooth: Any,
    smooth_bias: Any, classify: Any, classify_bias: Any, ring: Any, line: Any, tiles: Any,
    weighed: Any, rows: Any, out: Any,
) -> None:  # fmt: skip  # pragma: no cover - compiled
    """Logits of whole tiles of rows, see :class:`model_serving.fused.FusedGlacierSeg`.

    Six rows of the fused stages are held in ``ring``, whose columns beyond the image are zero.
    """
    height, width, _ = fine.shape
    wide = bias.size
    for row in range(first - 1, last + 1):
        target = ring[(row - first + 1) % RING]
        if 0 <= row < height:
            product(fine[row], share, line)
            fuse_row(row, coarse, line, bias, target[1 : width + 1])
        else:
            target[:] = 0
        top = row - TILE
        if top >= first and (top - first) % TILE == 0:
            winograd_in(ring, (top - first) % RING, tiles)
            products(tiles, smooth, weighed)
            winograd_out(weighed, smooth_bias, rows)
            target_rows = out[top : top + TILE].reshape(TILE * width, out.shape[2])
            product(rows.reshape(TILE * width, wide), classify, target_rows)
    out[first:last] += classify_bias


@_compiled
def drawn_rows(
    image: Any, said: Any, first: Any, last: Any, look: Any, look_bias: Any, draw: Any,
    draw_bias: Any, classify: Any, classify_bias: Any, nothing: Any, ring: Any, seen: Any,
    around: Any, line: Any, classes: Any, out: Any,
) -> None:  # fmt: skip  # pragma: no cover - compiled
    """Logits of rows at full resolution, see :class:`model_serving.glacier_seg.Detail`.

    ``image`` is ``(y, x, channel)``, ``said`` what the head says, ``(y / 2, x / 2, detail)``; of
    their sum three rows are held in ``ring``. ``nothing`` is a row of zeros like one of the image.
    """
    height = image.shape[0]
    for row in range(first - 1, last + 1):
        target = ring[row % 3]
        if 0 <= row < height:
            above = image[row - 1] if row > 0 else nothing
            below = image[row + 1] if row + 1 < height else nothing
            neighbours(above, image[row], below, seen)
            product(seen, look, line)
            fuse_row(row, (said,), line, look_bias, target)
        else:
            target[:] = 0
        if row > first:
            neighbours(ring[(row - 2) % 3], ring[(row - 1) % 3], target, around)
            product(around, draw, line)
            bend(line, draw_bias)
            product(line, classify, classes)
            part(classes, classify_bias, row - 1, out)
