"""Scenes found by place are those that are found by asking each of them."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from catalog.grid import RegionGrid
from catalog.looks import SceneIndex, looks_of, scenes_over
from catalog.scenes import Scene, boxes_meet


def scene(number: int, west: float, south: float, width: float, height: float) -> Scene:
    """Scene over a box; one whose box crosses the antimeridian has west > east."""
    east = (west + width + 180.0) % 360.0 - 180.0
    return Scene(
        id=f"S{number}",
        collection="sentinel-2-l2a",
        kind="optical",
        sensor="sentinel-2-msi",
        datetime=f"2024-08-{1 + number % 28:02d}T10:00:00Z",
        bands=(),
        masks=(),
        bbox=(west, south, east, min(south + height, 90.0)),
        sun_azimuth=None,
        sun_elevation=None,
        cloud_percent=None,
        baseline=None,
        fingerprint=f"{number:064x}",
    )


boxes = st.tuples(st.floats(-180, 179.9), st.floats(-90, 89), st.floats(0, 4), st.floats(0, 4))


@given(
    places=st.lists(boxes, max_size=20),
    lat=st.sampled_from([-88.0, 0.0, 46.5, 71.0, 89.5]),
    lon=st.sampled_from([0.0, 10.5, 179.5, -180.0]),
    near=st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), max_size=20),
)
def test_the_tree_finds_what_asking_each_scene_finds(
    places: list[tuple[float, float, float, float]],
    lat: float,
    lon: float,
    near: list[tuple[float, float]],
) -> None:
    """Also over the antimeridian and at the poles, and in the same order."""
    around = [
        ((lon + dx + 180) % 360 - 180, max(-90.0, min(89.0, lat + dy)), 1.0, 1.0) for dx, dy in near
    ]
    scenes = [scene(n, *box) for n, box in enumerate([*places, *around])]
    grid = RegionGrid(lat, lon, 100.0, 1024, 512, -102400.0, 102400.0, 2, 2)
    index = SceneIndex(scenes)
    for shard in grid.shards():
        found = [s for s in scenes if any(boxes_meet(s.bbox, b) for b in shard.lonlat_boxes)]
        expected = sorted(found, key=lambda s: (s.datetime, s.id))
        assert index.over(shard.lonlat_boxes) == scenes_over(scenes, shard) == expected


def test_shards_share_the_description_of_a_scene() -> None:
    index = SceneIndex([scene(0, 10.0, 46.0, 1.0, 1.0)])
    grid = RegionGrid(46.5, 10.5, 10.0, 1024, 512, 0.0, 10240.0, 1, 1)
    found = index.over(grid.shard(0, 0).lonlat_boxes)
    (first,), (second,) = index.described(found), index.described(found)
    assert first is second
    assert Scene.from_dict(first) == found[0]


def test_a_look_is_what_one_sensor_saw_on_one_day() -> None:
    scenes = [scene(n, 10.0, 46.0, 1.0, 1.0) for n in (0, 1, 28)]
    other = replace(scenes[0], id="L0", sensor="landsat-oli")
    looks = looks_of([*scenes, other, scenes[1]])
    assert [[s.id for s in look] for look in looks] == [["L0"], ["S0", "S28"], ["S1"]]
