"""Sensors: what a STAC item of each supported collection really holds. Pure, no I/O.

The one law: reflectance = pixel x scale + offset with the scale and offset found here, and with no
others. An item whose fields contradict each other is refused by name, never guessed at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pystac

from catalog.errors import DataError
from catalog.items import (
    bad_field,
    band_number,
    band_source,
    baseline_of,
    find_asset,
    item_id,
    make_scene,
    nodata_of,
)
from catalog.processings import landsat_processed
from catalog.scenes import BandSource, Scene
from catalog.user_sensors import SensorSpec, describe_with

__all__ = ["OLI_OF_ETM", "OLI_OF_MSI", "describe_item"]

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
_LANDSAT_THERMAL_KEYS = ("lwir11", "lwir")
_KELVIN_SCALE, _KELVIN_OFFSET = 0.00341802, 149.0
# ^ surface temperature of Collection 2 Level 2 (USGS LSDS-1619, section 5), of band 10 or band 6
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
OLI_OF_ETM = {
    "blue": (0.9785, -0.0095),
    "green": (0.9542, -0.0016),
    "red": (0.9825, -0.0022),
    "nir": (1.0073, -0.0021),
    "swir1": (1.0171, -0.0030),
    "swir2": (0.9949, 0.0029),
}
"""Slope and offset of surface reflectance from Landsat 7 ETM+ to Landsat 8 OLI, by band.

Reduced major axis of Roy et al. 2016, "Characterization of Landsat-7 to Landsat-8 reflective
wavelength and NDVI continuity", table 2.
"""
_SAR_COLLECTION = "sentinel-1-rtc"
_SAR_KEYS = ("vv", "vh")
_SAR_NODATA = -32768.0
_DEMS: dict[str, tuple[str, str, float | None]] = {
    "cop-dem-glo-30": ("copernicus-dem", "data", None),
    "cop-dem-glo-90": ("copernicus-dem", "data", None),
    "nasadem": ("nasadem", "elevation", -32768.0),
}
# ^ collection -> sensor, asset key, pixel value without a height where the item does not say it
_SUPPORTED = (*_SENTINEL2_COLLECTIONS, _LANDSAT_COLLECTION, _SAR_COLLECTION, *_DEMS)
_INSTEAD = {
    "landsat-8-c2-l2": _LANDSAT_COLLECTION,
    "sentinel-2-l1c": _SENTINEL2_COLLECTIONS[0],
}
# ^ collections one might ask for -> the one whose pixels can be used


def describe_item(
    item: Mapping[str, Any] | pystac.Item, *, extra: Mapping[str, SensorSpec] | None = None
) -> Scene:
    """Read what one STAC item promises.

    Parameters
    ----------
    item
        An item of Earth Search or Planetary Computer, or one shaped like theirs.
    extra
        Collections that the user describes, by name.

    Raises
    ------
    DataError
        ``bad-item`` where a field is missing or malformed, ``unsupported-sensor``,
        ``not-terrain-corrected`` for Sentinel-1 GRD, ``polarisation-missing`` for radar without
        VV or VH, ``radiometry-doubtful`` where the fields that say how pixels become reflectance
        contradict each other.
    """
    values = item.to_dict(transform_hrefs=False) if isinstance(item, pystac.Item) else item
    if not isinstance(values, Mapping) or not isinstance(values.get("properties"), Mapping):
        raise DataError("found something that is not a STAC item", kind="bad-item")
    item_id(values)
    collection = str(values.get("collection") or "")
    if extra and collection in extra:
        return describe_with(extra[collection], values)
    if collection in _SENTINEL2_COLLECTIONS:
        return _describe_sentinel2(values)
    if collection == _LANDSAT_COLLECTION:
        return _describe_landsat(values)
    if collection == _SAR_COLLECTION:
        return _describe_sar(values)
    if collection in _DEMS:
        return _describe_dem(values)
    if collection == "sentinel-1-grd":
        raise DataError(
            f"{values['id']}: Sentinel-1 GRD is not terrain-corrected, in mountains its pixels lie "
            f"hundreds of metres off; use the collection {_SAR_COLLECTION}",
            kind="not-terrain-corrected",
        )
    advice = f"supported are {', '.join(_SUPPORTED)}"
    if collection in _INSTEAD:
        advice = f"use the collection {_INSTEAD[collection]}"
    raise DataError(
        f"{values['id']}: collection {collection!r} is not supported; {advice}",
        kind="unsupported-sensor",
    )


def _describe_sentinel2(item: Mapping[str, Any]) -> Scene:
    baseline = baseline_of(item)
    bands = []
    for role, keys in _SENTINEL2_KEYS.items():
        key, asset = find_asset(item, keys)
        declared = band_number(item, asset, "offset")
        offset = _sentinel2_offset(item, declared=declared, baseline=baseline)
        scale = band_number(item, asset, "scale")
        bands.append(
            band_source(
                item,
                role,
                key=key,
                scale=_SENTINEL2_SCALE if scale is None else scale,
                offset=offset,
                nodata=nodata_of(item, asset, 0.0),
            )
        )
    masks = [
        band_source(item, "scl", key=key, scale=1.0, offset=0.0, nodata=0.0)
        for key in _SENTINEL2_MASK_KEYS
        if isinstance(item["assets"].get(key), Mapping)
    ]
    return make_scene(
        item,
        "optical",
        sensor="sentinel-2-msi",
        bands=bands,
        masks=masks[:1],
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
    ``catalog.radiometry``.
    """
    applied = item["properties"].get("earthsearch:boa_offset_applied")
    if applied is True:
        return 0.0
    if baseline is None:
        if declared is None:
            raise bad_field(item, "s2:processing_baseline", None, "a number such as '05.11'")
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
        first, shift = OLI_OF_ETM[role]
        slope, offset = slope * first, slope * shift + offset
    return slope, offset


def _describe_landsat(item: Mapping[str, Any]) -> Scene:
    """Landsat 4 to 9, Collection 2 Level 2; scale and offset lead to Sentinel-2's reflectance.

    Tier RT is refused: its radiometry is provisional, and the final product replaces it.
    """
    properties = item["properties"]
    platform = str(properties.get("platform") or "")
    if platform not in _LANDSAT_SENSORS:
        raise bad_field(item, "platform", platform, f"one of {', '.join(_LANDSAT_SENSORS)}")
    sensor = _LANDSAT_SENSORS[platform]
    tier, correction = (
        str(properties.get(f"landsat:{name}") or "")
        for name in ("collection_category", "correction")
    )
    if tier not in ("T1", "T2"):
        raise bad_field(item, "landsat:collection_category", tier, "T1 or T2")
    if correction not in ("L2SP", "L2SR"):
        raise bad_field(item, "landsat:correction", correction, "L2SP or L2SR, surface reflectance")
    bands = []
    for role, keys in _LANDSAT_KEYS.items():
        key, asset = find_asset(item, keys)
        _require_scale(item, key, expected=(_LANDSAT_SCALE, _LANDSAT_OFFSET))
        slope, shift = _as_sentinel2(sensor, role)
        bands.append(
            band_source(
                item,
                role,
                key=key,
                scale=slope * _LANDSAT_SCALE,
                offset=slope * _LANDSAT_OFFSET + shift,
                nodata=nodata_of(item, asset, 0.0),
            )
        )
    # Reprocessed files lie under the same item id: other pixels must be another scene.
    return make_scene(
        item,
        "optical",
        baseline=landsat_processed(bands[0].href),
        sensor=sensor,
        bands=bands,
        masks=_landsat_masks(item, sensor),
        thermal=_landsat_thermal(item),
    )


def _require_scale(item: Mapping[str, Any], key: str, *, expected: tuple[float, float]) -> None:
    found = tuple(band_number(item, item["assets"][key], name) for name in ("scale", "offset"))
    if found not in ((None, None), expected):
        raise DataError(
            f"{item['id']}: asset {key} has scale {found[0]} and offset {found[1]}; all of Landsat "
            f"Collection 2 Level 2 has {expected[0]} and {expected[1]}",
            kind="radiometry-doubtful",
        )


def _landsat_thermal(item: Mapping[str, Any]) -> BandSource | None:
    """Surface temperature, which products of the kind L2SR are without."""
    if not any(isinstance(item["assets"].get(key), Mapping) for key in _LANDSAT_THERMAL_KEYS):
        return None
    key, asset = find_asset(item, _LANDSAT_THERMAL_KEYS)
    scale, offset = _KELVIN_SCALE, _KELVIN_OFFSET
    _require_scale(item, key, expected=(scale, offset))
    nodata = nodata_of(item, asset, 0.0)
    return band_source(item, "thermal", key=key, scale=scale, offset=offset, nodata=nodata)


def _landsat_masks(item: Mapping[str, Any], sensor: str) -> list[BandSource]:
    """Cloud and shadow, and saturation where the item tells it."""
    key, asset = find_asset(item, ("qa_pixel",))
    nodata = nodata_of(item, asset, _LANDSAT_QA_FILL)
    masks = [band_source(item, "qa_pixel", key=key, scale=1.0, offset=0.0, nodata=nodata)]
    if isinstance(item["assets"].get("qa_radsat"), Mapping):
        role = "radsat_oli" if sensor == "landsat-oli" else "radsat_tm"
        masks.append(band_source(item, role, key="qa_radsat", scale=1.0, offset=0.0, nodata=None))
    return masks


def _describe_sar(item: Mapping[str, Any]) -> Scene:
    """Sentinel-1 RTC: linear gamma0. Acquisitions in one polarisation are set aside.

    The store's radar layer is VV and VH together, as the networks take them: a mean whose VV comes
    from other days than its VH would show a difference that is one of time. Around the poles much
    is taken in HH (and HV), which scatter from ice in another way and are no stand-in.
    """
    assets = item.get("assets")
    held = assets if isinstance(assets, Mapping) else {}
    found = [key for key in ("vv", "vh", "hh", "hv") if key in held]
    if found and not {*_SAR_KEYS} <= {*found}:
        raise DataError(
            f"{item['id']}: polarisations are {', '.join(found).upper()}, expected VV and VH",
            kind="polarisation-missing",
        )
    bands = []
    for role in _SAR_KEYS:
        key, asset = find_asset(item, (role,))
        nodata = nodata_of(item, asset, _SAR_NODATA)
        bands.append(band_source(item, role, key=key, scale=1.0, offset=0.0, nodata=nodata))
    return make_scene(item, "sar", sensor="sentinel-1-rtc", bands=bands)


def _describe_dem(item: Mapping[str, Any]) -> Scene:
    sensor, name, default = _DEMS[item["collection"]]
    key, asset = find_asset(item, (name,))
    nodata = nodata_of(item, asset, default)
    band = band_source(item, "elevation", key=key, scale=1.0, offset=0.0, nodata=nodata)
    return make_scene(item, "dem", sensor=sensor, bands=[band])
