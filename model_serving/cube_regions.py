"""A training region from a cube that a user has mapped and an inventory of its glaciers.

One law: what is not known to be ice or ground is unknown. The features are read from the cube and
from nothing else; outlines become labels and never inputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
from rasterio.features import rasterize

from catalog.cube import ICE_CLASSES, UNKNOWN, Workspace, read_shard, shard_checksum, terrain_name
from catalog.errors import StoreError, UsageError
from catalog.grid import LonLatBox, RegionGrid, Shard, lonlat_boxes
from model_serving.features import CHANNELS, raw_features
from model_serving.regions import NOTE, PreparedRegion, identity_of, keep_region, kept_region

__all__ = ["region_from_workspace"]

Array = npt.NDArray[Any]

_CODE = ("cube_regions", "features", "../catalog/cube", "../catalog/grid")
_FILES = ("features", "labels", "owners")
_DIGEST_ROWS = 512
# ^ of a channel, hashed at a time


@dataclass(frozen=True, slots=True)
class _Outlines:
    """Geometries in grid coordinates."""

    glaciers: Array
    debris: Array
    lakes: Array
    doubtful: Array
    """Already widened by the buffer."""
    covered: Array | None
    """None: everywhere."""


def region_from_workspace(
    workspace: Workspace,
    *,
    season: str,
    grid: RegionGrid,
    inventory: gpd.GeoDataFrame,
    folder: Path,
    name: str,
    debris: gpd.GeoDataFrame | None = None,
    lakes: gpd.GeoDataFrame | None = None,
    doubtful: gpd.GeoDataFrame | None = None,
    doubtful_buffer_m: float = 100.0,
    covered: gpd.GeoDataFrame | None = None,
) -> PreparedRegion:
    """Label the cube of one season with an inventory, in the form that training takes.

    Parameters
    ----------
    workspace
        Holds the cube, as an inventory run leaves it: ``cube.zarr/<season>/optical``, and where
        they are there ``sar`` and the terrain of the season's pixels.
    season
        One whose date is near the inventory's; glaciers change between.
    grid
        The region's grid; a season with coarser pixels is read on its own multiple of it.
    inventory
        Outlines of the glaciers, any reference system; glacier ``i`` owns ``i + 1``.
    folder
        Where the arrays are written, shard by shard; a region found there is taken as it is if it
        was made from the same cube and outlines.
    name
        Of the region.
    debris
        Outlines of debris cover. Beyond the glaciers' outlines it is unknown what they mean.
    lakes
        Outlines of water; they lie on top of ice.
    doubtful
        Outlines of ice of which nothing is known: other inventories, glaciers that are not labelled
        here, areas of poor quality. Unknown with ``doubtful_buffer_m`` around, save on the
        inventory's own ice.
    doubtful_buffer_m
        Metres.
    covered
        Where the inventory is complete; unknown beyond. By default everywhere: then ice that the
        inventory does not have is taught as background.

    Returns
    -------
    PreparedRegion
        One season. Labels: 0 background, 1 ice (debris-covered or not where ``debris`` is not
        given), 2 debris-covered ice, 3 water, 255 unknown or not observed. A pixel belongs to what
        its centre lies in.

    Raises
    ------
    UsageError
        Where the season is not in the cube or its pixels are no multiple of the grid's
        (``season-grid``), outlines name no reference system, no glacier lies on the grid, or the
        grid crosses the antimeridian.
    StoreError
        Where the cube or the folder is damaged or out of reach.
    """
    pixels = _grid_of(workspace, season, grid)
    outlines = _outlines(
        pixels,
        inventory,
        debris=debris,
        lakes=lakes,
        doubtful=doubtful,
        buffer_m=doubtful_buffer_m,
        covered=covered,
    )
    layers = _layers(workspace, season, pixels)
    identity = _identity(workspace, layers, outlines, name=name, season=season, grid=pixels)
    kept = kept_region(folder, identity)
    if kept is not None:
        return kept
    bbox = _box(pixels)
    ice = _write_arrays(workspace, layers, outlines, grid=pixels, folder=folder)
    region = PreparedRegion(
        name=name,
        seed=0,
        folder=folder,
        grid=pixels,
        bbox=bbox,
        seasons=(season,),
        glaciers=len(inventory),
        ice_km2=float(ice * pixels.pixel_area_km2),
        fingerprint=_fingerprint(folder),
    )
    keep_region(region, identity)
    return region


def _grid_of(workspace: Workspace, season: str, grid: RegionGrid) -> RegionGrid:
    """The season's own grid: the region's, or one whose pixels are a multiple as wide."""
    name = f"cube.zarr/{season}/optical"
    if not workspace.has_array(name):
        raise UsageError(
            f"season {season!r} has no cube in {workspace!r}: map it first, or name another",
            kind="season-grid",
        )
    rows, cols = workspace.array(name).shape[-2:]
    multiple = max(1, round(grid.shape[0] / rows))
    fits = (rows * multiple, cols * multiple) == grid.shape
    if not fits or (multiple > 1 and (grid.multiple != 1 or grid.chunk_px % multiple)):
        raise UsageError(
            f"season {season!r} has {rows} x {cols} pixels, which is no whole multiple of the "
            f"grid's {grid.shape[0]} x {grid.shape[1]}: give the grid that it was made with",
            kind="season-grid",
        )
    return grid.coarsened(multiple)


def _layers(workspace: Workspace, season: str, grid: RegionGrid) -> dict[str, str]:
    """Names of the arrays there are: optical always, radar and terrain where they were made."""
    root = f"cube.zarr/{season}"
    names = {"optical": f"{root}/optical", "sar": f"{root}/sar", "terrain": terrain_name(grid)}
    found = {key: name for key, name in names.items() if workspace.has_array(name)}
    for name in found.values():
        shape = workspace.array(name).shape[-2:]
        if shape != grid.shape:
            raise StoreError(f"{name} has {shape} pixels, expected {grid.shape}", kind="layout")
    return found


def _outlines(
    grid: RegionGrid,
    inventory: gpd.GeoDataFrame,
    *,
    debris: gpd.GeoDataFrame | None,
    lakes: gpd.GeoDataFrame | None,
    doubtful: gpd.GeoDataFrame | None,
    buffer_m: float,
    covered: gpd.GeoDataFrame | None,
) -> _Outlines:
    glaciers = _on_grid(inventory, grid, what="inventory")
    west, south, east, north = _bounds(grid)
    if not shapely.intersects(glaciers, shapely.box(west, south, east, north)).any():
        raise UsageError("no glacier of the inventory lies on the region's grid")
    return _Outlines(
        glaciers,
        _on_grid(debris, grid, what="debris"),
        _on_grid(lakes, grid, what="lakes"),
        shapely.buffer(_on_grid(doubtful, grid, what="doubtful"), buffer_m),
        None if covered is None else _on_grid(covered, grid, what="covered"),
    )


def _on_grid(frame: gpd.GeoDataFrame | None, grid: RegionGrid, *, what: str) -> Array:
    """Sound geometries in grid coordinates, in the frame's order; empty where there is none."""
    if frame is None or len(frame) == 0:
        return np.empty(0, object)
    if frame.crs is None:
        raise UsageError(f"the outlines of {what} name no reference system: set their crs")
    shapes = np.asarray(frame.geometry.to_crs(grid.proj4), object)
    shapes[shapely.is_missing(shapes)] = shapely.Polygon()
    return np.asarray(shapely.make_valid(shapes, method="structure", keep_collapsed=False), object)
    # ^ what is left of a polygon that crosses itself is polygons; lines would be burnt too


def _bounds(grid: RegionGrid) -> tuple[float, float, float, float]:
    """Left, bottom, right, top in grid metres."""
    rows, cols = grid.shape
    right, bottom = grid.transform @ (cols, rows)
    return grid.left, bottom, right, grid.top


def _box(grid: RegionGrid) -> LonLatBox:
    boxes = lonlat_boxes(_bounds(grid), grid)
    if len(boxes) > 1:
        raise UsageError(
            "the grid crosses the antimeridian, and a training region is one box in degrees: "
            "make a grid on either side"
        )
    west, south, east, north = boxes[0]
    return round(west, 4), round(south, 4), round(east, 4), round(north, 4)


def _write_arrays(
    workspace: Workspace,
    layers: dict[str, str],
    outlines: _Outlines,
    *,
    grid: RegionGrid,
    folder: Path,
) -> int:
    """Write features, labels and owners shard by shard; returns the number of pixels of ice."""
    folder.mkdir(parents=True, exist_ok=True)
    Workspace(folder).delete(NOTE)
    drafts = {key: folder / f".{key}.npy.partial" for key in _FILES}
    shape = grid.shape
    features = _mapped(drafts["features"], np.float16, (1, len(CHANNELS), *shape))
    labels = _mapped(drafts["labels"], np.uint8, (1, *shape))
    owners = _mapped(drafts["owners"], np.int32, shape)
    ice = 0
    for shard in grid.shards():
        cut = shard.window
        read = {key: read_shard(workspace, name, shard) for key, name in layers.items()}
        values = raw_features(read["optical"], read.get("sar"), read.get("terrain"))
        owners[cut] = _burnt(outlines.glaciers, shard, numbered=True)
        truth = _labels(owners[cut], outlines, shard)
        truth[~np.isfinite(values[0])] = UNKNOWN
        features[(0, slice(None), *cut)] = values
        labels[(0, *cut)] = truth
        ice += int(np.isin(truth, ICE_CLASSES).sum())
    for array in (features, labels, owners):
        array.flush()
    for key, draft in drafts.items():
        draft.replace(folder / f"{key}.npy")
    return ice


def _mapped(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)


def _labels(owners: Array, outlines: _Outlines, shard: Shard) -> npt.NDArray[np.uint8]:
    """Classes of a shard from outlines alone; later ones lie on top."""
    out = np.where(owners > 0, np.uint8(1), np.uint8(0))
    debris = _burnt(outlines.debris, shard) > 0
    out[debris] = np.where(owners[debris] > 0, 2, UNKNOWN)
    out[(_burnt(outlines.doubtful, shard) > 0) & (owners == 0)] = UNKNOWN
    if outlines.covered is not None:
        out[_burnt(outlines.covered, shard) == 0] = UNKNOWN
    known = out != UNKNOWN
    out[(_burnt(outlines.lakes, shard) > 0) & known] = 3
    return out


def _burnt(shapes: Array, shard: Shard, *, numbered: bool = False) -> npt.NDArray[np.int32]:
    """Number, or 1, of the last geometry that holds a pixel's centre; 0 = none."""
    size = shard.grid.shard_px
    near = np.sort(shapely.STRtree(shapes).query(shapely.box(*shard.bounds), "intersects"))
    if not len(near):
        return np.zeros((size, size), np.int32)
    burnt = rasterize(
        ((shapes[i], int(i) + 1 if numbered else 1) for i in near),
        out_shape=(size, size),
        transform=shard.geobox().transform,
        dtype="int32",
    )
    return np.asarray(burnt, np.int32)


def _identity(
    workspace: Workspace,
    layers: dict[str, str],
    outlines: _Outlines,
    *,
    name: str,
    season: str,
    grid: RegionGrid,
) -> str:
    shapes = [
        None
        if part is None
        else hashlib.sha256(b"".join(shapely.to_wkb(part).tolist())).hexdigest()
        for part in (
            outlines.glaciers,
            outlines.debris,
            outlines.lakes,
            outlines.doubtful,
            outlines.covered,
        )
    ]
    cube = [
        (key, shard.id, shard_checksum(workspace, layer, shard))
        for key, layer in sorted(layers.items())
        for shard in grid.shards()
    ]
    return identity_of(name, season, sorted(grid.to_dict().items()), shapes, cube, code=_CODE)


def _fingerprint(folder: Path) -> str:
    """SHA-256 over features, labels and owners, read in pieces."""
    digest = hashlib.sha256()
    for key in _FILES:
        for piece in _pieces(np.load(folder / f"{key}.npy", mmap_mode="r")):
            digest.update(piece.tobytes())
    return digest.hexdigest()


def _pieces(array: Array) -> Iterator[Array]:
    for plane in array.reshape(-1, *array.shape[-2:]):
        for row in range(0, plane.shape[0], _DIGEST_ROWS):
            yield plane[row : row + _DIGEST_ROWS]
