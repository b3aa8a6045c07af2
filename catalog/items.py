"""Items: the fields of a STAC item, read with suspicion. Pure, no I/O.

The one law: a field that is malformed is an error that names the item, the field and what was
expected; nothing is guessed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from catalog.errors import DataError
from catalog.grid import LonLatBox
from catalog.scenes import BandSource, MaskRule, Scene, SceneKind

__all__ = [
    "bad_field",
    "band_number",
    "band_source",
    "baseline_of",
    "find_asset",
    "item_id",
    "make_scene",
    "nodata_of",
]

_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def make_scene(
    item: Mapping[str, Any],
    kind: SceneKind,
    *,
    sensor: str,
    bands: Sequence[BandSource],
    masks: Sequence[BandSource] = (),
    baseline: str | None = None,
    dtype: str = "uint16",
    thermal: BandSource | None = None,
) -> Scene:
    """Scene of an item whose bands are known; the other fields are read here."""
    properties = item["properties"]
    when = _datetime(item, required=kind != "dem")
    period = _period(item) if kind == "dem" else ""
    matters = {
        "id": item["id"],
        "collection": item["collection"],
        "sensor": sensor,
        "datetime": when,
        "baseline": baseline,
        "bands": [
            [role, band.asset, band.scale, band.offset, band.nodata, band.checksum]
            + ([asdict(band.rule)] if band.rule else [])
            for role, band in [
                *((b.role, b) for b in bands),
                *((f"mask {m.role}", m) for m in masks),
            ]
        ],
    }
    if period:
        matters["period"] = period
    if dtype != "uint16":
        matters["dtype"] = dtype
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
        masks=tuple(masks),
        bbox=_bbox(item),
        sun_azimuth=azimuth,
        sun_elevation=90.0 - zenith if elevation is None and zenith is not None else elevation,
        cloud_percent=_number(properties, "eo:cloud_cover"),
        baseline=baseline,
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
        granule=_granule(properties),
        period=period,
        orbit=_orbit(properties),
        dtype=dtype,
        thermal=thermal,
    )


def _period(item: Mapping[str, Any]) -> str:
    """Days of ``start_datetime`` and ``end_datetime``; empty where either is not given."""
    stated = (item["properties"].get(f"{end}_datetime") for end in ("start", "end"))
    moments = ({**item, "properties": {"datetime": value}} for value in stated)
    days = [_datetime(moment, required=False)[:10] for moment in moments]
    return "/".join(days) if all(days) else ""


def _orbit(properties: Mapping[str, Any]) -> str:
    direction = properties.get("sat:orbit_state")
    return str(direction) if direction in ("ascending", "descending") else ""


def _granule(properties: Mapping[str, Any]) -> str:
    """Name that all processings of one acquisition of one MGRS tile share."""
    datatake = str(properties.get("s2:datatake_id") or "")
    tile = str(properties.get("s2:mgrs_tile") or properties.get("grid:code") or "")
    if not datatake or not tile:
        return ""
    acquisition = re.sub(r"_N\d\d\.\d\d$", "", datatake)
    return f"{acquisition}/{tile.removeprefix('MGRS-')}"


def band_source(
    item: Mapping[str, Any],
    role: str,
    *,
    key: str,
    scale: float,
    offset: float,
    nodata: float | None,
    rule: MaskRule | None = None,
) -> BandSource:
    """Raster of the asset ``key``, with the projection the item promises for it."""
    asset = item["assets"][key]
    href = asset.get("href")
    if not isinstance(href, str) or not href:
        raise bad_field(item, f"assets.{key}.href", href, "a path or an https URL")
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
        rule=rule,
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


def find_asset(item: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
    """Key and content of the first of these assets that the item has."""
    assets = item.get("assets")
    if isinstance(assets, Mapping):
        for key in keys:
            if isinstance(assets.get(key), Mapping):
                return key, assets[key]
    found = sorted(assets) if isinstance(assets, Mapping) else assets
    raise bad_field(item, "assets", found, f"an asset named {' or '.join(keys)}")


def band_number(item: Mapping[str, Any], asset: Mapping[str, Any], name: str) -> float | None:
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
                raise bad_field(item, f"{key} of an asset", value, "a number") from None
            if math.isfinite(number):
                return number
            if name != "nodata":
                raise bad_field(item, f"{key} of an asset", value, "a finite number")
            # ^ whatever is not finite means no data anyway
    return None


def nodata_of(
    item: Mapping[str, Any], asset: Mapping[str, Any], default: float | None
) -> float | None:
    """Pixel value that means no data, or the default where the item does not say."""
    value = band_number(item, asset, "nodata")
    return default if value is None else value


def item_id(item: Mapping[str, Any]) -> str:
    """Id of an item, which becomes part of names in the store."""
    found = item.get("id")
    if not isinstance(found, str) or not _SAFE_ID.fullmatch(found):
        raise DataError(
            f"item id {str(found)[:140]!r} is not of letters, digits, '_', '.' and '-' only",
            kind="bad-item",
        )
    return found


def baseline_of(item: Mapping[str, Any]) -> str | None:
    """Processing baseline of Sentinel-2, where the item says it."""
    properties = item["properties"]
    value = properties.get("s2:processing_baseline") or properties.get("processing:version")
    if value is None:
        return None
    text = str(value)
    if not re.fullmatch(r"\d{1,2}\.\d{1,2}", text):
        raise bad_field(item, "s2:processing_baseline", text, "a number such as '05.11'")
    return text


def _datetime(item: Mapping[str, Any], *, required: bool) -> str:
    properties = item["properties"]
    value = properties.get("datetime") or properties.get("start_datetime")
    if value is None and not required:
        return ""
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        raise bad_field(item, "datetime", value, "an RFC 3339 time") from None
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
        raise bad_field(item, "bbox", box, "west, south, east, north in degrees")
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
        raise bad_field(item, field, value, f"at least {at_least} finite numbers")
    return numbers


def _number(properties: Mapping[str, Any], *names: str) -> float | None:
    for name in names:
        value = properties.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    return None


def bad_field(item: Mapping[str, Any], field: str, found: object, expected: str) -> DataError:
    """Error ``bad-item`` that names a field, what it is and what it should be."""
    text = f"{item.get('id')}: field {field} is {str(found)[:200]!r}, expected {expected}"
    return DataError(text, kind="bad-item")
