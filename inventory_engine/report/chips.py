"""Small images of single glaciers at two dates, with both outlines."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from catalog.cube import Workspace
from catalog.grid import RegionGrid
from inventory_engine.report import maps, rasters
from inventory_engine.report.reading import Season
from inventory_engine.report.style import new_figure, season_colours

__all__ = ["chip_figure"]

_CHIP_PX = 360


def chip_figure(
    workspace: Workspace,
    grid: RegionGrid,
    glacier_id: str,
    *,
    seasons: tuple[Season, Season],
    bands: tuple[str, str, str],
) -> Figure | None:
    """Draw one glacier in two seasons, both outlines on both images.

    Parameters
    ----------
    workspace, grid
        The region.
    glacier_id
        Which glacier.
    seasons
        Earlier and later season.
    bands
        Bands shown as red, green and blue.

    Returns
    -------
    Figure or None
        None where the glacier has no outline in either season.
    """
    outlines = [s.outlines[s.outlines["ref_id"] == glacier_id] for s in seasons]
    both = [frame for frame in outlines if len(frame)]
    if not both:
        return None
    bounds = np.array([frame.total_bounds for frame in both])
    box = (*bounds[:, :2].min(axis=0), *bounds[:, 2:].max(axis=0))
    view = rasters.view_of(grid, _square(box), max_px=_CHIP_PX, pad=0.12, inside=False)
    images = [rasters.optical(workspace, season.label, view, bands) for season in seasons]
    figure = new_figure(4.6, 2.48)
    height = figure.get_figheight()
    colours = season_colours(2)
    for index, (image, season) in enumerate(zip(maps.stretch(images), seasons, strict=True)):
        axes = figure.add_axes((0.5 * index, 0, 0.495, 1 - 0.2 / height))
        maps.draw_rgb(axes, view, image)
        for frame, colour in zip(outlines, colours, strict=True):
            maps.draw_outlines(axes, frame, colour=colour, width=0.9)
        maps.draw_frame(axes, view, furniture=False, ticks=False)
        if index:
            maps.draw_scale_bar(axes, view)
        figure.text(
            0.5 * index + 0.004,
            1 - 0.03 / height,
            _caption(season, glacier_id),
            fontsize=7,
            va="top",
            color=colours[index],
            fontweight="bold",
        )
    return figure


def _caption(season: Season, glacier_id: str) -> str:
    account = season.accounts[season.accounts["ref_id"] == glacier_id]
    day = str(account["src_date"].iloc[0])[:10] if len(account) else ""
    return f"{season.label}   {day}" if day and day.lower() != "nan" else season.label


def _square(box: tuple[float, ...]) -> tuple[float, float, float, float]:
    """Widen the shorter side, so that all chips have one shape."""
    left, bottom, right, top = box
    half = max(right - left, top - bottom) / 2
    x, y = (left + right) / 2, (bottom + top) / 2
    return x - half, y - half, x + half, y + half
