"""A package described as a STAC Item, so that catalogues can list it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import geopandas as gpd
import shapely

__all__ = ["package_item"]

_TYPES = {
    "gpkg": "application/geopackage+sqlite3",
    "parquet": "application/vnd.apache.parquet",
    "csv": "text/csv",
    "json": "application/json",
    "shp": "application/vnd.shp",
    "shx": "application/vnd.shx",
    "dbf": "application/vnd.dbf",
    "prj": "text/plain",
    "cpg": "text/plain",
}
_SHA256 = "1220"
# ^ of a multihash: which function, and that 32 bytes follow


def package_item(
    files: Mapping[str, bytes],
    glaciers: gpd.GeoDataFrame,
    *,
    name: str,
    about: str,
    interval: tuple[str, str],
) -> bytes:
    """Bytes of the STAC Item (version 1.1.0, extension ``file`` 2.1.0) of a package.

    Parameters
    ----------
    files
        Its files by their names, relative to the Item.
    glaciers
        EPSG:4326, with ``src_date`` and ``area_km2``.
    name, about
        Id of the Item, and what it is.
    interval
        First and last day, YYYY-MM-DD, where no glacier has a date.
    """
    known = [day[:19] for day in glaciers["src_date"] if day]
    days = sorted(known or [f"{day}T00:00:00" for day in interval])
    geometry, bbox = _footprint(glaciers)
    item: dict[str, Any] = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": ["https://stac-extensions.github.io/file/v2.1.0/schema.json"],
        "id": name,
        "geometry": geometry,
        "properties": {
            "datetime": None,
            "start_datetime": f"{days[0]}Z",
            "end_datetime": f"{days[-1]}Z",
            "title": f"Glacier inventory {name}",
            "description": about,
            "glaciers": len(glaciers),
            "area_km2": float(glaciers["area_km2"].sum()),
        },
        "links": [],
        "assets": {path: _asset(path, data) for path, data in sorted(files.items())},
    }
    if bbox:
        item["bbox"] = bbox
    return json.dumps(item, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def _asset(path: str, data: bytes) -> dict[str, Any]:
    return {
        "href": f"./{path}",
        "type": _TYPES[path.rsplit(".", 1)[1]],
        "roles": ["metadata" if path.endswith("_metadata.json") else "data"],
        "file:size": len(data),
        "file:checksum": _SHA256 + hashlib.sha256(data).hexdigest(),
    }


def _footprint(glaciers: gpd.GeoDataFrame) -> tuple[dict[str, Any] | None, list[float]]:
    """Hull of the outlines, one on either side where they lie on both sides of the antimeridian."""
    if not len(glaciers):
        return None, []
    west, south, east, north = glaciers.total_bounds.tolist()
    if east - west <= 180.0:
        hull = shapely.convex_hull(shapely.geometrycollections(glaciers.geometry.to_numpy()))
        return shapely.geometry.mapping(hull), [west, south, east, north]
    beyond = glaciers.geometry.centroid.x.to_numpy() < 0
    sides = [glaciers.geometry.to_numpy()[rows] for rows in (~beyond, beyond)]
    hulls = [shapely.convex_hull(shapely.geometrycollections(side)) for side in sides]
    crossing = [hulls[0].bounds[0], south, hulls[1].bounds[2], north]
    return shapely.geometry.mapping(shapely.MultiPolygon(hulls)), crossing
