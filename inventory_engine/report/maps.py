"""Maps of the region: a frame with true north and degrees, images, outlines, colours by glacier.

The grid is an equal-area projection whose north is not true north; every map says where north is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import geopandas as gpd
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import shapely
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, PathPatch, Polygon, Rectangle
from matplotlib.path import Path
from pyproj import Geod

from catalog.grid import RegionGrid, lonlat_from, lonlat_into
from inventory_engine.report.rasters import View
from inventory_engine.report.style import DEBRIS, INK, MUTED, PAGE_WIDTH_IN, new_figure

__all__ = [
    "burn",
    "draw_colours",
    "draw_debris",
    "draw_frame",
    "draw_grey",
    "draw_outlines",
    "draw_rgb",
    "draw_scale_bar",
    "legend",
    "map_figure",
    "stretch",
    "true_north",
]

Floats = npt.NDArray[np.float32]
_GEOD = Geod(ellps="WGS84")


def map_figure(
    view: View, *, title: str, subtitle: str = "", colourbar: bool = False
) -> tuple[Figure, Axes, Axes | None]:
    """Make a figure whose map axes have exactly the shape of the view.

    Returns
    -------
    figure, map axes, colour-bar axes (None unless asked for)
    """
    left, bottom, top, right = 0.42, 0.26, 0.34, (0.72 if colourbar else 0.06)
    ratio = view.shape[0] / view.shape[1]
    width = PAGE_WIDTH_IN - left - right
    height = width * ratio
    if height > 7.6:
        height, width = 7.6, 7.6 / ratio
    total_w, total_h = width + left + right, height + bottom + top
    figure = new_figure(max(total_w, 3.2), total_h)
    total_w = figure.get_figwidth()
    axes = figure.add_axes((left / total_w, bottom / total_h, width / total_w, height / total_h))
    figure.text(
        left / total_w, 1 - 0.05 / total_h, title, fontsize=8.5, fontweight="bold", va="top"
    )
    figure.text(left / total_w, 1 - 0.19 / total_h, subtitle, fontsize=6.8, color=MUTED, va="top")
    bar = None
    if colourbar:
        bar_h = min(0.6 * height, 2.6)
        bar = figure.add_axes(
            ((left + width + 0.1) / total_w, bottom / total_h, 0.09 / total_w, bar_h / total_h)
        )
    return figure, axes, bar


def draw_frame(axes: Axes, view: View, *, furniture: bool = True, ticks: bool = True) -> None:
    """Set the extent, degrees along the edges, and (``furniture``) scale bar and north arrow."""
    left, right, bottom, top = view.extent
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.set_aspect("equal")
    for spine in axes.spines.values():
        spine.set_visible(True)
    axes.set_xticks([])
    axes.set_yticks([])
    if ticks:
        _degrees(axes, view)
    if furniture:
        draw_scale_bar(axes, view)
        _north_arrow(axes, view)


def draw_rgb(axes: Axes, view: View, rgb: Floats) -> None:
    """Show a composite ``(y, x, 3)`` in [0, 1]; NaN is shown as the paper with a light tint."""
    image = np.where(np.isfinite(rgb), rgb, 0.93)
    axes.imshow(image, extent=view.extent, interpolation="antialiased", zorder=0)


def draw_grey(axes: Axes, view: View, grey: Floats, *, low: float = 0.35) -> None:
    """Show a relief or panchromatic image ``(y, x)`` in [0, 1], lightened to carry colours."""
    image = low + (0.98 - low) * np.where(np.isfinite(grey), grey, 1.0)
    axes.imshow(
        image,
        extent=view.extent,
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="antialiased",
        zorder=0,
    )


def stretch(bands: Sequence[Floats]) -> list[Floats]:
    """Stretch composites ``(3, y, x)`` together to ``(y, x, 3)`` in [0, 1].

    One stretch for all, so that the seasons can be compared by eye.
    """
    pool = np.concatenate([c[np.isfinite(c)] for c in bands]) if len(bands) else np.empty(0)
    low, high = np.percentile(pool, (0.5, 99.5)) if pool.size else (0.0, 1.0)
    scaled = [np.clip((c - low) / max(high - low, 1e-6), 0, 1) ** 0.65 for c in bands]
    # ^ the same limits for the three bands keep the colour of the ground, the power lifts shadows
    return [np.moveaxis(c, 0, -1).astype(np.float32) for c in scaled]


def draw_outlines(
    axes: Axes, outlines: gpd.GeoDataFrame, *, colour: str, width: float = 0.8, halo: str = "white"
) -> None:
    """Draw outlines with their holes: a line in the given colour over a thin halo."""
    rings = _rings(outlines.geometry)
    for tint, line, order in ((halo, width + 0.7, 3), (colour, width, 4)):
        axes.add_collection(
            LineCollection(
                rings,
                colors=tint,
                linewidths=line,
                zorder=order,
                alpha=0.85 if order == 3 else 1,
                joinstyle="round",
            ),
            autolim=False,
        )


def draw_debris(axes: Axes, view: View, share: Floats, outlines: gpd.GeoDataFrame) -> None:
    """Tint where the mapped class inside the outlines is debris-covered ice."""
    inside = burn(outlines, view) >= 0
    tint = np.zeros((*view.shape, 4), dtype=np.float32)
    tint[..., :3] = mpl.colors.to_rgb(DEBRIS)
    tint[..., 3] = 0.6 * np.where(inside & np.isfinite(share), share, 0)
    axes.imshow(tint, extent=view.extent, interpolation="antialiased", zorder=2)


def burn(outlines: gpd.GeoDataFrame, view: View) -> npt.NDArray[np.int32]:
    """Row number of the outline that covers each view pixel's centre ``(y, x)``; -1 = none."""
    from affine import Affine
    from rasterio.features import rasterize

    left, _, _, top = view.extent
    if len(outlines) == 0:
        return np.full(view.shape, -1, dtype=np.int32)
    burned: npt.NDArray[np.int32] = rasterize(
        zip(outlines.geometry, range(len(outlines)), strict=True),
        out_shape=view.shape,
        transform=Affine(view.pixel_m, 0, left, 0, -view.pixel_m, top),
        fill=-1,
        dtype="int32",
    )
    return burned


def draw_colours(
    axes: Axes,
    outlines: gpd.GeoDataFrame,
    values: npt.NDArray[Any],
    *,
    norm: mpl.colors.Normalize,
    cmap: str | mpl.colors.Colormap,
    hatched: npt.NDArray[np.bool_],
    dot_below_m: float,
) -> None:
    """Fill each outline with the colour of its value; grey where the value is NaN.

    Parameters
    ----------
    axes, outlines
        Where and what.
    values
        One value an outline.
    norm, cmap
        From value to colour.
    hatched
        Outlines to hatch: their value is smaller than its uncertainty.
    dot_below_m
        Outlines narrower than this get a dot, so that small glaciers can be seen at all.
    """
    ramp = mpl.colormaps[cmap] if isinstance(cmap, str) else cmap
    for geometry, value, hatch in zip(outlines.geometry, values, hatched, strict=True):
        colour = ramp(norm(value)) if np.isfinite(value) else "#c4cad0"
        for part in shapely.get_parts(geometry):
            axes.add_patch(
                PathPatch(
                    _path(part),
                    facecolor=colour,
                    edgecolor=INK,
                    linewidth=0.25,
                    zorder=3,
                    hatch="//////" if hatch else None,
                )
            )
    points = outlines.geometry.representative_point()
    small = np.sqrt(outlines.geometry.area.to_numpy()) < dot_below_m
    seen = small & np.isfinite(values)
    axes.scatter(
        points.x[seen],
        points.y[seen],
        c=values[seen],
        cmap=ramp,
        norm=norm,
        s=5,
        edgecolors=INK,
        linewidths=0.2,
        zorder=4,
    )


def legend(axes: Axes, entries: Sequence[tuple[str, str, str]]) -> None:
    """Put a legend into the map: ``(kind, colour, label)``, kind ``line``, ``area``, ``hatch``."""
    handles: list[Any] = []
    for kind, colour, label in entries:
        if kind == "line":
            handles.append(Line2D([], [], color=colour, linewidth=1.6, label=label))
        elif kind == "hatch":
            handles.append(
                Rectangle(
                    (0, 0),
                    1,
                    1,
                    facecolor="white",
                    edgecolor=INK,
                    hatch="//////",
                    linewidth=0.4,
                    label=label,
                )
            )
        else:
            handles.append(
                Rectangle(
                    (0, 0), 1, 1, facecolor=colour, edgecolor=MUTED, linewidth=0.3, label=label
                )
            )
    box = axes.legend(
        handles=handles,
        loc="upper left",
        frameon=True,
        framealpha=0.88,
        edgecolor="none",
        facecolor="white",
        borderpad=0.5,
        handlelength=1.4,
        fancybox=False,
    )
    box.set_zorder(10)


def _rings(geometries: Any) -> list[npt.NDArray[np.float64]]:
    parts = shapely.get_parts(np.asarray(geometries))
    rings = [ring for part in parts for ring in (part.exterior, *part.interiors)]
    return [np.asarray(ring.coords)[:, :2] for ring in rings]


def _path(polygon: shapely.Polygon) -> Path:
    rings = [np.asarray(r.coords)[:, :2] for r in (polygon.exterior, *polygon.interiors)]
    return Path.make_compound_path(*[Path(ring, closed=True) for ring in rings])


def _degrees(axes: Axes, view: View) -> None:
    """Tick longitudes along the lower edge and latitudes along the left one."""
    to_lonlat = lonlat_from(view.grid.proj4)
    left, right, bottom, top = view.extent
    xs, ys = np.linspace(left, right, 513), np.linspace(bottom, top, 513)
    lon, _ = to_lonlat.transform(xs, np.full_like(xs, bottom))
    centre = view.grid.lon_0
    lon = (np.asarray(lon) - centre + 180) % 360 - 180 + centre
    _, lat = to_lonlat.transform(np.full_like(ys, left), ys)
    for axis, along, degrees, letters in (
        (axes.xaxis, xs, lon, ("E", "W")),
        (axes.yaxis, ys, np.asarray(lat), ("N", "S")),
    ):
        marks = _crossings(along, degrees)
        axis.set_ticks([place for place, _ in marks])
        axis.set_ticklabels([_degree_label(value, letters) for _, value in marks])
    for label in axes.get_yticklabels():
        label.set_rotation(90)
        label.set_verticalalignment("center")
    axes.tick_params(length=2.5, pad=1.5)


def _crossings(
    along: npt.NDArray[np.float64], degrees: npt.NDArray[np.float64]
) -> list[tuple[float, float]]:
    """Where the edge crosses round degrees; empty where the edge runs around a pole."""
    steps = np.diff(degrees)
    if not np.isfinite(degrees).all() or not (np.all(steps > 0) or np.all(steps < 0)):
        return []
    low, high = float(degrees.min()), float(degrees.max())
    choices = (20, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
    step = next((s for s in choices if (high - low) / s >= 2.5), choices[-1])
    values = np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step
    order = np.argsort(degrees)
    return [(float(np.interp(v, degrees[order], along[order])), float(v)) for v in values]


def _degree_label(value: float, letters: tuple[str, str]) -> str:
    value = (value + 180) % 360 - 180 if letters[0] == "E" else value
    digits = f"{abs(value):.3f}".rstrip("0").rstrip(".")
    return f"{digits}°{letters[0] if value >= 0 else letters[1]}"


def _lonlat(view: View, x: float, y: float) -> tuple[float, float]:
    lon, lat = lonlat_from(view.grid.proj4).transform(x, y)
    return float(lon), float(lat)


def draw_scale_bar(axes: Axes, view: View) -> None:
    """Draw a bar whose length is true on the ellipsoid at the place where it stands."""
    left, right, bottom, _ = view.extent
    point = _metres_a_point(axes, view)
    x1, y = right - 10 * point, bottom + 9 * point
    ahead = 0.2 * (right - left)
    lon1, lat1 = _lonlat(view, x1, y)
    lon0, lat0 = _lonlat(view, x1 - ahead, y)
    scale = _GEOD.inv(lon0, lat0, lon1, lat1)[2] / ahead
    wanted = scale * ahead
    power = 10 ** math.floor(math.log10(wanted))
    length = power * max(m for m in (1, 2, 5) if m * power <= wanted)
    x0, thick = x1 - length / scale, 2.2 * point
    axes.add_patch(
        Rectangle(
            (x0 - 5 * point, y - 5 * point),
            x1 - x0 + 10 * point,
            16 * point,
            facecolor="white",
            alpha=0.82,
            linewidth=0,
            zorder=8,
        )
    )
    half = (x1 - x0) / 2
    for start, face in ((x0, INK), (x0 + half, "white")):
        axes.add_patch(
            Rectangle(
                (start, y - thick),
                half,
                thick,
                facecolor=face,
                edgecolor=INK,
                linewidth=0.5,
                zorder=9,
            )
        )
    label = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    axes.text((x0 + x1) / 2, y + point, label, ha="center", va="bottom", fontsize=6.5, zorder=9)


def _metres_a_point(axes: Axes, view: View) -> float:
    """Grid metres that one typographic point spans on the map."""
    box = axes.get_window_extent()
    left, right, _, _ = view.extent
    return (right - left) / (72 * float(box.width) / float(axes.figure.dpi))


def true_north(grid: RegionGrid, x: float, y: float) -> float:
    """Direction of true north at a place of the grid, radians counter-clockwise from grid east."""
    lon, lat = lonlat_from(grid.proj4).transform(x, y)
    ahead = lonlat_into(grid.proj4)
    nx, ny = ahead.transform(lon, min(lat + 0.001, 90.0))
    return math.atan2(ny - y, nx - x)


def _north_arrow(axes: Axes, view: View) -> None:
    """Draw an arrow to true north, as it runs at the arrow's own place."""
    _, right, _, top = view.extent
    point = _metres_a_point(axes, view)
    x, y = right - 21 * point, top - 21 * point
    angle = true_north(view.grid, x, y)
    north = np.array([math.cos(angle), math.sin(angle)])
    side = 4.4 * point * np.array([-north[1], north[0]])
    centre = np.array([x, y])
    axes.add_patch(Circle((x, y), 15 * point, facecolor="white", alpha=0.82, linewidth=0, zorder=8))
    tip, back, notch = (centre + length * point * north for length in (4.5, -11.5, -8.0))
    for sign, face in ((1, INK), (-1, "white")):
        axes.add_patch(
            Polygon(
                [tip, back + sign * side, notch],
                facecolor=face,
                edgecolor=INK,
                linewidth=0.5,
                zorder=9,
            )
        )
    axes.text(
        float(centre[0] + 9.3 * point * north[0]),
        float(centre[1] + 9.3 * point * north[1]),
        "N",
        fontsize=6.5,
        fontweight="bold",
        ha="center",
        va="center",
        zorder=9,
    )
