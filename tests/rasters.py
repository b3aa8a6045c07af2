"""Painted scenes for tests: small GeoTIFFs whose pixels follow a formula, and their STAC items."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from catalog.assets import gdal_env  # noqa: F401  before rasterio: it sets GDAL's drivers
from catalog.grid import RegionGrid, region_grid

import rasterio  # isort: skip
from affine import Affine  # isort: skip
from pyproj import Transformer  # isort: skip

CENTRE = (10.8, 46.8)
UTM = 32632
KEYS = {
    "blue": "blue",
    "green": "green",
    "red": "red",
    "nir": "nir",
    "swir1": "swir16",
    "swir2": "swir22",
}
Paint = Callable[[np.ndarray, np.ndarray], np.ndarray]


def small_grid(
    *,
    shard_px: int = 128,
    chunk_px: int = 64,
    size_m: float = 2400,
    resolution_m: float = 10,
    centre: tuple[float, float] = CENTRE,
    epsg: int = UTM,
) -> RegionGrid:
    """Grid around CENTRE whose shards all lie well inside the painted scenes."""
    to_lonlat = Transformer.from_crs(epsg, 4326, always_xy=True)
    x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(*centre)
    half = size_m / 2
    lon, lat = to_lonlat.transform([x - half, x + half], [y - half, y + half])
    return region_grid(lon, lat, resolution_m=resolution_m, shard_px=shard_px, chunk_px=chunk_px)


def utm_frame(
    *,
    pixel: float = 10,
    size_m: float = 4800,
    epsg: int = UTM,
    shift_m: float = 0,
    centre: tuple[float, float] = CENTRE,
) -> tuple[Affine, int]:
    """Transform and edge in pixels of a square raster around a place, snapped to 60 m."""
    x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(*centre)
    left = round((x - size_m / 2 + shift_m) / 60) * 60
    top = round((y + size_m / 2) / 60) * 60
    return Affine(pixel, 0, left, 0, -pixel, top), int(size_m / pixel)


def write_tif(path: Path, pixels: np.ndarray, transform: Affine, **profile: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {
        "driver": "GTiff",
        "crs": f"EPSG:{UTM}",
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "compress": "deflate",
        "zlevel": 1,
        **profile,
    }
    with rasterio.open(
        path,
        "w",
        height=pixels.shape[0],
        width=pixels.shape[1],
        count=1,
        dtype=pixels.dtype,
        transform=transform,
        **options,
    ) as file:
        file.write(pixels, 1)
    return path


def centres(transform: Affine, edge: int) -> tuple[np.ndarray, np.ndarray]:
    cols, rows = np.meshgrid(np.arange(edge) + 0.5, np.arange(edge) + 0.5)
    return transform.c + cols * transform.a, transform.f + rows * transform.e


def painted(paint: Paint | float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return paint(x, y) if callable(paint) else np.full(x.shape, float(paint))


def optical_item(
    folder: Path,
    name: str,
    *,
    when: str,
    paint: Paint | Mapping[str, Paint] | float = 0.3,
    classes: Paint | int = 5,
    epsg: int = UTM,
    offset: float = -0.1,
    shift_m: float = 0,
    properties: Mapping[str, Any] | None = None,
    collection: str = "sentinel-2-l2a",
    centre: tuple[float, float] = CENTRE,
) -> dict[str, Any]:
    """Sentinel-2 item as Earth Search shapes it; `paint` gives reflectance, NaN for no data."""
    frame, edge = utm_frame(epsg=epsg, shift_m=shift_m, centre=centre)
    assets = {}
    x, y = centres(frame, edge)
    for role, key in KEYS.items():
        one = paint[role] if isinstance(paint, Mapping) else paint
        values = painted(one, x, y)
        pixels = np.where(np.isnan(values), 0, np.rint((values - offset) * 10000)).astype(np.uint16)
        path = write_tif(folder / name / f"{key}.tif", pixels, frame, nodata=0, crs=f"EPSG:{epsg}")
        assets[key] = _asset(path, frame, edge) | {
            "raster:bands": [{"nodata": 0, "data_type": "uint16", "scale": 0.0001, "offset": -0.1}]
        }
    coarse, coarse_edge = utm_frame(pixel=20, epsg=epsg, shift_m=shift_m, centre=centre)
    x, y = centres(coarse, coarse_edge)
    scl = painted(classes, x, y).astype(np.uint8)
    path = write_tif(folder / name / "scl.tif", scl, coarse, nodata=0, crs=f"EPSG:{epsg}")
    assets["scl"] = _asset(path, coarse, coarse_edge)
    return _item(
        name,
        collection,
        when,
        assets,
        frame,
        edge,
        epsg,
        {
            "s2:processing_baseline": "05.11",
            "earthsearch:boa_offset_applied": offset == 0,
            "eo:cloud_cover": 10.0,
            **(properties or {}),
        },
    )


def landsat_item(
    folder: Path,
    name: str,
    *,
    when: str,
    paint: Paint | Mapping[str, Paint] | float = 0.3,
    quality: Paint | int = 1 << 6,
    saturation: Paint | int = 0,
    kelvin: float | None = None,
    platform: str = "landsat-8",
) -> dict[str, Any]:
    """Landsat Collection 2 Level 2 item as both catalogues shape it; NaN for no data."""
    frame, edge = utm_frame(pixel=30)
    x, y = centres(frame, edge)
    assets = {}
    for role, key in (KEYS | {"nir": "nir08"}).items():
        one = paint[role] if isinstance(paint, Mapping) else paint
        values = painted(one, x, y)
        pixels = np.where(np.isnan(values), 0, np.rint((values + 0.2) / 2.75e-5)).astype(np.uint16)
        path = write_tif(folder / name / f"{key}.tif", pixels, frame, nodata=0)
        assets[key] = _asset(path, frame, edge) | {
            "raster:bands": [
                {"nodata": 0, "data_type": "uint16", "scale": 2.75e-05, "offset": -0.2}
            ]
        }
    for key, paint_bits, fill in (("qa_pixel", quality, 1), ("qa_radsat", saturation, None)):
        bits = painted(paint_bits, x, y).astype(np.uint16)
        path = write_tif(folder / name / f"{key}.tif", bits, frame, nodata=fill)
        assets[key] = _asset(path, frame, edge) | {
            "raster:bands": [
                {"data_type": "uint16", "unit": "bit index"} | ({"nodata": fill} if fill else {})
            ]
        }
    if kelvin is not None:
        key = "lwir11" if platform in ("landsat-8", "landsat-9") else "lwir"
        pixels = np.full((edge, edge), round((kelvin - 149) / 0.00341802), np.uint16)
        path = write_tif(folder / name / f"{key}.tif", pixels, frame, nodata=0)
        assets[key] = _asset(path, frame, edge) | {
            "raster:bands": [{"nodata": 0, "unit": "kelvin", "scale": 0.00341802, "offset": 149.0}]
        }
    return _item(
        name,
        "landsat-c2-l2",
        when,
        assets,
        frame,
        edge,
        UTM,
        {
            "platform": platform,
            "landsat:correction": "L2SP",
            "landsat:collection_category": "T1",
            "eo:cloud_cover": 10.0,
        },
    )


def sar_item(folder: Path, name: str, *, when: str, paint: Paint | float) -> dict[str, Any]:
    frame, edge = utm_frame()
    x, y = centres(frame, edge)
    values = painted(paint, x, y)
    assets = {}
    for key, factor in (("vv", 1.0), ("vh", 0.1)):
        path = write_tif(
            folder / name / f"{key}.tif", (values * factor).astype(np.float32), frame, nodata=-32768
        )
        assets[key] = _asset(path, frame, edge) | {
            "raster:bands": [{"nodata": -32768, "data_type": "float32"}]
        }
    return _item(name, "sentinel-1-rtc", when, assets, frame, edge, UTM, {})


def dem_item(
    folder: Path, name: str, *, paint: Paint, west: float, south: float, size: float = 0.1
) -> dict[str, Any]:
    """DEM item in degrees, one arc second; `paint` takes longitude and latitude."""
    pixel = 1 / 3600
    edge = round(size / pixel)
    frame = Affine(pixel, 0, west, 0, -pixel, south + size)
    x, y = centres(frame, edge)
    path = write_tif(
        folder / name / "dem.tif", paint(x, y).astype(np.float32), frame, crs="EPSG:4326"
    )
    item = _item(name, "cop-dem-glo-30", "2021-04-22T00:00:00Z", {}, frame, edge, 4326, {})
    item["assets"]["data"] = _asset(path, frame, edge)
    return item


def _asset(path: Path, frame: Affine, edge: int) -> dict[str, Any]:
    return {
        "href": str(path),
        "type": "image/tiff; application=geotiff; profile=cloud-optimized",
        "proj:shape": [edge, edge],
        "proj:transform": list(frame)[:6],
    }


def _item(
    name: str,
    collection: str,
    when: str,
    assets: dict[str, Any],
    frame: Affine,
    edge: int,
    epsg: int,
    properties: Mapping[str, Any],
) -> dict[str, Any]:
    right, bottom = frame @ (edge, edge)
    box = Transformer.from_crs(epsg, 4326, always_xy=True).transform_bounds(
        frame.c, bottom, right, frame.f
    )
    west, south, east, north = box
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": collection,
        "bbox": list(box),
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"datetime": when, "proj:epsg": epsg, **properties},
        "assets": assets,
        "links": [],
    }


def write_items(path: Path, items: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return path
