"""The report's map figures: seasons, outlines through time, rates by glacier, confidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import geopandas as gpd
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from catalog.cube import Workspace
from inventory_engine.report import maps, rasters
from inventory_engine.report.numbers import PairTotals, SeasonTotals
from inventory_engine.report.rasters import View
from inventory_engine.report.reading import Pair, Season
from inventory_engine.report.style import (
    DEBRIS,
    INK,
    MUTED,
    PAGE_WIDTH_IN,
    new_figure,
    season_colours,
)
from inventory_engine.report.tables import day_range

__all__ = [
    "change_map",
    "confidence_map",
    "hypsometry",
    "rate_map",
    "region_bounds",
    "relief",
    "round_up",
    "season_map",
]

Floats = npt.NDArray[np.float32]
_OUTLINE = "#0b2545"


def relief(workspace: Workspace, view: View, seasons: Sequence[Season]) -> tuple[Floats, str]:
    """Grey background ``(y, x)`` in [0, 1] and its name: shaded relief, else a grey composite."""
    heights = rasters.elevation(workspace, view)
    if np.isfinite(heights).any():
        return rasters.hillshade(heights, view.pixel_m), "shaded relief"
    last = seasons[-1]
    red = rasters.optical(workspace, last.label, view, ("red",))
    grey = maps.stretch([np.repeat(red, 3, axis=0)])[0][..., 0]
    return grey, f"red band of {last.label}"


def season_map(
    view: View, rgb: Floats, debris: Floats, *, season: Season, totals: SeasonTotals
) -> Figure:
    """Composite of one season with its outlines and the debris-covered part."""
    figure, axes, _ = maps.map_figure(
        view,
        title=season.label,
        subtitle=f"median acquisition days of the glaciers: {day_range(totals)}",
    )
    maps.draw_rgb(axes, view, rgb)
    maps.draw_debris(axes, view, debris, season.outlines)
    maps.draw_outlines(axes, season.outlines, colour=_OUTLINE)
    maps.draw_frame(axes, view)
    maps.legend(
        axes,
        [("line", _OUTLINE, "mapped glacier outline"), ("area", DEBRIS, "debris-covered ice")],
    )
    return figure


def change_map(
    view: View, background: Floats, seasons: Sequence[Season], *, comparable: bool
) -> Figure:
    """Outlines of all seasons in one ordered ramp, oldest darkest."""
    note = (
        "outlines of all seasons"
        if comparable
        else "outlines of all seasons: no pair is comparable, differences are not glacier change"
    )
    figure, axes, _ = maps.map_figure(view, title="Outlines through time", subtitle=note)
    maps.draw_grey(axes, view, background)
    colours = season_colours(len(seasons))
    for season, colour in zip(seasons, colours, strict=True):
        maps.draw_outlines(axes, season.outlines, colour=colour, width=0.7)
    maps.draw_frame(axes, view)
    maps.legend(axes, [("line", c, s.label) for s, c in zip(seasons, colours, strict=True)])
    return figure


def rate_map(
    view: View,
    background: Floats,
    *,
    season: Season,
    pair: Pair,
    totals: PairTotals,
    measured: npt.NDArray[np.bool_],
) -> Figure:
    """Glaciers coloured by their rate of area change in per cent a year."""
    table = pair.glaciers.assign(measured=measured).set_index("glacier_id")
    shapes = season.outlines[["ref_id", "geometry"]].dissolve("ref_id", as_index=False)
    rows = table.reindex(shapes["ref_id"])
    rate = rows["rate_percent_per_year"].to_numpy(float)
    rate[~rows["measured"].fillna(value=False).to_numpy(bool)] = np.nan
    sigma = rows["rate_percent_sigma"].to_numpy(float)
    unsure = np.isfinite(rate) & ~(np.abs(rate) > sigma)
    top = np.nanpercentile(np.abs(rate), 95) if np.isfinite(rate).any() else 1.0
    norm = mpl.colors.Normalize(-round_up(top), round_up(top))
    figure, axes, bar = maps.map_figure(
        view,
        title=f"Area change rate, {totals.start} to {totals.end}",
        subtitle="per cent of the glacier's area at the first date, per year",
        colourbar=True,
    )
    maps.draw_grey(axes, view, background, low=0.55)
    maps.draw_colours(
        axes, shapes, rate, norm=norm, cmap="RdBu", hatched=unsure, dot_below_m=6 * view.pixel_m
    )
    maps.draw_frame(axes, view)
    maps.legend(
        axes,
        [("hatch", INK, "smaller than 1σ, or no interval"), ("area", "#c4cad0", "not measured")],
    )
    if bar is not None:
        scale = figure.colorbar(
            mpl.cm.ScalarMappable(norm, "RdBu"), cax=bar, extend="both", extendfrac=0.05
        )
        scale.set_label("% per year", fontsize=6.5)
        scale.outline.set_linewidth(0.4)
    return figure


def round_up(value: float) -> float:
    """Next round number at or above a positive value."""
    if not np.isfinite(value) or value <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(m for m in (1, 1.5, 2, 3, 4, 5, 7.5, 10) if m * power >= value) * power)


def confidence_map(workspace: Workspace, view: View, seasons: Sequence[Season]) -> Figure:
    """Small multiples: ice probability, ensemble spread and clear looks of each season."""
    columns = min(len(seasons), 4)
    shown = list(seasons) if len(seasons) <= columns else [*seasons[: columns - 1], seasons[-1]]
    ratio = view.shape[0] / view.shape[1]
    cell = min((PAGE_WIDTH_IN - 0.75) / columns, 2.3 / ratio)
    width, height = cell * columns + 0.75, 3 * (cell * ratio + 0.06) + 0.25
    figure = new_figure(width, height)
    looks = [rasters.observations(workspace, s.label, view) for s in shown]
    most = max(1.0, *(float(np.nanmax(v)) if np.isfinite(v).any() else 1.0 for v in looks))
    rows: list[tuple[str, str, float, list[Floats]]] = [
        (
            "Ice probability",
            "cividis",
            1.0,
            [rasters.ice_probability(workspace, s.label, view) for s in shown],
        ),
        (
            "Ensemble spread (σ)",
            "magma_r",
            0.5,
            [rasters.spread(workspace, s.label, view) for s in shown],
        ),
        ("Clear looks", "YlGnBu", most, looks),
    ]
    for r, (name, cmap, top, images) in enumerate(rows):
        y = 1 - (0.2 + (r + 1) * cell * ratio + 0.06 * r) / height
        boxes = [
            (0.2 / width + c * cell / width, y, 0.98 * cell / width, cell * ratio / height)
            for c in range(len(images))
        ]
        axes = [figure.add_axes(box) for box in boxes]
        for c, image in enumerate(images):
            drawn = _multiple(axes[c], view, image, cmap=cmap, top=top)
            if r != 1:  # the spread lies along the outlines and must not be hidden by them
                maps.draw_outlines(axes[c], shown[c].outlines, colour=INK, width=0.25, halo="none")
            if r == 0:
                axes[c].set_title(shown[c].label, fontsize=7.5, fontweight="bold", pad=3)
        axes[0].set_ylabel(name, fontsize=6.8, labelpad=3)
        left = (0.28 + columns * cell) / width
        tall = cell * ratio / height
        bar = figure.add_axes((left, y + 0.1 * tall, 0.07 / width, 0.8 * tall))
        scale = figure.colorbar(drawn, cax=bar, ticks=MaxNLocator(5, integer=r == 2))
        scale.outline.set_linewidth(0.4)
    return figure


def _multiple(axes: Axes, view: View, image: Floats, *, cmap: str, top: float) -> Any:
    """Draw one small map and say so where it has nothing to show."""
    drawn = axes.imshow(
        image, extent=view.extent, cmap=cmap, vmin=0, vmax=top, interpolation="antialiased"
    )
    axes.set_facecolor("#eef0f2")
    maps.draw_frame(axes, view, furniture=False, ticks=False)
    if not np.isfinite(image).any():
        axes.text(0.5, 0.5, "not available", transform=axes.transAxes, ha="center", color=MUTED)
    return drawn


def hypsometry(
    workspace: Workspace, view: View, seasons: Sequence[Season]
) -> (
    tuple[
        npt.NDArray[np.float64], list[tuple[str, npt.NDArray[np.float64], npt.NDArray[np.float64]]]
    ]
    | None
):
    """Total and debris-covered area per elevation band inside each season's outlines.

    Sampled at the view's pixels; scaled to nothing, so sums differ slightly from the tables.

    Returns
    -------
    edges, [(label, area_km2, debris_km2)]
        None where there is no terrain or no ice.
    """
    heights = rasters.elevation(workspace, view)
    inside = [maps.burn(season.outlines, view) >= 0 for season in seasons]
    any_ice = np.any(inside, axis=0) & np.isfinite(heights)
    if not any_ice.any():
        return None
    low, high = float(heights[any_ice].min()), float(heights[any_ice].max())
    step = 50.0 if high - low <= 2000 else 100.0
    edges = np.arange(np.floor(low / step) * step, high + step, step)
    pixel_km2 = view.pixel_m**2 / 1e6
    out = []
    for season, ice in zip(seasons, inside, strict=True):
        keep = ice & np.isfinite(heights)
        debris = np.nan_to_num(rasters.debris_cover(workspace, season.label, view))
        area = np.histogram(heights[keep], edges)[0] * pixel_km2
        covered = np.histogram(heights[keep], edges, weights=debris[keep])[0] * pixel_km2
        out.append((season.label, area, covered))
    return edges, out


def region_bounds(seasons: Sequence[Season]) -> tuple[float, float, float, float] | None:
    """Bounds of all outlines of all seasons in grid metres; None without outlines."""
    frames: list[gpd.GeoDataFrame] = [s.outlines for s in seasons if len(s.outlines)]
    if not frames:
        return None
    bounds = np.array([frame.total_bounds for frame in frames])
    low, high = bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])
