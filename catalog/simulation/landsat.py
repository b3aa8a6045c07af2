"""The same ground as Landsat 7 or 8 would deliver it: 30 m, Collection 2 Level 2."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio

from catalog.sensors import OLI_OF_ETM, OLI_OF_MSI

from .delivery import COG_TYPE, iso_time, made_item, write_cog

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from .places import RegionFrame
    from .scene import Acquisition, OpticalScene
    from .spec import Sensor

__all__ = ["landsat_item"]

_SCALE, _OFFSET = 2.75e-5, -0.2
_ASSETS = {
    "blue": ("blue", "B02", {"landsat-7": 1, "landsat-8": 2}),
    "green": ("green", "B03", {"landsat-7": 2, "landsat-8": 3}),
    "red": ("red", "B04", {"landsat-7": 3, "landsat-8": 4}),
    "nir": ("nir08", "B08", {"landsat-7": 4, "landsat-8": 5}),
    "swir1": ("swir16", "B11", {"landsat-7": 5, "landsat-8": 6}),
    "swir2": ("swir22", "B12", {"landsat-7": 7, "landsat-8": 7}),
}
# ^ role -> asset, band of the simulated scene, number of the product's band
_SHORT = {"landsat-7": "E07", "landsat-8": "C08"}
_SLC_OFF_SINCE = dt.date(2003, 5, 31)
_GAP_PERIOD_PX, _GAP_WIDEST_PX = 33, 14
# ^ about 1 km along the track between gaps, up to 14 pixels wide at the edge of a scene (USGS,
#   "Landsat 7 SLC-off products"); the region lies somewhere between there and the middle
_QA_OF_SCL = {0: 1, 3: 1 << 4, 6: 1 << 7 | 1 << 6, 8: 1 << 3, 9: 1 << 3, 10: 1 << 2, 11: 1 << 5}
_CLEAR = 1 << 6


def landsat_item(
    folder: Path,
    frame: RegionFrame,
    acquisition: Acquisition,
    scene: OpticalScene,
    *,
    sun: tuple[float, float],
    sensor: Sensor,
) -> dict[str, Any]:
    """Write one scene's COGs below ``folder`` and return its item, shaped like landsat-c2-l2.

    Pixels are means of 3 x 3 of the rendered ones; the last row and column that do not fill a pixel
    are left out. Reflectance is brought to the bands of OLI (Claverie et al. 2018), and from there
    to those of ETM+ (Roy et al. 2016). Scenes of Landsat 7 have gaps since its scan line corrector
    failed.
    """
    day = acquisition.when.strftime("%Y%m%d")
    identifier = f"L{_SHORT[sensor]}_L2SP_{1 + acquisition.index:03d}001_{day}_02_T1"
    quality = _quality(scene.scl)
    gaps = None
    if sensor == "landsat-7" and acquisition.when.date() >= _SLC_OFF_SINCE:
        gaps = _gaps(quality.shape[0], turn=acquisition.when.toordinal())
        quality[gaps] = 1
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

    for role, (key, band, numbers) in _ASSETS.items():
        pixels = _pixels(
            scene.bands[band], side, role=role, offset=acquisition.offset, sensor=sensor
        )
        if gaps is not None:
            pixels[gaps] = 0
        described = {"nodata": 0, "scale": _SCALE, "offset": _OFFSET}
        add(key, f"SR_B{numbers[sensor]}", pixels, described)
    add("qa_pixel", "QA_PIXEL", quality, {"nodata": 1, "unit": "bit index"})
    shares = {"eo:cloud_cover": round(float(100 * ((quality >> 3) & 1).mean()), 2)}
    return made_item(
        identifier,
        "landsat-c2-l2",
        ring=frame.lonlat_ring((0, 3 * side, 0, 3 * side)),
        properties=shares
        | {
            "datetime": iso_time(acquisition.when),
            "platform": sensor,
            "instruments": ["etm"] if sensor == "landsat-7" else ["oli", "tirs"],
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
            "landsat:scene_id": _scene_id(sensor, acquisition),
        },
        assets=assets,
        extensions=("projection/v1.1.0", "raster/v1.1.0", "view/v1.0.0", "eo/v1.1.0"),
    )


def _scene_id(sensor: Sensor, acquisition: Acquisition) -> str:
    short = _SHORT[sensor].replace("0", "")
    return f"L{short}{1 + acquisition.index:03d}001{acquisition.when:%Y%j}SIM"


def _thirds(field: NDArray[Any], side: int) -> NDArray[Any]:
    """Blocks of 3 x 3 pixels of 10 m: ``(y, 3, x, 3)``; pixels of 20 m are cut in four first."""
    if field.shape[0] < 3 * side:
        field = field.repeat(2, axis=0).repeat(2, axis=1)
    return field[: 3 * side, : 3 * side].reshape(side, 3, side, 3)


def _pixels(
    numbers: NDArray[np.uint16], side: int, *, role: str, offset: int, sensor: Sensor
) -> NDArray[np.uint16]:
    blocks = _thirds(numbers, side)
    slope, shift = OLI_OF_MSI[role]
    value = (blocks.mean(axis=(1, 3)) - offset) / 1e4 * slope + shift
    if sensor == "landsat-7":
        slope, shift = OLI_OF_ETM[role]
        value = (value - shift) / slope
    stored = np.clip(np.rint((value - _OFFSET) / _SCALE), 1, 65535)
    return np.where((blocks == 0).any(axis=(1, 3)), 0, stored).astype(np.uint16)


def _quality(scl: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """QA_PIXEL of the class under the middle of each pixel."""
    side = 2 * scl.shape[0] // 3
    table = np.full(12, _CLEAR, np.uint16)
    for code, bits in _QA_OF_SCL.items():
        table[code] = bits
    return np.asarray(table[_thirds(scl, side)[:, 1, :, 1]])


def _gaps(side: int, *, turn: int) -> NDArray[np.bool_]:
    """Where a scene without scan line corrector has no pixels: wedges across the track."""
    y, x = np.ogrid[:side, :side]
    place = turn % 97 / 97.0
    wide = _GAP_WIDEST_PX * (0.35 + 0.4 * place + 0.25 * x / side)
    along = (y + 0.17 * x + turn % _GAP_PERIOD_PX) % _GAP_PERIOD_PX
    return np.asarray(along < wide)
