"""Which scenes of a season show a glacier best, and why: a table, and pictures of all looks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text

from catalog.candidates import Ranking, rank_looks, read_look
from catalog.cube import terrain_name
from catalog.errors import UsageError
from catalog.illumination import terrain_shadow
from catalog.ranking import CAUSES, losses
from catalog.scenes import Scene
from catalog.stacks import Tile
from catalog.surroundings import coarse_grid, glacier_windows, neighbours
from inventory_engine.display import RichShow
from inventory_engine.plan import Region, open_region, search_scenes
from inventory_engine.settings import Settings

if TYPE_CHECKING:
    import geopandas as gpd
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console

    from catalog.assets import AssetPolicy
    from catalog.grid import RegionGrid
    from inventory_engine.report.rasters import View

__all__ = ["draw_candidates", "rank_region", "reasons", "scene_table", "show_scenes"]

NATURAL, SHORTWAVE = ("red", "green", "blue"), ("swir1", "nir", "red")
_SENSORS = {
    "sentinel-2-msi": "S2",
    "landsat-oli": "L8/9",
    "landsat-etm": "L7",
    "landsat-tm": "L4/5",
}
_FIGURES = (
    "score",
    "seen",
    "hidden\nbeside",
    "snow\nbeside",
    "albedo",
    "season",
    "shadow",
)
_WIDTH = 140
# ^ characters of the table where it goes to a file
_PICTURE_PX = 220
_MARGIN_M = 400.0
_COLUMNS = 4
_GAP_IN, _HEAD_IN, _CAPTION_IN = 0.1, 0.36, 0.33
_LEGEND = "{}. Hatched: cloud or its shadow. Grey: not covered. Up is true north within {:.1f}°."
_OWN, _OTHERS = "#d7301f", "#e8a33d"


def reasons(frame: pd.DataFrame) -> list[str]:
    """Say of each look in words why it is the best of its glacier, or what it lost by.

    Parameters
    ----------
    frame
        A ranking (:data:`catalog.candidates.RANKING_SCHEMA`), whole glaciers.

    Returns
    -------
    list of str, one a row
        Of the best look what it shows; of another one the cause that costs it most in comparison
        with the best, and in brackets how much of the score.
    """
    frame = frame.reset_index(drop=True)
    lost = losses(frame)
    best = frame.index[frame["rank"] == 1]
    of_best = dict(zip(frame["ref_id"][best], best, strict=True))
    told = []
    for number, (_, row) in enumerate(frame.iterrows()):
        first = of_best[row["ref_id"]]
        if number == first:
            told.append(_praise(row))
            continue
        more = lost.loc[number] - lost.loc[first]
        cause = str(more.idxmax())
        told.append(f"{_words(cause, row)} (\N{MINUS SIGN}{more[cause]:.2f})")
    return told


def _praise(row: pd.Series) -> str:
    if not row["score"]:
        return "shows nothing of it"
    seen = f"best: {_percent(row['coverage'] * (1 - row['cloud']))} seen"
    return ", ".join([seen, _words("snow_around", row), _words("albedo", row)])


def _words(cause: str, row: pd.Series) -> str:
    """What a look shows, seen from one of the causes of a loss."""
    if cause == "not_covered":
        return f"{_percent(1 - row['coverage'])} outside the scenes"
    if cause == "cloud":
        return f"cloud on {_percent(row['cloud'])}"
    if cause == "hidden_around":
        return f"{_percent(row['hidden_around'])} hidden beside it"
    if cause == "snow_around":
        known = math.isfinite(row["snow_around"])
        return f"snow on {_percent(row['snow_around'])} beside it" if known else "snow not known"
    if cause == "albedo":
        return f"albedo {row['albedo']:.2f}" if math.isfinite(row["albedo"]) else "albedo not known"
    if cause == "season":
        side = "before" if row["season_days"] < 0 else "after"
        return f"{abs(row['season_days']):.0f} days {side} the end of ablation"
    if math.isfinite(row["shadow"]):
        return f"{_percent(row['shadow'])} in shadow"
    known = math.isfinite(row["sun_elevation"])
    return f"sun at {row['sun_elevation']:.0f}°" if known else "shadow not known"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if math.isfinite(share) else "-"


def scene_table(frame: pd.DataFrame, *, top: int | None = None) -> Table:
    """Lay out the ranked looks of each glacier.

    Parameters
    ----------
    frame
        A ranking (:data:`catalog.candidates.RANKING_SCHEMA`), whole glaciers.
    top
        How many looks of each glacier are shown; None = all.
    """
    table = Table(title="looks, best first", title_justify="left")
    table.add_column("glacier", no_wrap=True)
    for name in ("", "day", "sensor"):
        table.add_column(name, no_wrap=True)
    for name in _FIGURES:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("why", min_width=20)
    for (_, row), why in zip(frame.iterrows(), reasons(frame), strict=True):
        if top is not None and row["rank"] > top:
            continue
        first, known = row["rank"] == 1, math.isfinite(row["shadow"])
        if first and table.row_count:
            table.add_section()
        table.add_row(
            Text(row["ref_id"] if first else ""),
            str(row["rank"]),
            row["day"],
            _SENSORS.get(row["sensor"], row["sensor"]),
            f"{row['score']:.2f}",
            _percent(row["coverage"] * (1 - row["cloud"]) if row["coverage"] else 0.0),
            _percent(row["hidden_around"]),
            _percent(row["snow_around"]),
            _number(row["albedo"], "{:.2f}"),
            _number(row["season_days"], "{:+.0f} d"),
            _percent(row["shadow"]) if known else _number(row["sun_elevation"], "sun {:.0f}°"),
            Text(why),
            style="bold" if first else "",
        )
    notes = ["in brackets: what it costs in comparison with the best look"]
    if not frame["has_mask"].all():
        notes.append("scenes without a cloud mask are judged by their colour")
    table.caption = "; ".join(notes)
    return table


def _number(value: float, form: str) -> str:
    return form.format(value) if math.isfinite(value) else "-"


def draw_candidates(
    looks: pd.DataFrame,
    outlines: gpd.GeoDataFrame,
    *,
    grid: RegionGrid,
    scenes: Sequence[Scene],
    policy: AssetPolicy,
    bands: tuple[str, str, str] = NATURAL,
    title: str = "",
) -> Figure:
    """Draw all looks at one glacier in the order of their rank.

    Parameters
    ----------
    looks
        Rows of one glacier in a ranking (:data:`catalog.candidates.RANKING_SCHEMA`).
    outlines
        Columns ``ref_id`` and ``geometry``, EPSG:4326: the glacier, and its neighbours, which are
        drawn thinner.
    grid
        The region's grid.
    scenes
        Scenes of the season.
    policy
        Which rasters may be opened.
    bands
        Shown as red, green and blue.
    title
        Above the pictures; the glacier's id where empty.

    Raises
    ------
    DataError, SourceError
        Where a scene cannot be read.
    """
    from inventory_engine.report import maps
    from inventory_engine.report.rasters import View
    from inventory_engine.report.style import MUTED, PAGE_WIDTH_IN, figure_style, new_figure

    looks = looks.sort_values("rank")
    ref_id = str(looks["ref_id"].iloc[0])
    own = outlines[outlines["ref_id"] == ref_id]
    tile = _picture_tile(own, grid)
    by_id = {scene.id: scene for scene in scenes}
    pictures = [
        read_look([by_id[i] for i in ids], tile, bands, policy=policy) for ids in looks["scene_ids"]
    ]
    columns = min(_COLUMNS, len(looks))
    rows = math.ceil(len(looks) / columns)
    side = (PAGE_WIDTH_IN - (_COLUMNS + 1) * _GAP_IN) / _COLUMNS
    step = side + _CAPTION_IN
    with figure_style():
        figure = new_figure(PAGE_WIDTH_IN, _HEAD_IN + rows * step + _GAP_IN)
        width, height = PAGE_WIDTH_IN, figure.get_figheight()
        left, line = _GAP_IN / width, 1 / height
        figure.text(
            left, 1 - 0.06 * line, title or ref_id, fontsize=8.5, fontweight="bold", va="top"
        )
        colour = "Natural colour" if bands == NATURAL else f"{', '.join(bands)} as red, green, blue"
        told = _LEGEND.format(colour, _off_north(tile))
        figure.text(left, 1 - 0.23 * line, told, fontsize=6.2, color=MUTED, va="top")
        lost = losses(looks)
        for number, image in enumerate(_stretched(pictures)):
            down, right = divmod(number, columns)
            left = _GAP_IN + right * (side + _GAP_IN)
            bottom = height - _HEAD_IN - (down + 1) * step
            axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
            view = View(tile.grid, tile.row, tile.col, (tile.height, tile.width), 1)
            _draw_look(axes, view, image, hidden=~pictures[number][1])
            _draw_glaciers(axes, view, outlines, ref_id=ref_id)
            maps.draw_frame(axes, view, furniture=False, ticks=False)
            if number == 0:
                maps.draw_scale_bar(axes, view)
            _caption(axes, looks.iloc[number], lost.iloc[number])
    return figure


def _picture_tile(own: gpd.GeoDataFrame, grid: RegionGrid) -> Tile:
    """Square window around a glacier, in pixels coarse enough for a small picture."""
    west, south, east, north = own.geometry.to_crs(grid.proj4).total_bounds
    span = max(east - west, north - south) + 2 * _MARGIN_M
    fine = coarse_grid(grid, target_m=max(grid.resolution_m, span / _PICTURE_PX))
    (tile,) = glacier_windows(own, fine, margin_m=_MARGIN_M).values()
    n = max(tile.height, tile.width)
    return Tile(fine, tile.row - (n - tile.height) // 2, tile.col - (n - tile.width) // 2, n, n)


def _off_north(tile: Tile) -> float:
    """Degrees between up and true north in the middle of a window, rounded up to a tenth."""
    from inventory_engine.report.maps import true_north

    left, bottom, right, top = tile.bounds
    angle = math.degrees(true_north(tile.grid, (left + right) / 2, (bottom + top) / 2))
    return max(math.ceil(10 * abs(angle - 90)), 1) / 10


def _stretched(
    pictures: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]],
) -> list[npt.NDArray[np.float32]]:
    """Pictures ``(y, x, 3)`` in 0..1, all with the limits of what the best look shows clearly."""
    pool = next((p[:, c] for p, c in pictures if c.any()), np.array([0.0, 1.0]))
    low, high = np.percentile(pool, (0.5, 99.5))
    return [
        np.moveaxis(np.clip((p - low) / max(high - low, 1e-6), 0, 1) ** 0.65, 0, -1)
        for p, _ in pictures
    ]


def _draw_look(
    axes: Axes, view: View, image: npt.NDArray[np.float32], *, hidden: npt.NDArray[np.bool_]
) -> None:
    from inventory_engine.report import maps

    maps.draw_rgb(axes, view, image)
    masked = hidden & np.isfinite(image).all(axis=-1)
    if masked.any():
        axes.contourf(
            masked[::-1],
            levels=(0.5, 1.5),
            colors="none",
            hatches=("/////",),
            extent=view.extent,
            zorder=2,
        )


def _draw_glaciers(axes: Axes, view: View, outlines: gpd.GeoDataFrame, *, ref_id: str) -> None:
    from inventory_engine.report import maps

    shapes = outlines.to_crs(view.grid.proj4)
    own = shapes["ref_id"] == ref_id
    maps.draw_outlines(axes, shapes[~own], colour=_OTHERS, width=0.6, halo="none")
    maps.draw_outlines(axes, shapes[own], colour=_OWN, width=0.9)


def _caption(axes: Axes, row: pd.Series, lost: pd.Series) -> None:
    from inventory_engine.report.style import INK, MUTED

    def put(text: str, *, x: float, y: float, colour: str, bold: bool = False) -> None:
        axes.annotate(
            text,
            (x, 1),
            xytext=(0, y),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right" if x else "left",
            va="bottom",
            color=colour,
            fontsize=7 if bold else 6.2,
            fontweight="bold" if bold else "normal",
        )

    put(f"{row['rank']}   {row['day']}", x=0, y=10, colour=INK, bold=True)
    put(f"{row['score']:.2f}", x=1, y=10, colour=INK, bold=True)
    cause = str(lost[list(CAUSES)].idxmax())
    put(_words(cause, row), x=0, y=2, colour=MUTED)


def rank_region(
    region: Region,
    scenes: Sequence[Scene],
    *,
    ref_ids: Sequence[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Ranking:
    """Rank a season's looks at the glaciers of a region, batch by batch.

    Parameters
    ----------
    region
        The region.
    scenes
        Optical scenes of the season.
    ref_ids
        Which glaciers; None = all.
    progress
        Called with a label, how many batches are done, and how many there are.
    """
    frame = region.reference.frame
    wanted = set(frame["ref_id"] if ref_ids is None else ref_ids)
    batches = [batch for batch in region.batches[1] if wanted & set(batch.ref_ids)]
    lit = region.workspace.has_array(terrain_name(region.grid))
    shadow = terrain_shadow(region.workspace, region.grid) if lit else None
    # ^ before the first run the height of the sun must do
    found = []
    for number, batch in enumerate(batches):
        outlines = frame[frame["ref_id"].isin(wanted & set(batch.ref_ids))]
        found.append(
            rank_looks(
                outlines,
                others=neighbours(outlines, frame, region.grid),
                grid=region.grid,
                scenes=scenes,
                policy=region.policy,
                shadow=shadow,
            )
        )
        if progress is not None:
            progress("batches", number + 1, len(batches))
    table = pd.concat([ranking.frame for ranking in found], ignore_index=True)
    aside = {fault for ranking in found for fault in ranking.set_aside}
    return Ranking(table.sort_values(["ref_id", "rank"], ignore_index=True), tuple(sorted(aside)))


def show_scenes(
    settings: Settings,
    console: Console,
    *,
    season: str = "",
    glacier: str = "",
    top: int | None = None,
    plot: Path | None = None,
) -> None:
    """Search the scenes of a season, rank them, print the table and draw the pictures.

    Parameters
    ----------
    settings, console
        The region, and where the table goes.
    season
        Label of the season; the last one where empty.
    glacier
        One glacier's id; all where empty.
    top
        Looks of each glacier in the table; None = all.
    plot
        Picture file for one glacier, or a folder for a picture of each.

    Raises
    ------
    UsageError
        Where there is no such season or glacier, or one file is asked for more than one glacier.
    """
    label = season or settings.season_labels[-1]
    if label not in settings.season_labels:
        raise UsageError(
            f"there is no season {label!r}; known are {', '.join(settings.season_labels)}"
        )
    if plot is not None and plot.suffix and not glacier:
        raise UsageError(f"{plot} is one file: name one glacier with --glacier, or give a folder")
    region = open_region(settings)
    frame = region.reference.frame
    if glacier and glacier not in set(frame["ref_id"]):
        raise UsageError(f"there is no glacier {glacier!r} in {settings.outlines}")
    scenes = search_scenes(region).optical[label]
    with RichShow(console) as show:
        ranking = rank_region(
            region,
            scenes,
            ref_ids=[glacier] if glacier else None,
            progress=show.counter("ranking"),
        )
    table = scene_table(ranking.frame, top=top)
    table.width = None if console.is_terminal else max(console.width, _WIDTH)
    console.print(table, crop=False)
    for fault in ranking.set_aside:
        console.print(f"{fault.what}: {fault.kind}: {fault.reason}", highlight=False, markup=False)
    if plot is not None:
        for path in _plot(region, ranking.frame, scenes, label=label, plot=plot):
            console.print(str(path), highlight=False, markup=False, soft_wrap=True)


def _plot(
    region: Region, ranked: pd.DataFrame, scenes: Sequence[Scene], *, label: str, plot: Path
) -> list[Path]:
    frame = region.reference.frame
    paths = []
    (plot.parent if plot.suffix else plot).mkdir(parents=True, exist_ok=True)
    for ref_id, looks in ranked.groupby("ref_id", sort=True):
        own = frame[frame["ref_id"] == ref_id]
        name = str(own["glac_name"].iloc[0])
        figure = draw_candidates(
            looks,
            neighbours(own, frame, region.grid),
            grid=region.grid,
            scenes=scenes,
            policy=region.policy,
            title=f"{ref_id} {name}".strip() + f", season {label}",
        )
        path = plot if plot.suffix else plot / f"{ref_id}.png"
        figure.savefig(path, metadata={"Software": None} if path.suffix == ".png" else None)
        paths.append(path)
    return paths
