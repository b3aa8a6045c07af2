"""The same ground as Landsat 8 would deliver it: 30 m, Collection 2 Level 2."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio

from catalog.sensors import OLI_OF_MSI

from .delivery import COG_TYPE, iso_time, made_item, write_cog

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from .places import RegionFrame
    from .scene import Acquisition, OpticalScene

__all__ = ["landsat_item"]

_SCALE, _OFFSET = 2.75e-5, -0.2
_ASSETS = {
    "blue": ("blue", "B02", "SR_B2"),
    "green": ("green", "B03", "SR_B3"),
    "red": ("red", "B04", "SR_B4"),
    "nir": ("nir08", "B08", "SR_B5"),
    "swir1": ("swir16", "B11", "SR_B6"),
    "swir2": ("swir22", "B12", "SR_B7"),
}
# ^ role -> asset, band of the simulated scene, band of the product
_QA_OF_SCL = {0: 1, 3: 1 << 4, 6: 1 << 7 | 1 << 6, 8: 1 << 3, 9: 1 << 3, 10: 1 << 2, 11: 1 << 5}
_CLEAR = 1 << 6


def landsat_item(
    folder: Path,
    frame: RegionFrame,
    acquisition: Acquisition,
    scene: OpticalScene,
    *,
    sun: tuple[float, float],
) -> dict[str, Any]:
    """Write one scene's COGs below ``folder`` and return its item, shaped like landsat-c2-l2.

    Pixels are means of 3 x 3 of the rendered ones; the last row and column that do not fill a pixel
    are left out. Reflectance is brought to the bands of OLI (Claverie et al. 2018).
    """
    day = acquisition.when.strftime("%Y%m%d")
    identifier = f"LC08_L2SP_{1 + acquisition.index:03d}001_{day}_02_T1"
    quality = _quality(scene.scl)
    side = quality.shape[0]
    affine = [30, 0, frame.left, 0, -30, frame.top]
    assets = {}

    def add(key: str, product: str, data: NDArray[np.uint16], described: dict[str, Any]) -> None:
        path = folder / identifier / f"{identifier}_{product}.TIF"
        write_cog(
            path,
            data,
            transform=rasterio.Affine(*affine),
            crs=frame.epsg,
            nodata=described["nodata"],
            categorical=key == "qa_pixel",
        )
        described |= {"data_type": "uint16", "spatial_resolution": 30}
        assets[key] = {
            "href": str(path),
            "type": COG_TYPE,
            "roles": ["data"],
            "raster:bands": [described],
        }

    for role, (key, band, product) in _ASSETS.items():
        pixels = _pixels(scene.bands[band], side, role=role, offset=acquisition.offset)
        add(key, product, pixels, {"nodata": 0, "scale": _SCALE, "offset": _OFFSET})
    add("qa_pixel", "QA_PIXEL", quality, {"nodata": 1, "unit": "bit index"})
    shares = {"eo:cloud_cover": round(float(100 * ((quality >> 3) & 1).mean()), 2)}
    return made_item(
        identifier,
        "landsat-c2-l2",
        ring=frame.lonlat_ring((0, 3 * side, 0, 3 * side)),
        properties=shares
        | {
            "datetime": iso_time(acquisition.when),
            "platform": "landsat-8",
            "instruments": ["oli", "tirs"],
            "proj:epsg": frame.epsg,
            "proj:code": f"EPSG:{frame.epsg}",
            "proj:shape": [side, side],
            "proj:transform": affine,
            "view:sun_azimuth": sun[0],
            "view:sun_elevation": sun[1],
            "landsat:correction": "L2SP",
            "landsat:collection_category": "T1",
            "landsat:collection_number": "02",
            "landsat:wrs_path": f"{1 + acquisition.index:03d}",
            "landsat:wrs_row": "001",
            "landsat:scene_id": f"LC8{1 + acquisition.index:03d}001{_ordinal(acquisition.when)}SIM",
        },
        assets=assets,
        extensions=("projection/v1.1.0", "raster/v1.1.0", "view/v1.0.0", "eo/v1.1.0"),
    )


def _ordinal(when: dt.datetime) -> str:
    return when.strftime("%Y%j")


def _thirds(field: NDArray[Any], side: int) -> NDArray[Any]:
    """Blocks of 3 x 3 pixels of 10 m: ``(y, 3, x, 3)``; pixels of 20 m are cut in four first."""
    if field.shape[0] < 3 * side:
        field = field.repeat(2, axis=0).repeat(2, axis=1)
    return field[: 3 * side, : 3 * side].reshape(side, 3, side, 3)


def _pixels(
    numbers: NDArray[np.uint16], side: int, *, role: str, offset: int
) -> NDArray[np.uint16]:
    blocks = _thirds(numbers, side)
    slope, shift = OLI_OF_MSI[role]
    value = (blocks.mean(axis=(1, 3)) - offset) / 1e4 * slope + shift
    stored = np.clip(np.rint((value - _OFFSET) / _SCALE), 1, 65535)
    return np.where((blocks == 0).any(axis=(1, 3)), 0, stored).astype(np.uint16)


def _quality(scl: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """QA_PIXEL of the class under the middle of each pixel."""
    side = 2 * scl.shape[0] // 3
    table = np.full(12, _CLEAR, np.uint16)
    for code, bits in _QA_OF_SCL.items():
        table[code] = bits
    return np.asarray(table[_thirds(scl, side)[:, 1, :, 1]])
