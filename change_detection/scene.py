"""What the store says about one glacier batch in one season: classes, votes, days, terrain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from catalog.cube import (
    CLASSES,
    DATE_MISSING,
    NOT_SEEN,
    TERRAIN_BANDS,
    Workspace,
    read_window,
    terrain_name,
)
from catalog.grid import RegionGrid
from change_detection.divides import GlacierBatch

__all__ = ["Scene", "read_elevation", "read_scene"]

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Scene:
    """Pixels ``(y, x)`` of a batch's window in one season."""

    seen: Mask
    """Observed in this season."""
    ice: Mask
    """Seen, and clean and debris-covered ice together at least as likely as anything else."""
    debris: Mask
    """Ice that is more likely debris-covered than clean."""
    water: Mask
    """Seen, not ice, and more likely water than background."""
    votes: npt.NDArray[np.uint32]
    """Bit i: member i sees ice."""
    voters: npt.NDArray[np.uint32]
    """Bit i: member i was allowed to vote."""
    day: npt.NDArray[np.int32]
    """Day of acquisition since 1970-01-01, ``DATE_MISSING`` where there is none."""
    sar: Mask | None
    """Pixels with radar backscatter, or None where no radar was asked for."""

    @property
    def dated(self) -> Mask:
        """Seen pixels with a day of acquisition."""
        return np.asarray(self.seen & (self.day != DATE_MISSING))


def read_scene(workspace: Workspace, season: str, batch: GlacierBatch) -> Scene:
    """Read a batch's window from the map and the cube, across shard seams.

    A pixel is ice where the stored probabilities of clean and debris-covered ice add up to at
    least those of background and water. (Their sum is compared, not the most likely class: at a
    debris-covered tongue the two kinds of ice may share what would be a clear majority. A tie is
    ice, as for a member's vote.)

    Raises
    ------
    StoreError
        Where a layer is missing or damaged.
    """

    def read(name: str) -> npt.NDArray[Any]:
        array = workspace.array(name)
        return read_window(array, batch.row0, batch.col0, shape=batch.shape)

    share = dict(zip(CLASSES, read(f"map.zarr/{season}/probability"), strict=True))
    other, clean, debris, water = (
        share[c] for c in ("background", "clean ice", "debris-covered ice", "water")
    )
    seen = other != NOT_SEEN
    ice = seen & (_sum(clean, debris) >= _sum(other, water))
    radar = f"cube.zarr/{season}/sar"
    return Scene(
        seen=seen,
        ice=ice,
        debris=ice & (debris > clean),
        water=seen & ~ice & (water > other),
        votes=read(f"map.zarr/{season}/votes"),
        voters=read(f"map.zarr/{season}/voters"),
        day=read(f"cube.zarr/{season}/date"),
        sar=(read(radar) != 0).all(axis=0) if workspace.has_array(radar) else None,
    )


def _sum(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    return a.astype(np.uint16) + b.astype(np.uint16)


def read_elevation(
    workspace: Workspace, batch: GlacierBatch, grid: RegionGrid
) -> tuple[npt.NDArray[np.float32] | None, str]:
    """Elevation of a batch's window on a grid, in metres, and the name of its source.

    Returns
    -------
    tuple
        ``(y, x)`` float32, NaN where unknown, and the array's attribute ``dem_source`` (empty where
        it has none); ``(None, "")`` where the store has no terrain or none in this window.
    """
    name = terrain_name(grid)
    if not workspace.has_array(name):
        return None, ""
    array = workspace.array(name)
    bands = read_window(array, batch.row0, batch.col0, shape=batch.shape)
    elevation: npt.NDArray[np.float32] = bands[TERRAIN_BANDS.index("elevation")]
    if not np.isfinite(elevation).any():
        return None, ""
    return elevation, str(array.attrs.get("dem_source", ""))
