"""Matrix products with a matrix that stays the same, on one thread.

A general library packs both matrices anew for every call; for a few hundred rows that costs as much
as the product. Here the constant matrix is packed once, and a tile of the result stays in registers
while one row of it after another passes by. Sums run over the inner axis in its order, so a row of
the result does not depend on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from model_serving.compiled.lanes import WIDTH, address, broadcast, fused_multiply_add

__all__ = ["packed", "product", "products"]

_REGISTERS = 24
# ^ sums held at once; eight of the 32 registers of AVX-512 are left for what is multiplied


def packed(matrix: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Lay out ``(inner, column)``, columns a multiple of 16, as ``(panel, inner, 16 to 64)``."""
    inner, columns = matrix.shape
    width = next(w * WIDTH for w in (4, 3, 2, 1) if columns % (w * WIDTH) == 0)
    panels = matrix.reshape(inner, columns // width, width).swapaxes(0, 1)
    return np.ascontiguousarray(panels, np.float32)


def _tile(rows: int, vectors: int) -> Callable[..., None]:
    """Compile-time shape of a tile: rows of the result by vectors of sixteen columns."""

    @intrinsic  # type: ignore[untyped-decorator]
    def tile(
        _context: Any, a: Any, a_at: Any, a_step: Any, b: Any, b_at: Any, inner: Any, c: Any,
        c_at: Any, c_step: Any,
    ) -> Any:  # fmt: skip
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            a, a_at, a_step, b, b_at, inner, c, c_at, c_step = args
            kinds = signature.args
            sums = [
                [broadcast(builder, ir.Constant(ir.FloatType(), 0.0)) for _ in range(vectors)]
                for _ in range(rows)
            ]
            slots = [[cgutils.alloca_once_value(builder, s) for s in row] for row in sums]
            starts = [
                builder.add(a_at, builder.mul(a_step, ir.Constant(a_step.type, r)))
                for r in range(rows)
            ]
            data = context.make_array(kinds[0])(context, builder, a).data
            width = ir.Constant(inner.type, vectors * WIDTH)
            with cgutils.for_range(builder, inner) as loop:
                here = builder.add(b_at, builder.mul(loop.index, width))
                columns = []
                for v in range(vectors):
                    at = builder.add(here, ir.Constant(here.type, v * WIDTH))
                    columns.append(
                        builder.load(address(context, builder, kinds[3], b, at), align=4)
                    )
                for r in range(rows):
                    one = builder.load(builder.gep(data, [builder.add(starts[r], loop.index)]))
                    many = broadcast(builder, one)
                    for v in range(vectors):
                        old = builder.load(slots[r][v])
                        builder.store(
                            fused_multiply_add(builder, many, columns[v], old), slots[r][v]
                        )
            for r in range(rows):
                row = builder.add(c_at, builder.mul(c_step, ir.Constant(c_step.type, r)))
                for v in range(vectors):
                    at = builder.add(row, ir.Constant(row.type, v * WIDTH))
                    builder.store(
                        builder.load(slots[r][v]),
                        address(context, builder, kinds[6], c, at),
                        align=4,
                    )
            return context.get_dummy_value()

        whole = types.intp
        return types.void(a, whole, whole, b, whole, whole, c, whole, whole), code

    return tile  # type: ignore[no-any-return]


def _panel(vectors: int) -> Callable[..., None]:
    """A product with one panel, in tiles of as many rows as the registers hold."""
    height = _REGISTERS // max(vectors, 2)
    many, single = _tile(height, vectors), _tile(1, vectors)

    @njit(nogil=True, boundscheck=False, error_model="numpy")
    def panel(
        a: Any, a_at: Any, a_step: Any, rows: Any, b: Any, b_at: Any, inner: Any, c: Any, c_at: Any,
        c_step: Any,
    ) -> None:  # fmt: skip  # pragma: no cover - compiled
        whole = rows - rows % height
        for r in range(0, whole, height):
            many(a, a_at + r * a_step, a_step, b, b_at, inner, c, c_at + r * c_step, c_step)
        for r in range(whole, rows):
            single(a, a_at + r * a_step, a_step, b, b_at, inner, c, c_at + r * c_step, c_step)

    return panel  # type: ignore[no-any-return]


_one, _two, _three, _four = (_panel(vectors) for vectors in (1, 2, 3, 4))


@njit(nogil=True, boundscheck=False, error_model="numpy")
def _into(a: Any, a_at: Any, rows: Any, b: Any, b_at: Any, shape: Any, c: Any, c_at: Any) -> None:
    # pragma: no cover - compiled
    panels, inner, width = shape
    columns = panels * width
    for p in range(panels):
        b_here, c_here = b_at + p * inner * width, c_at + p * width
        if width == 4 * WIDTH:
            _four(a, a_at, inner, rows, b, b_here, inner, c, c_here, columns)
        elif width == 3 * WIDTH:
            _three(a, a_at, inner, rows, b, b_here, inner, c, c_here, columns)
        elif width == 2 * WIDTH:
            _two(a, a_at, inner, rows, b, b_here, inner, c, c_here, columns)
        else:
            _one(a, a_at, inner, rows, b, b_here, inner, c, c_here, columns)


@njit(nogil=True, boundscheck=False, cache=True, error_model="numpy")
def product(a: Any, b: Any, c: Any) -> None:  # pragma: no cover - compiled
    """``c = a @ b`` for ``a`` of ``(row, inner)`` and a packed ``b``."""
    _into(a, 0, a.shape[0], b, 0, b.shape, c, 0)


@njit(nogil=True, boundscheck=False, cache=True, error_model="numpy")
def products(a: Any, b: Any, c: Any) -> None:  # pragma: no cover - compiled
    """Do :func:`product` for every first index of all three."""
    count, rows, inner = a.shape
    size, columns = b[0].size, c.shape[2]
    for i in range(count):
        _into(a, i * rows * inner, rows, b, i * size, b.shape[1:], c, i * rows * columns)
