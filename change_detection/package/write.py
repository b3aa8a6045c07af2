"""All files of an inventory in the form of RGI 7.0, from its outlines.

Each product and first-order region has a folder of its own, named as RGI 7.0 names its files; what
holds for all regions lies beside them. The products are made of the outlines alone, so that they
agree with them to the last vertex.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import geopandas as gpd
import numpy as np
import pandas as pd

from change_detection.attributes import RGI_ATTRIBUTES
from change_detection.files import (
    csv_bytes,
    geopackage_bytes,
    geoparquet_bytes,
    shapefile_bytes,
)
from change_detection.links import link_table
from change_detection.package.fields import (
    COMPLEX_FIELDS,
    GLACIER_FIELDS,
    INTERSECT_FIELDS,
    SUBMISSION_FIELDS,
    Field,
    fields_json,
)
from change_detection.package.ids import VERSION, id_prefix, numbered_ids
from change_detection.package.item import package_item
from change_detection.package.styles import STYLES
from change_detection.topology import dissolve_complexes, shared_borders

__all__ = ["PackageFacts", "package_files"]

_SUBMISSION = 1


@dataclass(frozen=True, slots=True)
class PackageFacts:
    """What a package says of itself."""

    name: str
    """Of the region."""
    season: str
    description: str
    """How the outlines were drawn."""
    interval: tuple[str, str]
    """First and last day of the season, YYYY-MM-DD: told where no outline has a date."""
    affiliation: str = ""
    submitters: str = ""
    analysts: str = ""

    @property
    def prefix(self) -> str:
        """First part of ids and file names."""
        return id_prefix(self.name + self.season)


@dataclass(frozen=True, slots=True)
class _Product:
    letter: Literal["G", "C", "I"]
    layer: str
    rows: gpd.GeoDataFrame
    geometry_type: str
    fields: dict[str, Field]


def package_files(
    glaciers: gpd.GeoDataFrame,
    *,
    facts: PackageFacts,
    hypsometry: pd.DataFrame,
    reference: gpd.GeoDataFrame,
) -> dict[str, bytes]:
    """Bytes of every file of a package by its name.

    Parameters
    ----------
    glaciers
        EPSG:4326, valid single polygons of at least 0.01 km2 that do not overlap, with the columns
        of RGI 7.0 (``change_detection.attributes.RGI_ATTRIBUTES``) and perhaps others, which the
        package leaves out.
    facts
        What is said of the inventory as a whole.
    hypsometry
        See :func:`change_detection.hypsometry.hypsometry_table`.
    reference
        The reference inventory, valid polygons with ``ref_id``: what is linked to.

    Returns
    -------
    dict
        For each product (G, C, I) and region a folder with the Shapefile, its attributes as CSV and
        their meaning as JSON; with the glaciers their submissions, hypsometry and links to the
        reference; with the complexes their members. Beside the folders a GeoPackage with a style
        for QGIS, a GeoParquet file a product, and a STAC Item of it all.

    Raises
    ------
    DataError
        ``bad-geometry`` where an outline is missing or invalid.
    """
    rows = glaciers[[*RGI_ATTRIBUTES, "geometry"]].assign(subm_id=_SUBMISSION)
    complexes, members = _complexes(rows, facts)
    products = (
        _Product("G", "glaciers", rows, "Polygon", GLACIER_FIELDS),
        _Product("C", "complexes", complexes, "Polygon", COMPLEX_FIELDS),
        _Product("I", "intersects", _intersects(rows, facts), "LineString", INTERSECT_FIELDS),
    )
    links = link_table(rows, reference)
    files: dict[str, bytes] = {}
    for product in products:
        for region, part in _by_region(product.rows):
            stem = f"{facts.prefix}-{VERSION}-{product.letter}-{region}"
            made = _product_files(product, part)
            if product.letter == "G":
                made |= _tables(part, facts, hypsometry=hypsometry, links=links)
            if product.letter == "C":
                listed = {i: members[i] for i in part["rgi_id"]}
                made["-CtoG_links.json"] = json.dumps(listed, indent=1).encode() + b"\n"
            files |= {f"{stem}/{stem}{end}": data for end, data in made.items()}
        name = f"{facts.prefix}-{VERSION}-{product.letter}.parquet"
        files[name] = geoparquet_bytes(product.rows)
    layers = {p.layer: (p.rows, p.geometry_type) for p in products}
    files[f"{facts.prefix}-{VERSION}.gpkg"] = geopackage_bytes(layers, STYLES)
    files["item.json"] = package_item(
        files, rows, name=facts.prefix, about=facts.description, interval=facts.interval
    )
    return files


def _by_region(rows: gpd.GeoDataFrame) -> Iterator[tuple[str, gpd.GeoDataFrame]]:
    region = rows["rgi_id"].str.extract(r"-(\d\d)-\d+$")[0]
    for name, part in rows.groupby(region.to_numpy(), sort=True):
        yield str(name), part.reset_index(drop=True)


def _product_files(product: _Product, rows: gpd.GeoDataFrame) -> dict[str, bytes]:
    shapes = shapefile_bytes(rows, geometry_type=product.geometry_type)
    table = pd.DataFrame(rows.drop(columns="geometry"))
    return {f".{suffix}": data for suffix, data in shapes.items()} | {
        "-attributes.csv": csv_bytes(table),
        "-attributes_metadata.json": fields_json(product.fields),
    }


def _tables(
    rows: gpd.GeoDataFrame,
    facts: PackageFacts,
    *,
    hypsometry: pd.DataFrame,
    links: pd.DataFrame,
) -> dict[str, bytes]:
    ids = set(rows["rgi_id"])
    submissions = pd.DataFrame(
        {
            "subm_id": [_SUBMISSION],
            "n_outlines": [len(rows)],
            "area_km2": [float(rows["area_km2"].sum())],
            "anlys_time": [""],
            "release_dt": [""],
            "proc_desc": [facts.description],
            "chief_affl": [facts.affiliation],
            "submitters": [facts.submitters],
            "analysts": [facts.analysts],
            "rc_id": [-999],
        }
    )
    heights = hypsometry[hypsometry["rgi_id"].isin(ids)]
    made = {
        "-submission_info.csv": csv_bytes(submissions),
        "-submission_info_metadata.json": fields_json(SUBMISSION_FIELDS),
        "-reference_links.csv": csv_bytes(links[links["this_id"].isin(ids)]),
    }
    if len(heights):
        made["-hypsometry.csv"] = csv_bytes(_without_empty_ends(heights))
    return made


def _without_empty_ends(heights: pd.DataFrame) -> pd.DataFrame:
    """The table of one region, from its lowest bin to its highest."""
    bins = heights.columns[2:]
    used = np.flatnonzero(heights[bins].to_numpy().any(axis=0))
    return heights[[*heights.columns[:2], *bins[used[0] : used[-1] + 1]]]


def _complexes(
    rows: gpd.GeoDataFrame, facts: PackageFacts
) -> tuple[gpd.GeoDataFrame, dict[str, list[str]]]:
    found = dissolve_complexes(rows)
    frame = found.frame
    frame["rgi_id"] = numbered_ids(frame["o1region"], prefix=facts.prefix, letter="C")
    members = {i: list(m) for i, m in zip(frame["rgi_id"], found.members, strict=True)}
    return frame[[*COMPLEX_FIELDS, "geometry"]], members


def _intersects(rows: gpd.GeoDataFrame, facts: PackageFacts) -> gpd.GeoDataFrame:
    frame = shared_borders(rows)
    region = frame["rgi_g_id_1"].map(rows.set_index("rgi_id")["o1region"])
    frame["rgi_id"] = numbered_ids(region, prefix=facts.prefix, letter="I")
    return frame[[*INTERSECT_FIELDS, "geometry"]]
