"""The map of what a validation found: an overview in degrees, and close views of single places.

Longitude and latitude are the axes, so that north is up everywhere and a place can be typed into a
GIS as it is read off.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely

from change_detection.topology import Geometries
from change_detection.validation.layer import layer_of
from change_detection.validation.rules import Finding

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_findings"]

_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#7b3294", "#1d2733", "#a50026")
_MARKERS = "os^Dv<>P"
_ICE, _EDGE, _NEAR = "#dbe6ee", "#8fa3b3", "#6aa6cc99"
_CLOSE, _COLUMNS = 8, 4
_LEAST_M, _MOST_M = 250.0, 5000.0
# ^ half the width of a close view: a glacier and what is around it
_METRES = 111_320.0
_PX = 1500.0


@dataclass(frozen=True, slots=True)
class _Scene:
    """What is drawn on every panel."""

    polygons: Geometries
    names: npt.NDArray[Any]
    tree: shapely.STRtree
    findings: tuple[Finding, ...]
    """Those with a place, errors first."""
    x: npt.NDArray[np.float64]
    """Their longitudes, continuous across the antimeridian."""
    looks: dict[str, tuple[str, str]]
    """Colour and marker of each rule."""


def draw_findings(glaciers: gpd.GeoDataFrame, findings: Sequence[Finding], *, title: str) -> Figure:
    """Draw all findings that have a place over the outlines, and up to eight of them close by.

    Close views show each kind of finding before they show one again, errors first; their numbers
    stand in the overview.

    Parameters
    ----------
    glaciers
        Outlines in any coordinate reference system.
    findings
        Of their validation.
    title
        Name of the file and how it stands.
    """
    from inventory_engine.report.style import PAGE_WIDTH_IN, new_figure

    scene = _scene(glaciers, findings)
    close = _chosen(scene.findings)
    box = _around(scene)
    ratio = min((box[3] - box[1]) / ((box[2] - box[0]) * _squeeze(box)), 0.75)
    left, foot, head, gap = 0.5, 0.25, 0.4, 0.12
    wide = PAGE_WIDTH_IN - left - 1.75
    small = (PAGE_WIDTH_IN - 0.1 - (_COLUMNS - 1) * gap) / _COLUMNS
    rows = -(-len(close) // _COLUMNS)
    row = small + 0.62
    height = head + wide * ratio + foot + 0.15 + rows * row
    figure = new_figure(PAGE_WIDTH_IN, height)
    figure.text(
        0.05 / PAGE_WIDTH_IN, 1 - 0.08 / height, title, fontsize=8.5, fontweight="bold", va="top"
    )
    place = (left, height - head - wide * ratio, wide, wide * ratio)
    overview = figure.add_axes(_share(place, PAGE_WIDTH_IN, height))
    _draw_overview(overview, scene, box, close)
    for i, index in enumerate(close):
        x = 0.05 + i % _COLUMNS * (small + gap)
        y = (rows - 1 - i // _COLUMNS) * row + 0.04
        panel = figure.add_axes(_share((x, y, small, small), PAGE_WIDTH_IN, height))
        _draw_close(panel, scene, index, number=i + 1)
    return figure


def _share(
    place: tuple[float, ...], width: float, height: float
) -> tuple[float, float, float, float]:
    left, bottom, across, up = place
    return left / width, bottom / height, across / width, up / height


def _scene(glaciers: gpd.GeoDataFrame, findings: Sequence[Finding]) -> _Scene:
    layer = layer_of(glaciers, profile="rgi7")
    polygons, x = layer.polygons, np.array([f.lon for f in findings if f.lon == f.lon])
    bounds = shapely.total_bounds(polygons)
    if bounds[2] - bounds[0] > 180.0:
        # Over the antimeridian longitudes run from 0 to 360.
        polygons = shapely.transform(
            polygons, lambda lonlat: np.column_stack([lonlat[:, 0] % 360.0, lonlat[:, 1]])
        )
        x = x % 360.0
    rules = dict.fromkeys(f.rule for f in findings)
    looks = {
        rule: (_COLOURS[i % len(_COLOURS)], _MARKERS[(i + i // len(_COLOURS)) % len(_MARKERS)])
        for i, rule in enumerate(rules)
    }
    placed = tuple(f for f in findings if f.lon == f.lon)
    return _Scene(polygons, layer.names, shapely.STRtree(polygons), placed, x, looks)


def _chosen(findings: Sequence[Finding]) -> list[int]:
    """Findings to be shown close by: the first of every rule, then the second ones, ..."""
    turn: Counter[str] = Counter()
    order = []
    for i, finding in enumerate(findings):
        order.append((turn[finding.rule], i))
        turn[finding.rule] += 1
    return [i for _, i in sorted(order)[:_CLOSE]]


def _around(scene: _Scene) -> tuple[float, float, float, float]:
    """West, south, east, north of everything, with a margin."""
    west, south, east, north = shapely.total_bounds(scene.polygons)
    lat = np.array([f.lat for f in scene.findings])
    west, east = np.fmin.reduce([west, *scene.x]), np.fmax.reduce([east, *scene.x])
    south, north = np.fmin.reduce([south, *lat]), np.fmax.reduce([north, *lat])
    if not np.isfinite([west, south, east, north]).all():
        west, south, east, north = 0.0, 0.0, 1.0, 1.0
    middle = (west + east) / 2, (south + north) / 2
    flat = max(math.cos(math.radians(middle[1])), 0.05)
    half_y = 0.53 * max(north - south, 0.35 * (east - west) * flat, 0.01)
    half_x = max(0.53 * (east - west), half_y / 0.75 / flat)
    return middle[0] - half_x, middle[1] - half_y, middle[0] + half_x, middle[1] + half_y


def _squeeze(box: tuple[float, float, float, float]) -> float:
    """How much shorter a degree of longitude is than one of latitude in the middle of a box."""
    return max(math.cos(math.radians((box[1] + box[3]) / 2)), 0.05)


def _draw_overview(
    axes: Axes, scene: _Scene, box: tuple[float, float, float, float], close: Sequence[int]
) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    _frame(axes, box)
    pixel = (box[2] - box[0]) / _PX
    _fill(axes, shapely.simplify(scene.polygons, pixel), colour=_ICE, width=0.3)
    lat = np.array([f.lat for f in scene.findings])
    counts = Counter(f.rule for f in scene.findings)
    for rule, (colour, marker) in scene.looks.items():
        here = np.array([f.rule == rule for f in scene.findings], dtype=bool)
        label = f"{rule} ({counts[rule] or 'whole file'})"
        axes.scatter(
            scene.x[here], lat[here], s=16, c=colour, marker=marker, linewidths=0.4,
            edgecolors="white", zorder=5, label=label,
        )  # fmt: skip
    for number, i in enumerate(close, 1):
        axes.annotate(
            str(number), (scene.x[i], lat[i]), (4, 4), textcoords="offset points", fontsize=6.5,
            fontweight="bold", zorder=6,
            bbox={"boxstyle": "circle,pad=0.15", "fc": "white", "ec": "#6b7785", "lw": 0.4},
        )  # fmt: skip
    if scene.looks:
        axes.legend(
            loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, handletextpad=0.2
        )
    for axis, letters in ((axes.xaxis, "EW"), (axes.yaxis, "NS")):
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(FuncFormatter(lambda v, _, letters=letters: _degrees(v, letters)))
    axes.tick_params(length=2.5, pad=1.5)
    _scale_bar(axes, box)


def _degrees(value: float, letters: str) -> str:
    value = (value + 180.0) % 360.0 - 180.0 if letters == "EW" else value
    return f"{abs(value):.6g}°{letters[0] if value >= 0 else letters[1]}"


def _draw_close(axes: Axes, scene: _Scene, index: int, *, number: int) -> None:
    """Show one finding in the middle of a view of its own."""
    finding, x = scene.findings[index], float(scene.x[index])
    own = np.flatnonzero(scene.names == finding.glacier)
    west, south, east, north = (
        shapely.total_bounds(scene.polygons[own]) if len(own) else [np.nan] * 4
    )
    flat = max(math.cos(math.radians(finding.lat)), 0.05)
    reach = np.nanmax([0.0, (east - west) * flat, north - south]) * _METRES * 0.6
    half = float(np.clip(reach, _LEAST_M, _MOST_M)) / _METRES
    box = (x - half / flat, finding.lat - half, x + half / flat, finding.lat + half)
    _frame(axes, box)
    axes.set_xticks([])
    axes.set_yticks([])
    near = scene.tree.query(shapely.box(*box))
    others = np.setdiff1d(near, own)
    _fill(axes, scene.polygons[others], colour=_ICE, width=0.5)
    _fill(axes, scene.polygons[np.intersect1d(near, own)], colour=_NEAR, width=0.8)
    colour, marker = scene.looks[finding.rule]
    axes.scatter(
        [x],
        [finding.lat],
        s=26,
        c=colour,
        marker=marker,
        edgecolors="white",
        linewidths=0.6,
        zorder=6,
    )
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        start, end = 0.14, 0.34
        axes.plot(
            [x + dx * start * half / flat, x + dx * end * half / flat],
            [finding.lat + dy * start * half, finding.lat + dy * end * half],
            color=colour, linewidth=0.9, zorder=6,
        )  # fmt: skip
    _scale_bar(axes, box)
    told = textwrap.wrap(f"{finding.glacier}: {finding.message}", 40, max_lines=3, placeholder=" …")
    place = f"{finding.lat:.5f}, {finding.lon:.5f}"
    lines = [f"{number}  {finding.rule}   {place}", *told, *[""] * (3 - len(told))]
    axes.set_title("\n".join(lines), loc="left", fontsize=5.0, pad=2.0, linespacing=1.15)


def _frame(axes: Axes, box: tuple[float, float, float, float]) -> None:
    axes.set_xlim(box[0], box[2])
    axes.set_ylim(box[1], box[3])
    axes.set_aspect(1 / _squeeze(box), adjustable="box")
    for spine in axes.spines.values():
        spine.set_visible(True)


def _fill(axes: Axes, polygons: Geometries, *, colour: str, width: float) -> None:
    from matplotlib.collections import PathCollection
    from matplotlib.path import Path as Outline

    paths = [
        Outline.make_compound_path(
            *(
                Outline(np.asarray(ring.coords)[:, :2], closed=True)
                for part in shapely.get_parts(polygon)
                for ring in (part.exterior, *part.interiors)
            )
        )
        for polygon in polygons
        if not polygon.is_empty
    ]
    axes.add_collection(
        PathCollection(paths, facecolors=colour, edgecolors=_EDGE, linewidths=width, zorder=2),
        autolim=False,
    )


def _scale_bar(axes: Axes, box: tuple[float, float, float, float]) -> None:
    """Bar of a round length, true along the parallel where it stands."""
    west, south, east, north = box
    lat = south + 0.06 * (north - south)
    metres = _METRES * max(math.cos(math.radians(lat)), 0.05)
    wanted = 0.28 * (east - west) * metres
    power = 10.0 ** math.floor(math.log10(wanted))
    length = power * max(m for m in (1, 2, 5) if m * power <= wanted)
    right = east - 0.05 * (east - west)
    start = right - length / metres
    axes.plot(
        [start, right], [lat, lat], color="#1d2733", linewidth=1.6, solid_capstyle="butt", zorder=8
    )
    label = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    axes.text(
        (start + right) / 2, lat + 0.012 * (north - south), label,
        ha="center", va="bottom", fontsize=6, zorder=8,
        bbox={"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.6},
    )  # fmt: skip
