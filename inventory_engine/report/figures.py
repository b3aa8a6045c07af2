"""Plots of the report: change against size and elevation, areas, hypsometry, dates of the data."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from inventory_engine.report.numbers import (
    SIZE_CLASSES,
    PairTotals,
    SeasonTotals,
    class_medians,
    size_class_areas,
)
from inventory_engine.report.reading import Season
from inventory_engine.report.style import (
    CLEAN,
    DEBRIS,
    INK,
    MUTED,
    PAGE_WIDTH_IN,
    new_figure,
    panel_letter,
    season_colours,
)

__all__ = [
    "area_figure",
    "class_label",
    "hypsometry_figure",
    "plain_log_ticks",
    "rate_figure",
    "rate_points",
    "robust_limits",
    "timeline_figure",
]

Floats = npt.NDArray[np.float64]
_MANY = 400
# ^ above this many glaciers error bars fade, above four times as many points become an image


def rate_figure(glaciers: Any, totals: PairTotals) -> Figure:
    """Rates of the measured glaciers against size (a) and median elevation (b)."""
    figure = new_figure(PAGE_WIDTH_IN, 2.9)
    area = glaciers["area_from_km2"].to_numpy(float)
    rate = glaciers["rate_percent_per_year"].to_numpy(float)
    sigma = glaciers["rate_percent_sigma"].to_numpy(float)
    height = glaciers["zmed_m"].to_numpy(float)
    limits = robust_limits(rate, sigma)
    first = figure.add_axes((0.075, 0.16, 0.44, 0.74))
    rate_points(first, area, rate, sigma)
    first.set_xscale("log")
    plain_log_ticks(first.xaxis)
    rows = class_medians(area, rate)
    if rows:
        size, middle, low, high, _ = (np.array(column) for column in zip(*rows, strict=True))
        first.errorbar(
            size,
            middle,
            yerr=(middle - low, high - middle),
            fmt="D",
            color=INK,
            markersize=4.5,
            markerfacecolor="white",
            markeredgewidth=1,
            elinewidth=1,
            zorder=5,
            label="median and quartiles of a size class",
        )
    first.set_xlabel("Area at the first date (km²)")
    first.set_ylabel("Area change rate (% per year)")
    second = figure.add_axes((0.575, 0.16, 0.33, 0.74), sharey=first)
    scatter = _rate_by_height(second, height, rate, area)
    second.set_xlabel("Median elevation (m)")
    second.tick_params(labelleft=False)
    for axes, letter in ((first, "a"), (second, "b")):
        _zero_and_mean(axes, totals)
        axes.set_ylim(*limits)
        panel_letter(axes, letter)
    first.legend(loc="lower right")
    if scatter is not None:
        bar = figure.colorbar(scatter, cax=figure.add_axes((0.918, 0.16, 0.012, 0.74)))
        bar.set_label("Area at the first date (km²)")
        plain_log_ticks(bar.ax.yaxis)
        bar.outline.set_linewidth(0.4)
    _count_outside(first, rate, limits)
    return figure


def plain_log_ticks(axis: Any) -> None:
    """Label a logarithmic axis at 1, 2 and 5, without powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def rate_points(axes: Axes, area: Floats, rate: Floats, sigma: Floats) -> None:
    """Draw a point with its error for each glacier, hollow where there is no error."""
    many = len(area) > _MANY
    known = np.isfinite(sigma)
    for keep, face in ((known, CLEAN), (~known, "white")):
        axes.errorbar(
            area[keep],
            rate[keep],
            yerr=sigma[keep] if keep is known else None,
            fmt="o",
            markersize=2.2 if many else 3,
            color=CLEAN,
            markerfacecolor=face,
            markeredgewidth=0.5,
            ecolor=CLEAN,
            elinewidth=0.5,
            alpha=0.35 if many else 0.75,
            rasterized=len(area) > 4 * _MANY,
            zorder=3,
            label=("glacier, ±1σ" if keep is known else "glacier, no interval")
            if keep.any()
            else None,
        )


def _rate_by_height(axes: Axes, height: Floats, rate: Floats, area: Floats) -> Any:
    good = np.isfinite(height) & np.isfinite(rate) & (area > 0)
    if not good.any():
        _say(axes, "median elevation not available:\nthe run has no terrain")
        return None
    axes.margins(x=0.06)
    return axes.scatter(
        height[good],
        rate[good],
        c=area[good],
        norm=LogNorm(),
        cmap="viridis",
        s=11,
        alpha=0.85,
        linewidths=0.3,
        edgecolors="white",
        zorder=3,
        rasterized=len(area) > 4 * _MANY,
    )


def _zero_and_mean(axes: Axes, totals: PairTotals) -> None:
    axes.axhline(0, color=INK, linewidth=0.6, zorder=1)
    mean, sigma = totals.rate_percent_per_year, totals.rate_percent_sigma
    axes.axhline(mean, color=DEBRIS, linewidth=1, zorder=2, label="whole region")
    if np.isfinite(sigma):
        axes.axhspan(mean - sigma, mean + sigma, color=DEBRIS, alpha=0.15, linewidth=0, zorder=0)
    axes.grid(visible=True, which="major")


def robust_limits(rate: Floats, sigma: Floats) -> tuple[float, float]:
    """Limits of an axis of rates that the wildest two per cent of many glaciers do not set."""
    good = rate[np.isfinite(rate)]
    if not good.size:
        return -1.0, 1.0
    low, high = np.percentile(good, (1, 99)) if good.size > 50 else (good.min(), good.max())
    bar = np.nanmedian(sigma) if np.isfinite(sigma).any() else 0.0
    pad = 0.08 * max(high - low, 0.1) + bar
    return min(float(low - pad), -0.2), max(float(high + pad), 0.2)


def _count_outside(axes: Axes, rate: Floats, limits: tuple[float, float]) -> None:
    outside = int(((rate < limits[0]) | (rate > limits[1])).sum())
    if outside:
        axes.text(
            0.02,
            0.02,
            f"{outside} beyond the axis",
            transform=axes.transAxes,
            fontsize=6,
            color=MUTED,
        )


def area_figure(
    seasons: Sequence[Season], totals: Sequence[SeasonTotals], *, scale: float
) -> Figure:
    """Total area through time (a) and area per size class and season (b)."""
    figure = new_figure(PAGE_WIDTH_IN, 2.6)
    colours = season_colours(len(seasons))
    first = figure.add_axes((0.075, 0.25, 0.3, 0.66))
    years = [_decimal_year(total.date_median) for total in totals]
    for total, year, colour in zip(totals, years, colours, strict=True):
        sigma = total.sigma_km2 if np.isfinite(total.sigma_km2) else None
        first.errorbar(
            year,
            total.area_km2,
            yerr=sigma,
            fmt="o",
            color=colour,
            markersize=5,
            elinewidth=1,
            capsize=2.5,
            zorder=3,
        )
        first.annotate(
            total.label,
            (year, total.area_km2),
            xytext=(6, 3),
            textcoords="offset points",
            fontsize=6.5,
            color=colour,
        )
    first.margins(x=0.22, y=0.2)
    first.set_ylabel("Mapped area (km²)")
    first.set_xlabel("Median date of the outlines (year)")
    first.ticklabel_format(useOffset=False)
    first.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    first.grid(visible=True)
    second = figure.add_axes((0.46, 0.25, 0.52, 0.66))
    _size_class_bars(second, seasons, colours, scale=scale)
    panel_letter(first, "a")
    panel_letter(second, "b")
    return figure


def _size_class_bars(
    axes: Axes, seasons: Sequence[Season], colours: Sequence[str], *, scale: float
) -> None:
    results = [size_class_areas(season, scale=scale) for season in seasons]
    most = np.max([numbers for _, numbers, _ in results], axis=0)
    used = np.flatnonzero(most)
    width = 0.8 / max(len(seasons), 1)
    place = np.arange(len(used))
    for index, ((areas, _, sigmas), season) in enumerate(zip(results, seasons, strict=True)):
        x = place + (index - (len(seasons) - 1) / 2) * width
        axes.bar(x, areas[used], 0.92 * width, color=colours[index], label=season.label, zorder=2)
        known = np.isfinite(sigmas[used])
        axes.errorbar(
            x[known],
            areas[used][known],
            yerr=sigmas[used][known],
            fmt="none",
            ecolor=INK,
            elinewidth=0.7,
            capsize=1.5,
            zorder=3,
        )
    axes.set_xticks(place, [f"{class_label(int(i))}\nn = {most[i]}" for i in used])
    axes.set_xlabel("Size class by reference area (km²), glaciers with ice")
    axes.set_ylabel("Mapped area (km²)")
    axes.margins(y=0.12)
    axes.grid(visible=True, axis="y")
    axes.legend(loc="best", ncols=2 if len(seasons) > 3 else 1)


def class_label(index: int) -> str:
    """Name of a class of :data:`inventory_engine.report.numbers.SIZE_CLASSES`."""
    low, high = SIZE_CLASSES[index], SIZE_CLASSES[index + 1]
    if index == 0:
        return f"< {high:g}"
    return f"> {low:g}" if np.isinf(high) else f"{low:g}–{high:g}"


def hypsometry_figure(
    edges: Floats, seasons: Sequence[tuple[str, Floats, Floats]], *, differences: bool
) -> Figure:
    """Area per elevation band and season (a), and what changed in each band (b).

    Parameters
    ----------
    edges
        Limits of the bands in metres.
    seasons
        Label, total area and debris-covered area per band (km2).
    differences
        Whether the first and last season may be compared.
    """
    figure = new_figure(PAGE_WIDTH_IN, 3.1)
    colours = season_colours(len(seasons))
    middle = (edges[:-1] + edges[1:]) / 2
    first = figure.add_axes((0.085, 0.14, 0.5, 0.78))
    for (label, area, _), colour in zip(seasons, colours, strict=True):
        first.step(area, middle, where="mid", color=colour, linewidth=1.2, label=label)
    label, _, debris = seasons[-1]
    first.fill_betweenx(
        middle,
        0,
        debris,
        step="mid",
        color=DEBRIS,
        alpha=0.35,
        linewidth=0,
        label=f"debris-covered, {label}",
    )
    first.set_xlim(left=0)
    first.set_xlabel(f"Area per {edges[1] - edges[0]:g} m band (km²)")
    first.set_ylabel("Elevation (m)")
    first.legend(loc="upper right")
    second = figure.add_axes((0.66, 0.14, 0.32, 0.78), sharey=first)
    if differences:
        change = seasons[-1][1] - seasons[0][1]
        second.barh(
            middle,
            change,
            height=0.86 * (edges[1] - edges[0]),
            color=np.where(change < 0, "#b2182b", "#2166ac"),
        )
        second.axvline(0, color=INK, linewidth=0.6)
        second.set_xlabel(f"Change {seasons[0][0]} to {seasons[-1][0]} (km²)")
    else:
        _say(second, "the seasons cannot be compared,\nno change is shown")
    second.tick_params(labelleft=False)
    for axes, letter in ((first, "a"), (second, "b")):
        axes.grid(visible=True)
        panel_letter(axes, letter)
    return figure


_MARKS = {"optical": ("o", CLEAN), "sar": ("s", "#5e4fa2"), "dem": ("^", "#3a7d44")}

_KINDS = {"sar": "radar"}


def timeline_figure(seasons: Sequence[Season]) -> Figure:
    """Days of the year of the scenes of each season, and of the pixels the outlines come from."""
    figure = new_figure(PAGE_WIDTH_IN, 0.75 + 0.42 * len(seasons))
    height = figure.get_figheight()
    axes = figure.add_axes((0.11, 0.42 / height, 0.87, 1 - 0.72 / height))
    labelled: set[str] = set()
    for row, season in enumerate(seasons):
        _season_window(axes, row, season)
        days = season.accounts["day"].where(season.accounts["area_km2"] > 0).dropna()
        if len(days):
            used = np.array([_day_of_year(d) for d in days.astype(int)])
            axes.plot(
                used,
                np.full(len(used), row - 0.24),
                "|",
                color=INK,
                markersize=4,
                markeredgewidth=0.6,
                label=_once("dates of the outlines", labelled),
            )
        for scene in season.scenes:
            kind = str(scene.get("kind", ""))
            mark, colour = _MARKS.get(kind.lower(), ("x", MUTED))
            moment = _parse_day(scene.get("datetime"))
            if moment is None or kind.lower() == "dem":
                continue
            axes.plot(
                _day_of_year(moment),
                row + 0.08,
                mark,
                color=colour,
                markersize=4,
                alpha=_clear(scene),
                markeredgewidth=0.5,
                label=_once(f"{_KINDS.get(kind.lower(), kind or 'other')} scene", labelled),
            )
    axes.set_ylim(len(seasons) - 0.45, -0.55)
    axes.set_yticks(range(len(seasons)), [season.label for season in seasons])
    starts = [date(2001, month, 1).timetuple().tm_yday for month in range(1, 13)]
    axes.set_xticks(starts, ["J", "F", "M", "A", "M", "J", "J", "A", "S", "O", "N", "D"])
    axes.set_xlim(1, 366)
    axes.grid(visible=True, axis="x")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1.0), ncols=4, borderaxespad=0.1)
    return figure


def _season_window(axes: Axes, row: int, season: Season) -> None:
    start, end = _parse_day(season.start), _parse_day(season.end)
    if start is None or end is None:
        return
    first, last = _day_of_year(start), _day_of_year(end)
    spans = [(first, last)] if end - start < 366 and last >= first else [(first, 366), (1, last)]
    if end - start >= 366:
        spans = [(1, 366)]
    for low, high in spans:
        axes.barh(row, high - low, left=low, height=0.72, color="#edf1f5", zorder=0)


def _clear(scene: dict[str, Any]) -> float:
    """Opacity of a scene's mark: the cloudier, the fainter."""
    try:
        cloud = float(scene.get("cloud_percent"))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return 0.9
    return 0.9 - 0.65 * min(max(cloud, 0.0), 100.0) / 100 if np.isfinite(cloud) else 0.9


def _once(label: str, seen: set[str]) -> str | None:
    if label in seen:
        return None
    seen.add(label)
    return label


def _parse_day(value: object) -> int | None:
    try:
        return date.fromisoformat(str(value)[:10]).toordinal() - date(1970, 1, 1).toordinal()
    except ValueError:
        return None


def _day_of_year(day: int) -> int:
    return date.fromordinal(int(day) + date(1970, 1, 1).toordinal()).timetuple().tm_yday


def _decimal_year(text: str) -> float:
    day = _parse_day(text)
    return np.nan if day is None else 1970 + day / 365.2425


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=MUTED)
