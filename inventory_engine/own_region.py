"""A user's own region as a training region: its cube, its reference outlines as labels."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd

from catalog.errors import UsageError
from catalog.glaciers import read_reference
from inventory_engine.plan import stored_grid
from inventory_engine.settings import Settings
from model_serving.cube_regions import region_from_workspace
from model_serving.regions import PreparedRegion

__all__ = ["labelled_region"]


def labelled_region(
    settings: Settings,
    folder: Path,
    *,
    season: str = "",
    debris: Path | None = None,
    lakes: Path | None = None,
) -> PreparedRegion:
    """Label one season of a region that was run before with its reference outlines.

    Parameters
    ----------
    settings
        Of the region.
    folder
        Where the labelled region is kept.
    season
        Label; by default the first of the settings.
    debris, lakes
        Files of outlines in any coordinate reference system.

    Raises
    ------
    UsageError
        Where there is no such season, it has no cube yet, or a file cannot be read.
    """
    label = season or next(iter(settings.seasons))
    if label not in settings.seasons:
        raise UsageError(f"there is no season {label!r}; known are {', '.join(settings.seasons)}")
    workspace, grid = stored_grid(settings)
    reference = read_reference(settings.outlines, id_field=settings.outlines_id_field)
    return region_from_workspace(
        workspace,
        season=label,
        grid=grid,
        inventory=reference.frame,
        folder=folder,
        name=settings.name,
        debris=_outlines(debris),
        lakes=_outlines(lakes),
    )


def _outlines(path: Path | None) -> gpd.GeoDataFrame | None:
    if path is None:
        return None
    try:
        return gpd.read_file(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the outlines {path}: {error}") from error
