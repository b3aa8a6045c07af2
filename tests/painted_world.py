"""A made-up region whose pixels a test paints, so that it knows every area in advance.

Rectangles are given as (row, column, height, width) in pixels of the world, whose upper-left corner
does not depend on how the store is cut into shards.
"""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely

from catalog.cube import TERRAIN_BANDS, Workspace, create_layer, write_shard
from catalog.glaciers import COLUMNS
from catalog.grid import RegionGrid
from change_detection.package.write import PackageFacts

Rectangle = tuple[int, int, int, int]

SIZE = 256
RESOLUTION = 10.0
LEFT, TOP = -20480.0, 10240.0
ALL_MEMBERS = 0b111
SUMMER_2016 = 17030  # 2016-08-17
SUMMER_2024 = 19952  # 2024-08-17


def world_grid(shard_px: int = 128, **overrides: float) -> RegionGrid:
    values = {
        "lat_0": 46.5,
        "lon_0": 11.0,
        "resolution_m": RESOLUTION,
        "shard_px": shard_px,
        "chunk_px": 64,
        "left": LEFT,
        "top": TOP,
        "rows": SIZE // shard_px,
        "cols": SIZE // shard_px,
    }
    return RegionGrid(**(values | overrides))


def rectangle_polygon(rectangle: Rectangle, grid: RegionGrid) -> shapely.Polygon:
    row, col, height, width = rectangle
    x0, y0 = grid.transform @ (col, row)
    x1, y1 = grid.transform @ (col + width, row + height)
    return shapely.box(x0, y1, x1, y0)


def reference_of(shapes: dict[str, shapely.Geometry], grid: RegionGrid) -> gpd.GeoDataFrame:
    """A reference inventory of outlines given in grid metres."""
    ids = sorted(shapes)
    outlines = gpd.GeoSeries([shapes[i] for i in ids], crs=grid.proj4).segmentize(100.0)
    return gpd.GeoDataFrame(
        {
            "ref_id": ids,
            "o1region": "11",
            "o2region": "11-01",
            "glims_id": "",
            "src_date": "2003-07-30T00:00:00",
            "glac_name": [f"Glacier {i}" for i in ids],
            "term_type": 0,
            "surge_type": 9,
            "conn_lvl": 0,
            "primeclass": 0,
        },
        geometry=outlines.to_crs(4326),
    )[list(COLUMNS)]


def reference(rectangles: dict[str, Rectangle], grid: RegionGrid) -> gpd.GeoDataFrame:
    return reference_of({i: rectangle_polygon(r, grid) for i, r in rectangles.items()}, grid)


def package_facts(season: str) -> PackageFacts:
    """What the package of a painted season says of itself."""
    return PackageFacts("Made-up", season, "painted pixel by pixel", ("2016-07-15", "2016-09-30"))


def mask(*rectangles: Rectangle) -> np.ndarray:
    painted = np.zeros((SIZE, SIZE), dtype=bool)
    for row, col, height, width in rectangles:
        painted[row : row + height, col : col + width] = True
    return painted


def paint_season(
    workspace: Workspace,
    grid: RegionGrid,
    season: str,
    *,
    ice: np.ndarray,
    debris: np.ndarray | None = None,
    water: np.ndarray | None = None,
    seen: np.ndarray | None = None,
    day: int | np.ndarray = SUMMER_2016,
    members: list[np.ndarray] | None = None,
    voters: int | np.ndarray = ALL_MEMBERS,
) -> None:
    """Store a map of certain pixels; ``members`` are ice masks, by default three like ``ice``."""
    nothing = np.zeros_like(ice)
    debris = nothing if debris is None else debris
    water = nothing if water is None else water
    seen = ~nothing if seen is None else seen
    classes = np.stack([~(ice | water), ice & ~debris, ice & debris, water])
    probability = np.where(seen, classes * np.uint8(254), np.uint8(255)).astype(np.uint8)
    masks = [ice] * 3 if members is None else members
    votes = sum(m.astype(np.uint32) << np.uint32(i) for i, m in enumerate(masks))
    layers = {
        f"map.zarr/{season}/probability": probability,
        f"map.zarr/{season}/spread": np.zeros(ice.shape, np.uint8),
        f"map.zarr/{season}/votes": np.where(seen, votes, 0).astype(np.uint32),
        f"map.zarr/{season}/voters": np.where(seen, voters, 0).astype(np.uint32),
        f"cube.zarr/{season}/date": np.where(seen, day, np.iinfo(np.int32).min).astype(np.int32),
    }
    store_layers(workspace, grid, layers)


def paint_terrain(workspace: Workspace, grid: RegionGrid, elevation: np.ndarray) -> None:
    bands = np.zeros((len(TERRAIN_BANDS), *elevation.shape), dtype=np.float32)
    bands[0] = elevation
    store_layers(workspace, grid, {"cube.zarr/terrain": bands})


def store_layers(workspace: Workspace, grid: RegionGrid, layers: dict[str, np.ndarray]) -> None:
    for name, values in layers.items():
        create_layer(workspace, name, grid)
        for shard in grid.shards():
            write_shard(workspace, name, shard, np.ascontiguousarray(values[(..., *shard.window)]))


def cone(height: float = 3000.0, fall: float = 0.5) -> np.ndarray:
    """Elevation of a mountain whose top is in the middle of the world, metres."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5 - SIZE / 2
    return (height - fall * RESOLUTION * np.hypot(y, x)).astype(np.float32)


def new_workspace(folder: Path) -> Workspace:
    return Workspace(folder / "workspace")
