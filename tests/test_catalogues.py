"""The same questions to every kind of catalogue, each a real one: all must give the same scenes."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import catalogues
import pytest
from catalogues import Serve, bare_item, find, ids, placed, recorded_items, with_absolute_hrefs
from pgstac import PgStac, pgstac_server
from rasters import CENTRE, dem_item, optical_item, sar_item, write_items

EVERYWHERE = [(-180.0, -90.0, 180.0, 90.0)]
COLLECTIONS = [
    "cop-dem-glo-30",
    "landsat-c2-l2",
    "sentinel-1-grd",
    "sentinel-1-rtc",
    "sentinel-2-c1-l2a",
    "sentinel-2-l2a",
]


@pytest.fixture(scope="module")
def pgstac() -> Iterator[PgStac]:
    """One PostgreSQL for all tests; each has a database of its own."""
    with pgstac_server() as server:
        yield server


@pytest.fixture(
    params=[
        "as_file",
        "as_static_catalogue",
        "as_static_catalogue_over_http",
        "as_rustac",
        pytest.param("as_pgstac", marks=pytest.mark.slow),
    ]
)
def serve(request: pytest.FixtureRequest) -> Serve:
    """Offer items in one kind of catalogue."""
    if request.param != "as_pgstac":
        return getattr(catalogues, request.param)
    server: PgStac = request.getfixturevalue("pgstac")

    @contextlib.contextmanager
    def as_pgstac(folder: Path, items: list[dict]) -> Iterator[str]:
        with server.serve(write_items(folder / "items.json", items)) as url:
            yield url

    return as_pgstac


def test_many_scenes_are_those_of_the_file_of_items(serve: Serve, tmp_path: Path) -> None:
    items = with_absolute_hrefs(
        [bare_item(f"S2_{i:03d}", when=f"2024-08-{i % 28 + 1:02d}T10:00:00Z") for i in range(250)]
    )
    expected = find(write_items(tmp_path / "expected.json", items))
    with serve(tmp_path, items[::-1]) as location:
        found = find(location)
    assert found == expected
    assert len(found.scenes) == 250  # three pages of an API
    assert ids(found) == [s.id for s in sorted(found.scenes, key=lambda s: (s.datetime, s.id))]


def test_painted_scenes_of_three_sensors_are_found(serve: Serve, tmp_path: Path) -> None:
    items = [
        optical_item(tmp_path, "S2A", when="2024-08-02T10:00:00Z"),
        sar_item(tmp_path, "S1A", when="2024-08-02T05:00:00Z", paint=0.1),
        dem_item(tmp_path, "DEM", paint=lambda x, y: x + y, west=10.75, south=46.75),
    ]
    collections = ["sentinel-2-l2a", "sentinel-1-rtc", "cop-dem-glo-30"]
    with serve(tmp_path, items) as location:
        found = find(location, collections=collections, start=None, end=None)
        assert [scene.kind for scene in found.scenes] == ["dem", "sar", "optical"]
        assert find(location, collections=["sentinel-1-rtc"]).scenes == found.scenes[1:2]
        assert find(location, collections=collections, boxes=[(0, 0, 1, 1)]).scenes == ()


def test_time_box_and_collection_bound_a_search(serve: Serve, tmp_path: Path) -> None:
    items = [
        bare_item("before", when="2024-06-30T23:59:59Z"),
        bare_item("first", when="2024-07-01T00:00:00Z"),
        bare_item("last", when="2024-09-30T23:59:58Z"),
        bare_item("after", when="2024-10-01T00:00:00Z"),
        placed(bare_item("elsewhere"), (0, 0, 1, 1)),
        bare_item("other") | {"collection": "sentinel-2-c1-l2a"},
    ]
    with serve(tmp_path, items) as location:
        assert ids(find(location)) == ["first", "last"]
        assert ids(find(location, end=None)) == ["first", "last", "after"]
        assert ids(find(location, start=None, end="2024-06-30")) == ["before"]


def test_a_scene_over_the_antimeridian_is_found_from_both_sides(
    serve: Serve, tmp_path: Path
) -> None:
    items = [
        placed(bare_item("over"), (179.2, -17.0, -179.4, -16.0)),
        placed(bare_item("west"), (178.0, -17.0, 178.5, -16.0)),
        placed(bare_item("greenwich"), (-0.5, -17.0, 0.5, -16.0)),
    ]
    west, east = (179.5, -16.6, 180.0, -16.4), (-180.0, -16.6, -179.6, -16.4)
    with serve(tmp_path, items) as location:
        assert ids(find(location, boxes=[west])) == ["over"]
        assert ids(find(location, boxes=[east])) == ["over"]
        assert ids(find(location, boxes=[east, west])) == ["over"]
        assert ids(find(location, boxes=[(-0.2, -16.6, 0.2, -16.4)])) == ["greenwich"]


def test_a_place_without_extent_finds_the_scenes_that_show_it(serve: Serve, tmp_path: Path) -> None:
    x, y = CENTRE
    items = [bare_item("here"), placed(bare_item("elsewhere"), (0, 0, 1, 1))]
    with serve(tmp_path, items) as location:
        for west in (x, x + 360):
            assert ids(find(location, boxes=[(west, y, west, y)])) == ["here"]


def test_cloudy_scenes_are_passed_over_and_silent_ones_kept(serve: Serve, tmp_path: Path) -> None:
    items = [
        bare_item("clear", **{"eo:cloud_cover": 20.0}),
        bare_item("cloudy", **{"eo:cloud_cover": 20.1}),
        bare_item("silent"),
    ]
    with serve(tmp_path, items) as location:
        assert ids(find(location, max_cloud_percent=20)) == ["clear", "silent"]


def test_a_scene_in_several_boxes_counts_once(serve: Serve, tmp_path: Path) -> None:
    with serve(tmp_path, [bare_item("one")]) as location:
        assert ids(find(location, boxes=catalogues.HERE * 3)) == ["one"]


def test_items_that_cannot_be_used_are_named_and_the_others_kept(
    serve: Serve, tmp_path: Path
) -> None:
    broken = bare_item("broken")
    del broken["assets"]["red"]
    doubtful = bare_item("doubtful", **{"earthsearch:boa_offset_applied": False})
    doubtful["properties"]["s2:processing_baseline"] = "02.12"
    for asset in doubtful["assets"].values():
        asset["raster:bands"] = [{"offset": -0.1}]
    with serve(tmp_path, [broken, bare_item("good"), doubtful]) as location:
        result = find(location)
    assert ids(result) == ["good"]
    assert [(f.what, f.kind) for f in result.set_aside] == [
        ("broken", "bad-item"),
        ("doubtful", "radiometry-doubtful"),
    ]
    assert "red or B04" in result.set_aside[0].reason


@pytest.mark.real_data
def test_recorded_items_give_the_same_scenes_from_every_kind_of_catalogue(
    serve: Serve, tmp_path: Path
) -> None:
    items = recorded_items()
    question = {"collections": COLLECTIONS, "boxes": EVERYWHERE, "start": None, "end": None}
    expected = find(write_items(tmp_path / "expected.json", items), **question)
    assert len(expected.scenes) > 30
    assert Counter(scene.kind for scene in expected.scenes).keys() == {"dem", "optical", "sar"}
    with serve(tmp_path, items) as location:
        found = find(location, **question)
    assert found.scenes == expected.scenes
    assert found.set_aside == expected.set_aside
