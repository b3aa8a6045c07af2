from __future__ import annotations

import json

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
    reference,
    world_grid,
)

from catalog.errors import StoreError
from change_detection.change import CHANGE_SCHEMA, change_between
from change_detection.divides import glacier_batches
from change_detection.outlines import trace_batch
from change_detection.publishing import publish_season
from change_detection.uncertainty import AreaCalibration

CALIBRATION = AreaCalibration(2.0, 3.0, "made up for a test, verified nowhere")
GRID = world_grid(SIZE)
RECTANGLES = {"A": (40, 40, 100, 100), "B": (40, 140, 100, 30), "C": (200, 200, 20, 20)}
FULL = mask(*RECTANGLES.values())
YEARS = (SUMMER_2024 - SUMMER_2016) / 365.2425


class Story:
    """Seasons painted in one workspace, and the change between two of them."""

    def __init__(self, folder, rectangles=RECTANGLES):
        self.workspace = new_workspace(folder)
        self.frame = reference(rectangles, GRID)
        self.batches = glacier_batches(self.frame, GRID, growth_m=200.0)

    def season(self, name, *, ice, window=("2000-01-01", "2030-12-31"), **layers):
        paint_season(self.workspace, GRID, name, ice=ice, **layers)
        for batch in self.batches:
            trace_batch(
                self.workspace,
                name,
                batch,
                frame=self.frame,
                grid=GRID,
                growth_m=200.0,
                season_window=window,
            )
        publish_season(self.workspace, self.batches, frame=self.frame, facts=package_facts(name))

    def change(self, old="2016", new="2024", calibration=CALIBRATION):
        outcome = change_between(self.workspace, old, new, calibration=calibration)
        folder = self.workspace.path(f"change/{old}_{new}")
        self.summary = json.loads((folder / "summary.json").read_text())
        assert self.summary == outcome.facts
        self.table = pd.read_parquet(folder / "glaciers.parquet").set_index("glacier_id")
        return outcome


@pytest.fixture
def story(tmp_path):
    return Story(tmp_path)


def shrunk_members():
    """Ice of 2024 as three members see it: one, two and three rows of A are gone."""
    return [FULL & ~mask((40, 40, n, 100)) for n in (1, 2, 3)]


def test_the_change_of_each_glacier_is_the_painted_one(story):
    story.season("2016", ice=FULL)
    story.season(
        "2024", ice=FULL & ~mask((40, 40, 2, 100)), members=shrunk_members(), day=SUMMER_2024
    )
    story.change()
    a = story.table.loc["A"]
    assert (a.area_from_km2, a.area_to_km2) == pytest.approx((1.0, 0.98))
    assert a.area_change_km2 == pytest.approx(-0.02, abs=1e-12)
    # members: -0.01, -0.02, -0.03 km2; twice their standard deviation, and two small margins
    assert a.area_change_sigma_km2 == pytest.approx(0.02, rel=2e-3)
    assert a.area_change_sigma_km2 > 0.02
    assert a.rate_km2_per_year == pytest.approx(-0.02 / YEARS)
    assert a.rate_sigma_km2_per_year == pytest.approx(a.area_change_sigma_km2 / YEARS)
    assert a.rate_percent_per_year == pytest.approx(-2.0 / YEARS)
    assert a.rate_percent_sigma == pytest.approx(100 * a.area_change_sigma_km2 / YEARS)
    assert (a.date_from, a.date_to, a.event, a["flags"]) == ("2016-08-17", "2024-08-17", "", "")


def test_the_summary_adds_up_what_could_be_compared(story):
    story.season("2016", ice=FULL)
    seen = ~mask((40, 140, 100, 15))
    ice = FULL & ~mask((40, 40, 2, 100), (200, 200, 10, 20))
    members = [m & ~mask((200, 200, 10, 20)) for m in shrunk_members()]
    story.season("2024", ice=ice, members=members, seen=seen, day=SUMMER_2024)
    story.change()
    summary = story.summary
    assert (summary["glaciers"], summary["glaciers_compared"]) == (3, 2)
    assert summary["area_from_km2"] == pytest.approx(1.04)
    assert summary["area_change_km2"] == pytest.approx(-0.04)
    assert summary["area_not_compared_km2"] == pytest.approx(0.3)
    assert summary["area_reference_compared_km2"] == pytest.approx(1.04)
    assert summary["rate_percent_per_year"] == pytest.approx(-100 * 0.04 / 1.04 / YEARS)
    assert summary["events"] == {"unobserved": 1}
    assert summary["flags"]["low-observation"] == 1
    assert summary["calibration"]["source"] == CALIBRATION.source
    low, middle, high = (
        summary[f"area_change_sigma{name}_km2"] for name in ("_independent", "", "_correlated")
    )
    assert low <= middle <= high
    # the members' common error, times three, is the larger part
    assert summary["area_change_sigma_members_km2"] == pytest.approx(0.03, rel=1e-6)
    assert middle >= 0.03


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_same_inventory_twice_gives_exactly_zero(tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    story = Story(tmp_path_factory.mktemp("story"))
    noise = rng.random((SIZE, SIZE))
    layers = {
        "ice": FULL & (noise < 0.9),
        "seen": rng.random((SIZE, SIZE)) < 0.9,
        "members": [FULL & (rng.random((SIZE, SIZE)) < 0.9) for _ in range(3)],
    }
    story.season("2016", **layers)
    story.season("again", **layers)
    for new in ("2016", "again"):
        story.change(new=new)
        changes = story.table.filter(regex="area_change|rate")
        assert (changes == 0).all(axis=None)
        assert (story.table.event == "").all()
        rates = [v for k, v in story.summary.items() if "change" in k or "rate" in k]
        assert len(rates) == 9 and all(v == 0 for v in rates)


def test_no_change_is_reported_where_too_little_was_seen(story):
    story.season("2016", ice=FULL)
    story.season("2024", ice=mask(), seen=mask(), day=SUMMER_2024)
    story.change()
    numbers = story.table.filter(regex="area_change|rate")
    assert numbers.isna().all(axis=None)
    assert (story.table.event == "unobserved").all()
    assert story.table.area_to_km2.tolist() == pytest.approx([1.0, 0.3, 0.04])
    summary = story.summary
    assert summary["glaciers_compared"] == 0
    for name in ("area_change_km2", "area_change_sigma_km2", "rate_km2_per_year", "area_from_km2"):
        assert summary[name] is None


@pytest.mark.parametrize(
    ("day", "flag"),
    [
        (SUMMER_2016 + 300, "short-interval"),
        (SUMMER_2016, "short-interval"),
        (SUMMER_2016 - 3000, "short-interval"),
        (SUMMER_2024 + 100, "out-of-season"),
    ],
)
def test_a_doubtful_pair_of_dates_has_no_change_and_says_why(story, day, flag):
    story.season("2016", ice=FULL)
    story.season("2024", ice=mask((40, 40, 90, 100)), day=day)
    story.change()
    assert story.table.area_change_km2.isna().all()
    assert (story.table.event == "").all()
    assert all(flag in f.split(";") for f in story.table["flags"])
    assert story.summary["flags"][flag] == 3


def test_with_fewer_than_three_members_there_is_a_change_but_no_interval(story):
    story.season("2016", ice=FULL)
    story.season("2024", ice=FULL & ~mask((40, 40, 2, 100)), voters=0b011, day=SUMMER_2024)
    story.change()
    a = story.table.loc["A"]
    assert a.area_change_km2 == pytest.approx(-0.02)
    assert np.isnan(a.area_change_sigma_km2) and np.isnan(a.rate_percent_sigma)
    assert a["flags"] == "few-members"
    assert story.summary["area_change_sigma_km2"] is None
    assert story.summary["area_change_km2"] == pytest.approx(-0.02)


# Glacier A is 100 x 100 pixels of 1e-4 km2; each story is A's ice in 2016 and in 2024.
TALL = mask((40, 40, 100, 100))
STORIES = {
    "": (TALL, mask((50, 40, 90, 100))),
    "vanished": (TALL, mask()),
    "appeared": (mask(), mask((60, 60, 30, 30))),
    "below-minimum": (TALL, mask((60, 60, 9, 9))),
    "split": (TALL, mask((40, 40, 40, 100), (90, 40, 50, 100))),
    "advanced": (TALL, TALL | mask((140, 60, 15, 40))),
}


@pytest.mark.parametrize("event", STORIES)
def test_each_story_is_told_by_its_event(tmp_path, event):
    story = Story(tmp_path, {"A": RECTANGLES["A"]})
    before, after = STORIES[event]
    story.season("2016", ice=before)
    story.season("2024", ice=after, day=SUMMER_2024)
    story.change()
    row = story.table.loc["A"]
    assert row.event == event
    assert row.area_change_km2 == pytest.approx((after.sum() - before.sum()) * 1e-4)
    if event == "appeared":
        assert np.isnan(row.rate_percent_per_year) and row.rate_km2_per_year > 0


def test_a_cloud_never_splits_or_removes_a_glacier(tmp_path):
    story = Story(tmp_path, {"A": RECTANGLES["A"]})
    story.season("2016", ice=TALL)
    story.season("2024", ice=TALL, seen=~mask((80, 40, 10, 100)), day=SUMMER_2024)
    story.change()
    row = story.table.loc["A"]
    assert (row.event, row.area_change_km2) == ("", 0.0)


def test_members_that_agree_leave_only_the_margins(story):
    story.season("2016", ice=FULL)
    story.season("2024", ice=FULL, day=SUMMER_2024)
    story.change()
    accounts = pd.read_parquet(story.workspace.path("inventory/2016/accounts.parquet"))
    margin = accounts.set_index("ref_id").boundary_sigma_km2 * np.sqrt(2)
    assert story.table.area_change_sigma_km2.to_dict() == pytest.approx(margin.to_dict())
    assert (story.table.area_change_sigma_km2 > 0).all()


def test_seasons_of_different_references_are_not_compared(tmp_path):
    story = Story(tmp_path)
    story.season("2016", ice=FULL)
    other = Story(tmp_path, {"A": RECTANGLES["A"], "D": RECTANGLES["C"]})
    other.season("2024", ice=FULL, day=SUMMER_2024)
    with pytest.raises(StoreError, match="different glaciers, the first: B, C, D"):
        story.change()


def test_a_season_without_an_inventory_is_named(story):
    story.season("2016", ice=FULL)
    with pytest.raises(StoreError, match=r"inventory/2024/accounts\.parquet is missing"):
        story.change()


def test_the_tables_agree_and_repeat_byte_for_byte(story):
    story.season("2016", ice=FULL)
    story.season("2024", ice=mask(RECTANGLES["A"]), day=SUMMER_2024)
    first, second = story.change(), story.change()
    assert first == second
    files = {name.rsplit("/", 1)[1] for name in first.outputs}
    assert files == {"glaciers.parquet", "glaciers.csv", "events.csv", "summary.json"}
    csv = pd.read_csv(story.workspace.path("change/2016_2024/glaciers.csv"), keep_default_na=False)
    assert csv.columns.tolist() == CHANGE_SCHEMA.names
    assert csv.glacier_id.tolist() == ["A", "B", "C"]
    assert csv.area_change_km2.astype(float).tolist() == story.table.area_change_km2.tolist()
