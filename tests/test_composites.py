from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyproj import Transformer
from rasters import (
    CENTRE,
    KEYS,
    UTM,
    landsat_item,
    optical_item,
    sar_item,
    small_grid,
    utm_frame,
    write_tif,
)
from servers import Answer, file_script, scripted_server

from catalog import composites
from catalog.assets import AssetPolicy
from catalog.composites import build_cube_shard, create_season
from catalog.cube import DATE_MISSING, OPTICAL_BANDS, Outcome, Workspace, read_shard
from catalog.errors import SourceError
from catalog.grid import RegionGrid, Shard
from catalog.looks import scenes_over
from catalog.masks import MaskKind, mask_halo, usable_pixels
from catalog.scenes import Scene
from catalog.sensors import describe_item

SEASON = "2024"
NAN = float("nan")
X0, Y0 = Transformer.from_crs(4326, UTM, always_xy=True).transform(*CENTRE)
CLOUD, SNOW, DARK, VEGETATION = 9, 11, 2, 4


def day(n: int) -> str:
    return f"2024-08-{n:02d}T10:00:00Z"


def days_since_1970(n: int) -> int:
    return int(np.datetime64(f"2024-08-{n:02d}", "D").astype(int))


def middle(grid: RegionGrid) -> Shard:
    return grid.shard(grid.rows // 2, grid.cols // 2)


def compose(
    tmp_path: Path,
    optical: Sequence[dict],
    *,
    sar: Sequence[dict] | None = None,
    grid: RegionGrid | None = None,
    shard: Shard | None = None,
    name: str = "workspace",
    describe: Callable[[dict], Scene] = describe_item,
    strategy: Any = "least_snow",
) -> tuple[dict[str, np.ndarray], Outcome]:
    """Build one shard and read it back."""
    grid = grid or small_grid()
    shard = shard or middle(grid)
    workspace = Workspace(tmp_path / name)
    create_season(workspace, SEASON, grid, sar=sar is not None)
    outcome = build_cube_shard(
        workspace,
        SEASON,
        shard,
        optical=[describe(item) for item in optical],
        sar=None if sar is None else [describe_item(item) for item in sar],
        policy=AssetPolicy((str(tmp_path),)),
        strategy=strategy,
    )
    layers = [key.split("/")[2] for key in outcome.outputs]
    return {
        layer: read_shard(workspace, f"cube.zarr/{SEASON}/{layer}", shard) for layer in layers
    }, outcome


def grid_places(shard: Shard, epsg: int = UTM) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the pixel centres of a shard, by pyproj alone."""
    left, _, _, top = shard.bounds
    size = shard.grid.resolution_m
    steps = (np.arange(shard.grid.shard_px) + 0.5) * size
    x, y = np.meshgrid(left + steps, top - steps)
    return Transformer.from_crs(shard.grid.crs, epsg, always_xy=True).transform(x, y)


def texture(seed: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def paint(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        waves = np.sin(x / (31 + seed)) * np.cos(y / (47 - seed)) + np.sin((x + y) / (90 + seed))
        return 0.35 + 0.12 * waves

    return paint


def clouds(seed: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def paint(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        hidden = np.sin(x / (210 + 17 * seed) + seed) + np.cos(y / (180 + 11 * seed)) > 1.2
        return np.where(hidden, CLOUD, VEGETATION)

    return paint


def textured_season(folder: Path, n: int = 4) -> list[dict]:
    return [
        optical_item(
            folder,
            f"S2A_{i}",
            when=day(i + 1),
            paint={role: texture(i + 3 * b) for b, role in enumerate(KEYS)},
            classes=clouds(i),
        )
        for i in range(n)
    ]


@pytest.mark.parametrize("offset", [-0.1, 0.0])
def test_reflectance_is_stored_exactly_whatever_offset_the_pixels_carry(
    tmp_path: Path, offset: float
) -> None:
    paint = {role: (lambda x, y, v=0.05 * i: np.full(x.shape, v)) for i, role in enumerate(KEYS, 1)}
    item = optical_item(tmp_path, "S2A", when=day(3), paint=paint, offset=offset)
    layers, outcome = compose(tmp_path, [item])
    for i in range(6):
        assert np.unique(layers["optical"][i]).tolist() == [1000 + 500 * (i + 1)]
    assert np.unique(layers["date"]).tolist() == [days_since_1970(3)]
    assert np.unique(layers["span"]).tolist() == [0]
    assert np.unique(layers["observations"]).tolist() == [1]
    assert outcome.facts["valid_fraction"] == 1.0
    assert outcome.facts["clipped"] == 0
    assert outcome.set_aside == ()


def test_pixels_lie_where_the_projection_says_to_a_fiftieth_of_a_pixel(tmp_path: Path) -> None:
    per_pixel = 0.00731
    paint = {role: (lambda x, y: 1.5 + (x - X0) / 10 * per_pixel) for role in KEYS}
    paint["green"] = lambda x, y: 1.5 + (y - Y0) / 10 * per_pixel
    item = optical_item(tmp_path, "S2A", when=day(3), paint=paint)
    grid = small_grid()
    shard = middle(grid)
    layers, _ = compose(tmp_path, [item], grid=grid, shard=shard)
    x, y = grid_places(shard)
    for band, where in (("blue", x - X0), ("green", y - Y0)):
        stored = layers["optical"][OPTICAL_BANDS.index(band)]
        expected = (1.5 + where / 10 * per_pixel) * 10000 + 1000
        assert np.abs(stored - expected).max() / (per_pixel * 10000) < 0.02


@pytest.mark.parametrize("resolution", [5.0, 12.0, 20.0, 30.0])
def test_other_resolutions_keep_places_and_means(tmp_path: Path, resolution: float) -> None:
    per_metre = 0.0004
    item = optical_item(
        tmp_path, "S2A", when=day(3), paint=lambda x, y: 1.5 + (x - X0 + y - Y0) * per_metre
    )
    grid = small_grid(shard_px=64, chunk_px=32, resolution_m=resolution, size_m=600)
    shard = middle(grid)
    layers, outcome = compose(tmp_path, [item], grid=grid, shard=shard)
    assert outcome.facts["valid_fraction"] == 1.0
    x, y = grid_places(shard)
    expected = (1.5 + (x - X0 + y - Y0) * per_metre) * 10000 + 1000
    assert np.abs(layers["optical"][0] - expected).max() < 2 * per_metre * 10000 * resolution * 0.15


def test_the_look_at_the_thirtieth_percentile_of_brightness_is_taken(tmp_path: Path) -> None:
    greens = [0.9, 0.05, 0.3, 0.35, 0.8, 0.31, 0.7]  # cloud, shadow, ground, ground, snow, ...
    for n in range(1, len(greens) + 1):
        items = [
            optical_item(tmp_path / str(n), f"S2A_{i}", when=day(i + 1), paint=greens[i])
            for i in range(n)
        ]
        layers, outcome = compose(tmp_path, items, name=f"w{n}")
        taken = sorted(range(n), key=greens.__getitem__)[max(int(np.ceil(0.3 * n)) - 1, 0)]
        assert np.unique(layers["optical"]).tolist() == [round(greens[taken] * 10000) + 1000]
        assert np.unique(layers["date"]).tolist() == [days_since_1970(taken + 1)]
        assert np.unique(layers["span"]).tolist() == [n - 1]
        assert np.unique(layers["observations"]).tolist() == [n]
        assert outcome.facts["looks"] == n


def test_all_bands_of_a_pixel_come_from_one_look(tmp_path: Path) -> None:
    items = [
        optical_item(
            tmp_path,
            f"S2A_{i}",
            when=day(i + 1),
            paint={
                role: (
                    texture(i)
                    if role == "green"
                    else lambda x, y, v=0.1 + 0.1 * i: np.full(x.shape, v)
                )
                for role in KEYS
            },
        )
        for i in range(4)
    ]
    layers, _ = compose(tmp_path, items)
    look = layers["date"] - days_since_1970(1)
    assert len(np.unique(look)) > 1
    for role in set(KEYS) - {"green"}:
        stored = layers["optical"][OPTICAL_BANDS.index(role)]
        np.testing.assert_array_equal(stored, 2000 + 1000 * look)


def test_equal_brightness_takes_the_earlier_look(tmp_path: Path) -> None:
    items = [optical_item(tmp_path, f"S2A_{i}", when=day(9 - i), paint=0.3) for i in range(4)]
    layers, _ = compose(tmp_path, items)
    assert np.unique(layers["date"]).tolist() == [days_since_1970(7)]  # second of four


def test_the_result_equals_an_independent_computation_pixel_by_pixel(tmp_path: Path) -> None:
    """Each look is constant, clouds are halves: the oracle needs no resampling."""
    rng = np.random.default_rng(5)
    greens = rng.permutation(np.arange(1, 8)) / 10
    cuts = X0 + rng.uniform(-500, 500, len(greens))
    items = [
        optical_item(
            tmp_path,
            f"S2A_{i}",
            when=day(int(i) + 1),
            paint=float(green),
            classes=lambda x, y, cut=cut: np.where(x > cut, CLOUD, SNOW),
        )
        for i, (green, cut) in enumerate(zip(greens, cuts, strict=True))
    ]
    grid = small_grid()
    shard = middle(grid)
    layers, _ = compose(tmp_path, items, grid=grid, shard=shard)
    x, _ = grid_places(shard)
    far = (np.abs(x[..., np.newaxis] - (cuts - 60)) > 45).all(axis=-1)
    clear = x[..., np.newaxis] < cuts - 60  # clouds reach 60 m further than they are seen
    checked = 0
    for row, col in zip(*np.nonzero(far), strict=True):
        looks = sorted(np.nonzero(clear[row, col])[0], key=lambda i: greens[i])
        assert layers["observations"][row, col] == len(looks)
        if looks:
            taken = looks[max(int(np.ceil(0.3 * len(looks))) - 1, 0)]
            assert layers["optical"][0, row, col] == round(greens[taken] * 10000) + 1000
            assert layers["date"][row, col] == days_since_1970(int(taken) + 1)
            assert layers["span"][row, col] == max(looks) - min(looks)
        else:
            assert layers["date"][row, col] == DATE_MISSING
        checked += 1
    assert checked > 4000


def test_neither_order_nor_repetition_of_scenes_changes_a_byte(tmp_path: Path) -> None:
    items = textured_season(tmp_path)
    radar = [
        sar_item(tmp_path, f"S1A_{i}", when=day(i + 1), paint=lambda x, y, i=i: texture(i)(x, y))
        for i in range(3)
    ]
    _, first = compose(tmp_path, items, sar=radar, name="w0")
    for seed in range(3):
        shuffled, shuffled_radar = items + items[:2], radar + radar[:1]
        random.Random(seed).shuffle(shuffled)
        random.Random(seed).shuffle(shuffled_radar)
        _, again = compose(tmp_path, shuffled, sar=shuffled_radar, name=f"w{seed + 1}")
        assert again == first


def test_the_tiling_into_shards_changes_no_pixel(tmp_path: Path) -> None:
    items = textured_season(tmp_path)
    radar = [sar_item(tmp_path, "S1A", when=day(1), paint=texture(2))]
    coarse = small_grid(shard_px=256, size_m=1000)
    place = middle(coarse)
    whole = []
    for split in (1, 2, 4):
        grid = replace(
            coarse,
            shard_px=256 // split,
            rows=coarse.rows * split,
            cols=coarse.cols * split,
        )
        parts = [
            [
                compose(
                    tmp_path,
                    items,
                    sar=radar,
                    grid=grid,
                    shard=grid.shard(place.row * split + row, place.col * split + col),
                    name=f"w{split}",
                )[0]
                for col in range(split)
            ]
            for row in range(split)
        ]
        whole.append(
            {
                name: np.concatenate(
                    [np.concatenate([part[name] for part in row], axis=-1) for row in parts],
                    axis=-2,
                )
                for name in parts[0][0]
            }
        )
    for other in whole[1:]:
        for name, values in whole[0].items():
            assert values.tobytes() == other[name].tobytes(), name
    assert len(np.unique(whole[0]["observations"])) > 2


def test_reading_looks_twice_where_they_do_not_fit_in_memory_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = textured_season(tmp_path)
    _, held = compose(tmp_path, items, name="held")
    monkeypatch.setattr(composites, "_HELD_PIXELS", 5000)
    _, reread = compose(tmp_path, items, name="reread")
    assert reread.outputs == held.outputs


def test_granules_of_one_day_are_one_look_even_across_utm_zones(tmp_path: Path) -> None:
    west = optical_item(
        tmp_path,
        "S2A_32",
        when="2024-08-05T10:00:00Z",
        paint=lambda x, y: np.where(x < X0 + 100, 0.3, NAN),
    )
    east = optical_item(
        tmp_path,
        "S2A_33",
        when="2024-08-05T10:00:14Z",
        epsg=32633,
        paint=0.4,
    )
    grid = small_grid()
    shard = middle(grid)
    layers, outcome = compose(tmp_path, [east, west], grid=grid, shard=shard)
    assert outcome.facts["looks"] == 1
    assert outcome.facts["optical_scenes"] == 2
    assert outcome.facts["valid_fraction"] == 1.0
    assert np.unique(layers["observations"]).tolist() == [1]
    x, _ = grid_places(shard)
    green = layers["optical"][1]
    assert np.unique(green[x < X0 + 80]).tolist() == [4000]  # the earlier granule counts
    assert np.unique(green[x > X0 + 120]).tolist() == [5000]


def test_a_region_over_the_antimeridian_is_seen_from_both_sides(tmp_path: Path) -> None:
    centre = (180.0, 68.0)
    items = [
        optical_item(tmp_path, f"S2A_{epsg}", when=day(n), paint=0.3, epsg=epsg, centre=centre)
        for n, epsg in ((1, 32660), (2, 32601))
    ]
    grid = small_grid(centre=centre, epsg=32601)
    for shard in grid.shards():
        if abs(shard.bounds[0]) < 700:
            layers, outcome = compose(tmp_path, items, grid=grid, shard=shard)
            assert outcome.set_aside == ()
            assert np.unique(layers["optical"]).tolist() == [4000]
            assert np.unique(layers["observations"]).tolist() == [2]


def test_no_scene_leaves_an_empty_shard(tmp_path: Path) -> None:
    layers, outcome = compose(tmp_path, [], sar=[])
    assert not layers["optical"].any()
    assert not layers["sar"].any()
    assert not layers["observations"].any()
    assert (layers["date"] == DATE_MISSING).all()
    assert (layers["span"] == 65535).all()
    assert outcome.facts["valid_fraction"] == 0.0
    assert sorted(key.split("/")[2] for key in outcome.outputs) == [
        "date",
        "observations",
        "optical",
        "sar",
        "span",
    ]


def test_radar_is_left_out_where_it_is_not_asked_for(tmp_path: Path) -> None:
    item = optical_item(tmp_path, "S2A", when=day(1))
    layers, outcome = compose(tmp_path, [item])
    assert "sar" not in layers
    assert not any("sar" in fact for fact in outcome.facts)


def test_scenes_elsewhere_are_passed_over_without_being_opened(tmp_path: Path) -> None:
    near = optical_item(tmp_path, "near", when=day(1))
    far = optical_item(tmp_path, "far", when=day(2)) | {"bbox": [0, 0, 1, 1]}
    for asset in far["assets"].values():
        asset["href"] = "/nowhere.tif"
    _, outcome = compose(tmp_path, [far, near])
    assert outcome.set_aside == ()
    assert outcome.facts["scene_ids"] == ["near"]
    scenes = [describe_item(item) for item in (far, near)]
    assert [s.id for s in scenes_over(scenes, middle(small_grid()))] == ["near"]


def spoil_missing(item: dict) -> None:
    Path(item["assets"]["nir"]["href"]).unlink()


def spoil_truncated(item: dict) -> None:
    path = Path(item["assets"]["swir22"]["href"])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def spoil_mask(item: dict) -> None:
    path = Path(item["assets"]["scl"]["href"])
    path.write_bytes(path.read_bytes()[:50])


def spoil_projection(item: dict) -> None:
    frame, edge = utm_frame()
    path = Path(item["assets"]["red"]["href"])
    write_tif(path, np.full((edge, edge), 4000, np.uint16), frame, crs="EPSG:32633")


def spoil_place(item: dict) -> None:
    frame, edge = utm_frame(shift_m=60)
    path = Path(item["assets"]["red"]["href"])
    write_tif(path, np.full((edge, edge), 4000, np.uint16), frame)


def spoil_type(item: dict) -> None:
    frame, edge = utm_frame()
    path = Path(item["assets"]["red"]["href"])
    write_tif(path, np.full((edge, edge), 0.3, np.float32), frame)


def spoil_href(item: dict) -> None:
    item["assets"]["red"]["href"] = "/etc/hostname"


def spoil_offset(item: dict) -> None:
    """The catalogue says that the offset is still to be taken off, but it was already."""
    for key in ("swir16", "swir22"):
        frame, edge = utm_frame()
        write_tif(Path(item["assets"][key]["href"]), np.full((edge, edge), 300, np.uint16), frame)


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (spoil_missing, "asset-missing"),
        (spoil_truncated, "raster-truncated"),
        (spoil_mask, "not-a-geotiff"),
        (spoil_projection, "geo-mismatch"),
        (spoil_place, "geo-mismatch"),
        (spoil_type, "type-mismatch"),
        (spoil_href, "href-refused"),
        (spoil_offset, "radiometry-doubtful"),
    ],
)
def test_a_bad_scene_is_named_and_leaves_no_trace(
    tmp_path: Path, spoil: Callable[[dict], None], kind: str
) -> None:
    items = textured_season(tmp_path)
    _, without = compose(tmp_path, [items[0], *items[2:]], name="without")
    spoil(items[1])
    _, outcome = compose(tmp_path, items, name="with")
    assert [(fault.what, fault.kind) for fault in outcome.set_aside] == [("S2A_1", kind)]
    assert outcome.outputs == without.outputs
    assert outcome.facts == without.facts


def test_several_bad_scenes_are_all_named(tmp_path: Path) -> None:
    items = textured_season(tmp_path)
    _, without = compose(tmp_path, items[:1], name="without")
    spoil_truncated(items[1])
    spoil_missing(items[2])
    spoil_offset(items[3])
    _, outcome = compose(tmp_path, items[::-1], name="with")
    assert [fault.what for fault in outcome.set_aside] == ["S2A_1", "S2A_2", "S2A_3"]
    assert outcome.outputs == without.outputs


def serve(items: list[dict], folder: Path, url: str) -> list[dict]:
    served = []
    for item in items:
        assets = {
            key: asset | {"href": asset["href"].replace(str(folder), url)}
            for key, asset in item["assets"].items()
        }
        served.append(item | {"assets": assets})
    return served


def build_served(tmp_path: Path, items: list[dict], spoil: Any = None) -> Outcome:
    grid = small_grid()
    workspace = Workspace(tmp_path / "served")
    create_season(workspace, SEASON, grid, sar=False)
    with scripted_server(file_script(tmp_path, spoil)) as server:
        return build_cube_shard(
            workspace,
            SEASON,
            middle(grid),
            optical=[describe_item(item) for item in serve(items, tmp_path, server.url)],
            sar=None,
            policy=AssetPolicy((server.host,)),
        )


def test_scenes_on_a_server_give_the_same_bytes_as_files(tmp_path: Path) -> None:
    items = textured_season(tmp_path, 2)
    _, local = compose(tmp_path, items)
    assert build_served(tmp_path, items) == local


def test_an_unreachable_source_stops_the_shard_and_nothing_is_written(tmp_path: Path) -> None:
    items = textured_season(tmp_path, 1)
    with pytest.raises(SourceError):
        build_served(tmp_path, items, lambda r: Answer(503) if "nir" in r.path else None)
    workspace = Workspace(tmp_path / "served")
    assert not [name for name in workspace.names(f"cube.zarr/{SEASON}/optical") if "/c/" in name]


def test_cloud_spreads_by_sixty_metres_and_ice_and_dark_ground_stay(tmp_path: Path) -> None:
    def classes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        ground = np.where(y > Y0, SNOW, DARK)
        return np.where(np.hypot(x - X0, y - Y0) < 100, CLOUD, ground)

    item = optical_item(tmp_path, "S2A", when=day(1), classes=classes)
    grid = small_grid(shard_px=256)
    for shard in grid.shards():
        layers, _ = compose(tmp_path, [item], grid=grid, shard=shard)
        x, y = grid_places(shard)
        distance = np.hypot(x - X0, y - Y0)
        assert not layers["observations"][distance < 140].any()
        assert layers["observations"][(distance > 180) & (distance < 1500)].all()


@pytest.mark.parametrize(
    ("value", "usable"),
    [
        (0, 0),
        (1, 0),
        (2, 1),
        (3, 0),
        (4, 1),
        (5, 1),
        (6, 1),
        (7, 1),
        (8, 0),
        (9, 0),
        (10, 0),
        (11, 1),
    ],
)
def test_each_class_of_the_scene_classification_is_kept_or_not(value: int, usable: int) -> None:
    halo = mask_halo(10)
    classes = np.full((2 * halo + 3, 2 * halo + 3), value, np.uint8)
    found = usable_pixels(classes, resolution_m=10)
    assert found.shape == (3, 3)
    assert found.all() == bool(usable)
    assert found.any() == bool(usable)


@pytest.mark.parametrize("value", [3, 8, 9, 10])
@pytest.mark.parametrize("resolution", [10.0, 20.0])
def test_a_speck_of_the_scene_classification_costs_nothing_and_a_cloud_its_rim(
    value: int, resolution: float
) -> None:
    native = np.full((60, 60), 11, np.uint8)
    native[20, 20:22] = native[21, 20:22] = value  # two pixels of 20 m either way
    native[30:33, 30:33] = value
    k = round(20 / resolution)
    found = usable_pixels(native.repeat(k, 0).repeat(k, 1), resolution_m=resolution)
    hidden = ~np.pad(found, mask_halo(resolution), constant_values=True)
    rows, cols = (np.flatnonzero(hidden.any(axis=axis)) / k for axis in (1, 0))
    assert rows[0] >= 27 and rows[-1] < 36  # three pixels around those from 30 to 32
    assert cols[0] >= 27 and cols[-1] < 36
    assert hidden[30 * k : 33 * k, 30 * k : 33 * k].all()
    assert hidden.sum() / k**2 > 40


@pytest.mark.parametrize(
    ("bits", "usable"),
    [
        (0, 0),  # not seen
        (1 << 0, 0),  # fill
        (1 << 1, 0),  # around a cloud
        (1 << 2, 1),  # cirrus: snow of high mountains is taken for it
        (1 << 3, 0),  # cloud
        (1 << 4, 0),  # its shadow
        (1 << 5, 1),  # snow and ice
        (1 << 6, 1),  # clear
        (1 << 7, 1),  # water
        (1 << 6 | 1 << 3, 0),
        (0b0101_0101_0110_0000, 1),  # clear snow, all confidences low
    ],
)
def test_each_bit_of_landsat_quality_is_kept_or_not(bits: int, usable: int) -> None:
    halo = mask_halo(30)
    quality = np.full((2 * halo + 3, 2 * halo + 3), bits, np.uint16)
    found = usable_pixels(quality, resolution_m=30, kind="qa_pixel")
    assert found.shape == (3, 3)
    assert found.all() == found.any() == bool(usable)


@pytest.mark.parametrize(
    ("kind", "band", "bit", "usable"),
    [
        ("radsat_tm", "nothing", None, True),
        ("radsat_tm", "blue", 0, True),
        ("radsat_tm", "green", 1, True),
        ("radsat_tm", "red", 2, True),
        ("radsat_tm", "nir", 3, True),
        ("radsat_tm", "swir1", 4, False),
        ("radsat_tm", "thermal", 5, True),
        ("radsat_tm", "swir2", 6, False),
        ("radsat_tm", "thermal, high gain", 8, True),
        ("radsat_tm", "dropped by the detector", 9, False),
        ("radsat_oli", "coastal", 0, True),
        ("radsat_oli", "blue", 1, True),
        ("radsat_oli", "green", 2, True),
        ("radsat_oli", "red", 3, True),
        ("radsat_oli", "nir", 4, True),
        ("radsat_oli", "swir1", 5, False),
        ("radsat_oli", "swir2", 6, False),
        ("radsat_oli", "cirrus", 8, True),
        ("radsat_oli", "hidden behind a mountain", 11, False),
    ],
)
def test_only_saturated_short_wave_infrared_is_given_up(
    kind: MaskKind, band: str, bit: int | None, usable: bool
) -> None:
    halo = mask_halo(30)
    flags = np.zeros((2 * halo + 4, 2 * halo + 4), np.uint16)
    flags[:, halo + 2 :] = 0 if bit is None else 1 << bit
    found = usable_pixels(flags, resolution_m=30, kind=kind)
    assert found[:, :2].all()  # it does not spread
    assert found[:, 2:].all() == found[:, 2:].any() == usable


def test_bright_snow_keeps_its_saturated_pixels_and_a_cloud_loses_them(tmp_path: Path) -> None:
    """Sunlit snow clips in blue and green; what clips in both infrared bands is a missed cloud."""
    visible, infrared = 1 << 0 | 1 << 1, 1 << 4 | 1 << 6
    x, _ = grid_places(middle(small_grid()))
    edge = x.mean()
    snow = {role: (lambda x, y: np.full(x.shape, 0.9)) for role in KEYS}
    snow |= {role: (lambda x, y: np.full(x.shape, 0.05)) for role in ("swir1", "swir2")}
    item = landsat_item(
        tmp_path,
        "LT05",
        when=day(1),
        paint=snow,
        platform="landsat-5",
        quality=1 << 6 | 1 << 5,
        saturation=lambda x, y: np.where(x > edge, visible, visible | infrared),
    )
    layers, outcome = compose(tmp_path, [item])
    seen = layers["observations"] > 0
    assert seen[x > edge + 30].all()
    assert not seen[x < edge - 30].any()
    assert outcome.facts["without_mask"] == []


def test_temperature_has_no_part_in_a_composite(tmp_path: Path) -> None:
    plain = landsat_item(tmp_path, "LC08", when=day(1))
    expected, _ = compose(tmp_path, [plain], name="plain")
    warm = landsat_item(tmp_path, "LC08", when=day(1), kelvin=270.0)
    Path(warm["assets"]["lwir11"]["href"]).unlink()
    layers, outcome = compose(tmp_path, [warm], name="warm")
    assert not outcome.set_aside
    for name, values in expected.items():
        np.testing.assert_array_equal(layers[name], values)


def test_landsat_and_sentinel_2_of_one_season_make_one_composite(tmp_path: Path) -> None:
    """Scan gaps of Landsat 7 and a cloud are filled by Sentinel-2."""
    x, y = grid_places(middle(small_grid()))
    edge = x.mean()

    def gap(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.where((y // 300) % 4 == 0, NAN, 0.25)

    def cloud(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.where(x > edge, 1 << 3, 1 << 6)

    landsat = landsat_item(
        tmp_path, "LE07", when=day(1), paint=gap, quality=cloud, platform="landsat-7"
    )
    alone, outcome = compose(tmp_path, [landsat], name="alone")
    seen = alone["observations"] > 0
    assert 0.2 < seen.mean() < 0.5
    assert outcome.facts["without_mask"] == []
    scene = describe_item(landsat)
    pixel = round((0.25 + 0.2) / 2.75e-5)
    stored = [round((pixel * b.scale + b.offset + 0.1) * 1e4) for b in scene.bands]
    assert (alone["optical"][:, seen] == np.array(stored)[:, None]).all()
    assert not alone["optical"][:, ~seen].any()
    assert not seen[x > edge - 30].any()
    assert not seen[(y // 300) % 4 == 0].any()
    sentinel = optical_item(tmp_path, "S2A", when=day(2), paint=0.26)
    both, _ = compose(tmp_path, [landsat, sentinel], name="both")
    assert (both["observations"] == 1 + seen).all()
    assert (both["optical"][:, seen] == np.array(stored)[:, None]).all()  # the darker look
    assert (both["optical"][:, ~seen] == 3600).all()
    assert (both["date"][~seen] == days_since_1970(2)).all()


def test_the_halo_is_wide_enough_that_a_cloud_beyond_it_does_not_matter() -> None:
    for resolution in (5.0, 10.0, 20.0, 30.0, 100.0):
        halo = mask_halo(resolution)
        classes = np.full((6 * halo + 1,) * 2, VEGETATION, np.uint8)
        classes[::7, ::5] = CLOUD
        whole = usable_pixels(classes, resolution_m=resolution)
        cut = slice(halo, -halo)
        part = usable_pixels(classes[cut, cut], resolution_m=resolution)
        np.testing.assert_array_equal(part, whole[cut, cut])


def test_a_scene_without_classification_is_used_whole_and_said_so(tmp_path: Path) -> None:
    item = optical_item(tmp_path, "S2A", when=day(1), classes=CLOUD)
    _, hidden = compose(tmp_path, [item], name="masked")
    assert hidden.facts["valid_fraction"] == 0.0
    assert hidden.facts["without_mask"] == []
    del item["assets"]["scl"]
    _, shown = compose(tmp_path, [item], name="unmasked")
    assert shown.facts["valid_fraction"] == 1.0
    assert shown.facts["without_mask"] == ["S2A"]


def test_a_pixel_missing_in_one_band_is_not_seen(tmp_path: Path) -> None:
    paint = {role: (lambda x, y: np.full(x.shape, 0.3)) for role in KEYS}
    paint["swir2"] = lambda x, y: np.where(x < X0, 0.3, NAN)
    item = optical_item(tmp_path, "S2A", when=day(1), paint=paint)
    grid = small_grid()
    shard = middle(grid)
    layers, outcome = compose(tmp_path, [item], grid=grid, shard=shard)
    x, _ = grid_places(shard)
    assert layers["observations"][x < X0 - 20].all()
    assert not layers["optical"][:, x > X0 + 20].any()
    assert 0 < outcome.facts["valid_fraction"] < 1


def test_values_beyond_what_can_be_stored_are_clipped_and_counted(tmp_path: Path) -> None:
    item = optical_item(tmp_path, "S2A", when=day(1), paint=6.5, offset=0.0)
    layers, outcome = compose(tmp_path, [item])
    assert np.unique(layers["optical"]).tolist() == [65534]
    assert outcome.facts["clipped"] == layers["optical"].size


def test_radar_is_the_mean_of_the_linear_backscatter_in_decibels(tmp_path: Path) -> None:
    radar = [
        sar_item(tmp_path, f"S1A_{i}", when=day(i + 1), paint=v) for i, v in enumerate((0.1, 0.3))
    ]
    layers, outcome = compose(tmp_path, [], sar=radar)
    vv, vh = (np.unique(band).tolist() for band in layers["sar"])
    assert vv == [round((10 * np.log10(0.2) + 50) * 1000)]
    assert vh == [round((10 * np.log10(0.02) + 50) * 1000)]
    assert outcome.facts["sar_scene_ids"] == ["S1A_0", "S1A_1"]
    assert outcome.facts["sar_valid_fraction"] == 1.0


@pytest.mark.parametrize("nothing", [0.0, -32768.0, NAN, float("-inf"), -0.5])
def test_radar_pixels_without_data_neither_count_nor_spread(tmp_path: Path, nothing: float) -> None:
    def paint(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.where(x > X0, nothing, 0.1)

    radar = [
        sar_item(tmp_path, "S1A_0", when=day(1), paint=paint),
        sar_item(tmp_path, "S1A_1", when=day(2), paint=lambda x, y: np.where(y > Y0, 0.3, NAN)),
    ]
    grid = small_grid()
    shard = middle(grid)
    layers, _ = compose(tmp_path, [], sar=radar, grid=grid, shard=shard)
    x, y = grid_places(shard)
    stored = layers["sar"][0]
    for where, mean in (
        ((x < X0 - 20) & (y > Y0 + 20), 0.2),
        ((x < X0 - 20) & (y < Y0 - 20), 0.1),
        ((x > X0 + 20) & (y > Y0 + 20), 0.3),
    ):
        assert np.unique(stored[where]).tolist() == [round((10 * np.log10(mean) + 50) * 1000)]
    assert not stored[(x > X0 + 20) & (y < Y0 - 20)].any()
    decibel = stored[stored > 0] / 1000 - 50
    assert decibel.min() > 10 * np.log10(0.1) - 0.01  # no pixel is dragged down at the edge


def test_a_bad_radar_scene_is_named_beside_the_optical_ones(tmp_path: Path) -> None:
    items = textured_season(tmp_path, 2)
    spoil_missing(items[0])
    radar = [sar_item(tmp_path, f"S1A_{i}", when=day(1), paint=0.1) for i in range(2)]
    Path(radar[1]["assets"]["vh"]["href"]).unlink()
    _, outcome = compose(tmp_path, items, sar=radar)
    assert [fault.what for fault in outcome.set_aside] == ["S1A_1", "S2A_0"]
    assert outcome.facts["sar_scene_ids"] == ["S1A_0"]
