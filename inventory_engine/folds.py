"""`inventory-engine folds`: divide an inventory for cross-validation, measure it and draw it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import shapely

from catalog.errors import StoreError, UsageError
from catalog.glaciers import read_reference
from model_serving.fold_measures import FoldMeasures, measure_folds
from model_serving.glacier_folds import GlacierFolds, divide_glaciers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

    from inventory_engine.report.rasters import View

__all__ = ["draw_folds", "fold_frame", "fold_lines", "fold_table", "make_folds"]

GLACIERS, MAP = "folds.gpkg", "folds.png"
_COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"),
    *("#56b4e9", "#7b3294", "#8c6d31", "#1b7837", "#a50026"),
)
# ^ the first five are of Okabe and Ito (2008), apart for every colour vision; ten are the most that
#   a map can tell apart
_TRAINED, _LEFT_OUT = "#7d8894", "#d9dde1"
_VALIDATES = "#1d2733"
_OTHER, _EDGE = "#eef0f2", "#9aa4ae"
_SIMPLER_PX = 0.4
# ^ outlines are simplified to less than a pixel of the map
_PRINT_DPI = 300
_LEAST_PT, _DIVIDES_PT = 1.8, 14.0
# ^ a smaller glacier is a dot, a larger one has a white line along its divides
_DENSE = 0.1


def make_folds(
    inventory: Path,
    out: Path,
    *,
    id_field: str | None = None,
    folds: int = 5,
    method: str = "blocks",
    window_km: float | None = None,
    barrier_km: float | None = None,
    validation: float | None = None,
) -> tuple[GlacierFolds, FoldMeasures]:
    """Divide an inventory and write the folds, a GeoPackage of its glaciers and a map.

    Parameters
    ----------
    inventory
        Outlines in any schema that :func:`catalog.glaciers.read_reference` reads.
    out
        Folder for ``folds.json``, ``folds.gpkg`` and ``folds.png``.
    id_field
        Column that names the glaciers, where it is none of the known ones.
    folds, method
        As :func:`model_serving.glacier_folds.divide_glaciers`.
    window_km, barrier_km, validation
        Edge of the widest training window, width of the barrier, share of ice that validates; the
        defaults of the division where None.

    Raises
    ------
    UsageError
        Where the inventory cannot be read or cannot be divided so.
    StoreError
        Where a file cannot be written.
    """
    from inventory_engine.report.style import figure_style

    if folds > len(_COLOURS):
        raise UsageError(f"at most {len(_COLOURS)} folds can be told apart, asked for {folds}")
    frame = read_reference(inventory, id_field=id_field).frame
    given = {
        "window_m": None if window_km is None else 1000 * window_km,
        "barrier_m": None if barrier_km is None else 1000 * barrier_km,
        "validation_share": validation,
    }
    how: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    divided = divide_glaciers(frame, folds=folds, method=method, **how)
    measures = measure_folds(divided, frame)
    divided.save(out)
    table = fold_frame(divided, frame)
    try:
        table.to_file(out / GLACIERS, driver="GPKG", engine="pyogrio")
        with figure_style():
            figure = draw_folds(divided, frame, measures, title=inventory.stem)
            figure.savefig(out / MAP, dpi=_PRINT_DPI, metadata={"Software": None})
    except OSError as error:
        raise StoreError(f"cannot write into {out}: {error}") from error
    return divided, measures


def fold_frame(folds: GlacierFolds, frame: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Outlines with ``fold``, ``complex``, ``area_km2`` and ``validates``, the folds it stops."""
    known = {g.ref_id: g for g in folds.glaciers}
    rows = frame[["ref_id", "glac_name", "geometry"]].copy()
    for name in ("fold", "complex", "area_km2"):
        rows[name] = [getattr(known[ref_id], name) for ref_id in rows["ref_id"]]
    sets = [set(names) for names in folds.validation]
    rows["validates"] = [
        " ".join(str(f) for f, names in enumerate(sets) if ref_id in names)
        for ref_id in rows["ref_id"]
    ]
    return rows


def fold_table(folds: GlacierFolds, measures: FoldMeasures) -> Table:
    """Tell what each fold holds out, by what it validates and what is left to train on."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("fold", "glaciers", "held out km2", "share", "validation km2", "training km2"):
        table.add_column(name, justify="right")
    for fold in range(folds.folds):
        held = folds.held_out(fold)
        km2 = sum(g.area_km2 for g in folds.glaciers if g.ref_id in held)
        table.add_row(
            str(fold),
            str(len(held)),
            f"{km2:.1f}",
            f"{measures.shares[fold]:.1%}",
            f"{measures.validation_km2[fold]:.1f}",
            f"{measures.training_km2[fold]:.1f}",
        )
    return table


def fold_lines(folds: GlacierFolds, measures: FoldMeasures) -> list[str]:
    """Sentences on a division, and a warning for each fold that cannot be trained."""
    lines = [
        f"largest difference from equal shares {measures.largest_imbalance:.1%}, largest complex "
        f"{measures.largest_complex_share:.1%}",
        f"nearest glaciers of two folds {measures.smallest_gap_m:.0f} m apart, longest shared "
        f"boundary {measures.longest_shared_boundary_m:.0f} m, complexes cut "
        f"{measures.split_complexes}",
    ]
    for fold in range(folds.folds):
        if not measures.training_km2[fold]:
            lines.append(f"fold {fold}: nothing to train on; take fewer folds or smaller windows")
        elif not measures.validation_km2[fold]:
            lines.append(f"fold {fold}: nothing far enough from what it holds out to validate by")
    return lines


def draw_folds(
    folds: GlacierFolds, frame: gpd.GeoDataFrame, measures: FoldMeasures, *, title: str
) -> Figure:
    """Draw a map of the folds above one small map for the training of each fold.

    The projection is equal-area and centred on the inventory; the bar is true on the ellipsoid.

    Parameters
    ----------
    folds, frame, measures
        The division, its outlines and its figures.
    title
        Name of the inventory.
    """
    from inventory_engine.report import maps
    from inventory_engine.report.rasters import view_around

    view = view_around(frame)
    shapes = frame.assign(fold=[folds.fold_of[name] for name in frame["ref_id"]])
    outlines = frame.geometry.to_crs(view.grid.proj4).simplify(_SIMPLER_PX * view.pixel_m)
    shapes = shapes.set_geometry(outlines)
    figure, axes, panels = _layout(view, folds.folds, title=(title, _subtitle(folds, measures)))
    maps.draw_frame(axes, view, furniture=False)
    _draw_blocks(axes, shapes)
    _draw_glaciers(axes, shapes.geometry.to_numpy(), [_COLOURS[f] for f in shapes["fold"]])
    maps.draw_scale_bar(axes, view)
    for fold, panel in enumerate(panels):
        maps.draw_frame(panel, view, furniture=False, ticks=False)
        _draw_training(panel, shapes, folds, fold=fold)
        share = f"{100 * measures.shares[fold]:.0f} % of the ice"
        panel.set_title(
            f"fold {fold}: {share}", loc="left", pad=2.5, color=_COLOURS[fold], fontweight="bold"
        )
    return figure


def _layout(view: View, count: int, *, title: tuple[str, str]) -> tuple[Figure, Axes, list[Axes]]:
    """Make a figure with title and key, the axes of the large map and of the small ones, inches."""
    from inventory_engine.report.style import MUTED, PAGE_WIDTH_IN, new_figure

    ratio = view.shape[0] / view.shape[1]
    columns = min(count, 5)
    left, gap, head, foot, row_gap = 0.42, 0.08, 0.42, 0.36, 0.3
    across = PAGE_WIDTH_IN - left - 0.06
    large = min(across, 5.4 / ratio)
    small = min((across - (columns - 1) * gap) / columns, 3.0 / ratio)
    rows = -(-count // columns)
    below = head + large * ratio + row_gap + 0.2
    height = below + rows * (small * ratio + row_gap) + foot - row_gap
    figure = new_figure(PAGE_WIDTH_IN, height)

    def place(x: float, top: float, width: float) -> Axes:
        low = 1 - (top + width * ratio) / height
        return figure.add_axes(
            (x / PAGE_WIDTH_IN, low, width / PAGE_WIDTH_IN, width * ratio / height)
        )

    start = left / PAGE_WIDTH_IN
    figure.text(start, 1 - 0.05 / height, title[0], fontsize=8.5, fontweight="bold", va="top")
    figure.text(start, 1 - 0.2 / height, title[1], color=MUTED, va="top")
    _key(figure, bottom=0.04 / height)
    panels = [
        place(
            left + i % columns * (small + gap),
            below + i // columns * (small * ratio + row_gap),
            small,
        )
        for i in range(count)
    ]
    return figure, place(left, head, large), panels


def _subtitle(folds: GlacierFolds, measures: FoldMeasures) -> str:
    complexes = len({g.complex for g in folds.glaciers})
    gap = measures.smallest_gap_m
    near = f"{gap / 1000:.1f} km apart" if gap >= 1000 else f"{gap:.0f} m apart"
    cut = f", {measures.split_complexes} cut" if measures.split_complexes else ""
    kind = {"blocks": "blocks", "slabs": "slabs from east to west"}[folds.method]
    return (
        f"{folds.folds} {kind}; {len(folds.glaciers)} glaciers in {complexes} complexes{cut}; "
        f"nearest glaciers of two folds {near}; barrier {folds.barrier_m / 1000:.1f} km"
    )


def _draw_blocks(axes: Axes, shapes: gpd.GeoDataFrame) -> None:
    """Tint the hull of each fold where glaciers are sparse; elsewhere they show it themselves."""
    hulls = {
        int(fold): shapely.convex_hull(shapely.union_all(group.geometry.to_numpy()))
        for fold, group in shapes.groupby("fold", sort=True)
    }
    if shapes.geometry.area.sum() > _DENSE * shapely.union_all(list(hulls.values())).area:
        return
    left, right = axes.get_xlim()
    for fold, hull in hulls.items():
        around = shapely.buffer(hull, 0.008 * (right - left))
        axes.add_patch(
            _patch(around, facecolor=_COLOURS[fold], alpha=0.1, edgecolor="none", zorder=1)
        )


def _draw_glaciers(
    axes: Axes, geometries: Any, colours: list[str], *, order: int = 3, divides: bool = True
) -> None:
    """Fill glaciers; a dot stands for one that would not be seen, a white line along the others."""
    left, right = axes.get_xlim()
    point_m = (right - left) / (72 * axes.get_window_extent().width / axes.figure.dpi)
    edge_m = np.sqrt(shapely.area(geometries))
    for geometry, colour, edge in zip(geometries, colours, edge_m, strict=True):
        seen = divides and edge > _DIVIDES_PT * point_m
        line = {"edgecolor": "white", "linewidth": 0.25} if seen else {"edgecolor": "none"}
        axes.add_patch(_patch(geometry, facecolor=colour, zorder=order, **line))
    least = _LEAST_PT if divides else _LEAST_PT / 2
    small = edge_m < least * point_m
    x, y = shapely.get_coordinates(shapely.point_on_surface(geometries[small])).T
    tints = [c for c, s in zip(colours, small, strict=True) if s]
    axes.scatter(x, y, c=tints, s=least**2, linewidths=0, zorder=order)


def _draw_training(axes: Axes, shapes: gpd.GeoDataFrame, folds: GlacierFolds, *, fold: int) -> None:
    """Show what a fold trains on, leaves out, validates by and holds out."""
    held = shapes["ref_id"].isin(folds.held_out(fold)).to_numpy()
    validating = shapes["ref_id"].isin(folds.validating(fold)).to_numpy()
    reach = folds.barrier_m + folds.buffer_m
    outlines = shapes.geometry.to_numpy()
    zones = [
        shapely.union_all(shapely.buffer(outlines[away], reach, quad_segs=6))
        for away in (held, validating)
    ]
    look = {"facecolor": _OTHER, "edgecolor": _EDGE, "linewidth": 0.4, "zorder": 1}
    for zone, line in zip(zones, ("-", (0, (3, 2))), strict=True):
        if not zone.is_empty:
            axes.add_patch(_patch(zone, linestyle=line, **look))
    rest = outlines[~held & ~validating]
    trained = rest.copy()
    for zone in zones:
        shapely.prepare(zone)
        near = shapely.intersects(zone, trained)
        trained[near] = shapely.difference(trained[near], zone)
    kinds = (
        (rest, _LEFT_OUT),
        (trained[~shapely.is_empty(trained)], _TRAINED),
        (outlines[validating], _VALIDATES),
        (outlines[held], _COLOURS[fold]),
    )
    for order, (geometries, colour) in enumerate(kinds, 3):
        _draw_glaciers(axes, geometries, [colour] * len(geometries), order=order, divides=False)


def _key(figure: Figure, *, bottom: float) -> None:
    from matplotlib.patches import Patch

    entries = (
        (_COLOURS[0], "none", "held out (in the colour of its fold)"),
        (_VALIDATES, "none", "validates"),
        (_TRAINED, "none", "trained on"),
        (_LEFT_OUT, "none", "ice left out"),
        (_OTHER, _EDGE, "within the barrier"),
    )
    figure.legend(
        handles=[
            Patch(facecolor=face, edgecolor=edge, linewidth=0.5, label=label)
            for face, edge, label in entries
        ],
        loc="lower center",
        bbox_to_anchor=(0.5, bottom),
        ncols=len(entries),
        handlelength=1.2,
        handleheight=0.9,
        columnspacing=1.6,
        borderpad=0,
    )


def _patch(geometry: Any, **how: Any) -> Any:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    rings = [
        Outline(np.asarray(ring.coords)[:, :2], closed=True)
        for part in shapely.get_parts(geometry)
        for ring in (part.exterior, *part.interiors)
    ]
    return PathPatch(Outline.make_compound_path(*rings), joinstyle="round", **how)
