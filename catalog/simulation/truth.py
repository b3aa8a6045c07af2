"""The known truth as an inventory: reference outlines in RGI 7.0 form, glaciers of each season."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import rasterio.features
import shapely
from scipy import ndimage
from shapely.geometry import shape as as_shape

from .delivery import write_text

if TYPE_CHECKING:
    from pathlib import Path

    import geopandas as gpd
    from numpy.typing import NDArray

    from .places import RegionFrame
    from .spec import RegionSpec

__all__ = ["outline_labels", "reference_table", "season_table", "write_vector"]


def outline_labels(labels: NDArray[np.int32], frame: RegionFrame) -> dict[int, shapely.Geometry]:
    """Trace each label's pixels as (multi)polygons in UTM metres, a vertex at every pixel corner.

    The dense vertices make neighbours share their nodes exactly, so nothing opens when reprojected.
    """
    parts: dict[int, list[Any]] = {}
    traced = rasterio.features.shapes(
        labels, mask=labels > 0, connectivity=4, transform=frame.transform
    )
    for geometry, value in traced:
        parts.setdefault(int(value), []).append(as_shape(geometry))
    out = {}
    for number in sorted(parts):
        whole = [piece if piece.is_valid else shapely.make_valid(piece) for piece in parts[number]]
        merged = (
            whole[0]
            if len(whole) == 1
            else shapely.multipolygons(
                [poly for piece in whole for poly in shapely.get_parts(piece)]
            )
        )
        out[number] = shapely.segmentize(merged, 10.0)
    return out


def _areas_km2(geometry: gpd.GeoSeries) -> NDArray[np.float64]:
    # RGI 7.0 measures area in the cylindrical equal-area projection.
    return np.asarray(geometry.to_crs({"proj": "cea"}).area.to_numpy() / 1e6, dtype=np.float64)


def reference_table(
    spec: RegionSpec,
    frame: RegionFrame,
    labels: NDArray[np.int32],
    *,
    surface: NDArray[np.float32],
    date: str,
) -> gpd.GeoDataFrame:
    """Make the reference inventory: one single polygon per glacier, all RGI 7.0 glacier attributes.

    Parameters
    ----------
    spec, frame
        The region and its grid.
    labels
        (y, x) int32 glacier numbers 1..n.
    surface
        (y, x) float32 elevation, m.
    date
        ISO date of the outlines.
    """
    import geopandas as gpd

    outlines = outline_labels(labels, frame)
    frame_utm = gpd.GeoSeries(list(outlines.values()), crs=frame.epsg)
    geographic = frame_utm.to_crs(4326)
    points = geographic.representative_point()
    rows = []
    windows = ndimage.find_objects(labels)
    gradients = np.gradient(surface, 10.0)
    south, east = np.asarray(gradients[0]), np.asarray(gradients[1])
    for position, number in enumerate(outlines):
        window = windows[number - 1]
        cells = labels[window] == number
        rows.append(
            _attributes(
                spec,
                frame,
                date=date,
                number=number,
                point=points.iloc[position],
                heights=surface[window][cells],
                steps=(south[window][cells], east[window][cells]),
            )
            | _terminus(frame, surface[window], cells, (window[0].start, window[1].start))
        )
    table = gpd.GeoDataFrame(rows, geometry=geographic, crs=4326)
    table["area_km2"] = _areas_km2(geographic)
    return table


def _attributes(
    spec: RegionSpec,
    frame: RegionFrame,
    *,
    date: str,
    number: int,
    point: shapely.Point,
    heights: NDArray[np.float32],
    steps: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> dict[str, Any]:
    south, east = (float(np.mean(step, dtype=np.float64)) for step in steps)
    slope = float(np.degrees(np.arctan(np.hypot(*steps))).mean(dtype=np.float64))
    aspect = float(np.degrees(np.arctan2(-east, south)) + frame.convergence_deg) % 360.0
    drop = float(heights.max() - heights.min())
    lon, lat = float(point.x), float(point.y)
    code = (
        f"G{round(lon % 360.0 * 1000):06d}E{round(abs(lat) * 1000):05d}{'N' if lat >= 0 else 'S'}"
    )
    return {
        "rgi_id": f"{spec.name}-v1-G-00-{number:05d}",
        "o1region": "",
        "o2region": "",
        "glims_id": code,
        "anlys_id": number,
        "subm_id": 1,
        "src_date": date,
        "cenlon": lon,
        "cenlat": lat,
        "utm_zone": frame.zone,
        "area_km2": 0.0,
        "primeclass": 0,
        "conn_lvl": 0,
        "surge_type": 0,
        "term_type": 0,
        "glac_name": "",
        "is_rgi6": 0,
        "termlon": np.nan,
        "termlat": np.nan,
        "zmin_m": float(heights.min()),
        "zmax_m": float(heights.max()),
        "zmed_m": float(np.median(heights)),
        "zmean_m": float(heights.mean(dtype=np.float64)),
        "slope_deg": slope,
        "aspect_deg": aspect,
        "aspect_sec": int((aspect + 22.5) // 45.0) % 8 + 1,
        "dem_source": "SIM",
        "lmax_m": round(max(drop / np.tan(np.radians(max(slope, 3.0))), 100.0)),
    }


def _terminus(
    frame: RegionFrame,
    surface: NDArray[np.float32],
    cells: NDArray[np.bool_],
    corner: tuple[int, int],
) -> dict[str, float]:
    import pyproj

    row, col = np.unravel_index(int(np.argmin(np.where(cells, surface, np.inf))), cells.shape)
    to_lonlat = pyproj.Transformer.from_crs(frame.epsg, 4326, always_xy=True)
    lon, lat = to_lonlat.transform(
        frame.left + 10.0 * (corner[1] + int(col) + 0.5),
        frame.top - 10.0 * (corner[0] + int(row) + 0.5),
    )
    return {"termlon": float(lon), "termlat": float(lat)}


def season_table(
    frame: RegionFrame,
    labels: NDArray[np.int32],
    *,
    classes: NDArray[np.uint8],
    reference: gpd.GeoDataFrame,
) -> gpd.GeoDataFrame:
    """List what is left of every reference glacier: ref_id, area_km2, area_debris_km2, geometry.

    A vanished glacier has area 0 and no geometry.
    """
    import geopandas as gpd

    icy = (classes == 1) | (classes == 2)
    left = np.where(icy, labels, 0).astype(np.int32)
    outlines = outline_labels(left, frame)
    size = int(labels.max()) + 1
    total = np.bincount(left.ravel(), minlength=size)
    rocky = np.bincount(left.ravel(), weights=(classes == 2).ravel(), minlength=size)
    shapes = [outlines.get(number) for number in range(1, size)]
    geometry = gpd.GeoSeries(shapes, crs=frame.epsg).to_crs(4326)
    areas = np.nan_to_num(_areas_km2(geometry))
    share = rocky[1:] / np.maximum(total[1:], 1)
    return gpd.GeoDataFrame(
        {
            "ref_id": reference["rgi_id"].to_numpy(),
            "area_km2": areas,
            "area_debris_km2": areas * share,
        },
        geometry=geometry,
        crs=4326,
    )


def write_vector(path: Path, table: gpd.GeoDataFrame, *, layer: str) -> None:
    """Write a GeoPackage with a fixed change date, and beside it the attributes as CSV."""
    import pyogrio

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.stem + ".partial.gpkg")
    partial.unlink(missing_ok=True)
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "2026-01-01T00:00:00.000Z"})
    # ^ GeoPackage stamps the time of writing, which would make equal runs differ
    try:
        pyogrio.write_dataframe(table, partial, layer=layer, driver="GPKG")
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})
    write_text(
        path.with_suffix(".csv"),
        pd.DataFrame(table.drop(columns=table.geometry.name)).to_csv(
            index=False, lineterminator="\n"
        ),
    )
    partial.replace(path)
