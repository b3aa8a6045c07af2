"""Which glacier of one inventory is which of another: the areas that they have in common."""

from __future__ import annotations

from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from catalog.errors import DataError
from change_detection.topology import Geometries, areas_km2, overlap_areas_m2

__all__ = ["LEAST_OVERLAP_KM2", "link_table"]

LEAST_OVERLAP_KM2 = 200e-6
"""Smaller overlaps are no links (rgi_user_guide, v7.0, "Links to RGI 6")."""


def link_table(
    new: gpd.GeoDataFrame,
    old: gpd.GeoDataFrame,
    *,
    names: tuple[str, str] = ("this", "reference"),
    id_fields: tuple[str, str] = ("rgi_id", "ref_id"),
) -> pd.DataFrame:
    """Overlaps of two inventories larger than 200 m2, as RGI 7.0's ``rgi6_links`` tells them.

    Parameters
    ----------
    new, old
        Valid polygons in any coordinate reference system; ``o1region`` where there is one.
    names
        What the columns call the two.
    id_fields
        Columns of their ids.

    Returns
    -------
    DataFrame
        One row an overlap, sorted by the two ids: ``<new>_id``, ``<old>_id``, ``<new>_reg``,
        ``<old>_reg``, ``overlap_area_km2``, ``<new>_area_fraction``, ``<old>_area_fraction`` (part
        of either glacier that it is), ``n_<new>`` (links of the old glacier), ``n_<old>`` (links of
        the new one) and ``cluster_id`` (from 0, of glaciers that links hold together).

    Raises
    ------
    DataError
        ``bad-geometry`` where an outline is missing or invalid; ``duplicate-id`` where two rows of
        an inventory have one id.
    """
    mine, theirs = (
        _outlines(frame, field) for frame, field in zip((new, old), id_fields, strict=True)
    )
    near = shapely.STRtree(theirs).query(mine, predicate="intersects")
    both = np.concatenate([mine, theirs])
    km2 = overlap_areas_m2(both, near[0], near[1] + len(mine))[0] / 1e6
    enough = km2 > LEAST_OVERLAP_KM2
    one, two = near[:, enough]
    km2 = km2[enough]
    this, that = names
    table = pd.DataFrame(
        {
            f"{this}_id": new[id_fields[0]].astype(str).to_numpy()[one],
            f"{that}_id": old[id_fields[1]].astype(str).to_numpy()[two],
            f"{this}_reg": _regions(new)[one],
            f"{that}_reg": _regions(old)[two],
            "overlap_area_km2": km2,
            f"{this}_area_fraction": np.minimum(km2 / areas_km2(mine)[one], 1.0),
            f"{that}_area_fraction": np.minimum(km2 / areas_km2(theirs)[two], 1.0),
            f"n_{this}": np.bincount(two, minlength=len(theirs))[two],
            f"n_{that}": np.bincount(one, minlength=len(mine))[one],
            "cluster_id": _clusters(one, two, len(mine), len(theirs)),
        }
    )
    table = table.sort_values([f"{this}_id", f"{that}_id"], ignore_index=True)
    table["cluster_id"] = pd.factorize(table["cluster_id"])[0]
    # ^ numbered as they appear, so that equal inventories in any order give equal tables
    return table


def _outlines(frame: gpd.GeoDataFrame, field: str) -> Geometries:
    again = frame[field].duplicated()
    if again.any():
        name = frame.loc[again, field].iloc[0]
        raise DataError(f"two outlines have the id {name}", kind="duplicate-id")
    geometry = frame.geometry if frame.crs is None else frame.geometry.to_crs(4326)
    polygons = shapely.force_2d(geometry.to_numpy())
    for i in np.flatnonzero(~shapely.is_valid(polygons))[:1]:
        raise DataError(
            f"the outline of {frame[field].iloc[i]} is missing or not valid: repair it first",
            kind="bad-geometry",
        )
    return np.asarray(polygons)


def _regions(frame: gpd.GeoDataFrame) -> npt.NDArray[Any]:
    if "o1region" not in frame:
        return np.full(len(frame), "", dtype=object)
    return np.asarray(frame["o1region"].fillna("").astype(str), dtype=object)


def _clusters(
    one: npt.NDArray[np.intp],
    two: npt.NDArray[np.intp],
    mine: int,
    theirs: int,
) -> npt.NDArray[np.int32]:
    ends = (one, mine + two)
    graph = coo_array((np.ones(len(one), np.int8), ends), shape=(mine + theirs,) * 2)
    return np.asarray(connected_components(graph, directed=False)[1][one])
