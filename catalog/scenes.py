"""Scenes: what the engine knows of one STAC item, whatever its sensor. Pure, no I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any, Literal

from catalog.grid import LonLatBox

__all__ = [
    "BandSource",
    "MaskRule",
    "Scene",
    "SceneKind",
    "band_from_dict",
    "boxes_meet",
    "lon_spans",
]

_EPOCH = date(1970, 1, 1)

SceneKind = Literal["optical", "sar", "dem"]


@dataclass(frozen=True, slots=True)
class MaskRule:
    """Which values of a mask, or which of its bits, tell usable pixels.

    Beyond the edge of the raster the value is 0.
    """

    clear: tuple[int, ...] = ()
    """The only values that may be used; empty where the unusable ones are named."""
    unusable: tuple[int, ...] = ()
    """Values, or numbers of bits, that must not be used."""
    spreading: tuple[int, ...] = ()
    """Those of cloud and shadow, whose rims are missed: nor may what lies around them be used."""


@dataclass(frozen=True, slots=True)
class BandSource:
    """One single-band raster of a scene, and how its pixels become physical values."""

    role: str
    """What it shows: a band name of the store, or the kind of a mask, see ``catalog.masks``."""
    asset: str
    """Key of the asset in the item."""
    href: str
    """Where the raster is, as the item says; checked by the asset policy before it is opened."""
    scale: float
    """Physical value = pixel x scale + offset."""
    offset: float
    nodata: float | None
    """Pixel value that means nothing was seen; None where every value is valid."""
    crs: str | None = None
    """Projection the item promises (``EPSG:32632`` or WKT), or None where it promises none."""
    transform: tuple[float, ...] | None = None
    """The six numbers of ``proj:transform`` that the item promises, or None."""
    shape: tuple[int, int] | None = None
    """Pixels ``(y, x)`` that the item promises, or None."""
    checksum: str | None = None
    """``file:checksum`` of the asset, where the catalogue gives one. A local file is held against
    it; of a remote one only ranges are read, so there it only tells one version from the next."""
    rule: MaskRule | None = None
    """How a mask of the kinds ``values`` and ``bits`` is read."""
    shift_m: tuple[float, float] = (0.0, 0.0)
    """How far its pixels lie from where they belong, eastwards and northwards along the region's
    grid; taken off when it is read, see ``catalog.coregistration``."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One STAC item as the engine understands it."""

    id: str
    collection: str
    kind: SceneKind
    sensor: str
    datetime: str
    """ISO 8601 in UTC, for example ``2024-08-12T10:15:20Z``; empty for a DEM without a date."""
    bands: tuple[BandSource, ...]
    masks: tuple[BandSource, ...]
    """What tells its usable pixels; the role is the kind, see ``catalog.masks``. All must agree."""
    bbox: LonLatBox
    """West, south, east, north in degrees; west > east where it crosses the antimeridian."""
    sun_azimuth: float | None
    """Degrees clockwise from true north."""
    sun_elevation: float | None
    """Degrees above the horizon."""
    cloud_percent: float | None
    baseline: str | None
    """Processing baseline of Sentinel-2, for example ``05.11``, or day of processing of Landsat."""
    fingerprint: str
    """SHA-256 over the content that matters, not over hosts, signatures or folders."""
    granule: str = ""
    """Name shared by all processings of one acquisition of one tile; empty where unknown."""
    period: str = ""
    """First and last day of a DEM's acquisition, ``2011-01-05/2014-11-30``, if the item says."""
    orbit: str = ""
    """``ascending`` or ``descending``; empty where unknown."""
    dtype: str = "uint16"
    """Type as which optical bands are read: ``uint16``, where 0 is no data, or ``float32``."""
    thermal: BandSource | None = None
    """Surface temperature in kelvin (role ``thermal``), where there is one. No part of
    :attr:`rasters`: a scene without it, or whose file is broken, is none the worse for mapping."""

    @property
    def rasters(self) -> tuple[BandSource, ...]:
        """All rasters it cannot be used without: the bands and the masks."""
        return self.bands + self.masks

    @property
    def day(self) -> int:
        """Day of acquisition, days since 1970-01-01."""
        return (date.fromisoformat(self.datetime[:10]) - _EPOCH).days

    @property
    def boxes(self) -> tuple[LonLatBox, ...]:
        """Where it lies, west <= east: two boxes where it crosses the antimeridian."""
        _, south, _, north = self.bbox
        return tuple((west, south, east, north) for west, east in lon_spans(self.bbox))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description, the inverse of :meth:`from_dict`."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scene:
        """Rebuild a scene from :meth:`to_dict`."""
        fields = dict(values)
        for name in ("bands", "masks"):
            fields[name] = tuple(band_from_dict(band) for band in fields[name])
        fields["bbox"] = tuple(fields["bbox"])
        if fields.get("thermal") is not None:
            fields["thermal"] = band_from_dict(fields["thermal"])
        return cls(**fields)


def band_from_dict(values: Mapping[str, Any]) -> BandSource:
    """Rebuild a band from the JSON form of its fields."""
    fields = dict(values)
    for name in ("transform", "shape", "shift_m"):
        if fields.get(name) is not None:
            fields[name] = tuple(fields[name])
    if fields.get("rule") is not None:
        fields["rule"] = MaskRule(**{key: tuple(of) for key, of in fields["rule"].items()})
    return BandSource(**fields)


def boxes_meet(a: LonLatBox, b: LonLatBox) -> bool:
    """Whether two boxes in degrees touch; either may have west > east over the antimeridian."""
    if a[3] < b[1] or b[3] < a[1]:
        return False
    return any(
        west_a <= east_b and west_b <= east_a
        for west_a, east_a in lon_spans(a)
        for west_b, east_b in lon_spans(b)
    )


def lon_spans(box: LonLatBox) -> list[tuple[float, float]]:
    """West and east of a box in degrees: two spans where it crosses the antimeridian."""
    west, _, east, _ = box
    return [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]
