"""Where an array of the store lies, in the words of every reader: CF, GDAL and Zarr's conventions.

xarray and rioxarray read the CF grid mapping ``spatial_ref`` beside the arrays and the coordinates
``x`` and ``y``; GDAL reads the attributes ``proj:`` and ``spatial:`` of the Zarr conventions
``geo-proj`` and ``spatial`` (version 1), from which also a single array tells its place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from catalog.grid import RegionGrid

__all__ = ["georeference", "write_coordinates"]

_CONVENTIONS = [
    {
        "uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f",
        "name": "proj:",
        "schema_url": (
            "https://raw.githubusercontent.com/zarr-experimental/geo-proj/refs/tags/v1/schema.json"
        ),
        "spec_url": "https://github.com/zarr-experimental/geo-proj/blob/v1/README.md",
        "description": "Coordinate reference system information for geospatial data",
    },
    {
        "uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
        "name": "spatial:",
        "schema_url": (
            "https://raw.githubusercontent.com/zarr-conventions/spatial/refs/tags/v1/schema.json"
        ),
        "spec_url": "https://github.com/zarr-conventions/spatial/blob/v1/README.md",
        "description": "Spatial coordinate information",
    },
]
# ^ names, addresses and identifiers as the two conventions ask for them


def georeference(grid: RegionGrid) -> dict[str, Any]:
    """Attributes by which an array tells its projection and its place.

    Parameters
    ----------
    grid
        The region's grid.
    """
    return {
        "grid_mapping": "spatial_ref",
        "zarr_conventions": _CONVENTIONS,
        "proj:wkt2": grid.wkt,
        "spatial:dimensions": ["y", "x"],
        "spatial:transform": [float(value) for value in grid.transform[:6]],
        "spatial:shape": list(grid.shape),
        "spatial:registration": "pixel",
    }


def write_coordinates(store: MemoryStore, folder: str, grid: RegionGrid) -> None:
    """Write the CF coordinates of one group: ``x``, ``y`` (pixel centres) and ``spatial_ref``."""
    group = zarr.open_group(store, path=folder, mode="a")
    for axis, name in enumerate(("y", "x")):
        step, start = (
            (-grid.resolution_m, grid.top) if name == "y" else (grid.resolution_m, grid.left)
        )
        centres = start + step * (np.arange(grid.shape[axis]) + 0.5)
        group.create_array(
            name,
            data=centres,
            chunks=centres.shape,
            compressors=[Crc32cCodec()],
            # ^ not compressed: equal bytes whatever the version of a compressor
            dimension_names=(name,),
            attributes={
                "standard_name": f"projection_{name}_coordinate",
                "long_name": f"{name} of the pixel centre",
                "units": "m",
                "axis": name.upper(),
            },
        )
    transform = " ".join(repr(float(v)) for v in grid.transform.to_gdal())
    group.create_array(
        "spatial_ref",
        shape=(),
        dtype="int32",
        attributes=grid.crs.to_cf() | {"spatial_ref": grid.wkt, "GeoTransform": transform},
    )
