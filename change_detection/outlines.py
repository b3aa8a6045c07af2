"""A batch of glaciers in one season: their map becomes outlines and accounts.

The outlines are exact: their area is a pixel count. Parts smaller than the minimum have no outline
but stay in the accounts.
"""

from __future__ import annotations

from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import shapely
from pyproj import Geod

from catalog.cube import Outcome, Workspace
from catalog.errors import SetAside
from catalog.grid import RegionGrid
from change_detection import zonal
from change_detection.accounts import (
    ACCOUNT_SCHEMA,
    MIN_AREA_KM2,
    Territory,
    account_rows,
    own_ice,
    territory_of,
)
from change_detection.attributes import (
    RGI_ATTRIBUTES,
    aspect_sector,
    iso_day,
    to_lonlat,
    topography,
    true_north_deg,
    utm_zone,
)
from change_detection.divides import GlacierBatch
from change_detection.files import geoparquet_bytes, parquet_bytes, put_files
from change_detection.flowlines import longest_centrelines
from change_detection.fronts import WATER_TERMINATING, front_line
from change_detection.hypsometry import band_counts
from change_detection.polygons import trace_polygons
from change_detection.scene import Scene, read_elevation, read_scene
from change_detection.uncertainty import area_sigma_km2

__all__ = ["BAND_COLUMNS", "OUTLINE_COLUMNS", "trace_batch", "typed_rows"]

OUTLINE_COLUMNS: dict[str, str] = RGI_ATTRIBUTES | {
    "ref_id": "str",
    "obs_fraction": "float",
    "area_clean_km2": "float",
    "area_debris_km2": "float",
    "area_sigma_km2": "float",
    "inputs": "str",
}
"""RGI 7.0's attributes, then our own.

``ref_id`` and ``obs_fraction`` are the glacier's. ``area_sigma_km2`` is the glacier's standard
deviation (``change_detection.uncertainty.area_sigma_km2``), shared out by area among its polygons.
"""

BAND_COLUMNS = ("first_band", "band_pixels")
"""Columns of a batch's outlines alone: the outline's pixels by elevation, see
:func:`change_detection.hypsometry.band_counts`."""

_DTYPES = {"str": "object", "int": "int64", "float": "float64"}
_COPIED = (
    "o1region",
    "o2region",
    "glims_id",
    "primeclass",
    "conn_lvl",
    "surge_type",
    "term_type",
    "glac_name",
)
_FIXED: dict[str, Any] = {
    "rgi_id": "",
    "anlys_id": -999,
    "subm_id": -999,
    "is_rgi6": 0,
}
_MISSING_LENGTH = -999


def trace_batch(
    workspace: Workspace,
    season: str,
    batch: GlacierBatch,
    *,
    frame: gpd.GeoDataFrame,
    grid: RegionGrid,
    growth_m: float,
    season_window: tuple[str, str],
    min_area_km2: float = MIN_AREA_KM2,
    area_scale: float = 1.0,
    residual_m: float = 0.0,
) -> Outcome:
    """Outline and account for the glaciers of one batch in one season.

    Inside a reference outline, ice is that glacier's. Beyond it, up to ``growth_m``, it belongs to
    the glacier the terrain leads it from, and only where it hangs together with that glacier's ice;
    other ice is reported as ``unassigned_km2`` and has no outline. Parts of a reference outline
    that were not seen keep their old outline.

    Parameters
    ----------
    workspace
        Holds ``map.zarr/<season>``, ``cube.zarr/<season>/date`` and, if there is one,
        ``cube.zarr/terrain``; takes ``inventory/<season>/parts``, ``fronts`` and
        ``accounts``.
    season
        Name of the season.
    batch, frame, grid
        The window, the reference inventory and the region's grid.
    growth_m
        How far beyond its outline a glacier may have advanced, metres.
    season_window
        First and last day of the season, YYYY-MM-DD.
    min_area_km2
        Smaller separate pieces get no polygon.
    area_scale
        Calibration of the ensemble's spread of areas; 1: as the members have it.
    residual_m
        How far the season's scenes may still lie off, see
        :func:`change_detection.accounts.account_rows`.

    Returns
    -------
    Outcome
        Checksums of the three files; areas in ``facts``.

    Raises
    ------
    StoreError
        Where a layer is missing or damaged.
    DataError
        Where a glacier of the batch is not in ``frame``.
    """
    elevation, dem_source = read_elevation(workspace, batch, grid)
    scene = read_scene(workspace, season, batch)
    territory = territory_of(batch, frame, grid, growth_m=growth_m, elevation=elevation)
    accounts = account_rows(
        batch,
        scene,
        territory,
        frame=frame,
        grid=grid,
        elevation=elevation,
        season_window=season_window,
        residual_m=residual_m,
    )
    patches, owner = own_ice(scene.ice | (~scene.seen & (territory.inside > 0)), territory)
    parts, owner = _large_parts(patches, owner, min_area_km2 / grid.pixel_area_km2)
    columns = _part_columns(parts, owner.size, scene=scene, grid=grid, elevation=elevation)
    outlines = _outline_rows(
        parts,
        owner,
        columns=columns,
        accounts=accounts,
        batch=batch,
        frame=frame,
        grid=grid,
        area_scale=area_scale,
    )
    outlines["dem_source"] = np.where(outlines["zmed_m"].notna(), dem_source, "")
    facts = _facts(scene, territory, patches=patches, grid=grid) | {"polygons": len(outlines)}
    fronts = _front_rows(batch, scene, territory, frame=frame, grid=grid)
    files = {
        f"inventory/{season}/fronts/{batch.id}.parquet": geoparquet_bytes(fronts),
        f"inventory/{season}/parts/{batch.id}.parquet": geoparquet_bytes(outlines),
        f"inventory/{season}/accounts/{batch.id}.parquet": parquet_bytes(
            pa.Table.from_pylist(accounts, schema=ACCOUNT_SCHEMA)
        ),
    }
    tiny = zonal.counts(territory.inside, territory.count) == 0
    reason = "the reference outline holds no pixel centre of the grid"
    notes = [SetAside(batch.ref_ids[i], "too-small", reason) for i in np.flatnonzero(tiny)]
    return Outcome(put_files(workspace, files), tuple(sorted(notes)), facts)


def _front_rows(
    batch: GlacierBatch,
    scene: Scene,
    territory: Territory,
    *,
    frame: gpd.GeoDataFrame,
    grid: RegionGrid,
) -> gpd.GeoDataFrame:
    """Lines where the ice of marine- and lake-terminating glaciers meets water, EPSG:4326."""
    kinds = frame.set_index("ref_id")["term_type"].reindex(list(batch.ref_ids))
    numbers = np.flatnonzero(kinds.isin(WATER_TERMINATING))
    patches, _ = own_ice(scene.ice, territory)
    mine = np.where(patches > 0, territory.owners, 0)

    def to_degrees(corners: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        x, y = corners.T
        return np.column_stack(to_lonlat(x + batch.col0, y + batch.row0, grid))

    ids, lines = [], []
    for number in numbers:
        line = front_line(mine == number + 1, scene.water)
        if not line.is_empty:
            ids.append(batch.ref_ids[number])
            lines.append(shapely.transform(line, to_degrees))
    table = pd.DataFrame({"ref_id": pd.Series(ids, dtype=object)})
    return gpd.GeoDataFrame(table, geometry=gpd.GeoSeries(lines, crs=4326), crs=4326)


def _large_parts(
    patches: npt.NDArray[np.int32], owner: npt.NDArray[np.int64], min_pixels: float
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    size = zonal.counts(patches, owner.size)
    large = np.concatenate([[False], size >= min_pixels * (1 - 1e-9)])
    number = np.where(large, np.cumsum(large), 0).astype(np.int32)
    return number[patches], owner[large[1:]]


def _part_columns(
    parts: npt.NDArray[np.int32],
    count: int,
    *,
    scene: Scene,
    grid: RegionGrid,
    elevation: npt.NDArray[np.float32] | None,
) -> dict[str, npt.NDArray[Any]]:
    px = grid.pixel_area_km2
    debris = zonal.counts(parts, count, where=scene.debris)
    clean = zonal.counts(parts, count, where=scene.ice) - debris
    terrain = topography(parts, count, elevation=elevation, resolution_m=grid.resolution_m)
    first, bands = band_counts(parts, count, elevation=elevation)
    pixels = np.empty(count, dtype=object)
    pixels[:] = bands
    lengths = longest_centrelines(parts, count, elevation=elevation, resolution_m=grid.resolution_m)
    return {
        "area_km2": zonal.counts(parts, count) * px,
        "area_clean_km2": clean * px,
        "area_debris_km2": debris * px,
        "day": zonal.ranked(scene.day, parts, count, where=scene.dated).median,
        "zmin_m": terrain.zmin_m,
        "zmax_m": terrain.zmax_m,
        "zmed_m": terrain.zmed_m,
        "zmean_m": terrain.zmean_m,
        "slope_deg": terrain.slope_deg,
        "aspect_grid_deg": terrain.aspect_grid_deg,
        "lowest": terrain.lowest,
        "lmax_m": np.where(np.isfinite(lengths), np.rint(lengths), _MISSING_LENGTH),
        "first_band": first,
        "band_pixels": pixels,
    }


def _outline_rows(
    parts: npt.NDArray[np.int32],
    owner: npt.NDArray[np.int64],
    *,
    columns: dict[str, npt.NDArray[Any]],
    accounts: list[dict[str, Any]],
    batch: GlacierBatch,
    frame: gpd.GeoDataFrame,
    grid: RegionGrid,
    area_scale: float,
) -> gpd.GeoDataFrame:
    """One row a polygon: by glacier, the largest first."""
    reference = frame[frame["ref_id"].isin(batch.ref_ids)].set_index("ref_id")
    traced = trace_polygons(parts, row0=batch.row0, col0=batch.col0, grid=grid)
    index = np.array([number - 1 for number, _ in traced], dtype=np.int64)
    geometry = gpd.GeoSeries([polygon for _, polygon in traced], crs=4326)
    table = pd.DataFrame({name: values[index] for name, values in columns.items()})
    for name in ("area_km2", "area_clean_km2", "area_debris_km2"):
        table[name] *= _shares(index, geometry)
    glaciers = [accounts[owner[i] - 1] for i in index]
    table["ref_id"] = [row["ref_id"] for row in glaciers]
    for name in _COPIED:
        table[name] = [reference.at[ref_id, name] for ref_id in table["ref_id"]]
    for name in ("inputs", "obs_fraction"):
        table[name] = [row[name] for row in glaciers]
    table["area_sigma_km2"] = _shared_sigma(
        table["area_km2"].to_numpy(), glaciers, scale=area_scale
    )
    old = [reference.at[ref_id, "src_date"] for ref_id in table["ref_id"]]
    table["src_date"] = [iso_day(d) or o for d, o in zip(table["day"], old, strict=True)]
    # ^ a part that was not seen at all is the reference's outline, of the reference's date
    _place(table, geometry, batch=batch, grid=grid)
    table = table.assign(**_FIXED, dem_source="")
    rows = gpd.GeoDataFrame(typed_rows(table), geometry=geometry, crs=4326)
    rows[list(BAND_COLUMNS)] = table[list(BAND_COLUMNS)]
    keys = ["ref_id", "area_km2", "cenlon", "cenlat"]
    return rows.sort_values(keys, ascending=[True, False, True, True], ignore_index=True)


def _shares(index: npt.NDArray[np.int64], geometry: gpd.GeoSeries) -> npt.NDArray[np.float64]:
    """Part of its piece of ice that each polygon is: 1, but where the antimeridian cuts a piece."""
    if len(np.unique(index)) == len(index):
        return np.ones(len(index))
    geod = Geod(ellps="WGS84")
    area = np.array([abs(geod.geometry_area_perimeter(shape)[0]) for shape in geometry])
    return np.asarray(area / np.bincount(index, weights=area)[index])


def _shared_sigma(
    area_km2: npt.NDArray[np.float64], glaciers: list[dict[str, Any]], *, scale: float
) -> npt.NDArray[np.float64]:
    sd, boundary, unseen, total = (
        np.array([row[name] for row in glaciers], dtype=np.float64)
        for name in ("area_ensemble_sd_km2", "boundary_sigma_km2", "area_unseen_km2", "area_km2")
    )
    return np.asarray(area_sigma_km2(sd, boundary, unseen, scale=scale) * area_km2 / total)


def _place(
    table: pd.DataFrame, geometry: gpd.GeoSeries, *, batch: GlacierBatch, grid: RegionGrid
) -> None:
    """Fill the columns that say where an outline is and which way it faces."""
    centre = geometry.representative_point()
    lon, lat = centre.x.to_numpy(), centre.y.to_numpy()
    lowest = table["lowest"].to_numpy()
    row, col = np.divmod(np.maximum(lowest, 0), batch.width)
    term = to_lonlat(col + batch.col0 + 0.5, row + batch.row0 + 0.5, grid)
    aspect = (table["aspect_grid_deg"].to_numpy() - true_north_deg(lon, lat, grid)) % 360.0
    table["cenlon"], table["cenlat"] = lon, lat
    table["utm_zone"] = [utm_zone(x, y) for x, y in zip(lon, lat, strict=True)]
    term = _on_outlines(geometry.to_numpy(), *term)
    table["termlon"] = np.where(lowest >= 0, term[0], np.nan)
    table["termlat"] = np.where(lowest >= 0, term[1], np.nan)
    table["aspect_deg"] = aspect
    table["aspect_sec"] = [aspect_sector(a) for a in aspect]


def _on_outlines(
    outlines: npt.NDArray[Any], lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Nearest place on each outline to each position; degrees of longitude are shortened."""
    found = np.empty((len(outlines), 2))
    for i, outline in enumerate(outlines):
        short = np.array([np.cos(np.radians(lat[i])), 1.0])
        border = shapely.transform(shapely.boundary(outline), lambda xy, f=short: xy * f)
        way = shapely.shortest_line(border, shapely.Point(*(short * (lon[i], lat[i]))))
        found[i] = shapely.get_coordinates(way)[0] / short
    return found[:, 0], found[:, 1]


def typed_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of a season's outlines, each of its type."""
    return table[list(OUTLINE_COLUMNS)].astype(
        {name: _DTYPES[kind] for name, kind in OUTLINE_COLUMNS.items()}
    )


def _facts(
    scene: Scene, territory: Territory, *, patches: npt.NDArray[np.int32], grid: RegionGrid
) -> dict[str, Any]:
    near = territory.owners > 0
    px = grid.pixel_area_km2
    return {
        "glaciers": territory.count,
        "area_km2": int((patches > 0).sum()) * px,
        "unassigned_km2": int((scene.ice & near & (patches == 0)).sum()) * px,
        "unseen_km2": int((~scene.seen & (territory.inside > 0)).sum()) * px,
    }
