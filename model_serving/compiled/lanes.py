"""Sixteen float32 numbers that travel together: a vector type for compiled kernels.

A compiler vectorises a loop only where it can prove that arrays do not overlap; the hot loops of
the scan and of the network touch too many for that. With :data:`LANES` values such a loop says what
it wants. LLVM maps one value to one AVX-512 register, two AVX2 or four NEON registers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

__all__ = [
    "WIDTH",
    "address",
    "broadcast",
    "exp",
    "exp2_negative",
    "fma",
    "fused_multiply_add",
    "larger",
    "load",
    "magnitude",
    "signed",
    "silu",
    "smaller",
    "softplus",
    "spread",
    "store",
    "total",
]

WIDTH = 16
# ^ float32 numbers of one value
_FLOATS = ir.VectorType(ir.FloatType(), WIDTH)
_INTS = ir.VectorType(ir.IntType(32), WIDTH)
_SIGN, _REST = 0x80000000, 0x7FFFFFFF


class _LanesType(types.Type):  # type: ignore[misc]
    """Numba's name for one value."""

    def __init__(self) -> None:
        super().__init__(name="float32x16")


LANES = _LanesType()


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, lanes: Any) -> None:
        super().__init__(manager, lanes, _FLOATS)


def broadcast(builder: Any, value: Any) -> Any:
    """LLVM code for sixteen times one number."""
    one = builder.insert_element(
        ir.Constant(_FLOATS, ir.Undefined), value, ir.Constant(ir.IntType(32), 0)
    )
    zeros = ir.Constant(_INTS, [0] * WIDTH)
    return builder.shuffle_vector(one, ir.Constant(_FLOATS, ir.Undefined), zeros)


def _constant(value: float) -> Any:
    return ir.Constant(_FLOATS, [value] * WIDTH)


def address(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    """Address of 16 numbers in a contiguous array, by the number of the first."""
    data = context.make_array(kind)(context, builder, array).data
    start = builder.gep(data, [offset])
    return builder.bitcast(start, _FLOATS.as_pointer())


@intrinsic
def load(_context: Any, array: Any, offset: Any) -> Any:
    """Sixteen neighbouring numbers of a contiguous float32 array, from a flat offset on."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = address(context, builder, signature.args[0], args[0], args[1])
        return builder.load(place, align=4)

    return LANES(array, types.intp), code


@intrinsic
def store(_context: Any, array: Any, offset: Any, value: Any) -> Any:
    """Put sixteen numbers into a contiguous float32 array, from a flat offset on."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = address(context, builder, signature.args[0], args[0], args[1])
        builder.store(args[2], place, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, LANES), code


@intrinsic
def spread(_context: Any, value: Any) -> Any:
    """Sixteen times the same number."""

    def code(_ctx: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return broadcast(builder, args[0])

    return LANES(types.float32), code


@intrinsic
def total(_context: Any, value: Any) -> Any:
    """Sum of the sixteen numbers, always in the same order."""

    def code(_ctx: Any, builder: Any, _signature: Any, args: Any) -> Any:
        value, width = args[0], WIDTH
        undefined = ir.Constant(_FLOATS, ir.Undefined)
        while width > 1:
            width //= 2
            order = [*range(width, 2 * width), *range(WIDTH - width)]
            value = builder.fadd(
                value, builder.shuffle_vector(value, undefined, ir.Constant(_INTS, order))
            )
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return types.float32(LANES), code


@intrinsic
def magnitude(_context: Any, value: Any) -> Any:
    """Absolute values."""

    def code(_ctx: Any, builder: Any, _signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], _INTS)
        return builder.bitcast(builder.and_(bits, ir.Constant(_INTS, [_REST] * WIDTH)), _FLOATS)

    return LANES(LANES), code


@intrinsic
def signed(_context: Any, size: Any, sign: Any) -> Any:
    """``size``, which is positive, with the sign of another value."""

    def code(_ctx: Any, builder: Any, _signature: Any, args: Any) -> Any:
        size, sign = (builder.bitcast(a, _INTS) for a in args)
        sign = builder.and_(sign, ir.Constant(_INTS, [_SIGN] * WIDTH))
        return builder.bitcast(builder.or_(size, sign), _FLOATS)

    return LANES(LANES, LANES), code


def fused_multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """LLVM code for ``a * b + c``, in one rounding where the processor can."""
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_FLOATS, [_FLOATS] * 3), f"llvm.fmuladd.v{WIDTH}f32"
    )
    return builder.call(function, [a, b, c])


@intrinsic
def fma(_context: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, in one rounding where the processor can."""

    def code(_ctx: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return fused_multiply_add(builder, *args)

    return LANES(LANES, LANES, LANES), code


@intrinsic
def _shift_exponent(_context: Any, value: Any, power: Any) -> Any:
    """``value * 2**n`` where n is the integer in the low bits of ``power``."""

    def code(_ctx: Any, builder: Any, _signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], _INTS)
        n = builder.shl(builder.bitcast(args[1], _INTS), ir.Constant(_INTS, [23] * WIDTH))
        return builder.bitcast(builder.add(bits, n), _FLOATS)

    return LANES(LANES, LANES), code


def _pairwise(make: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any], Any]:
    @intrinsic  # type: ignore[untyped-decorator]
    def apply(_context: Any, a: Any, b: Any) -> Any:
        def code(_ctx: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return make(builder, *args)

        return LANES(LANES, LANES), code

    return apply  # type: ignore[no-any-return]


# Where the first number is not one, both give the first: what is in doubt stays in doubt.
larger = _pairwise(lambda b, x, y: b.select(b.fcmp_ordered(">", y, x), y, x))
smaller = _pairwise(lambda b, x, y: b.select(b.fcmp_ordered("<", y, x), y, x))


def _operator(symbol: Callable[..., Any], make: Callable[[Any, Any, Any], Any]) -> None:
    """Give lanes an infix operator."""
    apply = _pairwise(make)

    @overload(symbol, strict=False)
    def implementation(a: Any, b: Any) -> Any:
        if a == LANES and b == LANES:
            return lambda a, b: apply(a, b)  # noqa: PLW0108 - numba compiles the lambda
        return None


_operator(operator.add, lambda builder, a, b: builder.fadd(a, b))
_operator(operator.sub, lambda builder, a, b: builder.fsub(a, b))
_operator(operator.mul, lambda builder, a, b: builder.fmul(a, b))
_operator(operator.truediv, lambda builder, a, b: builder.fdiv(a, b))
_F = np.float32
_LOG2E, _LN2, _MAGIC, _LARGEST = _F(1.4426950408889634), _F(0.6931472), _F(12582912.0), _F(125.0)
_LN2_HIGH, _LN2_LOW = _F(0.693359375), _F(-2.12194440e-4)
_P1, _P2, _P3, _P4, _P5 = (
    _F(c) for c in (0.6931471805599453, 0.24022282, 0.0555056, 0.009669708, 0.001330026)
)
# ^ 2**f for |f| <= 1/2 to 1.1e-7, relative; exact in value and slope at 0, where the decay of a
#   slow state is: an error there would be multiplied by the many tokens that such a state remembers
_Q1, _Q2, _Q3, _Q4 = (_F(c) for c in (0.33333208, 0.20010764, 0.14000903, 0.14005994))
# ^ artanh(s) / s in powers of s**2 for s <= 1/3 to 5e-9, relative
_ZERO, _ONE, _TWO = _F(0.0), _F(1.0), _F(2.0)


@njit(inline="always")
def _power(f: Any, shifted: Any) -> Any:  # pragma: no cover - compiled
    """``2**(f + n)`` for |f| <= 1/2 and the integer n in the low bits of ``shifted``."""
    p = fma(spread(_P5), f, spread(_P4))
    p = fma(p, f, spread(_P3))
    p = fma(p, f, spread(_P2))
    p = fma(p, f, spread(_P1))
    return _shift_exponent(fma(p, f, spread(_ONE)), shifted)


@njit(inline="always")
def exp2_negative(x: Any) -> Any:  # pragma: no cover - compiled
    """``2**x`` for x <= 0, relative error 1.7e-7; zero is approached, never reached."""
    x = larger(x, spread(-_LARGEST))
    # Adding 1.5 * 2**23 rounds to the nearest integer and leaves that integer in the low bits.
    shifted = x + spread(_MAGIC)
    return _power(x - (shifted - spread(_MAGIC)), shifted)


@njit(inline="always")
def exp(x: Any) -> Any:  # pragma: no cover - compiled
    """``e**x``, relative error 3e-7, without overflow: the exponent stays within +-125 bits."""
    x = larger(smaller(x, spread(_LARGEST * _LN2)), spread(-_LARGEST * _LN2))
    shifted = fma(x, spread(_LOG2E), spread(_MAGIC))
    n = shifted - spread(_MAGIC)
    # ln 2 in two parts, the first with so few bits that its product with n is exact.
    rest = fma(n, spread(-_LN2_LOW), fma(n, spread(-_LN2_HIGH), x))
    return _power(rest * spread(_LOG2E), shifted)


@njit(inline="always")
def silu(x: Any) -> Any:  # pragma: no cover - compiled
    """``x / (1 + e**-x)``."""
    return x / (spread(_ONE) + exp(spread(_ZERO) - x))


@njit(inline="always")
def softplus(x: Any) -> Any:  # pragma: no cover - compiled
    """``log(1 + e**x)``, with a small relative error also where it is small."""
    e = exp(smaller(x, spread(_ZERO) - x))
    s = e / (spread(_TWO) + e)
    q = s * s
    p = fma(spread(_Q4), q, spread(_Q3))
    p = fma(p, q, spread(_Q2))
    p = fma(p, q, spread(_Q1))
    p = fma(p, q, spread(_ONE))
    return larger(x, spread(_ZERO)) + spread(_TWO) * s * p
