from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import NamedTuple

import pystac
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasters import dem_item, landsat_item, optical_item, sar_item

from catalog.assets import gdal_env  # noqa: F401  before rasterio
from catalog.errors import DataError
from catalog.scenes import Scene, boxes_meet
from catalog.sensors import describe_item

import rasterio  # isort: skip

REAL = Path(os.environ.get("INVENTORY_ENGINE_TEST_DATA", "../shared/data")) / "stac"
ROLES = ("blue", "green", "red", "nir", "swir1", "swir2")


def real_items(name: str) -> list[dict]:
    path = REAL / name
    if not path.exists():
        pytest.skip(f"the real STAC items are not at {REAL} (set INVENTORY_ENGINE_TEST_DATA)")
    document = json.loads(path.read_text())
    if isinstance(document, list):
        return document
    return document.get("features") or [document]


@pytest.fixture
def item(tmp_path: Path) -> dict:
    return optical_item(tmp_path, "S2B_32TPS_20240812_0_L2A", when="2024-08-12T10:15:20.123Z")


# What the bands of each sensor are: role -> asset key, scale, offset, value of no data. Those of
# Landsat lead to Sentinel-2's reflectance: for OLI, 2.75e-5 / slope and (-0.2 - offset) / slope of
# the published adjustment.
MSI_OF_EARTH_SEARCH = ("blue", "green", "red", "nir", "swir16", "swir22")
MSI_OF_PLANETARY_COMPUTER = ("B02", "B03", "B04", "B08", "B11", "B12")


def msi(keys: tuple[str, ...], offset: float) -> dict[str, tuple]:
    return {role: (key, 1e-4, offset, 0.0) for role, key in zip(ROLES, keys, strict=True)}


OLI = {
    "blue": ("blue", 2.812436e-05, -0.200450, 0.0),
    "green": ("green", 2.735502e-05, -0.198050, 0.0),
    "red": ("red", 2.816180e-05, -0.205735, 0.0),
    "nir": ("nir08", 2.754683e-05, -0.200240, 0.0),
    "swir1": ("swir16", 2.753580e-05, -0.199159, 0.0),
    "swir2": ("swir22", 2.741775e-05, -0.198205, 0.0),
}
RADAR = {"vv": ("vv", 1.0, 0.0, -32768.0), "vh": ("vh", 1.0, 0.0, -32768.0)}
DEM = {"elevation": ("data", 1.0, 0.0, None)}


class Expected(NamedTuple):
    items: int
    sensor: str
    bands: dict[str, tuple]
    epsg: set[int]
    masks: tuple[tuple[str, str, float | None], ...] = ()
    """Role, asset key and value of no data of each."""
    baseline: str | None = None
    orbits: frozenset[str] = frozenset({""})


SCL, SCL_OF_PLANETARY_COMPUTER = (("scl", "scl", 0.0),), (("scl", "SCL", 0.0),)
QA = (("qa_pixel", "qa_pixel", 1.0), ("radsat_oli", "qa_radsat", None))
DESCENDING = frozenset({"descending"})
DESCRIBED = {
    "earth-search_sentinel-2-c1-l2a.json": Expected(
        6, "sentinel-2-msi", msi(MSI_OF_EARTH_SEARCH, -0.1), {32720, 32724}, SCL, "05.11"
    ),
    "earth-search_sentinel-2-c1-l2a_10items.json": Expected(
        10, "sentinel-2-msi", msi(MSI_OF_EARTH_SEARCH, -0.1), {32613}, SCL, "05.10"
    ),
    "earth-search_sentinel-2-l2a.json": Expected(  # boa_offset_applied is true in all of them
        6, "sentinel-2-msi", msi(MSI_OF_EARTH_SEARCH, 0.0), {32720, 32724}, SCL, "05.11"
    ),
    "pc_s2_T06VVN_columbia.json": Expected(
        1,
        "sentinel-2-msi",
        msi(MSI_OF_PLANETARY_COMPUTER, 0.0),
        {32606},
        SCL_OF_PLANETARY_COMPUTER,
        "02.12",
        DESCENDING,
    ),
    "planetary-computer_sentinel-2-l2a.json": Expected(
        6,
        "sentinel-2-msi",
        msi(MSI_OF_PLANETARY_COMPUTER, 0.0),
        {32659, 32660},
        SCL_OF_PLANETARY_COMPUTER,
        "02.12",
        DESCENDING,
    ),
    "planetary-computer_sentinel-2-l2a_4items.json": Expected(
        4,
        "sentinel-2-msi",
        msi(MSI_OF_PLANETARY_COMPUTER, -0.1),
        {32646, 32647},
        SCL_OF_PLANETARY_COMPUTER,
        "05.10",
        frozenset({"ascending"}),
    ),
    "s2_35MNM_series.geojson": Expected(
        13,
        "sentinel-2-msi",
        msi(MSI_OF_PLANETARY_COMPUTER, 0.0),
        {32735},
        SCL_OF_PLANETARY_COMPUTER,
        "02.12",
        DESCENDING,
    ),
    "earth-search_landsat-c2-l2.json": Expected(1, "landsat-oli", OLI, {32613}, QA),
    "planetary-computer_landsat-c2-l2.json": Expected(6, "landsat-oli", OLI, {32657, 32658}, QA),
    "planetary-computer_landsat-c2-l2_4items.json": Expected(
        4, "landsat-oli", OLI, {32655, 32656}, QA
    ),
    "planetary-computer_sentinel-1-rtc.json": Expected(
        1, "sentinel-1-rtc", RADAR, {32634}, orbits=DESCENDING
    ),
    "planetary-computer_sentinel-1-rtc_4items.json": Expected(
        4, "sentinel-1-rtc", RADAR, {32633}, orbits=DESCENDING
    ),
    "earth-search_cop-dem-glo-30.json": Expected(4, "copernicus-dem", DEM, {4326}),
    "planetary-computer_cop-dem-glo-30.json": Expected(4, "copernicus-dem", DEM, {4326}),
}
REFUSED = {
    "earth-search_sentinel-1-grd.json": (3, "not-terrain-corrected", "sentinel-1-rtc"),
    "planetary-computer_landsat-8-c2-l2.json": (3, "unsupported-sensor", "landsat-c2-l2"),
}


@pytest.mark.real_data
def test_every_kept_item_is_in_one_of_the_two_tables() -> None:
    if not REAL.exists():
        pytest.skip(f"the real STAC items are not at {REAL} (set INVENTORY_ENGINE_TEST_DATA)")
    assert {path.name for path in REAL.iterdir()} == DESCRIBED.keys() | REFUSED.keys()
    assert sum(e.items for e in DESCRIBED.values()) + sum(n for n, *_ in REFUSED.values()) == 76


@pytest.mark.real_data
@pytest.mark.parametrize("name", sorted(DESCRIBED))
def test_real_items_say_how_pixels_become_physical_values(name: str) -> None:
    expected = DESCRIBED[name]
    scenes = [describe_item(item) for item in real_items(name)]
    assert len(scenes) == expected.items
    for scene in scenes:
        assert scene.sensor == expected.sensor
        if scene.sensor.startswith("landsat"):  # the day of processing in the names of its files
            assert f"_{scene.baseline}_02_T" in scene.bands[0].href
        else:
            assert scene.baseline == expected.baseline
        assert [band.role for band in scene.bands] == list(expected.bands)
        for band in scene.bands:
            asset, scale, offset, nodata = expected.bands[band.role]
            assert (band.asset, band.nodata) == (asset, nodata)
            assert (band.scale, band.offset) == pytest.approx((scale, offset), rel=1e-5)
        assert tuple((m.role, m.asset, m.nodata) for m in scene.masks) == expected.masks
        assert all(raster.shape and raster.transform for raster in scene.rasters)
        assert (scene.thermal is not None) == ("L2SP" in scene.id)
        if scene.thermal is not None:
            values = ("thermal", "lwir11", 0.00341802, 149.0, 0.0)
            t = scene.thermal
            assert (t.role, t.asset, t.scale, t.offset, t.nodata) == values
        if scene.kind == "optical":
            assert scene.cloud_percent is not None
            assert scene.sun_elevation is not None
            assert 0 < scene.sun_elevation < 90
    assert {raster.crs for scene in scenes for raster in scene.rasters} == {
        f"EPSG:{code}" for code in expected.epsg
    }
    assert {scene.orbit for scene in scenes} == expected.orbits


@pytest.mark.real_data
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_real_items_that_cannot_be_used_are_refused_by_name_with_advice(name: str) -> None:
    count, kind, instead = REFUSED[name]
    items = real_items(name)
    assert len(items) == count
    for item in items:
        with pytest.raises(DataError, match=rf"{item['id']}.*use the collection {instead}$") as e:
            describe_item(item)
        assert e.value.kind == kind


@pytest.mark.real_data
@pytest.mark.parametrize("name", [name for name in sorted(DESCRIBED) if "sentinel-2" in name])
def test_real_bands_of_sentinel2_promise_their_own_pixels(name: str) -> None:
    for item in real_items(name):
        scene = describe_item(item)
        edges = {band.role: (band.shape, band.transform) for band in scene.rasters}
        for role in ("swir1", "swir2", "scl"):
            shape, transform = edges[role]
            assert shape == (5490, 5490)
            assert transform is not None
            assert transform[0] == 20
        tile = scene.granule.rpartition("/")[2]
        hemisphere = 326 if tile[2] >= "N" else 327
        assert scene.bands[0].crs == f"EPSG:{hemisphere}{tile[:2]}"


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name", ["earth-search_cop-dem-glo-30.json", "planetary-computer_cop-dem-glo-30.json"]
)
def test_real_elevation_models_are_found_over_the_antimeridian(name: str) -> None:
    scenes = [describe_item(item) for item in real_items(name)]
    outermost = next(scene for scene in scenes if "W180" in scene.id)
    assert outermost.bbox[0] > outermost.bbox[2]
    assert boxes_meet(outermost.bbox, (179.9, -89.9, 180.0, -89.0))
    assert boxes_meet(outermost.bbox, (-180.0, -89.9, -179.9, -89.0))
    assert not boxes_meet(outermost.bbox, (0.0, -89.9, 10.0, -89.0))


@pytest.mark.real_data
@pytest.mark.filterwarnings("ignore:Could not parse bucket")
@pytest.mark.parametrize(
    "name",
    [
        "earth-search_sentinel-2-l2a.json",
        "earth-search_sentinel-2-c1-l2a.json",
        "planetary-computer_sentinel-2-l2a_4items.json",
        "planetary-computer_sentinel-1-rtc.json",
        "earth-search_cop-dem-glo-30.json",
    ],
)
def test_a_pystac_item_migrated_to_stac_1_1_means_the_same(name: str) -> None:
    for item in real_items(name):
        if "sar:polarizations" in item["properties"] and "vv" not in item["assets"]:
            continue
        assert describe_item(pystac.Item.from_dict(copy.deepcopy(item))) == describe_item(item)


@pytest.mark.parametrize(
    ("baseline", "applied", "declared", "offset"),
    [
        ("05.11", True, -0.1, 0.0),
        ("05.11", True, None, 0.0),
        ("05.11", False, -0.1, -0.1),
        ("05.11", None, -0.1, -0.1),
        ("04.00", None, None, -0.1),
        ("03.01", None, None, 0.0),
        ("02.12", False, 0.0, 0.0),
        ("05.11", None, 0.0, 0.0),
        (None, None, -0.1, -0.1),
        ("02.12", False, -0.1, "radiometry-doubtful"),
        ("05.11", False, 0.0, "radiometry-doubtful"),
        (None, None, None, "bad-item"),
        ("new", None, None, "bad-item"),
    ],
)
def test_the_offset_follows_baseline_flag_and_field(
    item: dict,
    baseline: str | None,
    applied: bool | None,
    declared: float | None,
    offset: float | str,
) -> None:
    properties = item["properties"]
    for name, value in (
        ("s2:processing_baseline", baseline),
        ("earthsearch:boa_offset_applied", applied),
    ):
        properties.pop(name, None)
        if value is not None:
            properties[name] = value
    for asset in item["assets"].values():
        for band in asset.get("raster:bands", []):
            band.pop("offset")
            if declared is not None:
                band["offset"] = declared
    if isinstance(offset, str):
        with pytest.raises(DataError, match=item["id"]) as caught:
            describe_item(item)
        assert caught.value.kind == offset
    else:
        assert {band.offset for band in describe_item(item).bands} == {offset}


def test_scale_and_offset_of_stac_1_1_bands_are_read(item: dict) -> None:
    for asset in item["assets"].values():
        if asset.pop("raster:bands", None):
            asset["bands"] = [{"raster:scale": 0.0002, "raster:offset": -0.05}]
            asset["nodata"] = 7
    bands = describe_item(item).bands
    assert {(b.scale, b.offset, b.nodata) for b in bands} == {(0.0002, -0.05, 7.0)}


def test_a_missing_band_is_named_with_what_was_expected(item: dict) -> None:
    del item["assets"]["swir16"]
    with pytest.raises(DataError, match=r"S2B_32TPS.*assets.*swir16 or B11"):
        describe_item(item)


def test_an_item_without_classification_has_no_mask(item: dict) -> None:
    del item["assets"]["scl"]
    assert describe_item(item).masks == ()


@pytest.mark.parametrize(
    ("platform", "role"),
    [("landsat-5", "radsat_tm"), ("landsat-7", "radsat_tm"), ("landsat-9", "radsat_oli")],
)
def test_saturation_is_read_in_the_band_numbers_of_the_sensor(
    tmp_path: Path, platform: str, role: str
) -> None:
    item = landsat_item(tmp_path, "L", when="2005-08-12T10:15:20Z", platform=platform)
    assert [mask.role for mask in describe_item(item).masks] == ["qa_pixel", role]
    marked = describe_item(item).fingerprint
    del item["assets"]["qa_radsat"]
    assert [mask.role for mask in describe_item(item).masks] == ["qa_pixel"]
    assert describe_item(item).fingerprint != marked


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"platform": "landsat-3"}, "bad-item", "landsat-4, landsat-5"),
        ({"landsat:collection_category": "RT"}, "bad-item", "'RT', expected T1 or T2"),
        ({"landsat:correction": "L1TP"}, "bad-item", "expected L2SP or L2SR"),
    ],
)
def test_landsat_that_is_no_final_surface_reflectance_is_refused(
    tmp_path: Path, change: dict, kind: str, says: str
) -> None:
    item = landsat_item(tmp_path, "LE07", when="2005-08-12T10:15:20Z", platform="landsat-7")
    assert describe_item(item).sensor == "landsat-etm"
    item["properties"].update(change)
    with pytest.raises(DataError, match=says) as caught:
        describe_item(item)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        ("landsat-9", (0.3109, 0.2993, 0.3063, 0.3006, 0.3015, 0.3003)),
        ("landsat-5", (0.2946, 0.2841, 0.2987, 0.3007, 0.3036, 0.3017)),
    ],
)
def test_landsat_reflectance_becomes_that_of_sentinel_2(
    tmp_path: Path, platform: str, expected: tuple[float, ...]
) -> None:
    """0.3 in every band, worked out by hand from the published coefficients."""
    item = landsat_item(tmp_path, "L", when="2010-08-12T10:15:20Z", platform=platform)
    pixel = (0.3 + 0.2) / 2.75e-5
    found = [pixel * band.scale + band.offset for band in describe_item(item).bands]
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("platform", "key"), [("landsat-5", "lwir"), ("landsat-9", "lwir11")])
def test_landsat_tells_the_temperature_beside_its_bands(
    tmp_path: Path, platform: str, key: str
) -> None:
    made = {"when": "2010-08-12T10:15:20Z", "platform": platform}
    warm = describe_item(landsat_item(tmp_path, "L", kelvin=283.15, **made))
    assert warm.thermal is not None
    assert warm.thermal.asset == key
    pixel = rasterio.open(warm.thermal.href).read(1)[0, 0]
    assert pixel * warm.thermal.scale + warm.thermal.offset == pytest.approx(283.15, abs=0.002)
    assert [band.role for band in warm.bands] == list(ROLES)
    assert warm.thermal not in warm.rasters
    plain = describe_item(landsat_item(tmp_path, "L", **made))
    assert plain.thermal is None
    assert plain.fingerprint == warm.fingerprint
    # ^ no product is made of it
    item = landsat_item(tmp_path, "L", kelvin=283.15, **made)
    item["assets"][key]["raster:bands"][0]["scale"] = 0.1
    with pytest.raises(DataError, match=rf"asset {key} has scale 0.1.*0.00341802 and 149.0"):
        describe_item(item)


def test_landsat_scaled_in_another_way_is_doubtful(tmp_path: Path) -> None:
    item = landsat_item(tmp_path, "LT05", when="1990-08-12T10:15:20Z", platform="landsat-5")
    item["assets"]["red"]["raster:bands"][0].update(scale=1e-4, offset=0)
    with pytest.raises(DataError, match="asset red has scale") as caught:
        describe_item(item)
    assert caught.value.kind == "radiometry-doubtful"


@pytest.mark.parametrize(
    ("collection", "asset", "sensor", "nodata"),
    [
        ("cop-dem-glo-90", "data", "copernicus-dem", None),
        ("nasadem", "elevation", "nasadem", -32768.0),
    ],
)
def test_other_elevation_models_are_described(
    tmp_path: Path, collection: str, asset: str, sensor: str, nodata: float | None
) -> None:
    item = dem_item(tmp_path, "DEM", paint=lambda x, y: x + y, west=10.75, south=46.75)
    item["collection"] = collection
    item["assets"] = {asset: item["assets"]["data"]}
    scene = describe_item(item)
    (band,) = scene.bands
    assert (scene.kind, scene.sensor) == ("dem", sensor)
    assert (band.role, band.asset, band.nodata) == ("elevation", asset, nodata)
    item["assets"][asset]["raster:bands"] = [{"nodata": -9999}]
    assert describe_item(item).bands[0].nodata == -9999.0


def test_radar_keeps_the_direction_of_its_orbit(tmp_path: Path) -> None:
    item = sar_item(tmp_path, "S1A", when="2024-08-02T05:00:00Z", paint=0.1)
    assert describe_item(item).orbit == ""
    for direction in ("ascending", "descending"):
        item["properties"]["sat:orbit_state"] = direction
        assert describe_item(item).orbit == direction
    item["properties"]["sat:orbit_state"] = "geostationary"
    assert describe_item(item).orbit == ""


@pytest.mark.parametrize(
    ("polarisations", "kind", "says"),
    [
        (("vv",), "polarisation-missing", "polarisations are VV, expected VV and VH"),
        (("hh", "hv"), "polarisation-missing", "polarisations are HH, HV, expected VV and VH"),
        ((), "bad-item", "an asset named vv"),
    ],
)
def test_radar_without_both_polarisations_is_set_aside_by_name(
    tmp_path: Path, polarisations: tuple[str, ...], kind: str, says: str
) -> None:
    item = sar_item(tmp_path, "S1A", when="2024-08-02T05:00:00Z", paint=0.1)
    item["assets"] = dict.fromkeys(polarisations, item["assets"]["vv"])
    with pytest.raises(DataError, match=f"S1A.*{says}") as caught:
        describe_item(item)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    "bad", ["../../etc", "", "a b", "a\nb", "x" * 200, "a%2fb", ".hidden", None, 7, "a\0"]
)
def test_an_id_that_could_leave_the_store_is_refused(item: dict, bad: object) -> None:
    item["id"] = bad
    with pytest.raises(DataError, match="item id"):
        describe_item(item)


def test_the_fingerprint_ignores_hosts_signatures_and_folders_only(item: dict) -> None:
    base = describe_item(item).fingerprint
    moved = copy.deepcopy(item)
    for asset in moved["assets"].values():
        asset["href"] = "https://elsewhere.example/" + asset["href"] + "?sig=secret"
    moved["properties"]["updated"] = "2030-01-01T00:00:00Z"
    assert describe_item(moved).fingerprint == base
    changes = {
        "baseline": lambda i: i["properties"].update({"s2:processing_baseline": "05.12"}),
        "offset": lambda i: i["assets"]["red"]["raster:bands"][0].update(offset=-0.2),
        "checksum": lambda i: i["assets"]["red"].update({"file:checksum": "1220ab"}),
        "time": lambda i: i["properties"].update(datetime="2024-08-13T10:15:20Z"),
        "id": lambda i: i.update(id="other"),
        "mask": lambda i: i["assets"].pop("scl"),
    }
    found = {base}
    for change in changes.values():
        changed = copy.deepcopy(item)
        change(changed)
        found.add(describe_item(changed).fingerprint)
    assert len(found) == len(changes) + 1


def test_scenes_survive_json(tmp_path: Path, item: dict) -> None:
    radar = sar_item(tmp_path, "S1A", when="2024-08-02T05:00:00Z", paint=0.1)
    dem = dem_item(tmp_path, "DEM", paint=lambda x, y: x + y, west=10.75, south=46.75)
    landsat = landsat_item(tmp_path, "LC08", when="2024-08-02T10:00:00Z", kelvin=270.0)
    for one in (item, radar, dem, landsat):
        scene = describe_item(one)
        assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene


def test_times_are_normalised_to_utc(item: dict) -> None:
    assert describe_item(item).datetime == "2024-08-12T10:15:20.123Z"
    item["properties"]["datetime"] = "2024-08-12T12:15:20+02:00"
    assert describe_item(item).datetime == "2024-08-12T10:15:20Z"


SAMPLE = {
    "id": "S2X",
    "collection": "sentinel-2-l2a",
    "bbox": [10, 46, 11, 47],
    "properties": {"datetime": "2024-08-12T10:15:20Z", "s2:processing_baseline": "05.11"},
    "assets": {
        key: {"href": f"/data/{key}.tif", "raster:bands": [{"scale": 1e-4, "offset": -0.1}]}
        for key in ("blue", "green", "red", "nir", "swir16", "swir22", "scl")
    },
}
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
PATHS = [
    ("id",),
    ("collection",),
    ("bbox",),
    ("properties",),
    ("properties", "datetime"),
    ("properties", "s2:processing_baseline"),
    ("properties", "earthsearch:boa_offset_applied"),
    ("properties", "proj:epsg"),
    ("properties", "proj:transform"),
    ("properties", "proj:shape"),
    ("properties", "eo:cloud_cover"),
    ("assets",),
    ("assets", "red"),
    ("assets", "red", "href"),
    ("assets", "red", "raster:bands"),
    ("assets", "red", "raster:bands", 0),
    ("assets", "scl"),
    ("assets", "scl", "href"),
]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(PATHS), JUNK)
def test_any_spoilt_field_gives_a_scene_or_a_typed_error(path: tuple, junk: object) -> None:
    item = copy.deepcopy(SAMPLE)
    holder = item
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = junk
    try:
        scene = describe_item(item)
    except DataError as error:
        assert error.kind in ("bad-item", "unsupported-sensor", "radiometry-doubtful")
    else:
        assert json.loads(json.dumps(scene.to_dict(), allow_nan=False))


@given(
    st.tuples(st.floats(-180, 180), st.floats(-180, 180)),
    st.tuples(st.floats(-180, 180), st.floats(-180, 180)),
)
def test_boxes_meet_both_ways_and_a_box_meets_itself(
    a: tuple[float, float], b: tuple[float, float]
) -> None:
    one, two = (a[0], 0.0, a[1], 1.0), (b[0], 0.5, b[1], 2.0)
    assert boxes_meet(one, one)
    assert boxes_meet(one, two) == boxes_meet(two, one)


def test_landsat_processed_anew_under_the_same_id_is_another_scene(tmp_path: Path) -> None:
    def processed(day: str) -> Scene:
        item = landsat_item(tmp_path, "L", when="2010-08-12T10:15:20Z")
        for asset in item["assets"].values():
            name = f"LC08_L2SP_193027_20100812_{day}_02_T1_SR_B2.TIF"
            asset["href"] = f"https://example.org/{name}"
        return describe_item(item)

    old, new = processed("20200823"), processed("20230101")
    assert (old.id, old.baseline, new.baseline) == (new.id, "20200823", "20230101")
    assert old.fingerprint != new.fingerprint
