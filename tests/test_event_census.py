"""Two hundred painted glaciers over three dates: each event is told, or that it was not seen."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import shapely
from painted_world import new_workspace, package_facts, paint_season, paint_terrain, reference_of

from catalog.grid import RegionGrid, region_grid
from change_detection.change import change_between
from change_detection.differences import trace_differences
from change_detection.divides import glacier_batches
from change_detection.outlines import trace_batch
from change_detection.publishing import publish_season
from change_detection.uncertainty import AreaCalibration

SEASONS = ("2016", "2020", "2024")
DAYS = {
    s: int((np.datetime64(f"{s}-08-17") - np.datetime64("1970-01-01")).astype(int)) for s in SEASONS
}
CELL, ACROSS, COUNT = 176, 14, 200
ROW, COL, HEIGHT, WIDTH = 50, 60, 80, 40
# ^ of a glacier in its cell of pixels of 10 m: 0.32 km2, 500 m from the next one
GROWTH_M = 200.0
CALIBRATION = AreaCalibration(1.0, 1.0, "made up for a test")


@dataclass(frozen=True)
class Fate:
    """What becomes of a glacier between two dates, in pixels of its cell."""

    event: str
    """First event that is to be told; empty for none."""
    before: tuple[tuple[int, int, int, int], ...]
    """Ice as row, column, height and width of rectangles."""
    after: tuple[tuple[int, int, int, int], ...]


WHOLE = (ROW, COL, HEIGHT, WIDTH)


def tongue(rows: int) -> tuple[int, int, int, int]:
    return (ROW, COL, rows, WIDTH)


FATES = (
    Fate("", (WHOLE,), (WHOLE,)),
    Fate("", (WHOLE,), (tongue(HEIGHT - 12),)),
    Fate("vanished", (WHOLE,), ()),
    Fate("appeared", (), (tongue(40),)),
    Fate("below-minimum", (tongue(20),), ((ROW, COL, 9, 9),)),
    Fate("split", (WHOLE,), (tongue(38), (ROW + 42, COL, 38, WIDTH))),
    Fate("tributary-detached", (WHOLE,), (tongue(62), (ROW + 65, COL, 15, WIDTH))),
    Fate("surged?", (tongue(30),), (tongue(76),)),
    Fate("advanced", (WHOLE,), (WHOLE, (ROW + HEIGHT, COL, 14, WIDTH))),
)


def paint(rectangles, row: int, col: int, into: np.ndarray) -> None:
    for top, left, height, width in rectangles:
        into[row + top : row + top + height, col + left : col + left + width] = True


class Census:
    """Every glacier has one fate at one of two steps, and clouds at some of the dates."""

    def __init__(self, folder) -> None:
        rng = np.random.default_rng(2024)
        self.workspace = new_workspace(folder)
        self.grid = grid_of(CELL * ACROSS)
        self.fates = [FATES[i % len(FATES)] for i in rng.permutation(COUNT)]
        self.step = rng.integers(0, 2, COUNT)
        self.clouded = [{s for s in SEASONS if rng.random() < 0.12} for _ in range(COUNT)]
        self.places = [(CELL * (i // ACROSS), CELL * (i % ACROSS)) for i in range(COUNT)]
        self.names = [f"G{i:03d}" for i in range(COUNT)]
        self.frame = self.outlines()
        self.batches = glacier_batches(self.frame, self.grid, growth_m=GROWTH_M)
        fall = 3000.0 - 2.0 * (np.arange(self.grid.shape[0]) % CELL)
        paint_terrain(
            self.workspace,
            self.grid,
            np.repeat(fall[:, None], self.grid.shape[1], axis=1).astype(np.float32),
        )
        for k, season in enumerate(SEASONS):
            self.make(k, season)
        self.pairs = {pair: self.compare(*pair) for pair in itertools.pairwise(SEASONS)}

    def outlines(self):
        shapes = {}
        res = self.grid.resolution_m
        for name, (row, col) in zip(self.names, self.places, strict=True):
            left, top = self.grid.left + (col + COL) * res, self.grid.top - (row + ROW) * res
            shapes[name] = shapely.box(left, top - HEIGHT * res, left + WIDTH * res, top)
        return reference_of(shapes, self.grid)

    def make(self, number: int, season: str) -> None:
        ice = np.zeros(self.grid.shape, bool)
        seen = np.ones(self.grid.shape, bool)
        for i, (row, col) in enumerate(self.places):
            fate = self.fates[i]
            paint(fate.before if number <= self.step[i] else fate.after, row, col, ice)
            if season in self.clouded[i]:
                seen[row + ROW + 30 : row + ROW + 60, col : col + CELL] = False
                # ^ three eighths of the outline
        paint_season(self.workspace, self.grid, season, ice=ice, seen=seen, day=DAYS[season])
        for batch in self.batches:
            trace_batch(
                self.workspace,
                season,
                batch,
                frame=self.frame,
                grid=self.grid,
                growth_m=GROWTH_M,
                season_window=(f"{season}-07-01", f"{season}-09-30"),
            )
        publish_season(self.workspace, self.batches, frame=self.frame, facts=package_facts(season))

    def compare(self, old: str, new: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        for batch in self.batches:
            trace_differences(
                self.workspace,
                (old, new),
                batch,
                frame=self.frame,
                grid=self.grid,
                multiples=(1, 1),
                growth_m=GROWTH_M,
            )
        ids = [batch.id for batch in self.batches]
        change_between(self.workspace, old, new, calibration=CALIBRATION, batches=ids)
        folder = self.workspace.path(f"change/{old}_{new}")
        table = pd.read_parquet(folder / "glaciers.parquet").set_index("glacier_id")
        return table, pd.read_csv(folder / "events.csv")

    def wanted(self, i: int, pair: tuple[str, str]) -> str:
        """First event that is to be told of a glacier between two dates."""
        if self.clouded[i] & set(pair):
            return "unobserved"
        return self.fates[i].event if SEASONS[self.step[i]] == pair[0] else ""


def grid_of(side: int) -> RegionGrid:
    """A grid of pixels of 10 m that holds a square of so many."""
    half = side * 5.0 / 111_000.0
    lon, lat = 10.0, 46.0
    wide = half / np.cos(np.radians(lat))
    corners = np.array([(lon - wide, lat - half), (lon + wide, lat + half)])
    return region_grid(corners[:, 0], corners[:, 1], resolution_m=10.0, shard_px=512, chunk_px=256)


@pytest.fixture(scope="module")
def census(tmp_path_factory):
    return Census(tmp_path_factory.mktemp("census"))


@pytest.mark.parametrize("pair", list(itertools.pairwise(SEASONS)))
def test_each_event_is_told_or_that_it_could_not_be_seen(census, pair):
    table, _ = census.pairs[pair]
    found = table["event"].reindex(census.names).tolist()
    wanted = [census.wanted(i, pair) for i in range(COUNT)]
    wrong = {(name, f, w) for name, f, w in zip(census.names, found, wanted, strict=True) if f != w}
    assert not wrong
    told = set(found)
    assert told >= {fate.event for fate in FATES} | {"unobserved"}


@pytest.mark.parametrize("pair", list(itertools.pairwise(SEASONS)))
def test_areas_are_those_that_were_painted_and_nothing_is_told_of_the_unseen(census, pair):
    table, events = census.pairs[pair]
    px = census.grid.pixel_area_km2
    for i, name in enumerate(census.names):
        row = table.loc[name]
        if census.wanted(i, pair) == "unobserved":
            assert np.isnan(row["area_change_km2"])
            assert events.loc[events["glacier_id"] == name, "event"].tolist() == ["unobserved"]
            continue
        fate = census.fates[i]
        moved = SEASONS[census.step[i]] == pair[0]
        change = sum(h * w for _, _, h, w in fate.after) - sum(h * w for _, _, h, w in fate.before)
        assert row["area_change_km2"] == pytest.approx(change * px * moved, abs=1e-9)


def test_every_event_says_by_what_it_is_known(census):
    for _, events in census.pairs.values():
        assert (events["evidence"].str.len() > 10).all()
        assert not events.duplicated(["glacier_id", "event"]).any()
