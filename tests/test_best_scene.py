"""Which glacier's order of looks holds at a pixel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
from rasters import KEYS, optical_item, small_grid
from test_composites import compose, day, middle

from catalog.assets import AssetPolicy
from catalog.best_scene import REACH_M, GlacierOrders
from catalog.composites import build_cube_shard, create_season
from catalog.cube import Workspace, read_shard
from catalog.errors import UsageError
from catalog.looks import looks_of
from catalog.sensors import describe_item
from catalog.stacks import shard_tiles


def at(x: float, y: float, radius: float = 60.0) -> shapely.Geometry:
    return shapely.Point(x, y).buffer(radius)


def two_glaciers(apart: float) -> GlacierOrders:
    """One glacier in the west, one in the east of the middle of the middle shard."""
    left, bottom, right, top = middle(small_grid()).bounds
    x, y = (left + right) / 2, (bottom + top) / 2
    names = [("2024-08-01", "sentinel-2-msi"), ("2024-08-02", "sentinel-2-msi")]
    return GlacierOrders(
        ("east", "west"),
        (at(x + apart / 2, y), at(x - apart / 2, y)),
        ({names[0]: 2, names[1]: 1}, {names[0]: 1, names[1]: 2}),
    )


def test_each_glacier_and_its_surroundings_come_from_its_own_best_look(tmp_path: Path) -> None:
    items = [
        optical_item(tmp_path, f"S2A_{i}", when=day(i + 1), paint=0.2 + 0.1 * i) for i in (0, 1)
    ]
    grid = small_grid()
    shard = middle(grid)
    workspace = Workspace(tmp_path / "work")
    create_season(workspace, "2024", grid, sar=False)
    outcome = build_cube_shard(
        workspace,
        "2024",
        shard,
        optical=[describe_item(item) for item in items],
        sar=None,
        policy=AssetPolicy((str(tmp_path),)),
        strategy="best_scene",
        orders=two_glaciers(apart=400),
    )
    days = read_shard(workspace, "cube.zarr/2024/date", shard)
    n = grid.shard_px
    middle_row = days[n // 2]
    assert outcome.facts["composite"] == "best_scene"
    assert middle_row[n // 2 - 20] == int(np.datetime64("2024-08-01", "D").astype(int))
    assert middle_row[n // 2 + 20] == int(np.datetime64("2024-08-02", "D").astype(int))
    assert len(np.unique(days)) == 2


def test_best_scene_without_ranks_is_refused(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with pytest.raises(UsageError, match="rank them first"):
        build_cube_shard(
            workspace,
            "2024",
            middle(small_grid()),
            optical=[],
            sar=None,
            policy=AssetPolicy((str(tmp_path),)),
            strategy="best_scene",
        )


@pytest.mark.parametrize("apart", [300.0, 4000.0])
def test_a_pixel_belongs_to_the_nearest_glacier_within_reach(tmp_path: Path, apart: float) -> None:
    orders = two_glaciers(apart)
    shard = middle(small_grid())
    items = [optical_item(tmp_path, "S2A_0", when=day(1), paint=0.3)]
    looks = looks_of([describe_item(item) for item in items])
    size = shard.grid.resolution_m
    for tile in shard_tiles(shard):
        found = orders.on(tile, looks).glacier
        left, _, _, top = tile.bounds
        x, y = np.meshgrid(
            left + (np.arange(tile.width) + 0.5) * size, top - (np.arange(tile.height) + 0.5) * size
        )
        points = shapely.points(x, y)
        far = np.stack([shapely.distance(o, points) for o in orders.outlines])
        near = far.argmin(axis=0) + 1
        clearly = (abs(far[0] - far[1]) > 2 * size) & (abs(far.min(axis=0) - REACH_M) > 2 * size)
        want = np.where(far.min(axis=0) <= REACH_M, near, 0)
        assert (found == want)[clearly].all()


def test_neither_other_glaciers_far_away_nor_their_order_change_anything(tmp_path: Path) -> None:
    orders = two_glaciers(apart=400)
    shard = middle(small_grid())
    left, _, _, top = shard.bounds
    more = replace(
        orders,
        ids=(*orders.ids, "zz"),
        outlines=(*orders.outlines, at(left - 90_000, top)),
        ranks=(*orders.ranks, {}),
    )
    looks = looks_of([describe_item(optical_item(tmp_path, "S2A_0", when=day(1), paint=0.3))])
    for tile in shard_tiles(shard):
        assert (orders.on(tile, looks).glacier == more.on(tile, looks).glacier).all()


@pytest.mark.parametrize("strategy", ["median", "medoid", "least_snow"])
def test_strips_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    def paint(seed: int):
        return {
            role: lambda x, y, k=seed + 7 * b: (
                0.3 + 0.1 * np.sin(x / (40 + k)) * np.cos(y / (50 - k))
            )
            for b, role in enumerate(KEYS)
        }

    items = [optical_item(tmp_path, f"S2A_{i}", when=day(i + 1), paint=paint(i)) for i in range(3)]
    whole, _ = compose(tmp_path, items, name="whole", strategy=strategy)
    monkeypatch.setattr("catalog.composites._HELD_PIXELS", 5000)
    cut, _ = compose(tmp_path, items, name="cut", strategy=strategy)
    for layer, values in whole.items():
        assert (values == cut[layer]).all(), layer
