"""What two maps differ in, pixel by pixel, and the line through many."""

from __future__ import annotations

import json
import re

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from painted_world import (
    SIZE,
    SUMMER_2016,
    SUMMER_2024,
    mask,
    new_workspace,
    package_facts,
    paint_season,
    paint_terrain,
    reference,
    world_grid,
)

from catalog.errors import StoreError
from change_detection.change import change_between
from change_detection.differences import trace_differences
from change_detection.divides import glacier_batches
from change_detection.outlines import trace_batch
from change_detection.publishing import publish_season
from change_detection.series import series_between
from change_detection.uncertainty import AreaCalibration

CALIBRATION = AreaCalibration(2.0, 3.0, "made up for a test, verified nowhere")
GRID = world_grid(SIZE)
TONGUE, OTHER = (40, 40, 160, 40), (40, 140, 60, 60)
# ^ 1.6 km long from north to south; 0.36 km2
SHAPES = {"tongue": TONGUE, "other": OTHER}
FULL = mask(*SHAPES.values())
SOUTHWARD = (3000.0 - 2.0 * np.arange(SIZE, dtype=np.float32)[:, None]).repeat(SIZE, 1)
# ^ two metres down a pixel of 10 m: a slope of 11 degrees


class Story:
    """Seasons painted in one workspace, and what differs between them."""

    def __init__(self, folder, *, terrain=True, shapes=SHAPES):
        self.workspace = new_workspace(folder)
        self.frame = reference(shapes, GRID)
        self.batches = glacier_batches(self.frame, GRID, growth_m=200.0)
        if terrain:
            paint_terrain(self.workspace, GRID, SOUTHWARD)

    def season(self, name, *, ice, publish=True, **layers):
        paint_season(self.workspace, GRID, name, ice=ice, **layers)
        if not publish:
            return
        for batch in self.batches:
            trace_batch(
                self.workspace,
                name,
                batch,
                frame=self.frame,
                grid=GRID,
                growth_m=200.0,
                season_window=("2000-01-01", "2030-12-31"),
            )
        publish_season(self.workspace, self.batches, frame=self.frame, facts=package_facts(name))

    def differ(self, old="2016", new="2024", *, multiples=(1, 1), grid=GRID):
        batches = glacier_batches(self.frame, grid, growth_m=200.0)
        tables = []
        for batch in batches:
            trace_differences(
                self.workspace,
                (old, new),
                batch,
                frame=self.frame,
                grid=grid,
                multiples=multiples,
                growth_m=200.0,
            )
            path = self.workspace.path(f"change/{old}_{new}/parts/{batch.id}.parquet")
            tables.append(pd.read_parquet(path))
        return pd.concat(tables).set_index("ref_id")

    def change(self, old="2016", new="2024", **how):
        self.differ(old, new)
        batches = [batch.id for batch in self.batches]
        change_between(self.workspace, old, new, calibration=CALIBRATION, batches=batches, **how)
        folder = self.workspace.path(f"change/{old}_{new}")
        self.summary = json.loads((folder / "summary.json").read_text())
        found = pd.read_csv(folder / "events.csv")
        self.events = dict(zip(found["event"], found["evidence"], strict=True))
        self.bands = pd.read_csv(folder / "elevation.csv")
        return pd.read_parquet(folder / "glaciers.parquet").set_index("glacier_id")


@pytest.fixture
def story(tmp_path):
    return Story(tmp_path)


def test_gains_and_losses_are_told_apart(story):
    lost, gained = (190, 40, 10, 40), (40, 80, 20, 10)
    story.season("2016", ice=FULL)
    story.season("2024", ice=(FULL & ~mask(lost)) | mask(gained), day=SUMMER_2024)
    table = story.change()
    assert table.loc["tongue", "area_lost_km2"] == pytest.approx(0.04)
    assert table.loc["tongue", "area_gained_km2"] == pytest.approx(0.02)
    assert table.loc["tongue", "area_change_km2"] == pytest.approx(-0.02)
    assert table.loc["other", ["area_lost_km2", "area_gained_km2"]].tolist() == [0.0, 0.0]
    assert story.summary["area_lost_km2"] == pytest.approx(0.04)


def test_retreat_is_measured_along_the_glacier(story):
    story.season("2016", ice=FULL)
    story.season("2024", ice=FULL & ~mask((170, 40, 30, 40)), day=SUMMER_2024)
    row = story.change().loc["tongue"]
    assert row["terminus_from_m"] == pytest.approx(3000.0 - 2.0 * 199)
    assert row["terminus_to_m"] == pytest.approx(3000.0 - 2.0 * 169)
    assert row["terminus_change_m"] == pytest.approx(-300.0, abs=30.0)


def test_an_advance_is_a_change_of_the_other_sign(story):
    story.season("2016", ice=FULL & ~mask((170, 40, 30, 40)))
    story.season("2024", ice=FULL, day=SUMMER_2024)
    assert story.change().loc["tongue", "terminus_change_m"] == pytest.approx(300.0, abs=30.0)


def test_a_terminus_that_was_not_seen_has_no_retreat(story):
    story.season("2016", ice=FULL)
    seen = ~mask((165, 30, 45, 60))
    story.season("2024", ice=FULL & ~mask((170, 40, 30, 40)), seen=seen, day=SUMMER_2024)
    row = story.differ().loc["tongue"]
    assert row["area_lost_km2"] == 0.0
    assert np.isnan(row["terminus_change_m"])


def test_ice_by_elevation_adds_up_at_both_dates(story):
    story.season("2016", ice=FULL)
    story.season("2024", ice=FULL & ~mask((170, 40, 30, 40)), day=SUMMER_2024)
    table = story.change()
    assert story.bands["area_from_km2"].sum() == pytest.approx(table["area_from_km2"].sum())
    assert story.bands["area_to_km2"].sum() == pytest.approx(table["area_to_km2"].sum())
    assert (story.bands["elevation_to_m"] - story.bands["elevation_from_m"] == 50).all()
    changed = story.bands[story.bands["area_change_km2"] != 0]
    assert changed["elevation_from_m"].max() <= 3000 - 2 * 170


def test_ground_that_became_water_or_debris_is_told(story):
    water, covered = mask((190, 40, 10, 40)), mask((150, 40, 20, 40))
    story.season("2016", ice=FULL)
    story.season("2024", ice=FULL & ~water, water=water, debris=covered, day=SUMMER_2024)
    row = story.change().loc["tongue"]
    assert row["area_to_water_km2"] == pytest.approx(0.04)
    assert row["area_to_debris_km2"] == pytest.approx(0.08)
    assert row["area_to_clean_km2"] == 0.0


def test_without_terrain_there_are_areas_but_no_terminus(tmp_path):
    story = Story(tmp_path, terrain=False)
    story.season("2016", ice=FULL)
    story.season("2024", ice=FULL & ~mask((170, 40, 30, 40)), day=SUMMER_2024)
    row = story.differ().loc["tongue"]
    assert row["area_lost_km2"] == pytest.approx(0.12)
    assert np.isnan(row["terminus_change_m"]) and row["band_from_km2"] is None


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_one_map_with_itself_differs_in_nothing(tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    story = Story(tmp_path_factory.mktemp("story"))
    layers = {
        "ice": FULL & (rng.random((SIZE, SIZE)) < 0.95),
        "seen": rng.random((SIZE, SIZE)) < 0.98,
    }
    story.season("2016", publish=False, **layers)
    story.season("again", publish=False, **layers)
    table = story.differ("2016", "again")
    zero = table.filter(regex="gained|lost|area_to|change").fillna(0.0)
    assert (zero == 0.0).all(axis=None)
    assert (table["terminus_from_m"] == table["terminus_to_m"]).all()


def test_unlike_pixels_are_compared_on_the_coarser_ones(tmp_path):
    """The coarse season sees the same ice; a mixed pixel of the fine one goes by its majority."""
    story = Story(tmp_path, terrain=False)
    coarse = GRID.coarsened(2)
    fine_ice = FULL & ~mask((199, 40, 1, 40))
    story.season("2016", ice=fine_ice, publish=False)
    small = FULL.reshape(SIZE // 2, 2, SIZE // 2, 2).any(axis=(1, 3))
    paint_season(story.workspace, coarse, "2024", ice=small, day=SUMMER_2024)
    table = story.differ(multiples=(2, 1), grid=coarse)
    # half of the last row of coarse pixels is ice in the fine season: a tie counts as ice
    assert table["area_gained_km2"].tolist() == [0.0, 0.0]
    assert table["area_lost_km2"].tolist() == [0.0, 0.0]


def test_a_missing_part_is_named(story):
    story.season("2016", ice=FULL)
    story.season("2024", ice=FULL, day=SUMMER_2024)
    with pytest.raises(StoreError, match=r"change/2016_2024/parts/nowhere\.parquet is missing"):
        change_between(
            story.workspace, "2016", "2024", calibration=CALIBRATION, batches=["nowhere"]
        )


# --- events --------------------------------------------------------------------------------------


def test_a_glacier_cut_in_two_halves_has_split_and_one_that_lost_a_limb_has_not(story):
    story.season("2016", ice=FULL)
    story.season("2024", ice=FULL & ~mask((110, 40, 10, 40)), day=SUMMER_2024)
    assert story.change().loc["tongue", "event"] == "split"
    assert story.events["split"] == "1 piece before, 2 now, the largest with 53 % of the ice"
    story.season("2025", ice=FULL & ~mask((180, 40, 2, 40)), day=SUMMER_2024)
    assert story.change(new="2025").loc["tongue", "event"] == "tributary-detached"


def test_glaciers_that_come_to_touch_have_merged(tmp_path):
    story = Story(tmp_path, shapes={"A": (40, 40, 60, 60), "B": (40, 100, 60, 60)})
    full = mask((40, 40, 60, 120))
    story.season("2016", ice=full & ~mask((40, 100, 60, 5)))
    story.season("2024", ice=full, day=SUMMER_2024)
    table = story.change()
    assert table.loc[["A", "B"], "event"].tolist() == ["merged", "merged"]
    assert "from which it was apart" in story.events["merged"]


def test_a_contact_that_clouds_may_have_hidden_is_no_merger(tmp_path):
    story = Story(tmp_path, shapes={"A": (40, 40, 60, 60), "B": (40, 100, 60, 60)})
    full = mask((40, 40, 60, 120))
    story.season("2016", ice=full, seen=~mask((40, 100, 60, 5)))
    story.season("2024", ice=full, day=SUMMER_2024)
    assert story.change()["event"].tolist() == ["", ""]


def test_a_fast_and_long_advance_may_be_a_surge(story):
    story.season("2016", ice=FULL & ~mask((160, 40, 40, 40)))
    story.season("2018", ice=FULL, day=SUMMER_2016 + 731)
    story.season("2024", ice=FULL, day=SUMMER_2024)
    story.change(new="2018")
    assert re.fullmatch(r"the terminus advanced 40\d m in 2\.0 years", story.events["surged?"])
    story.change()
    assert "surged?" not in story.events


def test_a_glacier_without_ice_has_vanished_and_is_not_under_the_minimum_too(story):
    story.season("2016", ice=FULL)
    story.season("2024", ice=mask(TONGUE), day=SUMMER_2024)
    assert story.change().loc["other", "event"] == "vanished"
    assert list(story.events) == ["vanished"]


# --- fronts in water -----------------------------------------------------------------------------


def lake(story):
    """A lake before the tongue that follows its front; the reference has it end in a lake."""
    story.frame.loc[story.frame["ref_id"] == "tongue", "term_type"] = 2
    water = mask((200, 30, 25, 60))
    story.season("2016", ice=FULL, water=water)
    gone = mask((190, 40, 10, 40))
    story.season("2024", ice=FULL & ~gone, water=water | gone, day=SUMMER_2024)


def test_a_front_retreats_by_area_over_width(story):
    lake(story)
    table = story.change()
    assert table.loc["tongue", "front_width_m"] == pytest.approx(400.0, rel=0.01)
    assert table.loc["tongue", "front_change_m"] == pytest.approx(-100.0, rel=0.01)
    assert table["front_change_m"].isna().tolist() == [True, False]
    # ^ `other` ends on land


def test_the_front_is_drawn_where_ice_meets_water(story):
    lake(story)
    fronts = gpd.read_file(story.workspace.path("inventory/2016/fronts.gpkg"))
    assert fronts["ref_id"].tolist() == ["tongue"]
    assert fronts.to_crs(GRID.proj4).length[0] == pytest.approx(400.0, rel=1e-3)


def test_a_front_that_was_not_seen_has_no_retreat(story):
    story.frame.loc[story.frame["ref_id"] == "tongue", "term_type"] = 1
    water, gone = mask((200, 30, 25, 60)), mask((190, 40, 10, 40))
    story.season("2016", ice=FULL, water=water)
    seen = ~mask((185, 50, 20, 5))
    story.season("2024", ice=FULL & ~gone, water=water | gone, seen=seen, day=SUMMER_2024)
    assert np.isnan(story.differ().loc["tongue", "front_change_m"])


# --- three dates and more ------------------------------------------------------------------------


def yearly(story, losses):
    """Seasons four years apart in which so many rows of the tongue are gone."""
    names = []
    for k, rows in enumerate(losses):
        name = str(2016 + 4 * k)
        gone = mask((200 - rows, 40, rows, 40)) if rows else np.zeros_like(FULL)
        day = SUMMER_2016 + round(4 * 365.2425 * k)
        story.season(name, ice=FULL & ~gone, day=day)
        names.append(name)
    return names


def test_a_steady_loss_is_a_line_without_error(story):
    names = yearly(story, (0, 4, 8))
    outcome = series_between(story.workspace, names, calibration=CALIBRATION)
    trend = pd.read_csv(story.workspace.path("change/trend/trend.csv")).set_index("glacier_id")
    assert trend.loc["tongue", "trend_km2_per_year"] == pytest.approx(-0.004, rel=1e-3)
    assert trend.loc["tongue", "trend_standard_error_km2_per_year"] == pytest.approx(0.0, abs=1e-6)
    assert trend.loc["other", "trend_km2_per_year"] == 0.0
    assert outcome.facts["total"]["trend_km2_per_year"] == pytest.approx(-0.004, rel=1e-3)
    assert outcome.facts["total"]["glaciers"] == 2


def test_a_season_that_saw_too_little_of_a_glacier_does_not_count_for_it(story):
    yearly(story, (0, 4))
    clouds = ~mask((40, 40, 100, 40))
    story.season("2024", ice=FULL, seen=clouds, day=SUMMER_2024)
    series_between(story.workspace, ["2016", "2020", "2024"], calibration=CALIBRATION)
    trend = pd.read_csv(story.workspace.path("change/trend/trend.csv"))
    assert trend["glacier_id"].tolist() == ["other"]
    areas = pd.read_csv(story.workspace.path("change/trend/areas.csv"))
    row = areas[(areas["glacier_id"] == "tongue") & (areas["season"] == 2024)].iloc[0]
    assert not row["counts"]
