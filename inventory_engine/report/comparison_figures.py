"""Figures of a comparison of outline files: map of change, outlines, size classes, time."""

from __future__ import annotations

from typing import Any

import geopandas as gpd
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from change_detection.comparison import Comparison, PairChange
from change_detection.uncertainty import bounds_of_sum_km2
from inventory_engine.report import maps
from inventory_engine.report.atlas import round_up
from inventory_engine.report.comparison_tables import classes_of, labels_of
from inventory_engine.report.figures import (
    class_label,
    plain_log_ticks,
    rate_points,
    robust_limits,
)
from inventory_engine.report.numbers import SIZE_CLASSES
from inventory_engine.report.rasters import view_around
from inventory_engine.report.style import (
    DEBRIS,
    GAIN,
    INK,
    LOSS,
    MUTED,
    PAGE_WIDTH_IN,
    new_figure,
    panel_letter,
    season_colours,
)

__all__ = ["change_map", "class_figure", "most_changed", "outline_figure", "time_figure"]

Floats = npt.NDArray[np.float64]
_SIMPLER_PX = 0.4
_NEW = "#0a7d4f"
_UNKNOWN = "#c4cad0"
_MANY_LINES = 60


def change_map(comparison: Comparison) -> Figure:
    """Glaciers coloured by their change in per cent of the area at the first date."""
    pair = comparison.period
    start, end = labels_of(comparison, pair)
    table = pair.table.set_index("glacier_id")
    shapes = _largest_outlines(comparison, pair)
    view = view_around(shapes)
    outlines = shapes.geometry.to_crs(view.grid.proj4).simplify(_SIMPLER_PX * view.pixel_m)
    shapes = shapes.set_geometry(outlines)
    rows = table.loc[shapes["glacier_id"]]
    old = rows["area_from_km2"].to_numpy(float)
    change, sigma = (
        rows[name].to_numpy(float) for name in ("area_change_km2", "area_change_sigma_km2")
    )
    percent = np.full(len(rows), np.nan)
    np.divide(100 * change, old, out=percent, where=old > 0)
    new = (old == 0) & (change > 0)
    known = np.abs(percent[np.isfinite(percent)])
    top = _usual_change(known, old[np.isfinite(percent)])
    norm = mpl.colors.Normalize(-top, top)
    figure, axes, bar = maps.map_figure(
        view,
        title=f"Area change, {start} to {end}",
        subtitle="per cent of each glacier's area at the first date, on its larger outline",
        colourbar=True,
    )
    maps.draw_frame(axes, view, furniture=False)
    unsure = np.isfinite(percent) & ~(np.abs(change) > sigma) & (change != 0)
    dot = 6 * view.pixel_m
    maps.draw_colours(
        axes, shapes[~new], percent[~new], norm=norm, cmap="RdBu", hatched=unsure[~new],
        dot_below_m=dot,
    )  # fmt: skip
    fresh = mpl.colors.ListedColormap([_NEW])
    maps.draw_colours(
        axes, shapes[new], np.ones(int(new.sum())), norm=norm, cmap=fresh,
        hatched=np.zeros(int(new.sum()), bool), dot_below_m=dot,
    )  # fmt: skip
    maps.draw_frame(axes, view)
    entries = [
        ("hatch", INK, "smaller than 1σ") if unsure.any() else None,
        ("area", _NEW, "new") if new.any() else None,
        ("area", _UNKNOWN, "not observed at both dates") if np.isnan(change).any() else None,
    ]
    if any(entries):
        maps.legend(axes, [entry for entry in entries if entry])
    if bar is not None:
        ends = "both" if known.size and known.max() > top else "neither"
        scale = figure.colorbar(
            mpl.cm.ScalarMappable(norm, "RdBu"), cax=bar, extend=ends, extendfrac=0.05
        )
        scale.set_label("% of the first area", fontsize=6.5)
        scale.outline.set_linewidth(0.4)
    return figure


def _usual_change(percent: Floats, area: Floats) -> float:
    """Limit of the colours: 95 % of the area changed by less, whatever the smallest glaciers do."""
    if not percent.any():
        return 1.0
    order = np.argsort(percent, kind="stable")
    share = np.cumsum(area[order]) / area.sum()
    return min(round_up(float(percent[order][np.searchsorted(share, 0.95)])), 100.0)


def _largest_outlines(comparison: Comparison, pair: PairChange) -> gpd.GeoDataFrame:
    """The larger of each glacier's two outlines, largest glacier first."""
    rows = []
    for identity in pair.table["glacier_id"]:
        shapes = [comparison.ice[k].geometry.get(identity) for k in (pair.start, pair.end)]
        known = [shape for shape in shapes if shape is not None]
        if known:
            rows.append((identity, max(known, key=lambda shape: shape.area)))
    rows.sort(key=lambda row: (-row[1].area, row[0]))
    return gpd.GeoDataFrame(
        {"glacier_id": [name for name, _ in rows]},
        geometry=[shape for _, shape in rows],
        crs=comparison.series.proj4,
    )


def most_changed(pair: PairChange, count: int) -> list[str]:
    """Glaciers with the largest absolute change, those beyond one standard deviation first."""
    table = pair.table[pair.table["area_change_km2"].abs() > 0]
    size = table["area_change_km2"].abs()
    beyond = size > table["area_change_sigma_km2"]
    order = table.assign(size=size, beyond=beyond).sort_values(
        ["beyond", "size", "glacier_id"], ascending=[False, False, True]
    )
    return [str(name) for name in order["glacier_id"].head(count)]


def outline_figure(comparison: Comparison, chosen: list[str]) -> Figure:
    """Outlines of all dates of a few glaciers, each in a frame of its own scale."""
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    side = (PAGE_WIDTH_IN - 0.04 - 0.12 * (columns - 1)) / max(columns, 2)
    height = rows * (side + 0.3) + 0.3
    figure = new_figure(PAGE_WIDTH_IN, height)
    colours = season_colours(len(comparison.ice))
    labels = [epoch.label for epoch in comparison.series.epochs]
    for place, identity in enumerate(chosen):
        row, column = divmod(place, columns)
        left = (0.02 + column * (side + 0.12)) / PAGE_WIDTH_IN
        bottom = 1 - (0.2 + row * (side + 0.3) + side) / height
        axes = figure.add_axes((left, bottom, side / PAGE_WIDTH_IN, side / height))
        _draw_glacier(axes, comparison, identity, colours)
    handles = [
        mpl.lines.Line2D([], [], color=colour, linewidth=1.6, label=label)
        for label, colour in zip(labels, colours, strict=True)
    ]
    figure.legend(handles=handles, loc="lower center", ncols=min(len(labels), 8))
    return figure


def _draw_glacier(axes: Axes, comparison: Comparison, identity: str, colours: list[str]) -> None:
    name = comparison.names.get(identity, "")
    title = name if name == identity else " · ".join(filter(None, (name, identity)))
    axes.set_title(title, loc="left", pad=3)
    shapes = [one.geometry.get(identity) for one in comparison.ice]
    frame = gpd.GeoSeries([s for s in shapes if s is not None], crs=comparison.series.proj4)
    view = view_around(gpd.GeoDataFrame(geometry=frame))
    for shape, colour in zip(shapes, colours, strict=True):
        if shape is not None:
            one = gpd.GeoDataFrame(geometry=[shape], crs=comparison.series.proj4)
            maps.draw_outlines(axes, one.to_crs(view.grid.proj4), colour=colour, width=0.9)
    maps.draw_frame(axes, view, furniture=False, ticks=False)
    left, right, bottom, top = view.extent
    half = 1.08 * max(right - left, top - bottom) / 2
    # The scale bar lies below the outlines.
    x, y = (left + right) / 2, (bottom + top) / 2 - 0.08 * half
    axes.set_xlim(x - half, x + half)
    axes.set_ylim(y - half, y + half)
    _scale_bar(axes, half)


def _scale_bar(axes: Axes, half_m: float) -> None:
    """Draw a bar of a round length: a frame of one glacier is true to scale."""
    wanted = 0.5 * half_m
    power = 10.0 ** np.floor(np.log10(wanted))
    length = float(power * max(m for m in (1, 2, 5) if m * power <= wanted))
    right, bottom = axes.get_xlim()[1] - 0.08 * half_m, axes.get_ylim()[0] + 0.1 * half_m
    axes.plot([right - length, right], [bottom, bottom], color=INK, linewidth=1.4, zorder=9)
    label = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    axes.text(right - length / 2, bottom + 0.03 * half_m, label, ha="center", va="bottom",
              fontsize=6, zorder=9)  # fmt: skip


def class_figure(comparison: Comparison) -> Figure:
    """Change in per cent against size, glacier by glacier (a), and by size class (b)."""
    pair = comparison.period
    table = pair.table[pair.table["area_change_km2"].notna() & (pair.table["area_from_km2"] > 0)]
    old, change, sigma = (
        table[name].to_numpy(float)
        for name in ("area_from_km2", "area_change_km2", "area_change_sigma_km2")
    )
    figure = new_figure(PAGE_WIDTH_IN, 2.8)
    first = figure.add_axes((0.075, 0.2, 0.44, 0.7))
    percent, error = 100 * change / old, 100 * sigma / old
    rate_points(first, old, percent, error)
    first.set_xscale("log")
    plain_log_ticks(first.xaxis)
    if len(old):
        first.set_ylim(*robust_limits(percent, error))
        mean = pair.totals["area_change_percent"]
        first.axhline(mean, color=DEBRIS, linewidth=1, label="all glaciers", zorder=2)
    first.axhline(0, color=INK, linewidth=0.6, zorder=1)
    first.set_xlabel("Area at the first date (km²)")
    first.set_ylabel("Area change (%)")
    first.grid(visible=True, which="major")
    first.legend(loc="lower right")
    second = figure.add_axes((0.6, 0.2, 0.39, 0.7))
    _class_bars(second, pair)
    panel_letter(first, "a")
    panel_letter(second, "b")
    return figure


def _class_bars(axes: Axes, pair: PairChange) -> None:
    table = pair.table[pair.table["area_change_km2"].notna()]
    kinds = classes_of(table)
    used = [number for number in range(len(SIZE_CLASSES) - 1) if (kinds == number).any()]
    changes = [float(table["area_change_km2"][kinds == number].sum()) for number in used]
    sigmas = [
        bounds_of_sum_km2(table["area_change_sigma_km2"][kinds == number].to_numpy())[1]
        for number in used
    ]
    place = np.arange(len(used))
    colours = [LOSS if change < 0 else GAIN for change in changes]
    axes.bar(place, changes, 0.7, color=colours, zorder=2)
    axes.errorbar(
        place, changes, yerr=sigmas, fmt="none", ecolor=INK, elinewidth=0.8, capsize=2, zorder=3
    )
    axes.axhline(0, color=INK, linewidth=0.6, zorder=1)
    counts = [int((kinds == number).sum()) for number in used]
    axes.set_xticks(
        place, [f"{class_label(n)}\nn = {count}" for n, count in zip(used, counts, strict=True)]
    )
    axes.set_xlabel("Size class by area at the first date (km²)")
    axes.set_ylabel("Area change (km²)")
    axes.grid(visible=True, axis="y")


def time_figure(comparison: Comparison) -> Figure:
    """Total area through time (a), and every glacier's area relative to its first (b)."""
    figure = new_figure(PAGE_WIDTH_IN, 2.7)
    first = figure.add_axes((0.075, 0.17, 0.4, 0.73))
    always = np.isfinite(comparison.area_km2).all(axis=0)
    total = comparison.area_km2[:, always].sum(axis=1)
    sigma = np.array(
        [bounds_of_sum_km2(row)[1] for row in np.nan_to_num(comparison.sigma_km2[:, always])]
    )
    years = np.array([1970 + epoch.day / 365.2425 for epoch in comparison.series.epochs])
    colours = season_colours(len(years))
    first.plot(years, total, color=MUTED, linewidth=0.8, zorder=1)
    for year, area, error, colour in zip(years, total, sigma, colours, strict=True):
        first.errorbar(
            year, area, yerr=error, fmt="o", color=colour, markersize=5, capsize=2.5, zorder=3
        )
    first.margins(x=0.08, y=0.12)
    first.set_ylabel("Area (km²)")
    first.set_xlabel("Median date of the outlines (year)")
    second = figure.add_axes((0.56, 0.17, 0.42, 0.73))
    _relative_lines(second, comparison)
    for axes, letter in ((first, "a"), (second, "b")):
        axes.ticklabel_format(useOffset=False)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(visible=True)
        panel_letter(axes, letter)
    return figure


def _relative_lines(axes: Axes, comparison: Comparison) -> None:
    area, when = comparison.area_km2, 1970 + comparison.day / 365.2425
    order = np.argsort(-np.nan_to_num(area[0]), kind="stable")
    lines: Any = [i for i in order if area[0, i] > 0][:_MANY_LINES]
    alpha = 0.9 if len(lines) <= 12 else 0.45
    for i in lines:
        axes.plot(
            when[:, i], 100 * area[:, i] / area[0, i], "o-", markersize=2.5, linewidth=0.8,
            alpha=alpha, label=comparison.names.get(comparison.glaciers[i], comparison.glaciers[i]),
        )  # fmt: skip
    if len(lines) <= 8:
        axes.legend(loc="best")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("Date of the outline (year)")
    axes.set_ylabel("Area (% of the first)")
