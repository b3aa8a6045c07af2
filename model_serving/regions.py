"""A training region, made ready once: simulated, assembled into a cube, labelled with its truth."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from rasterio.enums import Resampling
from rasterio.features import rasterize
from rasterio.warp import reproject

from catalog.assets import AssetPolicy
from catalog.composites import build_cube_shard, create_season
from catalog.cube import ICE_CLASSES, UNKNOWN, Workspace, read_window
from catalog.errors import UsageError
from catalog.grid import LonLatBox, RegionGrid, region_grid
from catalog.search import open_source
from catalog.terrain import build_terrain_shard, create_terrain
from model_serving.features import raw_features

__all__ = [
    "NOTE",
    "PreparedRegion",
    "identity_of",
    "keep_region",
    "kept_region",
    "prepare_region",
    "read_region",
]

Array = npt.NDArray[Any]

_SHARD_PX, _CHUNK_PX = 512, 256
NOTE = "prepared.json"
"""File of what a prepared region is; without it, its arrays were not finished."""
_CODE = ("../catalog", "regions", "features")
# ^ sources that decide what a prepared region holds


@dataclass(frozen=True, slots=True)
class PreparedRegion:
    """Where the arrays of a training region lie, and what it contains."""

    name: str
    seed: int
    folder: Path
    grid: RegionGrid
    bbox: LonLatBox
    seasons: tuple[str, ...]
    glaciers: int
    ice_km2: float
    fingerprint: str
    """SHA-256 over features, labels and owners."""

    def features(self) -> Array:
        """Raw features ``(season, channel, y, x)`` float16, NaN = no data; mapped from disk."""
        return np.load(self.folder / "features.npy", mmap_mode="r")  # type: ignore[no-any-return]

    def labels(self) -> Array:
        """True classes ``(season, y, x)`` uint8, 255 = unknown."""
        return np.load(self.folder / "labels.npy")  # type: ignore[no-any-return]

    def owners(self) -> Array:
        """Reference glacier of each pixel ``(y, x)`` int32, 0 = none, counted from 1."""
        return np.load(self.folder / "owners.npy")  # type: ignore[no-any-return]


def identity_of(*facts: object, code: Sequence[str]) -> str:
    """SHA-256 of facts and of source files: what is kept was made from these, by this code.

    Parameters
    ----------
    facts
        Values whose ``repr`` is the same in every process.
    code
        Modules of this package, or folders beside them.
    """
    digest = hashlib.sha256(repr(facts).encode())
    here = Path(__file__).parent
    for name in code:
        path = here / f"{name}.py"
        for source in [path] if path.exists() else sorted((here / name).rglob("*.py")):
            digest.update(source.read_bytes())
    return digest.hexdigest()


def prepare_region(spec: Any, folder: Path, *, resolution_m: float) -> PreparedRegion:
    """Simulate a region, build its cube the way any region's is built, and label it.

    Parameters
    ----------
    spec
        ``catalog.simulation.RegionSpec``.
    folder
        Where; a finished region found there is taken as it is.
    resolution_m
        Pixel edge of the training grid.
    """
    identity = identity_of(spec, resolution_m, code=_CODE)
    kept = kept_region(folder, identity)
    if kept is not None:
        return kept
    from catalog.simulation import simulate_region

    simulated = simulate_region(spec, folder / "simulated")
    reference = gpd.read_file(simulated.reference)
    corners = _corners(simulated.classes)
    grid = region_grid(
        corners[:, 0],
        corners[:, 1],
        resolution_m=resolution_m,
        shard_px=_SHARD_PX,
        chunk_px=_CHUNK_PX,
    )
    seasons = tuple(s.label for s in spec.seasons)
    features = _features(spec, simulated, grid, folder)
    labels = np.stack([_labels(simulated.classes[s], grid) for s in seasons])
    shapes = reference.to_crs(grid.proj4).geometry
    owners = rasterize(
        ((g, i + 1) for i, g in enumerate(shapes)),
        out_shape=grid.shape,
        transform=grid.transform,
        dtype="int32",
    )
    np.save(folder / "features.npy", features)
    np.save(folder / "labels.npy", labels)
    np.save(folder / "owners.npy", owners)
    content = hashlib.sha256()
    for values in (features, labels, owners):
        content.update(values.tobytes())
    west, south = corners.min(axis=0)
    east, north = corners.max(axis=0)
    region = PreparedRegion(
        name=spec.name,
        seed=spec.seed,
        folder=folder,
        grid=grid,
        bbox=(round(west, 4), round(south, 4), round(east, 4), round(north, 4)),
        seasons=seasons,
        glaciers=len(reference),
        ice_km2=float(np.isin(labels[0], ICE_CLASSES).sum() * grid.pixel_area_km2),
        fingerprint=content.hexdigest(),
    )
    keep_region(region, identity)
    return region


def keep_region(region: PreparedRegion, identity: str) -> None:
    """Write a region's note, last of all: arrays without it were not finished."""
    saved = asdict(region) | {"identity": identity, "grid": region.grid.to_dict()}
    saved.pop("folder")
    Workspace(region.folder).put(NOTE, json.dumps(saved).encode())


def kept_region(folder: Path, identity: str) -> PreparedRegion | None:
    """Region of a folder, if it was made from the same by the same code."""
    note = Workspace(folder).get(NOTE)
    saved = {} if note is None else json.loads(note)
    return _restored(saved, folder) if saved.pop("identity", None) == identity else None


def read_region(folder: Path) -> PreparedRegion:
    """Take a region that was prepared before as it lies in its folder, whatever made it.

    Raises
    ------
    UsageError
        ``regions-missing`` where there is none.
    """
    note = Workspace(folder).get(NOTE)
    if note is None:
        raise UsageError(f"there is no prepared region in {folder}", kind="regions-missing")
    saved = json.loads(note)
    saved.pop("identity")
    return _restored(saved, folder)


def _restored(saved: dict[str, Any], folder: Path) -> PreparedRegion:
    west, south, east, north = saved["bbox"]
    return PreparedRegion(
        **{
            **saved,
            "folder": folder,
            "grid": RegionGrid.from_dict(saved["grid"]),
            "bbox": (west, south, east, north),
            "seasons": tuple(saved["seasons"]),
        }
    )


def _corners(classes: dict[str, Path]) -> Array:
    """Outline of the truth raster in degrees, ``(point, lon-lat)``."""
    with rasterio.open(next(iter(classes.values()))) as src:
        box = shapely.segmentize(shapely.box(*src.bounds), 1000)
        ring = gpd.GeoSeries([box], crs=src.crs).to_crs(4326).iloc[0]
    return np.asarray(ring.exterior.coords)


def _features(spec: Any, simulated: Any, grid: RegionGrid, folder: Path) -> Array:
    """Search, assemble and read back every season, exactly as an inventory run does."""
    workspace = Workspace(folder / "workspace")
    policy = AssetPolicy(allowed=(str(simulated.out),))
    source = open_source(str(simulated.items), policy=policy)
    boxes = [box for shard in grid.shards() for box in shard.lonlat_boxes]
    dem = source.search(collections=["cop-dem-glo-30"], boxes=boxes, start=None, end=None).scenes
    create_terrain(workspace, grid)
    for shard in grid.shards():
        build_terrain_shard(workspace, shard, dem=dem, policy=policy)
    terrain = _whole(workspace, "cube.zarr/terrain", grid)
    out = []
    for season in spec.seasons:
        start, end = f"{season.year}-01-01", f"{season.year}-12-31"
        taken_by = "sentinel-2-l2a" if season.sensor == "sentinel-2" else "landsat-c2-l2"
        optical, sar = (
            source.search(collections=[collection], boxes=boxes, start=start, end=end).scenes
            for collection in (taken_by, "sentinel-1-rtc")
        )
        create_season(workspace, season.label, grid, sar=True)
        for shard in grid.shards():
            build_cube_shard(
                workspace, season.label, shard, optical=optical, sar=sar, policy=policy
            )
        root = f"cube.zarr/{season.label}"
        out.append(
            raw_features(
                _whole(workspace, f"{root}/optical", grid),
                _whole(workspace, f"{root}/sar", grid),
                terrain,
            ).astype(np.float16)
        )
    return np.stack(out)


def _whole(workspace: Workspace, name: str, grid: RegionGrid) -> Array:
    return read_window(workspace.array(name), 0, 0, shape=grid.shape)


def _labels(path: Path, grid: RegionGrid) -> Array:
    """True classes on the region's grid: the most frequent class of each pixel."""
    out = np.full(grid.shape, UNKNOWN, np.uint8)
    with rasterio.open(path) as src:
        reproject(
            rasterio.band(src, 1),
            out,
            dst_transform=grid.transform,
            dst_crs=grid.proj4,
            src_nodata=UNKNOWN,
            dst_nodata=UNKNOWN,
            resampling=Resampling.mode,
        )
    return out
