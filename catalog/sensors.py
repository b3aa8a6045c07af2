"""Sensors: what a STAC item of each supported collection really holds. Pure, no I/O.

The one law: reflectance = pixel x scale + offset with the scale and offset found here, and with no
others. An item whose fields contradict each other is refused by name, never guessed at.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import pystac

from catalog.errors import DataError
from catalog.grid import LonLatBox

__all__ = ["OLI_OF_MSI", "BandSource", "Scene", "boxes_meet", "describe_item", "lon_spans"]

SceneKind = Literal["optical", "sar", "dem"]

_SENTINEL2_COLLECTIONS = ("sentinel-2-l2a", "sentinel-2-c1-l2a")
_SENTINEL2_KEYS = {
    "blue": ("blue", "B02"),
    "green": ("green", "B03"),
    "red": ("red", "B04"),
    "nir": ("nir", "B08"),
    "swir1": ("swir16", "B11"),
    "swir2": ("swir22", "B12"),
}
# ^ role -> asset key of Earth Search, asset key of Planetary Computer
_SENTINEL2_MASK_KEYS = ("scl", "SCL")
_SENTINEL2_SCALE = 1e-4
_SENTINEL2_OFFSET = -0.1
# ^ since processing baseline 04.00, BOA_ADD_OFFSET is -1000 in every band
_SENTINEL2_OFFSET_SINCE = 4.0
_LANDSAT_COLLECTION = "landsat-c2-l2"
_LANDSAT_KEYS = {
    "blue": ("blue",),
    "green": ("green",),
    "red": ("red",),
    "nir": ("nir08",),
    "swir1": ("swir16",),
    "swir2": ("swir22",),
}
_LANDSAT_SENSORS = {
    "landsat-4": "landsat-tm",
    "landsat-5": "landsat-tm",
    "landsat-7": "landsat-etm",
    "landsat-8": "landsat-oli",
    "landsat-9": "landsat-oli",
}
_LANDSAT_SCALE, _LANDSAT_OFFSET = 2.75e-5, -0.2
# ^ surface reflectance of Collection 2 Level 2 (USGS LSDS-1619, section 5): the same for all of it
_LANDSAT_QA_FILL = 1.0
OLI_OF_MSI = {
    "blue": (0.9778, -0.0040),
    "green": (1.0053, -0.0009),
    "red": (0.9765, 0.0009),
    "nir": (0.9983, -0.0001),
    "swir1": (0.9987, -0.0011),
    "swir2": (1.0030, -0.0012),
}
"""Slope and offset of reflectance from Sentinel-2A MSI to Landsat 8 OLI, by band.

Claverie et al. 2018, "The Harmonized Landsat and Sentinel-2 surface reflectance data set", bandpass
adjustment of HLS 1.4; that of the near infrared is for band 8A.
"""
_OLI_OF_ETM = {
    "blue": (0.9785, -0.0095),
    "green": (0.9542, -0.0016),
    "red": (0.9825, -0.0022),
    "nir": (1.0073, -0.0021),
    "swir1": (1.0171, -0.0030),
    "swir2": (0.9949, 0.0029),
}
# ^ from ETM+ to OLI, surface reflectance, reduced major axis (Roy et al. 2016, "Characterization of
#   Landsat-7 to Landsat-8 reflective wavelength and NDVI continuity", table 2)
_SAR_KEYS = {"vv": ("vv",), "vh": ("vh",)}
_SAR_NODATA = -32768.0
_DEM_KEYS = {"elevation": ("data",)}
_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


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
    """``file:checksum`` of the asset, where the catalogue gives one."""


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
    mask: BandSource | None
    """Its classification of cloud and shadow, where there is one."""
    bbox: LonLatBox
    """West, south, east, north in degrees; west > east where it crosses the antimeridian."""
    sun_azimuth: float | None
    """Degrees clockwise from true north."""
    sun_elevation: float | None
    """Degrees above the horizon."""
    cloud_percent: float | None
    baseline: str | None
    """Processing baseline, for example ``05.11``."""
    fingerprint: str
    """SHA-256 over the content that matters, not over hosts, signatures or folders."""
    granule: str = ""
    """Name shared by all processings of one acquisition of one tile; empty where unknown."""

    @property
    def rasters(self) -> tuple[BandSource, ...]:
        """All its rasters: the bands, and the mask where there is one."""
        return self.bands if self.mask is None else (*self.bands, self.mask)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description, the inverse of :meth:`from_dict`."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scene:
        """Rebuild a scene from :meth:`to_dict`."""
        fields = dict(values)
        fields["bands"] = tuple(_band_from_dict(band) for band in fields["bands"])
        fields["mask"] = _band_from_dict(fields["mask"]) if fields["mask"] else None
        fields["bbox"] = tuple(fields["bbox"])
        return cls(**fields)


def _band_from_dict(values: Mapping[str, Any]) -> BandSource:
    fields = dict(values)
    for name in ("transform", "shape"):
        if fields.get(name) is not None:
            fields[name] = tuple(fields[name])
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


def describe_item(item: Mapping[str, Any] | pystac.Item) -> Scene:
    """Read what one STAC item promises.

    Parameters
    ----------
    item
        An item of Earth Search or Planetary Computer, or one shaped like theirs.

    Raises
    ------
    DataError
        ``bad-item`` where a field is missing or malformed, ``unsupported-sensor``,
        ``not-terrain-corrected`` for Sentinel-1 GRD, ``radiometry-doubtful`` where the fields that
        say how pixels become reflectance contradict each other.
    """
    values = item.to_dict(transform_hrefs=False) if isinstance(item, pystac.Item) else item
    if not isinstance(values, Mapping) or not isinstance(values.get("properties"), Mapping):
        raise DataError("found something that is not a STAC item", kind="bad-item")
    _item_id(values)
    collection = str(values.get("collection") or "")
    if collection in _SENTINEL2_COLLECTIONS:
        return _describe_sentinel2(values)
    if collection == _LANDSAT_COLLECTION:
        return _describe_landsat(values)
    if collection == "sentinel-1-rtc":
        return _describe_sar(values)
    if collection.startswith("cop-dem-glo-"):
        return _describe_dem(values)
    if collection == "sentinel-1-grd":
        raise DataError(
            f"{values['id']}: Sentinel-1 GRD is not terrain-corrected, in mountains its pixels lie "
            "hundreds of metres off; use the collection sentinel-1-rtc",
            kind="not-terrain-corrected",
        )
    raise DataError(
        f"{values['id']}: collection {collection!r} is not supported; supported are "
        f"{', '.join(_SENTINEL2_COLLECTIONS)}, {_LANDSAT_COLLECTION}, sentinel-1-rtc and "
        "cop-dem-glo-30",
        kind="unsupported-sensor",
    )


def _describe_sentinel2(item: Mapping[str, Any]) -> Scene:
    baseline = _baseline(item)
    bands = []
    for role, keys in _SENTINEL2_KEYS.items():
        key, asset = _asset(item, keys)
        declared = _band_number(item, asset, "offset")
        offset = _sentinel2_offset(item, declared=declared, baseline=baseline)
        scale = _band_number(item, asset, "scale")
        bands.append(
            _band_source(
                item,
                role,
                key=key,
                scale=_SENTINEL2_SCALE if scale is None else scale,
                offset=offset,
                nodata=_nodata(item, asset, 0.0),
            )
        )
    mask = None
    for key in _SENTINEL2_MASK_KEYS:
        if isinstance(item["assets"].get(key), Mapping):
            mask = _band_source(item, "scl", key=key, scale=1.0, offset=0.0, nodata=0.0)
            break
    return _scene(
        item,
        "optical",
        sensor="sentinel-2-msi",
        bands=bands,
        mask=mask,
        baseline=baseline,
    )


def _sentinel2_offset(
    item: Mapping[str, Any], *, declared: float | None, baseline: str | None
) -> float:
    """Offset to add to pixel x scale.

    Since baseline 04.00 the products carry +1000. Earth Search's ``sentinel-2-l2a`` pixels had that
    taken off already wherever ``earthsearch:boa_offset_applied`` is true, although the static
    ``raster:bands`` still says -0.1; its ``sentinel-2-c1-l2a`` and Planetary Computer deliver the
    pixels as they are. The flag is wrong for some scenes
    (https://github.com/Element84/earth-search/issues/66), which only pixels can tell: see
    ``catalog.composites``.
    """
    applied = item["properties"].get("earthsearch:boa_offset_applied")
    if applied is True:
        return 0.0
    if baseline is None:
        if declared is None:
            raise _bad(item, "s2:processing_baseline", None, "a number such as '05.11'")
        return declared
    shifted = float(baseline) >= _SENTINEL2_OFFSET_SINCE
    if declared is None:
        return _SENTINEL2_OFFSET if shifted else 0.0
    if (declared != 0 and not shifted) or (declared == 0 and shifted and applied is False):
        raise DataError(
            f"{item['id']}: baseline {baseline}, earthsearch:boa_offset_applied {applied} and "
            f"offset {declared} contradict each other",
            kind="radiometry-doubtful",
        )
    return declared


def _as_sentinel2(sensor: str, role: str) -> tuple[float, float]:
    """Slope and offset from the reflectance of a Landsat band to that of Sentinel-2's.

    TM is taken for ETM+, whose bands it shares.
    """
    slope, offset = OLI_OF_MSI[role]
    slope, offset = 1 / slope, -offset / slope
    if sensor != "landsat-oli":
        first, shift = _OLI_OF_ETM[role]
        slope, offset = slope * first, slope * shift + offset
    return slope, offset


def _describe_landsat(item: Mapping[str, Any]) -> Scene:
    """Landsat 4 to 9, Collection 2 Level 2; scale and offset lead to Sentinel-2's reflectance.

    Tier RT is refused: its radiometry is provisional, and the final product replaces it.
    """
    properties = item["properties"]
    platform = str(properties.get("platform") or "")
    if platform not in _LANDSAT_SENSORS:
        raise _bad(item, "platform", platform, f"one of {', '.join(_LANDSAT_SENSORS)}")
    tier, correction = (
        str(properties.get(f"landsat:{name}") or "")
        for name in ("collection_category", "correction")
    )
    if tier not in ("T1", "T2"):
        raise _bad(item, "landsat:collection_category", tier, "T1 or T2")
    if correction not in ("L2SP", "L2SR"):
        raise _bad(item, "landsat:correction", correction, "L2SP or L2SR, surface reflectance")
    bands = []
    for role, keys in _LANDSAT_KEYS.items():
        key, asset = _asset(item, keys)
        scale, offset = (_band_number(item, asset, name) for name in ("scale", "offset"))
        if (scale, offset) not in ((None, None), (_LANDSAT_SCALE, _LANDSAT_OFFSET)):
            raise DataError(
                f"{item['id']}: asset {key} has scale {scale} and offset {offset}; all of Landsat "
                f"Collection 2 Level 2 has {_LANDSAT_SCALE} and {_LANDSAT_OFFSET}",
                kind="radiometry-doubtful",
            )
        slope, shift = _as_sentinel2(_LANDSAT_SENSORS[platform], role)
        bands.append(
            _band_source(
                item,
                role,
                key=key,
                scale=slope * _LANDSAT_SCALE,
                offset=slope * _LANDSAT_OFFSET + shift,
                nodata=_nodata(item, asset, 0.0),
            )
        )
    key, asset = _asset(item, ("qa_pixel",))
    nodata = _nodata(item, asset, _LANDSAT_QA_FILL)
    return _scene(
        item,
        "optical",
        sensor=_LANDSAT_SENSORS[platform],
        bands=bands,
        mask=_band_source(item, "qa_pixel", key=key, scale=1.0, offset=0.0, nodata=nodata),
    )


def _describe_sar(item: Mapping[str, Any]) -> Scene:
    bands = []
    for role, keys in _SAR_KEYS.items():
        key, asset = _asset(item, keys)
        nodata = _nodata(item, asset, _SAR_NODATA)
        bands.append(_band_source(item, role, key=key, scale=1.0, offset=0.0, nodata=nodata))
    return _scene(item, "sar", sensor="sentinel-1-rtc", bands=bands)


def _describe_dem(item: Mapping[str, Any]) -> Scene:
    key, asset = _asset(item, _DEM_KEYS["elevation"])
    nodata = _nodata(item, asset, None)
    band = _band_source(item, "elevation", key=key, scale=1.0, offset=0.0, nodata=nodata)
    return _scene(item, "dem", sensor="copernicus-dem", bands=[band])


def _scene(
    item: Mapping[str, Any],
    kind: SceneKind,
    *,
    sensor: str,
    bands: Sequence[BandSource],
    mask: BandSource | None = None,
    baseline: str | None = None,
) -> Scene:
    properties = item["properties"]
    when = _datetime(item, required=kind != "dem")
    matters = {
        "id": item["id"],
        "collection": item["collection"],
        "sensor": sensor,
        "datetime": when,
        "baseline": baseline,
        "bands": [
            [role, band.asset, band.scale, band.offset, band.nodata, band.checksum]
            for role, band in [*((b.role, b) for b in bands), *([("mask", mask)] if mask else [])]
        ],
    }
    text = json.dumps(matters, sort_keys=True, separators=(",", ":"))
    azimuth = _number(properties, "view:sun_azimuth", "s2:mean_solar_azimuth")
    zenith = _number(properties, "s2:mean_solar_zenith")
    elevation = _number(properties, "view:sun_elevation")
    return Scene(
        id=item["id"],
        collection=item["collection"],
        kind=kind,
        sensor=sensor,
        datetime=when,
        bands=tuple(bands),
        mask=mask,
        bbox=_bbox(item),
        sun_azimuth=azimuth,
        sun_elevation=90.0 - zenith if elevation is None and zenith is not None else elevation,
        cloud_percent=_number(properties, "eo:cloud_cover"),
        baseline=baseline,
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
        granule=_granule(properties),
    )


def _granule(properties: Mapping[str, Any]) -> str:
    """Name that all processings of one acquisition of one MGRS tile share."""
    datatake = str(properties.get("s2:datatake_id") or "")
    tile = str(properties.get("s2:mgrs_tile") or properties.get("grid:code") or "")
    if not datatake or not tile:
        return ""
    acquisition = re.sub(r"_N\d\d\.\d\d$", "", datatake)
    return f"{acquisition}/{tile.removeprefix('MGRS-')}"


def _band_source(
    item: Mapping[str, Any],
    role: str,
    *,
    key: str,
    scale: float,
    offset: float,
    nodata: float | None,
) -> BandSource:
    asset = item["assets"][key]
    href = asset.get("href")
    if not isinstance(href, str) or not href:
        raise _bad(item, f"assets.{key}.href", href, "a path or an https URL")
    transform = _projection(item, asset, "transform")
    shape = _projection(item, asset, "shape")
    if transform is not None:
        transform = _floats(item, "proj:transform", transform, at_least=6)[:6]
    if shape is not None:
        shape = tuple(int(v) for v in _floats(item, "proj:shape", shape, at_least=2)[:2])
    checksum = asset.get("file:checksum")
    return BandSource(
        role=role,
        asset=key,
        href=href,
        scale=scale,
        offset=offset,
        nodata=nodata,
        crs=_crs(item, asset),
        transform=transform,
        shape=shape,
        checksum=checksum if isinstance(checksum, str) else None,
    )


def _projection(item: Mapping[str, Any], asset: Mapping[str, Any], name: str) -> Any:
    """Field of the projection extension: the asset's own, else that of the item."""
    return asset.get(f"proj:{name}", item["properties"].get(f"proj:{name}"))


def _crs(item: Mapping[str, Any], asset: Mapping[str, Any]) -> str | None:
    code = _projection(item, asset, "code")
    if isinstance(code, str):
        return code
    epsg = _projection(item, asset, "epsg")
    if isinstance(epsg, int) and not isinstance(epsg, bool):
        return f"EPSG:{epsg}"
    wkt = _projection(item, asset, "wkt2")
    return wkt if isinstance(wkt, str) else None


def _asset(item: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
    assets = item.get("assets")
    if isinstance(assets, Mapping):
        for key in keys:
            if isinstance(assets.get(key), Mapping):
                return key, assets[key]
    found = sorted(assets) if isinstance(assets, Mapping) else assets
    raise _bad(item, "assets", found, f"an asset named {' or '.join(keys)}")


def _band_number(item: Mapping[str, Any], asset: Mapping[str, Any], name: str) -> float | None:
    """Scale, offset or nodata of an asset: STAC 1.1 ``bands``, ``raster:bands`` or asset level."""
    places: list[Mapping[str, Any]] = []
    for field in ("bands", "raster:bands"):
        entries = asset.get(field)
        if isinstance(entries, Sequence) and entries and isinstance(entries[0], Mapping):
            places.append(entries[0])
    places.append(asset)
    for place in places:
        for key in (f"raster:{name}", name):
            value = place.get(key)
            if value is None:
                continue
            try:
                number = float(value)
            except (TypeError, ValueError):
                raise _bad(item, f"{key} of an asset", value, "a number") from None
            if math.isfinite(number):
                return number
            if name != "nodata":
                raise _bad(item, f"{key} of an asset", value, "a finite number")
            # ^ whatever is not finite means no data anyway
    return None


def _nodata(
    item: Mapping[str, Any], asset: Mapping[str, Any], default: float | None
) -> float | None:
    value = _band_number(item, asset, "nodata")
    return default if value is None else value


def _item_id(item: Mapping[str, Any]) -> str:
    found = item.get("id")
    if not isinstance(found, str) or not _SAFE_ID.fullmatch(found):
        raise DataError(
            f"item id {str(found)[:140]!r} is not of letters, digits, '_', '.' and '-' only",
            kind="bad-item",
        )
    return found


def _baseline(item: Mapping[str, Any]) -> str | None:
    properties = item["properties"]
    value = properties.get("s2:processing_baseline") or properties.get("processing:version")
    if value is None:
        return None
    text = str(value)
    if not re.fullmatch(r"\d{1,2}\.\d{1,2}", text):
        raise _bad(item, "s2:processing_baseline", text, "a number such as '05.11'")
    return text


def _datetime(item: Mapping[str, Any], *, required: bool) -> str:
    properties = item["properties"]
    value = properties.get("datetime") or properties.get("start_datetime")
    if value is None and not required:
        return ""
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        raise _bad(item, "datetime", value, "an RFC 3339 time") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    text = moment.astimezone(UTC).isoformat(timespec="microseconds")
    return text.removesuffix("+00:00").rstrip("0").rstrip(".") + "Z"


def _bbox(item: Mapping[str, Any]) -> LonLatBox:
    box = item.get("bbox")
    if isinstance(box, Sequence) and len(box) == 6:
        box = [*box[:2], *box[3:5]]
    west, south, east, north = _floats(item, "bbox", box, at_least=4)[:4]
    if not (-360 <= west <= 360 and -360 <= east <= 360 and -91 <= south <= north <= 91):
        raise _bad(item, "bbox", box, "west, south, east, north in degrees")
    return _wrapped(west), max(south, -90.0), _wrapped(east), min(north, 90.0)


def _wrapped(lon: float) -> float:
    """Longitude in -180..180; the pixels of the outermost DEM tiles overhang by half a pixel."""
    return lon if -180.0 <= lon <= 180.0 else (lon + 180.0) % 360.0 - 180.0


def _floats(item: Mapping[str, Any], field: str, value: Any, *, at_least: int) -> tuple[float, ...]:
    try:
        numbers = tuple(float(v) for v in value)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) < at_least or not all(math.isfinite(v) for v in numbers):
        raise _bad(item, field, value, f"at least {at_least} finite numbers")
    return numbers


def _number(properties: Mapping[str, Any], *names: str) -> float | None:
    for name in names:
        value = properties.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    return None


def _bad(item: Mapping[str, Any], field: str, found: object, expected: str) -> DataError:
    text = f"{item.get('id')}: field {field} is {str(found)[:200]!r}, expected {expected}"
    return DataError(text, kind="bad-item")
