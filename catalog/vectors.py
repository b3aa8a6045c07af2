"""Files of outlines and lines as they are: GeoPackage, Shapefile, GeoParquet, GeoJSON."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import geopandas as gpd
import pyarrow as pa
import pyogrio
import shapely

from catalog.errors import UsageError

__all__ = ["read_vectors"]

_PARQUET = {".parquet", ".geoparquet"}
_JSON = {".geojson", ".json"}
_UNREADABLE = (
    *(ValueError, OSError, pa.ArrowException),
    *(pyogrio.errors.DataSourceError, shapely.errors.GEOSException),
)


def read_vectors(
    path: Path, *, what: str = "reference inventory", kind: str = "reference"
) -> gpd.GeoDataFrame:
    """Read a file whose coordinate reference system is known; nothing is repaired or renamed.

    Parameters
    ----------
    path
        Of the file; the first layer is read.
    what, kind
        What it is, in words and as the beginning of an error's ``kind``.

    Returns
    -------
    GeoDataFrame
        As stored; dates in GeoJSON stay text. A geometry that cannot be decoded (a ring that is not
        closed) is None, in GeoParquet the file cannot be read then.

    Raises
    ------
    UsageError
        ``<kind>-unreadable`` where there is no such file or it is none of these formats,
        ``<kind>-crs`` where it does not say its coordinate reference system.
    """
    if not path.is_file():
        raise UsageError(f"there is no {what} at {path}", kind=f"{kind}-unreadable")
    try:
        frame = _read(path)
    except _UNREADABLE as error:
        raise UsageError(
            f"cannot read {path} as GeoPackage, Shapefile, GeoJSON or GeoParquet: {error}",
            kind=f"{kind}-unreadable",
        ) from error
    if not isinstance(frame, gpd.GeoDataFrame):
        raise UsageError(f"{path} has no geometries", kind=f"{kind}-unreadable")
    if frame.crs is None:
        raise UsageError(
            f"{path} has no coordinate reference system; assign one (for a Shapefile: add its .prj)"
            ", the engine does not guess",
            kind=f"{kind}-crs",
        )
    return frame


def _read(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix in _PARQUET:
        return gpd.read_parquet(path)
    options: dict[str, Any] = {"DATE_AS_STRING": "YES"} if suffix in _JSON else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Non closed ring", RuntimeWarning)
        # ^ such a geometry is None afterwards; whoever reads the file tells whose it is
        return gpd.read_file(path, engine="pyogrio", on_invalid="ignore", **options)
