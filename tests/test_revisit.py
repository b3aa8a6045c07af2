"""Row S11 of the fault matrix: a catalogue that lacks scenes is noticed from those it has."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from catalogues import REAL, bare_item, find
from rasters import landsat_item, write_items

from catalog.cube import Workspace
from catalog.revisit import Revisit, count_revisits
from catalog.saved_search import read_search, save_search
from catalog.scenes import Scene
from catalog.sensors import describe_item

SUMMER = (date(2024, 7, 1), date(2024, 9, 30))
SCENE = describe_item(
    bare_item("S2", **{"s2:datatake_id": "GS2A_20240701T101019_000001_N05.11", "s2:mgrs_tile": "X"})
)
# Tile -> days of the five-day cycle on which its tracks pass, from one track to five as near poles.
PLACES = {
    "32TPS": [0, 3],
    "45RVL": [1],
    "20EPT": [0, 1, 3],
    "06VVN": [0, 2, 4],
    "60VUK": [0, 2],
    "22WEB": [0, 1, 2, 3, 4],
    "33XWG": [0, 1, 2, 3],
    "19FCE": [4],
    "43SDV": [2, 3],
    "13TDE": [0, 1],
}


def days(first: date, last: date) -> list[date]:
    return [first + timedelta(n) for n in range((last - first).days + 1)]


def scene(tile: str, day: date, hour: str = "10:10:19") -> Scene:
    when = f"{day.isoformat()}T{hour}Z"
    return replace(
        SCENE,
        id=f"{tile}-{when}",
        datetime=when,
        granule=f"GS2_{when}/{tile}",
        bbox=(9, 46, 10, 47),
    )


def passes(tile: str, tracks: Iterable[int], season: tuple[date, date] = SUMMER) -> list[Scene]:
    """Every pass over a tile, as two satellites make them."""
    return [scene(tile, day) for day in days(*season) if day.toordinal() % 5 in tracks]


def counted(scenes: Iterable[Scene], season: tuple[date, date] = SUMMER) -> tuple[Revisit, ...]:
    return count_revisits(scenes, start=season[0], end=season[1])


def test_whole_tiles_are_not_flagged_and_all_their_days_are_counted() -> None:
    found = counted(s for tile, tracks in PLACES.items() for s in passes(tile, tracks))
    assert [revisit.tile for revisit in found] == sorted(PLACES)
    for revisit in found:
        assert revisit.found == revisit.expected >= 18
        assert not revisit.is_sparse


@pytest.mark.parametrize("seed", range(5))
def test_s11_ten_tiles_that_lack_a_third_are_flagged_and_those_that_lack_a_tenth_are_not(
    seed: int,
) -> None:
    dice = random.Random(seed)
    for part, sparse in ((3, True), (10, False)):
        scenes: list[Scene] = []
        for tile, tracks in PLACES.items():
            whole = passes(tile, tracks)
            scenes += dice.sample(whole, len(whole) - len(whole) // part)
        dice.shuffle(scenes)
        found = counted(scenes)
        assert [revisit.is_sparse for revisit in found] == [sparse] * 10


def test_a_month_without_any_scene_is_flagged() -> None:
    scenes = [s for s in passes("32TPS", [0, 3]) if not s.datetime.startswith("2024-08")]
    (found,) = counted(scenes)
    assert found.is_sparse


def test_a_track_that_only_touches_a_tile_does_not_count() -> None:
    edge = passes("32TPS", [1])[::5]  # a sliver that is delivered now and then
    (found,) = counted([*passes("32TPS", [0]), *edge])
    assert (found.found, found.expected) == (18, 18)


def test_granules_and_processings_of_one_day_count_once() -> None:
    scenes = passes("32TPS", [0])
    again = [replace(s, id=f"{s.id}-b", baseline="02.12") for s in scenes]
    assert counted([*scenes, *again]) == counted(scenes)


def test_one_satellite_passes_every_ten_days_before_the_second() -> None:
    season = (date(2016, 7, 1), date(2016, 9, 30))
    alone = [scene("32TPS", day) for day in days(*season) if day.toordinal() % 10 == 4]
    (found,) = counted(alone, season)
    assert (found.found, found.expected) == (9, 9)
    later = (date(2018, 7, 1), date(2018, 9, 30))
    half = [scene("32TPS", day) for day in days(*later) if day.toordinal() % 10 == 4]
    (found,) = counted(half, later)
    assert found.is_sparse  # the second satellite is missing altogether


def test_passes_around_midnight_in_utc_are_one_track() -> None:
    """Near 180 degrees the local morning is midnight in UTC."""
    scenes = []
    for n, day in enumerate(d for d in days(*SUMMER) if d.toordinal() % 5 == 2):
        when = (day - timedelta(1), "23:59:50") if n % 2 else (day, "00:00:20")
        scenes.append(replace(scene("60VUK", *when), bbox=(178.0, 57.0, -179.5, 58.0)))
    (found,) = counted(scenes)
    assert (found.found, found.expected) == (18, 18)


def test_landsat_is_counted_by_path_and_row(tmp_path: Path) -> None:
    template = describe_item(landsat_item(tmp_path, "L", when="2024-07-01T10:00:00Z"))

    def pass_of(day: date) -> Scene:
        stamp = day.strftime("%Y%m%d")
        return replace(
            template, id=f"LC08_L2SP_193027_{stamp}_02_T1", datetime=f"{day.isoformat()}T10:00:00Z"
        )

    whole = [pass_of(day) for day in days(*SUMMER) if day.toordinal() % 8 == 3]
    (found,) = counted(whole)
    assert (found.sensor, found.tile) == ("landsat-oli", "193027")
    assert found.found == found.expected == len(whole)
    (found,) = counted(whole[::2])
    assert found.is_sparse
    assert counted([replace(s, sensor="landsat-etm") for s in whole]) == ()


def test_what_cannot_be_judged_is_not_judged() -> None:
    short = (date(2024, 7, 1), date(2024, 7, 20))
    assert counted(passes("32TPS", [0], short), short) == ()
    assert counted([replace(s, granule="") for s in passes("32TPS", [0])]) == ()
    assert counted([replace(s, sensor="sentinel-1-rtc") for s in passes("32TPS", [0])]) == ()
    before = (date(2014, 7, 1), date(2014, 9, 30))
    assert counted(passes("32TPS", [0], before), before) == ()
    assert counted([]) == ()


def items_of(tracks: Iterable[int], season: tuple[date, date]) -> list[dict]:
    return [
        bare_item(
            f"S2-{day}",
            when=f"{day}T10:00:00Z",
            **{
                "eo:cloud_cover": 90.0 if n % 2 else 5.0,
                "s2:datatake_id": f"GS2A_{day:%Y%m%d}T100000_000001_N05.11",
                "s2:mgrs_tile": "32TPS",
            },
        )
        for n, day in enumerate(d for d in days(*season) if d.toordinal() % 5 in tracks)
    ]


def test_days_of_which_none_comes_again_tell_of_no_track() -> None:
    few = [scene("32TPS", SUMMER[0] + timedelta(n)) for n in (0, 21, 42, 63)]
    assert count_revisits(few, start=SUMMER[0], end=SUMMER[1]) == ()


def test_a_search_counts_cloudy_scenes_too_and_keeps_the_counts(tmp_path: Path) -> None:
    items = items_of([0], SUMMER)
    found = find(write_items(tmp_path / "items.json", items), max_cloud_percent=20)
    assert len(found.scenes) == 9
    assert [(r.tile, r.found, r.expected) for r in found.revisits] == [("32TPS", 18, 18)]
    workspace = Workspace(str(tmp_path / "work"))
    save_search(workspace, "2024-optical", found, question={})
    assert read_search(workspace, "2024-optical", question={}) == found


def test_days_to_come_are_not_missed(tmp_path: Path) -> None:
    today = datetime.now(UTC).date()
    season = (today - timedelta(45), today + timedelta(45))
    items = items_of([0], (season[0], today - timedelta(1)))
    path = write_items(tmp_path / "items.json", items)
    found = find(path, start=season[0].isoformat(), end=season[1].isoformat())
    assert not found.revisits[0].is_sparse
    assert find(path, start=None, end=None).revisits == ()


@pytest.mark.real_data
def test_a_recorded_series_is_whole_and_lacks_what_is_taken_out(tmp_path: Path) -> None:
    path = REAL / "s2_35MNM_series.geojson"
    if not path.exists():
        pytest.skip(f"the real STAC items are not at {REAL} (set INVENTORY_ENGINE_TEST_DATA)")
    items = json.loads(path.read_text())["features"]
    scenes = [describe_item(item) for item in items]
    season = (date(2020, 6, 1), date(2020, 7, 31))
    assert counted(scenes, season) == (Revisit("sentinel-2-msi", "35MNM", 13, 13),)
    assert counted(scenes[::3] + scenes[1::3], season)[0].is_sparse
