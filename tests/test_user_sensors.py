"""A sensor that a user describes in a few lines is searched and composed like any other."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from rasters import dem_item, optical_item, sar_item, small_grid, utm_frame, write_items, write_tif

from catalog.assets import AssetPolicy
from catalog.composites import build_cube_shard, create_season
from catalog.cube import OPTICAL_BANDS, Workspace, read_shard
from catalog.errors import DataError, UsageError
from catalog.masks import MaskKind, mask_halo, usable_pixels
from catalog.scenes import MaskRule, Scene
from catalog.search import open_source
from catalog.sensors import describe_item
from catalog.user_sensors import SensorSpec, describe_with, read_sensor

COLLECTION = "imaginary-6-l2"
WHEN = "2024-08-12T10:15:20Z"
HOLE, CLOUD = 300, 900  # metres east of the middle where the hole ends and the cloud begins


def written() -> dict[str, Any]:
    """What a user writes: signed integers, a mask of classes, one band brought to Sentinel-2's."""
    bands: dict[str, Any] = {
        role: {"asset": f"B{n}", "scale": 0.0002, "offset": 0.01, "nodata": -9999}
        for n, role in enumerate(OPTICAL_BANDS)
    }
    bands["red"] |= {"slope": 0.9, "intercept": 0.005}
    mask = {"asset": "Q", "kind": "values", "clear": [0, 1], "spreading": [7]}
    return {"kind": "optical", "bands": bands, "mask": mask}


def imaginary_item(folder: Path, name: str, *, cloudy: bool = False) -> dict[str, Any]:
    """Reflectance 0.3 in every band, a hole of no data in the west, perhaps a cloud in the east."""
    item = optical_item(folder, name, when=WHEN)
    frame, edge = utm_frame(pixel=20)
    assets = {}
    cols = np.broadcast_to(np.arange(edge), (edge, edge))
    east = (cols - edge // 2) * 20
    pixels = np.where(east < HOLE, -9999, round((0.3 - 0.01) / 0.0002)).astype(np.int16)
    for n in range(6):
        path = write_tif(folder / name / f"B{n}.tif", pixels, frame, nodata=-9999)
        assets[f"B{n}"] = {"href": str(path)}
    classes = np.where(east >= CLOUD, 7 if cloudy else 1, 0).astype(np.uint8)
    assets["Q"] = {"href": str(write_tif(folder / name / "Q.tif", classes, frame))}
    item["collection"] = COLLECTION
    item["properties"] = {"datetime": WHEN, "proj:epsg": 32632}
    item["assets"] = assets
    return item


def test_an_invented_sensor_goes_from_the_catalogue_to_the_cube(tmp_path: Path) -> None:
    items = [
        imaginary_item(tmp_path, "clear"),
        imaginary_item(tmp_path, "cloudy", cloudy=True),
        optical_item(tmp_path, "other", when=WHEN),
    ]
    policy = AssetPolicy((str(tmp_path),))
    location = str(write_items(tmp_path / "items.json", items))
    box = tuple(items[0]["bbox"])
    wanted: dict[str, Any] = {
        "collections": [COLLECTION],
        "boxes": [box],
        "start": "2024-08-01",
        "end": "2024-08-31",
    }
    unknown = open_source(location, policy=policy).search(**wanted)
    assert [(f.what, f.kind) for f in unknown.set_aside] == [
        ("clear", "unsupported-sensor"),
        ("cloudy", "unsupported-sensor"),
    ]
    spec = read_sensor(COLLECTION, written())
    source = open_source(location, policy=policy, sensors={COLLECTION: spec})
    result = source.search(**wanted)
    assert [scene.id for scene in result.scenes] == ["clear", "cloudy"]
    assert not result.set_aside
    elsewhere = wanted | {"boxes": [(100.0, 10.0, 101.0, 11.0)]}
    assert not source.search(**elsewhere).scenes

    layers = composed(tmp_path, result.scenes[:1])
    seen = layers["observations"] > 0
    east = layers["east"]
    assert seen[east > HOLE + 30].all()
    assert not seen[east < HOLE - 30].any()
    assert 0.2 < seen.mean() < 0.9
    red = round((0.9 * 0.3 + 0.005 + 0.1) * 1e4)
    for band, role in zip(layers["optical"], OPTICAL_BANDS, strict=True):
        assert np.unique(band[seen]).tolist() == [red if role == "red" else 4000]
    cloudy = composed(tmp_path, result.scenes[1:])["observations"] > 0
    assert not cloudy[east > CLOUD - 60 + 30].any()  # what is around the cloud goes with it
    assert cloudy[(east > HOLE + 30) & (east < CLOUD - 60 - 30)].all()


def composed(folder: Path, scenes: tuple[Scene, ...]) -> dict[str, np.ndarray]:
    """Layers of the shard around the middle of the scenes, and how far east of it a pixel lies."""
    grid = small_grid()
    shard = grid.shard(grid.rows // 2, grid.cols // 2)
    workspace = Workspace(folder / f"workspace-{scenes[0].id}")
    create_season(workspace, "2024", grid, sar=False)
    outcome = build_cube_shard(
        workspace, "2024", shard, optical=scenes, sar=None, policy=AssetPolicy((str(folder),))
    )
    assert not outcome.set_aside
    rows, cols = np.mgrid[shard.window] + 0.5
    to_utm = Transformer.from_crs(grid.proj4, 32632, always_xy=True)
    x, _ = to_utm.transform(*(grid.transform @ (cols, rows)))
    frame, edge = utm_frame(pixel=20)
    return {
        layer: read_shard(workspace, f"cube.zarr/2024/{layer}", shard)
        for layer in ("optical", "observations")
    } | {"east": x - (frame.c + edge * 10)}


def test_scale_offset_and_nodata_are_the_users_or_else_the_items(tmp_path: Path) -> None:
    item = imaginary_item(tmp_path, "S")
    values = written()
    values["bands"]["blue"] = {"asset": "B0"}
    with pytest.raises(DataError, match=r"S: field raster:bands.scale.*here or in the settings"):
        describe_with(read_sensor(COLLECTION, values), item)
    item["assets"]["B0"]["raster:bands"] = [{"scale": 0.001, "offset": -0.5, "nodata": 255}]
    item["assets"]["B1"]["raster:bands"] = [{"scale": 0.001, "offset": -0.5, "nodata": 255}]
    blue, green, red, *_ = describe_with(read_sensor(COLLECTION, values), item).bands
    assert (blue.scale, blue.offset, blue.nodata) == (0.001, -0.5, 255)
    assert (green.scale, green.offset, green.nodata) == (0.0002, 0.01, -9999)
    assert (red.scale, red.offset) == pytest.approx((0.9 * 0.0002, 0.9 * 0.01 + 0.005))
    del item["assets"]["B5"]
    with pytest.raises(DataError, match="an asset named B5"):
        describe_with(read_sensor(COLLECTION, values), item)


def test_radar_and_elevation_of_a_user_are_read_as_they_are(tmp_path: Path) -> None:
    radar = sar_item(tmp_path, "R", when=WHEN, paint=0.1) | {"collection": "my-radar"}
    radar["assets"] = {"sigma_vv": radar["assets"]["vv"], "sigma_vh": radar["assets"]["vh"]}
    bands = {"vv": {"asset": "sigma_vv"}, "vh": {"asset": "sigma_vh", "nodata": 0}}
    spec = read_sensor("my-radar", {"kind": "sar", "bands": bands})
    scene = describe_item(radar, extra={"my-radar": spec})
    assert (scene.kind, scene.sensor) == ("sar", "my-radar")
    assert [(b.asset, b.scale, b.offset, b.nodata) for b in scene.bands] == [
        ("sigma_vv", 1.0, 0.0, -32768.0),
        ("sigma_vh", 1.0, 0.0, 0.0),
    ]
    dem = dem_item(tmp_path, "D", paint=lambda x, y: x, west=10.0, south=46.0)
    dem["collection"] = "swissalti"
    spec = read_sensor("swissalti", {"kind": "dem", "bands": {"elevation": {"asset": "data"}}})
    assert describe_item(dem, extra={"swissalti": spec}).kind == "dem"


def test_a_collection_that_is_known_is_read_as_the_user_says(tmp_path: Path) -> None:
    item = optical_item(tmp_path, "S2A", when=WHEN)
    bands = {b.role: {"asset": b.asset, "scale": 0.5} for b in describe_item(item).bands}
    spec = read_sensor("sentinel-2-l2a", {"kind": "optical", "bands": bands})
    scene = describe_item(item, extra={"sentinel-2-l2a": spec})
    assert {b.scale for b in scene.bands} == {0.5}
    assert scene.masks == ()


def faulty(path: str, value: Any) -> dict[str, Any]:
    values = written()
    holder: Any = values
    *steps, last = path.split(".")
    for step in steps:
        holder = holder[step]
    if value is None:
        del holder[last]
    else:
        holder[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("kind", "optic", "kind: found 'optic'; did you mean 'optical'?"),
        ("kind", None, "kind: missing; expected a value here"),
        ("bandz", {}, "bandz: unknown key; did you mean 'bands'?"),
        ("bands", [1], "bands: expected a section with blue, green, red, nir, swir1, swir2"),
        ("bands.blu", {}, "bands.blu: unknown key; did you mean 'blue'?"),
        ("bands.swir2", None, "bands.swir2: missing; expected a value here"),
        ("bands.nir", "B8", "bands.nir: expected a section with asset, scale"),
        ("bands.nir.asset", None, "bands.nir.asset: missing"),
        ("bands.nir.asset", 8, "bands.nir.asset: expected the key of an asset, found '8'"),
        ("bands.nir.scal", 1, "bands.nir.scal: unknown key; did you mean 'scale'?"),
        ("bands.nir.scale", "tiny", "bands.nir.scale: expected a finite number, found 'tiny'"),
        ("bands.nir.scale", 10**400, "bands.nir.scale: expected a finite number"),
        ("bands.nir.scale", True, "bands.nir.scale: expected a finite number"),
        ("bands.nir.scale", 0, "bands.nir.scale: expected a number above 0, found 0"),
        ("bands.nir.nodata", float("nan"), "bands.nir.nodata: expected a finite number"),
        ("bands.nir.slope", -1, "bands.nir.slope: expected a number above 0, found -1"),
        ("mask.kind", "value", "mask.kind: found 'value'; did you mean 'values'?"),
        ("mask.asset", None, "mask.asset: missing"),
        ("mask.clear", None, "mask: expected one of clear and unusable"),
        ("mask.unusable", [3], "mask: expected one of clear and unusable"),
        ("mask.clear", 1, "mask.clear: expected a list of whole numbers from 0 to 65535"),
        ("mask.clear", [1.5], "mask.clear: expected a list of whole numbers from 0 to 65535"),
        ("mask.clear", [70000], "mask.clear: expected a list of whole numbers from 0 to 65535"),
        ("mask.kind", "scl", "mask.clear: expected none with the kind scl"),
        ("mask.kind", "bits", "mask.clear: expected none with the kind bits"),
        ("mask", {"asset": "Q", "kind": "bits", "unusable": [16]}, "numbers from 0 to 15"),
    ],
)
def test_what_a_user_got_wrong_is_named_with_the_nearest_valid_name(
    path: str, value: Any, says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        read_sensor(COLLECTION, faulty(path, value))
    assert says in str(caught.value)
    assert caught.value.kind == "settings"


def test_a_number_that_yaml_takes_for_text_is_a_number() -> None:
    spec = read_sensor(COLLECTION, faulty("bands.nir.scale", "1e-4"))
    assert spec.bands["nir"].scale == 1e-4


def test_all_faults_are_named_at_once_and_what_does_not_belong_is_refused() -> None:
    bands = {"vv": {"asset": "a", "scale": 2}, "vh": {}}
    with pytest.raises(UsageError) as caught:
        read_sensor("r", {"kind": "sar", "bands": bands, "mask": {"asset": "Q", "kind": "scl"}})
    text = str(caught.value)
    assert "bands.vv.scale: unknown key; known are asset, nodata" in text
    assert "bands.vh.asset: missing" in text
    assert "mask: expected none, only optical bands have one" in text
    with pytest.raises(UsageError, match="sensor: expected a section with kind, bands, mask"):
        read_sensor("r", "optical")


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
PLACES = ["kind", "bands", "bands.red", "bands.red.scale", "mask", "mask.kind", "mask.clear"]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PLACES), JUNK)
def test_any_spoilt_setting_gives_a_sensor_or_names_the_fault(place: str, junk: Any) -> None:
    values = faulty(place, junk)
    try:
        spec = read_sensor(COLLECTION, values)
    except UsageError as error:
        assert place.partition(".")[0] in str(error)
    else:
        assert isinstance(spec, SensorSpec)


@pytest.mark.parametrize(
    "mask",
    [
        None,
        {"asset": "Q", "kind": "scl"},
        {"asset": "Q", "kind": "values", "clear": [0, 1], "spreading": [7]},
        {"asset": "Q", "kind": "bits", "unusable": [0, 1, 3], "spreading": [1, 3]},
    ],
)
def test_a_sensor_and_its_scenes_survive_json(tmp_path: Path, mask: dict | None) -> None:
    spec = read_sensor(COLLECTION, written() | {"mask": mask})
    assert read_sensor(COLLECTION, json.loads(json.dumps(spec.to_dict()))) == spec
    scene = describe_with(spec, imaginary_item(tmp_path, "S"))
    assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene


def test_whatever_the_user_changes_changes_the_fingerprint(tmp_path: Path) -> None:
    item = imaginary_item(tmp_path, "S")
    item["assets"]["B9"] = item["assets"]["B0"]
    changes = {
        "bands.red.asset": "B9",
        "bands.red.scale": 0.0003,
        "bands.red.offset": 0.02,
        "bands.red.nodata": 0,
        "bands.red.slope": 0.8,
        "bands.red.intercept": 0.1,
        "mask": None,
        "mask.clear": [0],
        "mask.spreading": [7, 8],
        "mask.kind": "bits",
    }
    found = {describe_with(read_sensor(COLLECTION, written()), item).fingerprint}
    for path, value in changes.items():
        values = faulty(path, value)
        if value == "bits":
            values["mask"] = {"asset": "Q", "kind": "bits", "unusable": [0, 1], "spreading": [7]}
        found.add(describe_with(read_sensor(COLLECTION, values), item).fingerprint)
    assert len(found) == len(changes) + 1
    spec = read_sensor(COLLECTION, written())
    moved = copy.deepcopy(item)
    moved["assets"]["B0"]["href"] = "https://elsewhere.example/B0.tif?sig=secret"
    assert describe_with(spec, moved).fingerprint == describe_with(spec, item).fingerprint
    assert describe_with(replace(spec, mask=None), item).masks == ()


@pytest.mark.parametrize(
    ("kind", "rule", "usable", "spreads"),
    [
        ("values", MaskRule(clear=(0, 1), spreading=(7,)), {0, 1}, {7}),
        ("values", MaskRule(unusable=(2, 7), spreading=(7,)), {0, 1, 3, 4, 5, 6}, {7}),
        ("bits", MaskRule(unusable=(0, 2), spreading=(2,)), {0, 2}, {4, 5, 6, 7}),
        ("bits", MaskRule(unusable=(2,)), {0, 1, 2, 3}, set()),
    ],
)
def test_a_rule_tells_what_is_usable_and_what_spreads(
    kind: MaskKind, rule: MaskRule, usable: set[int], spreads: set[int]
) -> None:
    halo = mask_halo(30)
    good = min(usable)
    for value in range(8):
        flags = np.full((2 * halo + 9, 2 * halo + 9), good, np.uint16)
        flags[halo + 4, halo + 4] = value
        found = usable_pixels(flags, resolution_m=30, kind=kind, rule=rule)
        assert found[4, 4] == (value in usable)
        assert found[4, 5] == (value not in spreads)
        assert found[0, 0]
