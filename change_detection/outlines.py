"""A season's map becomes outlines and accounts: batch by batch, then one inventory.

The outlines are exact: their area is a pixel count. Parts smaller than the minimum have no outline
but stay in the accounts.
"""

from __future__ import annotations

import hashlib
import io
import re
import tempfile
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
from pyproj import Geod

from catalog.cube import Outcome, Workspace
from catalog.errors import SetAside, StoreError
from catalog.grid import RegionGrid
from change_detection import zonal
from change_detection.accounts import (
    ACCOUNT_SCHEMA,
    MIN_AREA_KM2,
    Territory,
    account_rows,
    own_ice,
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
from change_detection.divides import GlacierBatch, extend_owners, reference_owners
from change_detection.polygons import trace_polygons
from change_detection.scene import Scene, read_elevation, read_scene
from change_detection.uncertainty import area_sigma_km2

__all__ = ["OUTLINE_COLUMNS", "geoparquet_bytes", "publish_season", "trace_batch"]

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
    "lmax_m": -999,
}
_FIXED_DATE = "2000-01-01T00:00:00.000Z"
# ^ GeoPackage stores the time of writing; OGR_CURRENT_DATE replaces it, so equal runs are equal


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
        ``cube.zarr/terrain``; takes ``inventory/<season>/parts`` and ``accounts``.
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
        Checksums of the two files; areas in ``facts``.

    Raises
    ------
    StoreError
        Where a layer is missing or damaged.
    DataError
        Where a glacier of the batch is not in ``frame``.
    """
    elevation, dem_source = read_elevation(workspace, batch, grid)
    scene = read_scene(workspace, season, batch)
    territory = _territory(batch, frame, grid, growth_m=growth_m, elevation=elevation)
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
    files = {
        f"inventory/{season}/parts/{batch.id}.parquet": geoparquet_bytes(outlines),
        f"inventory/{season}/accounts/{batch.id}.parquet": _parquet(accounts),
    }
    tiny = zonal.counts(territory.inside, territory.count) == 0
    reason = "the reference outline holds no pixel centre of the grid"
    notes = [SetAside(batch.ref_ids[i], "too-small", reason) for i in np.flatnonzero(tiny)]
    return Outcome(_put_all(workspace, files), tuple(sorted(notes)), facts)


def _territory(
    batch: GlacierBatch,
    frame: gpd.GeoDataFrame,
    grid: RegionGrid,
    *,
    growth_m: float,
    elevation: npt.NDArray[np.float32] | None,
) -> Territory:
    inside = reference_owners(batch, frame, grid)
    owners = extend_owners(
        inside, resolution_m=grid.resolution_m, growth_m=growth_m, elevation=elevation
    )
    return Territory(inside, owners, len(batch.ref_ids))


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
    rows = gpd.GeoDataFrame(_typed(table), geometry=geometry, crs=4326)
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
    table["termlon"] = np.where(lowest >= 0, term[0], np.nan)
    table["termlat"] = np.where(lowest >= 0, term[1], np.nan)
    table["aspect_deg"] = aspect
    table["aspect_sec"] = [aspect_sector(a) for a in aspect]


def _typed(table: pd.DataFrame) -> pd.DataFrame:
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


def publish_season(
    workspace: Workspace,
    season: str,
    batches: list[GlacierBatch],
    *,
    frame: gpd.GeoDataFrame,
    region_name: str,
) -> Outcome:
    """Join the batches of a season to one inventory and number its outlines.

    Numbers run within each first-order region (``00`` where the reference names none) by reference
    glacier, its largest polygon first: ``<REGION><SEASON>-v1-G-<o1>-<nnnnn>``.

    Returns
    -------
    Outcome
        Checksums of ``outlines.parquet``, ``outlines.gpkg`` and ``accounts.parquet``.

    Raises
    ------
    StoreError
        Where a batch or a glacier of the reference is missing.
    """
    folder = f"inventory/{season}"
    parts, accounts = [], []
    for batch in sorted(batches, key=lambda b: b.ref_ids):
        parts.append(gpd.read_parquet(_read(workspace, f"{folder}/parts/{batch.id}.parquet")))
        accounts.append(pq.read_table(_read(workspace, f"{folder}/accounts/{batch.id}.parquet")))
    outlines = _numbered(_joined(parts), re.sub(r"[^A-Z0-9]", "", f"{region_name}{season}".upper()))
    table = pa.concat_tables([ACCOUNT_SCHEMA.empty_table(), *accounts]).sort_by("ref_id")
    _check_complete(table["ref_id"].to_pylist(), frame["ref_id"].tolist(), folder)
    files = {
        f"{folder}/outlines.parquet": geoparquet_bytes(outlines),
        f"{folder}/outlines.gpkg": _geopackage(outlines),
        f"{folder}/accounts.parquet": _parquet_bytes(table),
    }
    facts = {
        "glaciers": table.num_rows,
        "polygons": len(outlines),
        "area_km2": float(np.sum(table["area_km2"].to_numpy())),
        "area_in_outlines_km2": float(np.sum(outlines["area_km2"].to_numpy())),
    }
    return Outcome(_put_all(workspace, files), (), facts)


def _joined(parts: list[gpd.GeoDataFrame]) -> gpd.GeoDataFrame:
    filled = [part for part in parts if len(part)]
    if not filled:
        nothing = pd.DataFrame(columns=list(OUTLINE_COLUMNS))
        return gpd.GeoDataFrame(_typed(nothing), geometry=gpd.GeoSeries([], crs=4326), crs=4326)
    return pd.concat(filled, ignore_index=True)


def _numbered(outlines: gpd.GeoDataFrame, prefix: str) -> gpd.GeoDataFrame:
    region = outlines["o1region"].where(outlines["o1region"] != "", "00")
    outlines = outlines.assign(_region=region).sort_values(
        ["_region", "ref_id"], kind="stable", ignore_index=True
    )
    number = outlines.groupby("_region").cumcount() + 1
    outlines["rgi_id"] = [
        f"{prefix}-v1-G-{o1}-{n:05d}" for o1, n in zip(outlines["_region"], number, strict=True)
    ]
    return outlines.drop(columns="_region")


def _check_complete(found: list[str], wanted: list[str], folder: str) -> None:
    differing = sorted(set(found) ^ set(wanted))
    if differing or len(found) != len(wanted):
        raise StoreError(
            f"{folder} accounts for {len(found)} glaciers, the reference has {len(wanted)}; "
            f"first difference: {', '.join(differing[:3]) or 'a glacier in two batches'}. "
            "Run the outlines stage with the batches of this reference",
            kind="inventory-incomplete",
        )


def _read(workspace: Workspace, name: str) -> io.BytesIO:
    data = workspace.get(name)
    if data is None:
        raise StoreError(
            f"{name} is missing; run the outlines stage for its batch first",
            kind="inventory-incomplete",
        )
    return io.BytesIO(data)


def _put_all(workspace: Workspace, files: dict[str, bytes]) -> dict[str, str]:
    for name, data in files.items():
        workspace.put(name, data)
    return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}


def geoparquet_bytes(rows: gpd.GeoDataFrame) -> bytes:
    """Bytes of a GeoParquet file, version 1.1; equal rows give equal bytes."""
    sink = io.BytesIO()
    rows.to_parquet(sink, index=False, compression="zstd", schema_version="1.1.0")
    return sink.getvalue()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    return _parquet_bytes(pa.Table.from_pylist(rows, schema=ACCOUNT_SCHEMA))


def _parquet_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _geopackage(rows: gpd.GeoDataFrame) -> bytes:
    """Bytes of a GeoPackage with one layer, ``outlines``."""
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": _FIXED_DATE})
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "outlines.gpkg"
            pyogrio.write_dataframe(
                rows, path, driver="GPKG", layer="outlines", geometry_type="Polygon"
            )
            return path.read_bytes()
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})
