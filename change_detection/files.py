"""Tables and outlines as files: equal rows give equal bytes, whenever they are written."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import geopandas as gpd
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio

from catalog.cube import Workspace

__all__ = [
    "csv_bytes",
    "geopackage_bytes",
    "geoparquet_bytes",
    "parquet_bytes",
    "put_files",
    "shapefile_bytes",
]

_FIXED_TIME = "2000-01-01T00:00:00.000Z"
_FIXED_DAY = "2000-01-01"
# ^ GeoPackage and dBASE store when they were written; so equal runs would differ
_STYLE_TABLE = """
CREATE TABLE layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256),
    f_table_schema TEXT(256), f_table_name TEXT(256), f_geometry_column TEXT(256),
    styleName TEXT(30), styleQML TEXT, styleSLD TEXT, useAsDefault BOOLEAN, description TEXT,
    owner TEXT(30), ui TEXT(30), update_time DATETIME)
"""
# ^ the table in which QGIS looks for the style of a layer; its columns are QGIS' own


def put_files(workspace: Workspace, files: Mapping[str, bytes]) -> dict[str, str]:
    """Write files into a workspace; return the SHA-256 of each by its name, sorted."""
    for name, data in files.items():
        workspace.put(name, data)
    return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}


def parquet_bytes(table: pa.Table) -> bytes:
    """Bytes of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def geoparquet_bytes(rows: gpd.GeoDataFrame) -> bytes:
    """Bytes of a GeoParquet file, version 1.1."""
    sink = io.BytesIO()
    rows.to_parquet(sink, index=False, compression="zstd", schema_version="1.1.0")
    return sink.getvalue()


def csv_bytes(table: pd.DataFrame) -> bytes:
    """Bytes of a CSV file as RGI 7.0 writes them: everything but numbers in quotes, UTF-8."""
    text = table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    return text.encode()


def geopackage_bytes(
    layers: Mapping[str, tuple[gpd.GeoDataFrame, str]], styles: Mapping[str, str] | None = None
) -> bytes:
    """Bytes of a GeoPackage.

    Parameters
    ----------
    layers
        Rows and type of geometry (``Polygon``) of each layer by its name.
    styles
        QGIS styles (QML) of layers by their names.
    """
    with _written_at_a_fixed_time(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.gpkg"
        for name, (rows, kind) in layers.items():
            pyogrio.write_dataframe(
                rows,
                path,
                driver="GPKG",
                layer=name,
                geometry_type=kind,
                append=path.exists(),
            )
        if styles:
            _add_styles(path, styles)
        return path.read_bytes()


def _add_styles(path: Path, styles: Mapping[str, str]) -> None:
    with contextlib.closing(sqlite3.connect(path)) as base, base:
        base.execute(_STYLE_TABLE)
        base.execute(
            "INSERT INTO gpkg_contents (table_name, data_type, identifier, last_change)"
            " VALUES ('layer_styles', 'attributes', 'layer_styles', ?)",
            (_FIXED_TIME,),
        )
        for name, qml in styles.items():
            base.execute(
                "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name,"
                " f_geometry_column, styleName, styleQML, styleSLD, useAsDefault, description,"
                " owner, update_time) VALUES ('', '', ?, 'geom', ?, ?, '', 1, '', '', ?)",
                (name, name, qml, _FIXED_TIME),
            )


def shapefile_bytes(rows: gpd.GeoDataFrame, *, geometry_type: str) -> dict[str, bytes]:
    """Bytes of the files of a Shapefile by their suffixes: shp, shx, dbf, prj and cpg (UTF-8)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.shp"
        pyogrio.write_dataframe(
            rows,
            path,
            driver="ESRI Shapefile",
            geometry_type=geometry_type,
            encoding="UTF-8",
            layer_options={"DBF_DATE_LAST_UPDATE": _FIXED_DAY},
        )
        suffixes = ("shp", "shx", "dbf", "prj", "cpg")
        return {s: path.with_suffix(f".{s}").read_bytes() for s in suffixes}


@contextlib.contextmanager
def _written_at_a_fixed_time() -> Iterator[None]:
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": _FIXED_TIME})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})
