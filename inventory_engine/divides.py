"""`inventory-engine divides` and `links`: cut outlines into glaciers, tell which are which."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import rasterio
import shapely
from rasterio.enums import Resampling
from rasterio.warp import reproject

from catalog.assets import OpenAssets, public_href
from catalog.cube import Workspace
from catalog.errors import DataError, SetAside, SourceError, UsageError
from catalog.extra_layers import layer_policy, layer_source
from catalog.glaciers import read_outlines, read_reference
from change_detection.cutting import Frame, ReadElevation, cut_by_reference, cut_by_terrain
from change_detection.files import csv_bytes, geopackage_bytes, geoparquet_bytes
from change_detection.links import link_table

__all__ = ["divide_files", "divide_lines", "elevation_from", "link_files"]

Progress = Callable[[str, int, int], None]


def divide_files(
    ice: Path,
    out: Path,
    *,
    reference: Path | None = None,
    dem: Sequence[str] = (),
    id_field: str | None = None,
    progress: Progress | None = None,
) -> tuple[gpd.GeoDataFrame, tuple[SetAside, ...]]:
    """Cut outlines of ice into glaciers.

    Parameters
    ----------
    ice
        Outlines of ice: GeoPackage, Shapefile, GeoJSON or GeoParquet.
    out
        GeoPackage (``.gpkg``) or GeoParquet (``.parquet``) to write.
    reference
        Inventory whose divides are copied; without one the terrain decides.
    dem
        Elevation models (GeoTIFF, paths or URLs) that together cover the ice; the first one that
        knows a place counts.
    id_field
        Column of ids of the reference, where it has none of the usual names.
    progress
        Told how far it is.

    Returns
    -------
    GeoDataFrame, tuple of SetAside
        See :func:`change_detection.cutting.cut_by_reference`; and the rows of the files that could
        not be used.

    Raises
    ------
    UsageError
        Where there is neither a reference nor an elevation model, a file cannot be read, the result
        can be written in no format of this name, or the terrain of ice is not known where it is to
        decide (``no-elevation``).
    """
    if out.suffix not in {".gpkg", ".parquet"}:
        raise UsageError(f"expected a name ending in .gpkg or .parquet, found {out.name}")
    found = read_outlines(ice, needs_ids=False)
    if found.frame.empty:
        raise UsageError(f"{ice} holds no usable outline", kind="inventory-empty")
    heights = elevation_from(dem) if dem else None
    aside = found.set_aside
    if reference is not None:
        known = read_reference(reference, id_field=id_field)
        aside += known.set_aside
        glaciers = cut_by_reference(found.frame, known.frame, elevation=heights, progress=progress)
    elif heights is not None:
        glaciers = _by_terrain(found.frame, heights, progress)
    else:
        raise UsageError(
            "divides come from an inventory (--reference) or from the terrain (--dem): name one"
        )
    data = (
        geoparquet_bytes(glaciers)
        if out.suffix == ".parquet"
        else geopackage_bytes({"glaciers": (glaciers, "Polygon")})
    )
    Workspace(out.parent).put(out.name, data)
    return glaciers, aside


def _by_terrain(
    ice: gpd.GeoDataFrame, heights: ReadElevation, progress: Progress | None
) -> gpd.GeoDataFrame:
    try:
        return cut_by_terrain(ice, heights, progress=progress)
    except DataError as error:
        raise UsageError(f"{error}; name more of it with --dem", kind=error.kind) from None


def link_files(new: Path, old: Path, out: Path, *, id_field: str, names: str) -> pd.DataFrame:
    """Write the overlaps of two inventories (:func:`change_detection.links.link_table`) as a CSV.

    Parameters
    ----------
    new, old
        Files of outlines.
    out
        CSV to write.
    id_field
        Columns of ids, separated by a comma: one, or one a file; empty: the usual ones.
    names
        What the columns call the two, separated by a comma.

    Raises
    ------
    UsageError
        Where a file cannot be read, or names are no two words.
    """
    called = tuple(names.split(","))
    if len(called) != 2 or not all(re.fullmatch(r"[a-z]\w*", name) for name in called):
        raise UsageError(f"expected two names such as this,reference, found {names!r}")
    fields = [field or None for field in id_field.split(",")]
    if len(fields) > 2:
        raise UsageError(f"expected one column of ids or two, found {id_field!r}")
    one, two = (
        read_reference(path, id_field=field).frame
        for path, field in zip((new, old), (fields * 2)[:2], strict=True)
    )
    table = link_table(one, two, names=(called[0], called[1]), id_fields=("ref_id", "ref_id"))
    Workspace(out.parent).put(out.name, csv_bytes(table))
    return table


def elevation_from(files: Sequence[str]) -> ReadElevation:
    """Read elevation from GeoTIFFs: means where their cells are finer, else between their cells.

    Parameters
    ----------
    files
        Paths or URLs.

    Raises
    ------
    UsageError
        Where one cannot be read (when it is made), or does not say its coordinate reference system.
    """
    files = [file if "://" in file else str(Path(file).resolve()) for file in files]
    policy = layer_policy(files)
    bands = [layer_source(file) for file in files]
    with OpenAssets(policy) as assets:
        for band in bands:
            try:
                referenced = assets.dataset(band).crs is not None
            except (DataError, SourceError) as error:
                raise UsageError(f"the elevation model cannot be read: {error}") from error
            if not referenced:
                raise UsageError(
                    f"{public_href(band.href)} does not say its coordinate reference system"
                )

    def read(frame: Frame) -> npt.NDArray[np.float32]:
        heights = np.full(frame.shape, np.nan, dtype=np.float32)
        with OpenAssets(policy) as assets:
            for band in bands:
                lacking = np.isnan(heights)
                if not lacking.any():
                    break
                heights = np.where(lacking, _warped(assets.dataset(band), frame), heights)
        return heights

    return read


def _warped(src: Any, frame: Frame) -> npt.NDArray[np.float32]:
    heights = np.full(frame.shape, np.nan, dtype=np.float32)
    corners = gpd.GeoSeries([shapely.box(*src.bounds)], crs=src.crs)
    cell_m2 = corners.to_crs(frame.proj4).area.iloc[0] / (src.width * src.height)
    finer = cell_m2 < frame.resolution_m**2 / 2
    reproject(
        rasterio.band(src, 1),
        heights,
        src_nodata=src.nodata,
        dst_transform=frame.transform,
        dst_crs=frame.proj4,
        dst_nodata=np.nan,
        resampling=Resampling.average if finer else Resampling.bilinear,
    )
    return heights


def divide_lines(glaciers: gpd.GeoDataFrame, aside: Sequence[SetAside], out: Path) -> list[str]:
    """What came of it, line by line."""
    lines = [f"{fault.what}: {fault.reason}" for fault in aside]
    for origin, part in glaciers.groupby("origin", sort=True):
        count = part["glacier_id"].nunique()
        told = {
            "reference": f"{count} glaciers of the reference in {len(part)} pieces",
            "new": f"{count} new candidates that touch none",
            "terrain": f"{count} glaciers by the terrain",
        }[str(origin)]
        lines.append(f"{told}, {part['area_km2'].sum():.3f} km2")
    return [*lines, str(out)]
