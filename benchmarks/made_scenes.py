"""Made-up Sentinel-2 scenes for the cube benchmark: files and items like a catalogue's.

Every scene has four bands of 10 m, two of 20 m and a classification of 20 m on one UTM lattice, in
tiled, deflated GeoTIFFs with the horizontal predictor, as the public archives keep them. The ground
is the same on all days; brightness, noise, clouds and the edge of the swath differ.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pyproj import Transformer
from scipy import ndimage

from catalog.assets import gdal_env
from catalog.grid import RegionGrid, Shard, region_grid

import rasterio  # isort: skip  (after catalog.assets, which sets GDAL's drivers)
from affine import Affine  # isort: skip

__all__ = ["BANDS", "Season", "made_season"]

BANDS = {
    "blue": ("blue", 10, 0.95),
    "green": ("green", 10, 1.0),
    "red": ("red", 10, 1.05),
    "nir": ("nir", 10, 0.9),
    "swir1": ("swir16", 20, 0.35),
    "swir2": ("swir22", 20, 0.25),
}
# ^ band of the store -> asset key of Earth Search, pixel in metres, brightness
_MASK_PIXEL = 20
_CLOUD, _VEGETATION = 9, 4
_EPSG = 32632
_CENTRE = (10.8, 46.8)
_MARGIN_PX = 512
# ^ of 10 m around the shard: the grid is turned against UTM, and rasters are larger than shards
_DATES_WITH_EDGE = 4
# ^ every so manieth date ends within the shard


@dataclass(frozen=True, slots=True)
class Season:
    """One season's scenes over one shard."""

    grid: dict[str, Any]
    """See :meth:`catalog.grid.RegionGrid.to_dict`."""
    shard: tuple[int, int]
    """Row and column."""
    items: list[dict[str, Any]]
    """STAC items in the shape of Earth Search's."""
    stored_mib: float
    """Size of all rasters."""
    folder: str
    """Where they are, within the folder of all seasons."""

    def the_shard(self) -> Shard:
        """The shard that the scenes cover."""
        return RegionGrid.from_dict(self.grid).shard(*self.shard)

    def moved(self, old: str, new: str) -> Season:
        """Return the same season with its rasters under another prefix."""
        text = json.dumps(self.items).replace(f'"href": "{old}/', f'"href": "{new}/')
        return Season(self.grid, self.shard, json.loads(text), self.stored_mib, self.folder)


def made_season(
    folder: Path, *, dates: int, shard_px: int, chunk_px: int, block_px: int = 1024
) -> Season:
    """Make a season's rasters, or find them made.

    Parameters
    ----------
    folder
        Where rasters are kept between runs, in a folder for each choice of the sizes.
    dates
        Number of scenes, one a day.
    shard_px, chunk_px
        Edges of the shard and of its chunks, pixels of 10 m.
    block_px
        Edge of the tiles within a raster.
    """
    name = f"{dates}-dates-{shard_px}-{chunk_px}-{block_px}"
    folder = folder.absolute() / name
    listing = folder / "season.json"
    if listing.exists():
        found = json.loads(listing.read_text())
        return Season(**(found | {"shard": tuple(found["shard"])}))
    lon, lat = _CENTRE
    grid = region_grid([lon], [lat], shard_px=shard_px, chunk_px=chunk_px)
    shard = grid.shard(0, 0)
    ground = _Ground.over(shard)
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        items = list(pool.map(lambda d: ground.write(folder, d, block_px), range(dates)))
    size = sum(path.stat().st_size for path in folder.rglob("*.tif")) / 2**20
    season = Season(grid.to_dict(), (0, 0), items, round(size, 1), name)
    listing.write_text(json.dumps(asdict(season)))
    return season


@dataclass(frozen=True, slots=True)
class _Ground:
    """What all days share: the frame, the brightness of the ground, noise, and clouds."""

    left: int
    top: int
    edge_m: int
    brightness: npt.NDArray[np.float32]
    noise: npt.NDArray[np.float32]
    clouds: npt.NDArray[np.float32]
    """Smooth field of 20 m pixels; a day's clouds are where it is highest."""

    @classmethod
    def over(cls, shard: Shard) -> _Ground:
        """Ground around a shard."""
        west, south, east, north = shard.bounds
        to_utm = Transformer.from_crs(shard.grid.crs, _EPSG, always_xy=True)
        x, y = to_utm.transform((west + east) / 2, (south + north) / 2)
        edge_m = (shard.grid.shard_px + 2 * min(_MARGIN_PX, shard.grid.shard_px)) * 10
        edge = edge_m // 10
        rng = np.random.default_rng(0)
        return cls(
            left=round((x - edge_m / 2) / 60) * 60,
            top=round((y + edge_m / 2) / 60) * 60,
            edge_m=edge_m,
            brightness=_octaves(rng, edge, (256, 64, 16, 4, 1)),
            noise=rng.standard_normal((edge, edge), np.float32),
            clouds=_octaves(rng, edge // 2, (256, 64, 16)),
        )

    def write(self, folder: Path, day: int, block_px: int) -> dict[str, Any]:
        """Write one day's rasters and describe them."""
        when = date(2024, 7, 1) + timedelta(days=2 * day)
        name = f"S2A_32TPS_{when:%Y%m%d}_0_L2A"
        edge = self.edge_m // 10
        gain = 1.0 + 0.15 * np.sin(1.7 * day)
        assets = {}
        unseen = self._unseen(day)
        for index, (key, pixel, factor) in enumerate(BANDS.values()):
            values = np.roll(self.noise, (37 * day, 91 * index), (0, 1)) * np.float32(12)
            values += (3500 + 1500 * self.brightness) * np.float32(gain * factor)
            values = np.clip(values + 1000, 1, 20000)
            values[unseen] = 0
            step = pixel // 10
            pixels = values[::step, ::step].astype(np.uint16)
            assets[key] = self._write(folder / name / f"{key}.tif", pixels, pixel, block_px)
            assets[key]["raster:bands"] = [
                {"nodata": 0, "data_type": "uint16", "scale": 0.0001, "offset": -0.1}
            ]
        field = np.roll(self.clouds, (53 * day, 131 * day), (0, 1))
        limit = np.quantile(field[::8, ::8], 1 - 0.1 * (day % 6))
        classes = np.where(field > limit, _CLOUD, _VEGETATION).astype(np.uint8)
        classes[unseen[::2, ::2]] = 0
        assets["scl"] = self._write(folder / name / "scl.tif", classes, _MASK_PIXEL, block_px)
        assets["scl"]["raster:bands"] = [{"nodata": 0, "data_type": "uint8"}]
        return self._item(name, f"{when:%Y-%m-%d}T10:10:00Z", edge, assets)

    def _unseen(self, day: int) -> npt.NDArray[np.bool_]:
        edge = self.edge_m // 10
        rows, cols = np.ogrid[:edge, :edge]
        if day % _DATES_WITH_EDGE:
            return np.zeros((edge, edge), np.bool_)
        across: npt.NDArray[np.bool_] = cols + rows // 5 < edge // 2
        return across

    def _write(
        self, path: Path, pixels: npt.NDArray[Any], pixel: int, block_px: int
    ) -> dict[str, Any]:
        path.parent.mkdir(parents=True, exist_ok=True)
        transform = Affine(pixel, 0, self.left, 0, -pixel, self.top)
        profile = {
            "driver": "GTiff",
            "dtype": pixels.dtype,
            "count": 1,
            "height": pixels.shape[0],
            "width": pixels.shape[1],
            "crs": f"EPSG:{_EPSG}",
            "transform": transform,
            "nodata": 0,
            "tiled": True,
            "blockxsize": block_px,
            "blockysize": block_px,
            "compress": "deflate",
            "predictor": 2,
        }
        with rasterio.Env(**gdal_env()), rasterio.open(path, "w", **profile) as file:
            file.write(pixels, 1)
        return {
            "href": str(path),
            "type": "image/tiff; application=geotiff; profile=cloud-optimized",
            "proj:shape": list(pixels.shape),
            "proj:transform": list(transform)[:6],
        }

    def _item(
        self, name: str, when: str, edge: int, assets: dict[str, dict[str, Any]]
    ) -> dict[str, Any]:
        right, bottom = self.left + edge * 10, self.top - edge * 10
        to_lonlat = Transformer.from_crs(_EPSG, 4326, always_xy=True)
        box = to_lonlat.transform_bounds(self.left, bottom, right, self.top)
        west, south, east, north = box
        ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
        return {
            "type": "Feature",
            "stac_version": "1.0.0",
            "stac_extensions": [
                "https://stac-extensions.github.io/projection/v1.1.0/schema.json",
                "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
            ],
            "id": name,
            "collection": "sentinel-2-l2a",
            "bbox": list(box),
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {
                "datetime": when,
                "proj:epsg": _EPSG,
                "s2:processing_baseline": "05.11",
                "earthsearch:boa_offset_applied": False,
                "eo:cloud_cover": 10.0,
            },
            "assets": assets,
            "links": [],
        }


def _octaves(rng: np.random.Generator, edge: int, sizes: tuple[int, ...]) -> Any:
    """Field of zero mean whose detail of each size, in pixels, has its share."""
    total = np.zeros((edge, edge), np.float32)
    for size in sizes:
        coarse = rng.standard_normal((edge // size + 2, edge // size + 2)).astype(np.float32)
        order = 1 if size > 1 else 0
        fine = ndimage.zoom(coarse, size, order=order) if size > 1 else coarse
        total += fine[:edge, :edge] * np.float32(np.sqrt(size / max(sizes)))
    return total
