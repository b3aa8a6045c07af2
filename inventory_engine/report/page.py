"""The page itself: numbers, figures and tables put into one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from pyproj import CRS

from catalog.cube import Workspace
from change_detection.accounts import MIN_OBSERVED
from change_detection.events import MAP_EVENTS
from change_detection.uncertainty import AreaCalibration
from inventory_engine.report import atlas, chips, figures, maps, rasters, tables, words
from inventory_engine.report.numbers import (
    MAX_DAY_OF_YEAR_SHIFT,
    PairTotals,
    SeasonTotals,
    headline_pair,
    measured_in_both,
    most_changed,
    pair_totals,
    season_totals,
)
from inventory_engine.report.reading import Pair, RegionData, read_region
from inventory_engine.report.style import figure_style, jpeg_uri, svg_uri
from inventory_engine.report.template import environment

__all__ = ["Page", "build_page"]

_MAP_PX = 1300
_MAPS_BYTES = 2_600_000
# ^ shared by all season maps; with the other figures the page stays below 8 MB
_MAP_BYTES = 650_000
_CHIP_BYTES = 120_000
_CHIPS = 6
_FALSE_COLOUR = ("swir1", "nir", "red")


@dataclass(frozen=True, slots=True)
class Page:
    """A finished report."""

    html: str
    data: dict[str, Any]
    """The numbers shown, JSON-ready."""


@dataclass(frozen=True, slots=True)
class _Story:
    """What the page tells, before it is drawn."""

    region: RegionData
    seasons: list[SeasonTotals]
    pairs: list[PairTotals]
    headline: PairTotals | None
    pair: Pair | None
    measured: npt.NDArray[np.bool_]
    """Rows of ``pair.glaciers`` measured in both seasons."""
    scale: float


def build_page(workspace: Workspace, run: dict[str, Any]) -> Page:
    """Make the report of a run.

    Raises
    ------
    StoreError
        Where an input of the report is missing or damaged.
    """
    run = words.without_secrets(run)
    story = _story(read_region(workspace, run))
    with figure_style():
        pictures = list(_pictures(workspace, story))
    data = words.finite(_data(run, story))
    html = (
        environment()
        .get_template("report.html")
        .render(
            run=run,
            data=data,
            figures=_grouped(pictures),
            text=_texts(story),
            season_rows=tables.season_rows(story.seasons),
            pair_rows=tables.pair_rows(story.pairs),
            turnover_rows=tables.turnover_rows(story.region, story.pairs),
            meanings=MAP_EVENTS,
            glaciers=_glacier_table(story),
            events=tables.event_rows(story.region, story.pairs),
            scenes=[
                (s, *tables.scene_rows(s), tables.look_rows(s, story.region.names))
                for s in story.region.seasons
            ],
            set_aside=tables.set_aside_rows(run),
            settings=_flat(run["settings"]),
            card=_flat(run["ensemble"].get("card") or {}),
            versions=sorted(run["versions"].items()),
            grid=_grid_rows(story.region),
            limits={
                "days": MAX_DAY_OF_YEAR_SHIFT,
                "observed": f"{100 * MIN_OBSERVED:.0f} %",
                "rows": tables.TABLE_ROWS,
            },
        )
    )
    return Page(html, data)


def _story(region: RegionData) -> _Story:
    calibration = region.calibration or AreaCalibration(1.0, 1.0, "not calibrated")
    of_areas = calibration.for_areas
    seasons = [season_totals(season, calibration=of_areas) for season in region.seasons]
    pairs = [pair_totals(p) for p in region.pairs]
    headline = headline_pair(pairs)
    pair = region.pairs[pairs.index(headline)] if headline else None
    if pair is None and region.pairs:
        pair = region.pairs[-1]
    measured = measured_in_both(pair) if pair else np.zeros(0, dtype=bool)
    return _Story(region, seasons, pairs, headline, pair, measured, of_areas.scale)


def _data(run: dict[str, Any], story: _Story) -> dict[str, Any]:
    calibration = story.region.calibration
    return {
        "name": run["name"],
        "seasons": [total.to_dict() for total in story.seasons],
        "pairs": [total.to_dict() | {"comparable": total.comparable} for total in story.pairs],
        "headline": None
        if story.headline is None
        else {"start": story.headline.start, "end": story.headline.end},
        "calibration": calibration and calibration.to_dict(),
        "missing": list(story.region.missing),
        "events": tables.event_rows(story.region, story.pairs, limit=1_000_000),
        "set_aside": dict(tables.set_aside_rows(run)[1]),
        "scenes": {season.label: len(season.scenes) for season in story.region.seasons},
    }


# --- figures -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Picture:
    """One figure of the page."""

    group: str
    uri: str
    alt: str
    heading: str = ""


def _pictures(workspace: Workspace, story: _Story) -> Iterator[Picture]:
    """Draw every figure the data allow; each is let go before the next is drawn."""
    seasons = story.region.seasons
    bounds = atlas.region_bounds(seasons)
    if bounds is not None:
        view = rasters.view_of(story.region.grid, bounds, max_px=_MAP_PX)
        yield from _region_maps(workspace, story, view)
        yield from _chip_pictures(workspace, story)
    if story.headline is not None and story.pair is not None:
        figure = figures.rate_figure(story.pair.glaciers[story.measured], story.headline)
        yield Picture("rate", svg_uri(figure), "Rate of area change against size and elevation")
    figure = figures.area_figure(seasons, story.seasons, scale=story.scale)
    yield Picture("area", svg_uri(figure), "Mapped area by season and size class")
    yield Picture(
        "dates", svg_uri(figures.timeline_figure(seasons)), "Days of the year of the scenes used"
    )


def _region_maps(workspace: Workspace, story: _Story, view: rasters.View) -> Iterator[Picture]:
    seasons = story.region.seasons
    budget = min(900_000, _MAPS_BYTES // len(seasons))
    composites = [rasters.optical(workspace, s.label, view, _FALSE_COLOUR) for s in seasons]
    for season, total, rgb in zip(seasons, story.seasons, maps.stretch(composites), strict=True):
        debris = rasters.debris_cover(workspace, season.label, view)
        figure = atlas.season_map(view, rgb, debris, season=season, totals=total)
        yield _map_picture("season", figure, f"False-colour map of {season.label}", budget)
    del composites
    background, _ = atlas.relief(workspace, view, seasons)
    figure = atlas.change_map(view, background, seasons, comparable=story.headline is not None)
    yield _map_picture("outlines", figure, "Outlines of all seasons over relief")
    if story.headline is not None and story.pair is not None:
        figure = atlas.rate_map(
            view,
            background,
            season=story.region.season(story.headline.start),
            pair=story.pair,
            totals=story.headline,
            measured=story.measured,
        )
        yield _map_picture("rates", figure, "Rate of area change of every glacier")
    small = rasters.view_of(story.region.grid, _bounds(view), max_px=480, pad=0.0)
    figure = atlas.confidence_map(workspace, small, seasons)
    yield _map_picture("confidence", figure, "Ice probability, ensemble spread and clear looks")
    bands = atlas.hypsometry(workspace, view, seasons)
    if bands is not None:
        figure = figures.hypsometry_figure(*bands, differences=story.headline is not None)
        yield Picture("hypsometry", svg_uri(figure), "Area by elevation band and season")


def _bounds(view: rasters.View) -> tuple[float, float, float, float]:
    left, right, bottom, top = view.extent
    return left, bottom, right, top


def _map_picture(group: str, figure: Figure, alt: str, budget: int = _MAP_BYTES) -> Picture:
    return Picture(group, jpeg_uri(figure, budget_bytes=budget), alt)


def _chip_pictures(workspace: Workspace, story: _Story) -> Iterator[Picture]:
    """Images of the glaciers that changed most, or of the largest where there is no change."""
    region = story.region
    if story.headline is not None and story.pair is not None:
        chosen = most_changed(story.pair, story.measured, _CHIPS)
        ends = (region.season(story.headline.start), region.season(story.headline.end))
    else:
        ends = (region.seasons[0], region.seasons[-1])
        largest = ends[0].accounts.sort_values(["area_km2", "ref_id"], ascending=[False, True])
        chosen = [str(name) for name in largest["ref_id"].head(_CHIPS)]
    for identity in chosen:
        figure = chips.chip_figure(
            workspace, region.grid, identity, seasons=ends, bands=_FALSE_COLOUR
        )
        if figure is not None:
            uri = jpeg_uri(figure, budget_bytes=_CHIP_BYTES)
            heading = " · ".join(filter(None, (region.names.get(identity, ""), identity)))
            yield Picture("chips", uri, _chip_note(story, identity), heading)


def _chip_note(story: _Story, identity: str) -> str:
    if story.headline is None or story.pair is None:
        return "no comparable pair of seasons: the two outlines are not a change"
    row = story.pair.glaciers.set_index("glacier_id").to_dict("index")[identity]
    change = words.with_sigma(row["area_change_km2"], row["area_change_sigma_km2"], sign=True)
    rate = words.with_sigma(
        row["rate_percent_per_year"], row["rate_percent_sigma"], sign=True, digits=2
    )
    return f"{change} km², {rate} % per year"


def _grouped(pictures: list[Picture]) -> dict[str, list[Picture]]:
    groups: dict[str, list[Picture]] = {}
    for picture in pictures:
        groups.setdefault(picture.group, []).append(picture)
    return groups


# --- words and tables ----------------------------------------------------------------------------


def _texts(story: _Story) -> dict[str, Any]:
    """Headline numbers as words."""
    first, last = story.seasons[0], story.seasons[-1]
    calibration = story.region.calibration
    texts: dict[str, Any] = {
        "comparable": story.headline is not None,
        "pair": [story.pair.start, story.pair.end] if story.pair else [],
        "latest": last.label,
        "area": words.with_sigma(last.area_km2, last.sigma_km2),
        "with_ice": last.with_ice,
        "debris_percent": words.plain(_share(last), 1),
        "span": f"{first.label} to {last.label}" if len(story.seasons) > 1 else first.label,
        "calibration": calibration.source if calibration else "",
        "scale": f"{calibration.scale:.3g}" if calibration else "",
        "regional_scale": f"{calibration.regional_scale:.3g}" if calibration else "",
        "areas": f"{calibration.for_areas.scale:.3g} and {calibration.for_areas.regional_scale:.3g}"
        if calibration
        else "",
        "missing": list(story.region.missing),
        "debris_extent": words.plain(last.debris_km2),
    }
    trend = (story.region.trend or {}).get("total") or {}
    if trend.get("trend_km2_per_year") is not None:
        texts["trend"] = words.with_sigma(
            trend["trend_km2_per_year"], trend["trend_standard_error_km2_per_year"], sign=True
        )
        texts["trend_glaciers"] = trend["glaciers"]
        texts["trend_seasons"] = len(story.seasons)
    total = story.headline
    if total is not None:
        texts |= {
            "start": total.start,
            "end": total.end,
            "change": words.with_sigma(total.change_km2, total.sigma_km2, sign=True),
            "percent_total": words.with_sigma(
                100 * total.change_km2 / total.area_from_km2,
                100 * total.sigma_km2 / total.area_from_km2,
                sign=True,
                digits=1,
            ),
            "rate": words.with_sigma(
                total.rate_km2_per_year, total.rate_sigma_km2_per_year, sign=True
            ),
            "percent": words.with_sigma(
                total.rate_percent_per_year, total.rate_percent_sigma, sign=True, digits=2
            ),
            "measured": total.measured,
            "glaciers": total.glaciers,
            "years": words.plain(total.years),
            "loss": total.beyond_loss,
            "gain": total.beyond_gain,
        }
    return texts


def _share(total: SeasonTotals) -> float:
    seen = total.clean_km2 + total.debris_km2
    return 100 * total.debris_km2 / seen if seen > 0 else float("nan")


def _glacier_table(story: _Story) -> dict[str, Any]:
    """Rows of the table of glaciers and where the whole table is."""
    region = story.region
    if story.pair is None:
        season = region.seasons[-1]
        rows, total = tables.inventory_rows(season, region.names), len(season.accounts)
        return {
            "rows": rows,
            "total": total,
            "full": f"inventory/{season.label}/accounts.parquet",
            "first": "Reference area",
            "second": f"Area {season.label}",
        }
    rows = tables.change_rows(
        story.pair, region, story.measured, comparable=story.headline is not None
    )
    return {
        "rows": rows,
        "total": len(story.pair.glaciers),
        "full": f"change/{story.pair.start}_{story.pair.end}/glaciers.csv",
        "first": f"Area {story.pair.start}",
        "second": f"Area {story.pair.end}",
    }


def _grid_rows(region: RegionData) -> list[tuple[str, str]]:
    grid = region.grid
    return [
        ("Projection", grid.proj4),
        ("Method", str(CRS.from_user_input(grid.proj4).coordinate_operation.method_name)),
        ("Pixel", f"{grid.resolution_m:g} m"),
        ("Pixels (y, x)", f"{grid.shape[0]} × {grid.shape[1]}"),
        ("Shards (y, x)", f"{grid.rows} × {grid.cols} of {grid.shard_px} px"),
        ("Upper-left corner", f"{grid.left:g} m, {grid.top:g} m"),
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted names and texts of nested settings, sorted; long lists are cut and counted."""
    rows: list[tuple[str, str]] = []
    for key in sorted(values):
        value, name = values[key], f"{prefix}{key}"
        if isinstance(value, dict):
            rows += _flat(value, f"{name}.") or [(name, "–")]
        elif isinstance(value, list):
            shown = ", ".join(_brief(item) for item in value[:12])
            more = f", … ({len(value)} in all)" if len(value) > 12 else ""
            rows.append((name, (shown or "–") + more))
        else:
            rows.append((name, _brief(value)))
    return rows[:400]


def _brief(value: Any) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= 300 else text[:297] + "…"
