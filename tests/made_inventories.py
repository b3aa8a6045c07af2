"""Small made-up inventories: rectangular glaciers on a lattice of cells, some of them touching."""

from __future__ import annotations

from collections.abc import Sequence

import geopandas as gpd
import numpy as np
import shapely
from hypothesis import strategies as st
from rasterio.features import rasterize

from catalog.grid import RegionGrid, region_grid

CENTRE = (10.0, 47.0)
CELL_M = 1000.0
PROJ4 = f"+proj=laea +lat_0={CENTRE[1]} +lon_0={CENTRE[0]} +datum=WGS84 +units=m"
Box = tuple[float, float, float, float]


def inventory(boxes: Sequence[Box], names: Sequence[str] | None = None) -> gpd.GeoDataFrame:
    """Glaciers from boxes (west, south, east, north) in metres around the centre."""
    shapes = gpd.GeoSeries([shapely.box(*box) for box in boxes], crs=PROJ4).to_crs(4326)
    names = names or [f"G{i:03d}" for i in range(len(boxes))]
    return gpd.GeoDataFrame({"ref_id": list(names)}, geometry=shapes, crs=4326)


@st.composite
def boxes(draw: st.DrawFn, *, least: int = 8, side: int = 7) -> list[Box]:
    """Boxes of 100 to 1000 m in cells of a lattice; one as wide as its cell touches the next."""
    cells = draw(
        st.lists(
            st.tuples(st.integers(0, side - 1), st.integers(0, side - 1)),
            min_size=least,
            max_size=26,
            unique=True,
        )
    )
    steps = st.integers(1, 10)
    sizes = draw(st.lists(st.tuples(steps, steps), min_size=len(cells), max_size=len(cells)))
    return [
        (c * CELL_M, r * CELL_M, c * CELL_M + 100 * w, r * CELL_M + 100 * h)
        for (r, c), (w, h) in zip(cells, sizes, strict=True)
    ]


def grid_of(frame: gpd.GeoDataFrame, *, resolution_m: float = 50.0) -> RegionGrid:
    """A grid around an inventory."""
    lonlat = shapely.get_coordinates(frame.geometry.to_numpy())
    return region_grid(
        lonlat[:, 0],
        lonlat[:, 1],
        resolution_m=resolution_m,
        margin_m=500,
        shard_px=32,
        chunk_px=32,
    )


def owners_of(frame: gpd.GeoDataFrame, grid: RegionGrid) -> np.ndarray:
    """Glacier of each pixel, counted from 1 in the order of the rows."""
    shapes = frame.geometry.to_crs(grid.proj4)
    return rasterize(
        ((g, i + 1) for i, g in enumerate(shapes)),
        out_shape=grid.shape,
        transform=grid.transform,
        dtype="int32",
    )
