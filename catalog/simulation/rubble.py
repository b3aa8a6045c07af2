"""Loose rock that is no glacier but looks like one: gravel plains and rock that creeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from .ice import blocks
from .noise import fractal, stream
from .routing import accumulate
from .terrain import drain, enlarge, slope_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .ice import IceState
    from .spec import RegionSpec

__all__ = ["creeping_rock", "gravel_plains"]

_CELL = 4
# ^ water and rock are routed on 40 m cells
_CELL_M = 10.0 * _CELL


def _coarse(field: NDArray[np.generic]) -> NDArray[np.float64]:
    return blocks(field.astype(np.float64), _CELL)


def gravel_plains(spec: RegionSpec, state: IceState, share: float) -> NDArray[np.bool_]:
    """Braided plains of gravel below glaciers: level ground beside the rivers that leave the ice.

    Parameters
    ----------
    spec, state
        The region and the ice of a season.
    share
        Greatest share of all ground, 0 to 1.

    Returns
    -------
    NDArray[np.bool_]
        (y, x) on the 10 m grid; may reach under water and ice.
    """
    ground, ice = _coarse(state.surface), _coarse(state.ice)
    filled, target, order = drain(ndimage.gaussian_filter(ground, 0.8))
    fed = accumulate(order, target, ice.ravel() * _CELL_M**2).reshape(ground.shape)
    river = (fed > 3e5) & (ice < 0.5)
    if not river.any() or share <= 0.0:
        return np.zeros(state.ice.shape, dtype=np.bool_)
    far, (row, col) = ndimage.distance_transform_edt(~river, return_indices=True)
    reach = np.clip(0.09 * np.sqrt(fed[row, col]), 50.0, 400.0)
    slope = slope_of(ndimage.gaussian_filter(filled, 1.5).astype(np.float32), _CELL_M)
    wobble = fractal(stream(spec.seed, "gravel"), ground.shape, exponent=1.6, longest_px=30.0)
    fit = 1.0 - far * _CELL_M / reach - slope / 0.16 + 0.25 * wobble
    limit = max(0.0, float(np.quantile(fit, 1.0 - share)))
    return np.asarray(enlarge(fit, state.ice.shape[0], order=1) > limit)


def creeping_rock(spec: RegionSpec, state: IceState, share: float) -> NDArray[np.bool_]:
    """Rock glaciers: lobes of rock below steep walls, a little lower than the equilibrium line.

    Parameters and result are those of :func:`gravel_plains`.
    """
    ground, ice = _coarse(state.surface), _coarse(state.ice)
    slope = slope_of(ndimage.gaussian_filter(ground, 1.0).astype(np.float32), _CELL_M)
    wall = np.clip((slope - 0.6) / 0.4, 0.0, 1.0) * (ice < 0.1)
    _, target, order = drain(ndimage.gaussian_filter(ground, 1.2))
    supply = accumulate(order, target, wall.ravel().copy()).reshape(ground.shape)
    held = np.log(0.05 + ndimage.gaussian_filter(np.minimum(supply, 60.0), 1.8))
    below = (_coarse(state.ela) - ground) / 150.0
    wobble = fractal(stream(spec.seed, "creep"), ground.shape, exponent=2.0, longest_px=25.0)
    fit = held - np.abs(slope - 0.3) / 0.12 - np.abs(below - 0.8) + 0.5 * wobble
    fit = np.where((ice > 0.0) | (slope > 0.5) | (slope < 0.1), -9.0, fit)
    if share <= 0.0:
        return np.zeros(state.ice.shape, dtype=np.bool_)
    limit = max(-8.0, float(np.quantile(fit, 1.0 - share)))
    lobes = enlarge(fit, state.ice.shape[0], order=1) > limit
    return np.asarray(ndimage.binary_opening(lobes, iterations=3))
