"""What a shifted scene does to a glacier's area: nothing, but where a divide cuts it.

One law: a shift moves the ice, never the divides. Where ice meets open ground its margin moves as a
whole; where it meets a neighbour's ice the divide stays and ice is carried across it. With d the
shift and n the outward normal of the outline, the margin alone adds the integral of d . n over it;
over the closed outline that integral is zero, so the area changes by minus d . v, where v is the
integral of n along the divides. Neighbours exchange that area: the v of a whole complex add up to
zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import shapely

__all__ = ["divide_vector", "divide_vectors", "shift_sigma_km2"]

_STEP_M = 10.0
# ^ the outline is judged in pieces of this length at most
_TOUCH_M = 5.0
# ^ nearer than half a pixel of the finest optical sensor there is no ground between two glaciers

Floats = npt.NDArray[np.float64]


def divide_vector(
    outline: shapely.Geometry, neighbours: Sequence[shapely.Geometry]
) -> tuple[float, float]:
    """Integrate the outward normal along the part of an outline that borders other glaciers.

    Parameters
    ----------
    outline
        Polygon or MultiPolygon in grid metres.
    neighbours
        Outlines of other glaciers, the same coordinates.

    Returns
    -------
    tuple of float
        East and north, metres: a straight divide of length L has a vector as long, at a right
        angle to it, out of the glacier. (0, 0) without divides.
    """
    total = np.zeros(2)
    tree = shapely.STRtree(list(neighbours))
    for ring in _rings(outline):
        corners = shapely.get_coordinates(shapely.segmentize(ring, _STEP_M))
        steps = np.diff(corners, axis=0)
        middles = shapely.points(corners[:-1] + steps / 2)
        shared = np.unique(tree.query(middles, "dwithin", _TOUCH_M)[0])
        total += (steps[shared, 1].sum(), -steps[shared, 0].sum())
        # ^ the inside lies on the left, so the outward normal is the step turned to the right
    return float(total[0]), float(total[1])


def _rings(outline: shapely.Geometry) -> list[shapely.LinearRing]:
    """All rings, the inside of the glacier on their left."""
    parts = shapely.get_parts(shapely.orient_polygons(outline))
    return [ring for part in parts for ring in shapely.get_rings(part)]


def divide_vectors(outlines: Sequence[shapely.Geometry]) -> Floats:
    """:func:`divide_vector` of each outline against all others.

    Returns
    -------
    ``(glacier, 2)`` float64, metres
    """
    shapes = np.asarray(outlines, dtype=object)
    found = np.zeros((len(shapes), 2))
    pairs = shapely.STRtree(shapes).query(shapes, "dwithin", _TOUCH_M)
    for one in range(len(shapes)):
        others = np.sort(pairs[1][pairs[0] == one])
        found[one] = divide_vector(shapes[one], shapes[others[others != one]])
    return found


def shift_sigma_km2(vectors: npt.ArrayLike, residual_m: npt.ArrayLike) -> Floats:
    """Area error of a scene that lies off by an unknown shift.

    Parameters
    ----------
    vectors : ``(..., 2)``
        :func:`divide_vector`, metres.
    residual_m
        Standard deviation of the shift along one axis, metres (``Shift.residual_m`` of
        ``catalog.coregistration``); NaN where it is not known.

    Returns
    -------
    ``(...)`` float64
        Standard deviation of the area, km2.
    """
    length = np.linalg.norm(np.asarray(vectors, dtype=np.float64), axis=-1)
    return np.asarray(length * np.asarray(residual_m, dtype=np.float64) / 1e6)
