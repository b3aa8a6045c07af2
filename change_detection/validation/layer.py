"""One product of an inventory, its outlines ready for every rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from pyproj import CRS

from change_detection.topology import Geometries, areas_km2, polygons_only
from change_detection.validation.rules import RULES, Finding, Profile

__all__ = ["Layer", "Product", "id_names", "is_lonlat", "layer_of", "same_area", "text_of"]

Product = Literal["G", "C", "I"]
"""Glaciers, complexes, intersects."""
_LONLAT = CRS.from_epsg(4326)
_ID_FIELDS = ("rgi_id", "RGIId", "glac_id")
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Layer:
    """A product, row by row."""

    product: Product
    profile: Profile
    frame: gpd.GeoDataFrame
    """As it was read, with a running index."""
    raw: Geometries
    """Outlines in longitude and latitude as they are; None where missing."""
    polygons: Geometries
    """The same in 2-D and repaired, so that they can be compared; empty where they cannot be."""
    sound: Mask
    """Where ``polygons`` are what ``raw`` says."""
    names: npt.NDArray[Any]
    """Ids, ``row 17`` where there is none."""
    area_km2: npt.NDArray[np.float64]
    lon: npt.NDArray[np.float64]
    """Of a representative point, degrees; NaN where there is none."""
    lat: npt.NDArray[np.float64]

    def report(
        self,
        rule: str,
        rows: npt.ArrayLike,
        messages: Sequence[str] | str,
        *,
        at: Geometries | None = None,
    ) -> list[Finding]:
        """Findings of a rule: none where the profile does not ask for it.

        Parameters
        ----------
        rule
            Key of :data:`RULES`.
        rows
            Row numbers, or a mask of rows.
        messages
            One a row, or one for all.
        at
            Points where it is; those of the rows where None.
        """
        severity = RULES[rule].severity(self.profile)
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        if severity is None or not len(rows):
            return []
        texts = [messages] * len(rows) if isinstance(messages, str) else messages
        lon, lat = (
            (self.lon[rows], self.lat[rows])
            if at is None
            else (shapely.get_x(at), shapely.get_y(at))
        )
        return [
            Finding(severity, rule, str(self.names[i]), text, float(x), float(y))
            for i, text, x, y in zip(rows, texts, lon, lat, strict=True)
        ]

    def report_file(self, rule: str, message: str) -> list[Finding]:
        """Make the finding of a rule about the whole file."""
        severity = RULES[rule].severity(self.profile)
        return [Finding(severity, rule, "", message, np.nan, np.nan)] if severity else []

    def number(self, column: str) -> npt.NDArray[np.float64]:
        """Values of a column, NaN where missing (-999) or no number, or where there is none."""
        if column not in self.frame:
            return np.full(len(self.frame), np.nan)
        values = pd.to_numeric(self.frame[column], errors="coerce").to_numpy(np.float64)
        return np.where(values == -999, np.nan, values)

    def text(self, column: str) -> npt.NDArray[Any]:
        """Values of a column as text, empty where missing or where there is no such column."""
        if column not in self.frame:
            return np.full(len(self.frame), "", dtype=object)
        return text_of(self.frame[column])


def layer_of(frame: gpd.GeoDataFrame, *, profile: Profile, product: Product = "G") -> Layer:
    """Prepare a product: bring it to EPSG:4326, repair what can be, measure it.

    Parameters
    ----------
    frame
        With any columns, in any coordinate reference system.
    profile, product
        Whose rules it is to keep, and what it is.
    """
    frame = frame.reset_index(drop=True)
    moved = frame.geometry if is_lonlat(frame.crs) else frame.geometry.to_crs(4326)
    raw = moved.to_numpy()
    flat = shapely.force_2d(raw)
    readable = ~shapely.is_missing(flat) & ~_has_bad_vertices(flat)
    valid = shapely.is_valid(flat)
    polygons = flat.copy()
    polygons[~readable] = shapely.Polygon()
    crossed = readable & ~valid
    polygons[crossed] = shapely.make_valid(polygons[crossed])
    polygons = polygons_only(polygons)
    point = shapely.point_on_surface(polygons)
    other = readable & shapely.is_empty(polygons)
    point[other] = shapely.centroid(flat[other])
    point[shapely.is_empty(point)] = shapely.Point(np.nan, np.nan)
    sound = readable & valid & ~shapely.is_empty(polygons)
    return Layer(
        product,
        profile,
        frame,
        raw,
        polygons,
        sound,
        id_names(frame),
        areas_km2(polygons),
        shapely.get_x(point),
        shapely.get_y(point),
    )


def is_lonlat(crs: Any) -> bool:
    """Whether coordinates are longitude and latitude on WGS84."""
    return bool(CRS.from_user_input(crs).equals(_LONLAT, ignore_axis_order=True))


def id_names(frame: pd.DataFrame) -> npt.NDArray[Any]:
    """Name of each row: its id in RGI 7, RGI 6 or GLIMS, or its number counted from 0."""
    field = next((name for name in _ID_FIELDS if name in frame), None)
    numbers = np.array([f"row {i}" for i in range(len(frame))], dtype=object)
    if field is None:
        return numbers
    ids = text_of(frame[field])
    return np.where(ids == "", numbers, ids)


def text_of(column: pd.Series[Any]) -> npt.NDArray[Any]:
    """Values as text without blanks around it, empty where missing."""
    return np.asarray(column.astype(object).where(column.notna(), "").astype(str).str.strip())


def same_area(one: npt.ArrayLike, two: npt.ArrayLike) -> Mask:
    """Whether areas in km2 are the same to 0.01 % or 10 m2."""
    return np.asarray(np.isclose(one, two, rtol=1e-4, atol=1e-5), dtype=bool)


def _has_bad_vertices(geometries: Geometries) -> Mask:
    """Where a vertex is not finite or not on the Earth, or an outline is wider than 180 degrees."""
    lonlat, owner = shapely.get_coordinates(geometries, return_index=True)
    with np.errstate(invalid="ignore"):
        fine = (np.abs(lonlat[:, 0]) <= 180.0) & (np.abs(lonlat[:, 1]) <= 90.0)
    bad = np.zeros(len(geometries), dtype=bool)
    bad[owner[~fine]] = True
    west, _, east, _ = shapely.bounds(geometries).T
    return np.asarray(bad | (east - west > 180.0), dtype=bool)
