"""Compiled kernels: drainage, erosion, ice flow, cast shadow. Pure functions of arrays."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = [
    "accumulate",
    "cast_shadow",
    "fill_depressions",
    "flow_ice",
    "incise",
    "receivers",
    "trace_exits",
]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _compiled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    # numba's decorator has no types; this one keeps those of the function.
    kernel: Callable[_P, _R] = numba.njit(cache=True)(function)
    return kernel


_DY = np.array([-1, -1, -1, 0, 0, 1, 1, 1])
_DX = np.array([-1, 0, 1, -1, 1, -1, 0, 1])
_DIST = np.array([2.0**0.5, 1.0, 2.0**0.5, 1.0, 1.0, 2.0**0.5, 1.0, 2.0**0.5])


@_compiled
def fill_depressions(z: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    """Raise pits until every cell drains to the border (Barnes et al. 2014, priority flood).

    Parameters
    ----------
    z : (y, x) float64
        Elevation, metres.
    step : float
        Least drop per cell across a filled pit, metres.
    """
    rows, cols = z.shape
    filled = z.copy()
    seen = np.zeros((rows, cols), dtype=np.bool_)
    queue = [(0.0, 0)]
    queue.pop()
    for i in range(rows):
        for j in range(cols):
            if i == 0 or j == 0 or i == rows - 1 or j == cols - 1:
                heapq.heappush(queue, (filled[i, j], i * cols + j))
                seen[i, j] = True
    while len(queue) > 0:
        level, cell = heapq.heappop(queue)
        i = cell // cols
        j = cell % cols
        for k in range(8):
            a = i + _DY[k]
            b = j + _DX[k]
            if 0 <= a < rows and 0 <= b < cols and not seen[a, b]:
                seen[a, b] = True
                if filled[a, b] <= level:
                    filled[a, b] = level + step
                heapq.heappush(queue, (filled[a, b], a * cols + b))
    return filled


@_compiled
def receivers(z: NDArray[np.float64], jitter: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for every cell the flat index of its steepest lower neighbour, itself if none.

    ``jitter`` (y, x) float64 around 1 scales diagonal slopes, which breaks the bias of the grid.
    """
    rows, cols = z.shape
    out = np.empty(rows * cols, dtype=np.int64)
    for i in range(rows):
        for j in range(cols):
            best = 0.0
            target = i * cols + j
            if 0 < i < rows - 1 and 0 < j < cols - 1:
                for k in range(8):
                    a = i + _DY[k]
                    b = j + _DX[k]
                    slope = (z[i, j] - z[a, b]) / _DIST[k]
                    if _DIST[k] > 1.0:
                        slope *= jitter[i, j]
                    if slope > best:
                        best = slope
                        target = a * cols + b
            out[i * cols + j] = target
    return out


@_compiled
def accumulate(
    order: NDArray[np.int64], target: NDArray[np.int64], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Sum ``weight`` down the drainage; ``order`` lists flat cells from low to high."""
    total = weight.copy()
    for index in range(order.size - 1, -1, -1):
        cell = order[index]
        if target[cell] != cell:
            total[target[cell]] += total[cell]
    return total


@_compiled
def incise(  # noqa: PLR0917 - a compiled kernel takes plain arrays in order
    z: NDArray[np.float64],
    order: NDArray[np.int64],
    target: NDArray[np.int64],
    area: NDArray[np.float64],
    uplift: NDArray[np.float64],
    repose: NDArray[np.float64],
    power: float,
    cell_m: float,
) -> NDArray[np.float64]:
    """One implicit step of the stream-power law with a limit on slope.

    Braun and Willett (2013), n = 1, m = 0.45; all arrays flat float64, ``order`` low to high.
    """
    out = z.copy()
    width = int(np.sqrt(z.size) + 0.5)
    for index in range(order.size):
        cell = order[index]
        down = target[cell]
        if down == cell:
            continue
        gap = cell - down
        dist = cell_m
        if gap not in (1, -1, width, -width):
            dist = cell_m * 2.0**0.5
        factor = power * area[cell] ** 0.45 / dist
        value = (out[cell] + uplift[cell] + factor * out[down]) / (1.0 + factor)
        limit = out[down] + repose[cell] * dist
        out[cell] = min(value, limit)
    return out


@_compiled
def trace_exits(
    target: NDArray[np.int64],
    order: NDArray[np.int64],
    ice: NDArray[np.bool_],
    reach: int,
) -> NDArray[np.int64]:
    """Return for each ice cell the flat cell its water reaches ``reach`` cells below the ice.

    Other cells get -1. A cell whose path leaves the ice and enters it again belongs to the last ice
    on the path only when the gap is shorter than ``reach``.
    """
    exit_of = np.full(target.size, -1, dtype=np.int64)
    gap = np.zeros(target.size, dtype=np.int64)
    near = np.full(target.size, -1, dtype=np.int64)
    for index in range(order.size):
        cell = order[index]
        down = target[cell]
        if down == cell:
            near[cell] = -1
            gap[cell] = reach + 1
        elif ice[down]:
            near[cell] = exit_of[down]
            gap[cell] = 0
        else:
            near[cell] = near[down]
            gap[cell] = gap[down] + 1
        if ice[cell]:
            if near[cell] >= 0 and gap[cell] <= reach:
                exit_of[cell] = near[cell]
            else:
                spot = cell
                for _ in range(reach):
                    spot = target[spot]
                exit_of[cell] = spot
    return exit_of


@_compiled
def _spread(rate: float, here: float, there: float, drop: float, slope2: float) -> float:
    # Diffusivity between two cells; ice leaves no cell that has none (Jarosch et al. 2013).
    donor = here if drop > 0 else there
    if donor <= 0.0:
        return 0.0
    h = min(donor * 1.2, 0.5 * (here + there))
    return min(rate * h * h * h * h * h * slope2, 6.0e4)
    # ^ the cap stands for sliding: without it the stable step would be minutes


@_compiled
def flow_ice(
    bed: NDArray[np.float64],
    start: NDArray[np.float64],
    balance_of: NDArray[np.float64],
    ela: NDArray[np.float64],
    settings: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Run the shallow-ice equation (Glen n = 3) forward in time and return the thickness, m.

    Parameters
    ----------
    bed, start : (y, x) float64
        Bed elevation and first thickness, m.
    balance_of : (y, x) float64
        Factor on accumulation, 0 where snow does not stay, above 1 where avalanches land.
    ela : (y, x) float64
        Equilibrium line altitude, m.
    settings : (6,) float64
        cell size m, years, flow factor per year, balance gradient, greatest balance, melt factor.
    """
    cell_m, years, rate, gradient, top, melt_factor = settings
    rows, cols = bed.shape
    thick = start.copy()
    flux_y = np.zeros((rows, cols))
    flux_x = np.zeros((rows, cols))
    time = 0.0
    while time < years:
        fastest = 1.0
        for i in range(1, rows - 1):
            for j in range(1, cols - 1):
                here = thick[i, j]
                surface = bed[i, j] + here
                down = bed[i + 1, j] + thick[i + 1, j]
                right = bed[i, j + 1] + thick[i, j + 1]
                gy = surface - down
                gx = surface - right
                flux_y[i, j] = 0.0
                flux_x[i, j] = 0.0
                if here + thick[i + 1, j] + thick[i, j + 1] <= 0.0:
                    continue
                slope2 = (gy * gy + gx * gx) / (cell_m * cell_m)
                spread = _spread(rate, here, thick[i + 1, j], gy, slope2)
                fastest = max(fastest, spread)
                flux_y[i, j] = spread * gy / cell_m
                spread = _spread(rate, here, thick[i, j + 1], gx, slope2)
                fastest = max(fastest, spread)
                flux_x[i, j] = spread * gx / cell_m
        step = min(0.5, 0.16 * cell_m * cell_m / fastest)
        for i in range(2, rows - 2):
            for j in range(2, cols - 2):
                surface = bed[i, j] + thick[i, j]
                gain = gradient * (surface - ela[i, j])
                gain = (min(gain, top) * balance_of[i, j]) if gain > 0.0 else gain * melt_factor
                net = flux_y[i - 1, j] - flux_y[i, j] + flux_x[i, j - 1] - flux_x[i, j]
                value = thick[i, j] + step * (gain + net / cell_m)
                thick[i, j] = value if value > 0.0 else 0.0
        time += step
    return thick


@_compiled
def cast_shadow(
    z: NDArray[np.float32], azimuth_rad: float, tan_elevation: float, cell_m: float
) -> NDArray[np.float32]:
    """Return how far (m) each cell lies below the shadow surface; positive means shaded.

    Parameters
    ----------
    z : (y, x) float32
        Elevation, north up.
    azimuth_rad : float
        Direction to the sun, clockwise from the grid's north.
    tan_elevation : float
        Tangent of the sun's elevation.
    """
    rows, cols = z.shape
    east = np.sin(azimuth_rad)
    south = -np.cos(azimuth_rad)
    depth = np.zeros((rows, cols), dtype=np.float32)
    roof = z.copy()
    by_row = abs(south) >= abs(east)
    major = abs(south) if by_row else abs(east)
    drop = cell_m / major * tan_elevation
    sign = (1 if south > 0 else -1) if by_row else (1 if east > 0 else -1)
    shift = (east if by_row else south) / major
    lines = rows if by_row else cols
    width = cols if by_row else rows
    whole = int(np.floor(shift))
    part = shift - whole
    for line_index in range(1, lines):
        line = lines - 1 - line_index if sign > 0 else line_index
        source = line + sign
        for k in range(width):
            a = min(max(k + whole, 0), width - 1)
            b = min(a + 1, width - 1)
            if by_row:
                level = roof[source, a] * (1.0 - part) + roof[source, b] * part - drop
                gap = level - z[line, k]
                depth[line, k] = gap
                roof[line, k] = max(z[line, k], level)
            else:
                level = roof[a, source] * (1.0 - part) + roof[b, source] * part - drop
                gap = level - z[k, line]
                depth[k, line] = gap
                roof[k, line] = max(z[k, line], level)
    return depth
