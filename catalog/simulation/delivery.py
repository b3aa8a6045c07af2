"""Files as a provider would serve them: COGs written whole or not at all, and STAC items."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from rasterio.crs import CRS

if TYPE_CHECKING:
    from pathlib import Path

    from affine import Affine
    from numpy.typing import NDArray

    from .places import Granule, RegionFrame
    from .scene import Acquisition, OpticalScene

__all__ = [
    "COG_TYPE",
    "dem_item",
    "iso_time",
    "made_item",
    "optical_item",
    "radar_item",
    "write_catalog",
    "write_cog",
    "write_text",
]

_OPTICAL = {
    "blue": ("B02", 0.49),
    "green": ("B03", 0.56),
    "red": ("B04", 0.665),
    "nir": ("B08", 0.842),
    "swir16": ("B11", 1.61),
    "swir22": ("B12", 2.19),
}
COG_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"
"""Media type of the rasters."""
_CREATED = "2026-01-01T00:00:00Z"
# ^ fixed, so that equal specs give equal items
_COLLECTIONS = {
    "sentinel-2-l2a": "Made-up Sentinel-2 Level-2A scenes",
    "landsat-c2-l2": "Made-up Landsat Collection 2 Level-2 scenes",
    "sentinel-1-rtc": "Made-up Sentinel-1 radiometrically terrain-corrected scenes",
    "cop-dem-glo-30": "Made-up elevation model in the shape of Copernicus GLO-30",
}


def write_text(path: Path, text: str) -> None:
    """Write a small file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_cog(
    path: Path,
    data: NDArray[Any],
    *,
    transform: Affine,
    crs: int,
    nodata: float | None,
    categorical: bool = False,
) -> None:
    """Write one band as a cloud-optimised GeoTIFF (512 px blocks, deflate), renamed when complete.

    Parameters
    ----------
    path
        Where; a file already there is kept as it is.
    data
        (y, x) array.
    transform, crs
        Geometry of the pixels; ``crs`` is an EPSG code.
    nodata
        Value of unseen pixels.
    categorical
        Overviews keep class codes instead of averaging.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    floating = np.issubdtype(data.dtype, np.floating)
    with rasterio.open(
        partial,
        "w",
        driver="COG",
        height=data.shape[0],
        width=data.shape[1],
        count=1,
        dtype=data.dtype.name,
        crs=CRS.from_epsg(crs),
        transform=transform,
        nodata=nodata,
        compress="deflate",
        level=1 if floating else 4,
        blocksize=512,
        predictor="floating_point" if floating else "standard",
        overview_resampling="nearest" if categorical or floating else "average",
    ) as dataset:
        dataset.write(data, 1)
    partial.replace(path)


def _stamp(when: dt.datetime) -> str:
    return when.strftime("%Y%m%dT%H%M%S")


def iso_time(when: dt.datetime) -> str:
    """Time as STAC items give it."""
    return when.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _bbox(ring: list[list[float]]) -> list[float]:
    lons, lats = [p[0] for p in ring], [p[1] for p in ring]
    return [min(lons), min(lats), max(lons), max(lats)]


def made_item(
    identifier: str,
    collection: str,
    *,
    ring: list[list[float]],
    properties: dict[str, Any],
    assets: dict[str, Any],
    extensions: tuple[str, ...],
) -> dict[str, Any]:
    """STAC item of one scene."""
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [
            f"https://stac-extensions.github.io/{e}/schema.json" for e in extensions
        ],
        "id": identifier,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": _bbox(ring),
        "properties": {**properties, "created": _CREATED, "updated": _CREATED},
        "links": [],
        "assets": assets,
        "collection": collection,
    }


def _window_affine(frame: RegionFrame, window: tuple[int, int, int, int], cell: int) -> list[float]:
    return [cell, 0, frame.left + 10 * window[2], 0, -cell, frame.top - 10 * window[0]]


def optical_item(
    folder: Path,
    frame: RegionFrame,
    granule: Granule,
    *,
    acquisition: Acquisition,
    scene: OpticalScene,
    sun: tuple[float, float],
) -> dict[str, Any]:
    """Write one granule's COGs below ``folder`` and return its item, shaped like Earth Search v1.

    ``earthsearch:boa_offset_applied`` is false throughout: the stored numbers still hold the offset
    of 1000 where the baseline has one, and ``raster:bands`` says so. (Real items carry the
    flag as true beside an offset of -0.1: a contradiction readers have to live with.)
    """
    day = acquisition.when.strftime("%Y%m%d")
    sensor = f"S2{acquisition.platform}"
    identifier = f"{sensor}_{granule.code}_{day}_0_L2A"
    layers: dict[str, tuple[str, NDArray[Any]]] = {
        key: (band, scene.bands[band]) for key, (band, _) in _OPTICAL.items()
    }
    layers["scl"] = ("SCL", scene.scl)
    assets = {
        key: _optical_asset(
            folder / identifier / f"{band}.tif",
            frame,
            granule,
            key=key,
            data=data,
            offset=-0.1 if acquisition.offset else 0,
        )
        for key, (band, data) in layers.items()
    }
    properties = _optical_properties(frame, granule, acquisition, scene=scene, sun=sun)
    return made_item(
        identifier,
        "sentinel-2-l2a",
        ring=frame.lonlat_ring(granule.window),
        properties=properties,
        assets=assets,
        extensions=(
            "grid/v1.1.0",
            "mgrs/v1.0.0",
            "projection/v1.1.0",
            "sentinel-2/v1.0.0",
            "raster/v1.1.0",
            "view/v1.0.0",
            "eo/v1.1.0",
        ),
    )


def _optical_asset(
    path: Path,
    frame: RegionFrame,
    granule: Granule,
    *,
    key: str,
    data: NDArray[Any],
    offset: float,
) -> dict[str, Any]:
    step = frame.side_px // data.shape[0]
    row0, row1, col0, col1 = (edge // step for edge in granule.window)
    cut = np.ascontiguousarray(data[row0:row1, col0:col1])
    affine = _window_affine(frame, granule.window, 10 * step)
    write_cog(
        path,
        cut,
        transform=rasterio.Affine(*affine),
        crs=frame.epsg,
        nodata=0,
        categorical=key == "scl",
    )
    described = {"nodata": 0, "data_type": cut.dtype.name, "spatial_resolution": 10 * step}
    asset = {
        "href": str(path),
        "type": COG_TYPE,
        "title": f"{key} - {10 * step}m",
        "gsd": 10 * step,
        "proj:shape": list(cut.shape),
        "proj:transform": affine,
        "raster:bands": [described],
        "roles": ["data"],
    }
    if key == "scl":
        return asset
    asset["raster:bands"] = [described | {"scale": 0.0001, "offset": offset}]
    asset["roles"] = ["data", "reflectance"]
    band, wavelength = _OPTICAL[key]
    asset["eo:bands"] = [{"name": band, "common_name": key, "center_wavelength": wavelength}]
    return asset


def _optical_properties(
    frame: RegionFrame,
    granule: Granule,
    acquisition: Acquisition,
    *,
    scene: OpticalScene,
    sun: tuple[float, float],
) -> dict[str, Any]:
    row0, row1, col0, col1 = (v // 2 for v in granule.window)
    scl = scene.scl[row0:row1, col0:col1]
    share = {code: round(100.0 * float((scl == code).mean()), 6) for code in range(12)}
    when, sensor = acquisition.when, f"S2{acquisition.platform}"
    baseline = acquisition.baseline
    orbit = (when.toordinal() * 7) % 40000
    return {
        "datetime": iso_time(when),
        "platform": f"sentinel-2{acquisition.platform.lower()}",
        "constellation": "sentinel-2",
        "instruments": ["msi"],
        "eo:cloud_cover": round(share[8] + share[9] + share[10], 6),
        "eo:snow_cover": share[11],
        "proj:epsg": frame.epsg,
        "proj:code": f"EPSG:{frame.epsg}",
        "mgrs:utm_zone": frame.zone,
        "mgrs:latitude_band": granule.code[2],
        "mgrs:grid_square": granule.code[3:],
        "grid:code": f"MGRS-{granule.code}",
        "view:sun_azimuth": sun[0],
        "view:sun_elevation": sun[1],
        "s2:tile_id": (
            f"{sensor}_OPER_MSI_L2A_TL_SIM__{_stamp(when)}_A{orbit:06d}_T{granule.code}_N{baseline}"
        ),
        "s2:datatake_id": f"G{sensor}_{_stamp(when)}_{orbit:06d}_N{baseline}",
        "s2:product_type": "S2MSI2A",
        "s2:processing_baseline": baseline,
        "s2:nodata_pixel_percentage": share[0],
        "s2:snow_ice_percentage": share[11],
        "s2:water_percentage": share[6],
        "s2:cloud_shadow_percentage": share[3],
        "s2:thin_cirrus_percentage": share[10],
        "s2:medium_proba_clouds_percentage": share[8],
        "s2:high_proba_clouds_percentage": share[9],
        "s2:sequence": "0",
        "earthsearch:boa_offset_applied": False,
    }


def radar_item(
    folder: Path,
    frame: RegionFrame,
    layers: dict[str, NDArray[np.float32]],
    *,
    when: dt.datetime,
    ascending: bool,
) -> dict[str, Any]:
    """Write a radar scene's COGs and return its item, shaped like sentinel-1-rtc."""
    end = when + dt.timedelta(seconds=25)
    orbit = (when.toordinal() * 11) % 60000
    identifier = (
        f"S1A_IW_GRDH_1SDV_{_stamp(when)}_{_stamp(end)}_{orbit:06d}_{orbit * 7 % 0xFFFFFF:06X}_rtc"
    )
    window = (0, frame.side_px, 0, frame.side_px)
    affine = _window_affine(frame, window, 10)
    assets = {}
    for key, data in layers.items():
        path = folder / identifier / f"{key}.tif"
        write_cog(path, data, transform=rasterio.Affine(*affine), crs=frame.epsg, nodata=-32768)
        assets[key] = {
            "href": str(path),
            "type": COG_TYPE,
            "title": key.upper(),
            "roles": ["data"],
            "raster:bands": [
                {"nodata": -32768, "data_type": "float32", "spatial_resolution": 10.0}
            ],
        }
    properties = _radar_properties(
        frame, affine, when=when, end=end, orbit=orbit, ascending=ascending
    )
    return made_item(
        identifier,
        "sentinel-1-rtc",
        ring=frame.lonlat_ring(window),
        properties=properties,
        assets=assets,
        extensions=("sar/v1.0.0", "sat/v1.0.0", "projection/v1.1.0", "raster/v1.1.0"),
    )


def _radar_properties(
    frame: RegionFrame,
    affine: list[float],
    *,
    when: dt.datetime,
    end: dt.datetime,
    orbit: int,
    ascending: bool,
) -> dict[str, Any]:
    side = frame.side_px
    return {
        "datetime": iso_time(when),
        "start_datetime": iso_time(when),
        "end_datetime": iso_time(end),
        "platform": "SENTINEL-1A",
        "constellation": "Sentinel-1",
        "proj:epsg": frame.epsg,
        "proj:code": f"EPSG:{frame.epsg}",
        "proj:shape": [side, side],
        "proj:transform": [*affine, 0, 0, 1],
        "proj:bbox": [frame.left, frame.top - 10 * side, frame.left + 10 * side, frame.top],
        "s1:resolution": "high",
        "sar:polarizations": ["VV", "VH"],
        "sar:frequency_band": "C",
        "sar:instrument_mode": "IW",
        "sar:product_type": "GRD",
        "sar:looks_equivalent_number": 4.4,
        "sar:pixel_spacing_range": 10,
        "sar:pixel_spacing_azimuth": 10,
        "sat:orbit_state": "ascending" if ascending else "descending",
        "sat:absolute_orbit": orbit,
        "sat:relative_orbit": 117 if ascending else 37,
    }


def dem_item(
    folder: Path, data: NDArray[np.float32], *, corner: tuple[int, int], transform: Affine
) -> dict[str, Any]:
    """Write one elevation cell and return its item, shaped like cop-dem-glo-30.

    ``corner`` is latitude and longitude of the cell's lower-left corner, degrees.
    """
    south, west = corner
    row = f"{'N' if south >= 0 else 'S'}{abs(south):02d}_00"
    place = f"{row}_{'E' if west >= 0 else 'W'}{abs(west):03d}_00"
    identifier = f"Copernicus_DSM_COG_10_{place}_DEM"
    path = folder / identifier / "data.tif"
    write_cog(path, data, transform=transform, crs=4326, nodata=None)
    rows, cols = data.shape
    x0, y1 = transform.c, transform.f
    x1, y0 = x0 + cols * transform.a, y1 + rows * transform.e
    ring = [[x0, y1], [x0, y0], [x1, y0], [x1, y1], [x0, y1]]
    affine = [transform.a, 0, transform.c, 0, transform.e, transform.f]
    properties = {
        "datetime": "2021-04-22T00:00:00Z",
        "platform": "tandem-x",
        "gsd": 30,
        "proj:epsg": 4326,
        "proj:code": "EPSG:4326",
        "proj:shape": [rows, cols],
        "proj:transform": affine,
        "grid:code": f"CDEM-{place[:3]}{place.split('_')[2]}",
    }
    described = {
        "sampling": "point",
        "data_type": "float32",
        "spatial_resolution": 30,
        "unit": "meter",
    }
    assets = {
        "data": {
            "href": str(path),
            "type": COG_TYPE,
            "title": "Data",
            "roles": ["data"],
            "raster:bands": [described],
        }
    }
    return made_item(
        identifier,
        "cop-dem-glo-30",
        ring=ring,
        properties=properties,
        assets=assets,
        extensions=("projection/v1.1.0", "raster/v1.1.0", "grid/v1.1.0"),
    )


def write_catalog(out: Path, name: str, items: list[dict[str, Any]]) -> tuple[Path, Path]:
    """Write ``items.json`` and a self-contained static catalogue; return both paths."""
    items = sorted(
        items, key=lambda item: (item["collection"], item["properties"]["datetime"], item["id"])
    )
    write_text(out / "items.json", _dump({"type": "FeatureCollection", "features": items}))
    root_links: list[dict[str, str]] = [
        {"rel": "root", "href": "./catalog.json", "type": "application/json"}
    ]
    for collection, title in _COLLECTIONS.items():
        members = [item for item in items if item["collection"] == collection]
        if not members:
            continue
        root_links.append(
            {"rel": "child", "href": f"./{collection}/collection.json", "type": "application/json"}
        )
        _write_collection(out / collection, collection, title=title, members=members)
    catalog = {
        "type": "Catalog",
        "stac_version": "1.0.0",
        "id": name.lower(),
        "description": f"Made-up glacier region {name}: no such place exists.",
        "links": root_links,
    }
    write_text(out / "catalog.json", _dump(catalog))
    return out / "items.json", out / "catalog.json"


def _write_collection(
    folder: Path, collection: str, *, title: str, members: list[dict[str, Any]]
) -> None:
    json_type, up = "application/json", "../catalog.json"
    links = [
        {"rel": "root", "href": up, "type": json_type},
        {"rel": "parent", "href": up, "type": json_type},
    ]
    for item in members:
        links.append(
            {"rel": "item", "href": f"./{item['id']}.json", "type": "application/geo+json"}
        )
        own = [
            {"rel": "root", "href": up, "type": json_type},
            {"rel": "parent", "href": "./collection.json", "type": json_type},
            {"rel": "collection", "href": "./collection.json", "type": json_type},
        ]
        write_text(folder / f"{item['id']}.json", _dump({**item, "links": own}))
    boxes = np.array([item["bbox"] for item in members])
    box = [*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist()]
    times = sorted(item["properties"]["datetime"] for item in members)
    document = {
        "type": "Collection",
        "stac_version": "1.0.0",
        "id": collection,
        "title": title,
        "description": title,
        "license": "Apache-2.0",
        "extent": {"spatial": {"bbox": [box]}, "temporal": {"interval": [[times[0], times[-1]]]}},
        "links": links,
    }
    write_text(folder / "collection.json", _dump(document))


def _dump(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, sort_keys=True) + "\n"
