"""Readers of public benchmarks: each against small files of exactly its format, and broken ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rasterio.errors import NotGeoreferencedWarning

from catalog.cube import TERRAIN_BANDS
from catalog.errors import DataError, UsageError
from catalog.terrain import describe_terrain, terrain_halo
from model_serving.datasets import BandRule, Patch, PatchDataset, landsat_rule, open_dataset
from model_serving.datasets.patch import windows
from model_serving.features import CHANNELS, GROUPS

TENTH = BandRule.uniform(1e-4)
OPTICAL = CHANNELS[GROUPS["optical"]]


def channel(patch: Patch, name: str) -> np.ndarray[Any, Any]:
    return patch.features[CHANNELS.index(name)]


def present(patch: Patch) -> set[str]:
    return {
        name
        for name, values in zip(CHANNELS, patch.features, strict=True)
        if np.isfinite(values).any()
    }


def write_image(path: Path, values: np.ndarray[Any, Any], driver: str = "GTiff") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = values if values.ndim == 3 else values[None]
    count, height, width = bands.shape
    with (
        pytest.warns(NotGeoreferencedWarning),
        rasterio.open(
            path, "w", driver=driver, count=count, height=height, width=width, dtype=bands.dtype
        ) as out,
    ):
        out.write(bands)


def cut_short(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def stitched(dataset: PatchDataset, shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Labels of one image put together again from its patches."""
    out = np.full(shape, 77, np.uint8)
    for place, patch in zip(dataset.places, dataset, strict=True):
        out[place.window.slices] = patch.labels
    return out


# The common form


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 20))
def test_patches_cover_an_image_once(height: int, width: int, edge: int):
    seen = np.zeros((height, width), int)
    for window in windows(height, width, edge):
        seen[window.slices] += 1
        assert max(window.shape) <= edge
    assert (seen == 1).all()


@pytest.mark.parametrize(
    "change",
    [
        {"features": np.zeros((11, 4, 4))},
        {"features": np.zeros((10, 4, 4), np.float32)},
        {"features": np.full((11, 4, 4), np.inf, np.float32)},
        {"labels": np.zeros((4, 4), np.int64)},
        {"labels": np.full((4, 4), 4, np.uint8)},
        {"labels": np.zeros((4, 5), np.uint8)},
        {"group": ""},
    ],
)
def test_a_patch_of_another_form_is_refused(change: dict[str, Any]):
    sound = {
        "features": np.full((11, 4, 4), np.nan, np.float32),
        "labels": np.array([[0, 1, 2, 3]] * 3 + [[255] * 4], np.uint8),
        "group": "scene",
    }
    Patch(**sound)
    with pytest.raises(DataError) as caught:
        Patch(**(sound | change))
    assert caught.value.kind == "patch"


def test_an_unknown_benchmark_and_an_empty_folder_are_named(tmp_path: Path):
    with pytest.raises(UsageError, match="caffe, dl4gam, glacierhack, hkh, nird"):
        open_dataset("imagenet", tmp_path)
    with pytest.raises(DataError) as caught:
        open_dataset("hkh", tmp_path, rules={})
    assert caught.value.kind == "dataset-empty"


@pytest.mark.parametrize("name", ["caffe", "dl4gam", "glacierhack", "nird"])
def test_no_number_becomes_reflectance_or_decibels_without_a_stated_rule(name: str, tmp_path: Path):
    with pytest.raises(UsageError) as caught:
        open_dataset(name, tmp_path)
    assert caught.value.kind == "rule-missing"


@given(
    hnp.arrays(np.float64, (2, 3, 3), elements=st.floats(0, 1)),
    st.lists(st.floats(-50, 50), min_size=2, max_size=2),
    st.lists(st.floats(0.01, 50), min_size=2, max_size=2),
)
def test_a_rule_between_limits_undoes_min_max_normalisation(
    stored: np.ndarray[Any, Any], low: list[float], span: list[float]
):
    lows, highs = np.array(low), np.array(low) + span
    truth = lows[:, None, None] + stored * (highs - lows)[:, None, None]
    assert BandRule.between(lows, highs).apply(stored) == pytest.approx(truth, rel=1e-5, abs=1e-4)


# HKH

MTL = """GROUP = L1_METADATA_FILE
  GROUP = IMAGE_ATTRIBUTES
    CLOUD_COVER = 3.00
    SUN_ELEVATION = 30.0
  END_GROUP = IMAGE_ATTRIBUTES
  GROUP = RADIOMETRIC_RESCALING
""" + "".join(
    f"    REFLECTANCE_MULT_BAND_{n} = 1.25E-03\n    REFLECTANCE_ADD_BAND_{n} = -0.0125\n"
    for n in (1, 2, 3, 4, 5, 7, 8)
)


def hkh_image(rng: np.random.Generator, height: int = 40, width: int = 50) -> np.ndarray[Any, Any]:
    image = rng.uniform(20, 200, (height, width, 15)).astype(np.float32)
    image[..., 13] = rng.uniform(3000, 6000, (height, width))
    image[..., 14] = rng.uniform(0, 60, (height, width))
    return image


def hkh_mask(height: int = 40, width: int = 50) -> np.ndarray[Any, Any]:
    mask = np.zeros((height, width, 3), np.uint8)
    mask[:10, :, 0] = 1
    mask[:6, :, 1] = 1
    mask[5:9, :, 2] = 1  # row 5 is both, row 9 a glacier of neither kind
    return mask


HKH_LABELS = np.zeros((40, 50), np.uint8)
HKH_LABELS[:5], HKH_LABELS[5], HKH_LABELS[6:9], HKH_LABELS[9] = 1, 255, 2, 255


@pytest.fixture
def hkh(tmp_path: Path) -> Path:
    image = hkh_image(np.random.default_rng(0))
    image[30:, :5] = np.nan  # beyond the border
    image[20, 20, :10] = 0  # fill
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
    np.save(tmp_path / "train" / "slice_07_img_012.npy", image)
    np.save(tmp_path / "train" / "slice_07_mask_012.npy", hkh_mask())
    np.save(tmp_path / "test" / "slice_03_img_000.npy", image)
    np.save(tmp_path / "test" / "slice_03_mask_000.npy", hkh_mask())
    return tmp_path


def test_hkh_levels_become_reflectance_by_the_scenes_metadata(hkh: Path):
    rule = landsat_rule(MTL)
    dataset = open_dataset("hkh", hkh, rules={"slice_07": rule, "slice_03": rule})
    assert dataset.groups == ("slice_03", "slice_07")
    patch = dataset[1]
    image = np.load(hkh / "train" / "slice_07_img_012.npy")
    for name, band in zip(OPTICAL, (0, 1, 2, 3, 4, 7), strict=True):
        truth = np.sqrt(np.maximum(image[..., band] * 1.25e-3 - 0.0125, 0) / 0.5)
        truth[20, 20] = np.nan
        assert channel(patch, name) == pytest.approx(truth, rel=1e-5, nan_ok=True)
    assert channel(patch, "slope") == pytest.approx(image[..., 14], nan_ok=True)
    assert present(patch) == {*OPTICAL, "slope"}
    labels = HKH_LABELS.copy()
    labels[30:, :5], labels[20, 20] = 255, 255
    assert (patch.labels == labels).all()
    cut = open_dataset("hkh", hkh, rules={"slice_07": rule, "slice_03": rule}, patch_px=16)
    assert (stitched(cut.only(["slice_07"]), (40, 50)) == labels).all()


def test_hkh_scenes_are_read_window_by_window_with_their_border(tmp_path: Path):
    image = hkh_image(np.random.default_rng(1))
    write_image(tmp_path / "LE07_149037_20041024.tif", np.moveaxis(image, 2, 0))
    np.save(tmp_path / "mask_00.npy", hkh_mask())
    border = np.ones((40, 50, 1), np.uint8)
    border[:, :3] = 0
    np.save(tmp_path / "border_00.npy", border)
    (tmp_path / "mask_metadata.csv").write_text(
        "id,img,mask,border,img_width,img_height,mask_width,mask_height\n"
        "0,/data/tiles/LE07_149037_20041024.tif,/data/m/mask_00.npy,/data/m/border_00.npy,"
        "50,40,50,40\n"
    )
    rules = {"LE07_149037_20041024": landsat_rule(MTL)}
    dataset = open_dataset("hkh", tmp_path, rules=rules, patch_px=32)
    labels = HKH_LABELS.copy()
    labels[:, :3] = 255
    assert (stitched(dataset, (40, 50)) == labels).all()
    assert set(dataset.groups) == {"LE07_149037_20041024"}
    truth = np.sqrt((image[32:, 32:, 2] * 1.25e-3 - 0.0125) / 0.5)
    assert channel(dataset[3], "red") == pytest.approx(truth, rel=1e-5)
    (tmp_path / "mask_00.npy").unlink()
    with pytest.raises(DataError, match=r"mask_00\.npy beside it"):
        open_dataset("hkh", tmp_path, rules=rules)


def test_hkh_scenes_without_a_rule_are_refused_by_name(hkh: Path):
    with pytest.raises(UsageError, match=r"slice_03; .*LE07_\*_MTL") as caught:
        open_dataset("hkh", hkh, rules={"slice_07": landsat_rule(MTL)})
    assert caught.value.kind == "rule-missing"
    with pytest.raises(DataError, match="REFLECTANCE_MULT_BAND_7"):
        landsat_rule(MTL.replace("REFLECTANCE_MULT_BAND_7 ", "RADIANCE_MULT_BAND_7 "))
    with pytest.raises(DataError, match="night"):
        landsat_rule(MTL.replace("SUN_ELEVATION = 30.0", "SUN_ELEVATION = -3.0"))


def spoil(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "train" / name
        np.save(path, change(np.load(path)))

    return apply


IMAGE, MASK = "slice_07_img_012.npy", "slice_07_mask_012.npy"


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (spoil(IMAGE, lambda x: x[..., :14]), r"shape \(y, x, 15\)"),
        (spoil(IMAGE, lambda x: np.nan_to_num(x).astype(np.int16)), "floats"),
        (spoil(IMAGE, lambda x: (x - 100) / 50), "8-bit levels"),
        (spoil(IMAGE, lambda x: np.concatenate([x[..., :14], x[..., 13:14]], 2)), "degrees"),
        (spoil(MASK, lambda x: x * 2), "values 0 and 1"),
        (spoil(MASK, lambda x: x[..., :2]), r"shape \(y, x, 3\)"),
        (spoil(MASK, lambda x: x[:-1]), r"shape \(40, 50, 3\)"),
        (spoil(MASK, lambda x: np.eye(3, dtype=np.uint8)[x[..., 0]]), "post-processing"),
        (lambda folder: cut_short(folder / "train" / IMAGE), "whole .npy file"),
        (lambda folder: (folder / "train" / MASK).unlink(), "whole .npy file"),
    ],
)
def test_a_damaged_hkh_patch_is_named(hkh: Path, damage: Callable[[Path], None], told: str):
    damage(hkh)
    rule = landsat_rule(MTL)
    with pytest.raises(DataError, match=told) as caught:
        list(open_dataset("hkh", hkh, rules={"slice_07": rule, "slice_03": rule}))
    assert caught.value.kind == "dataset-format"
    assert "slice_07" in str(caught.value)


def test_a_rule_that_is_not_the_files_own_is_noticed(hkh: Path):
    wrong = BandRule.uniform(1.0)
    with pytest.raises(DataError, match="median") as caught:
        list(open_dataset("hkh", hkh, rules={"slice_07": wrong, "slice_03": wrong}))
    assert caught.value.kind == "reflectance-implausible"


# CaFFe

DECIBELS = BandRule((0.1,), (-25.0,))
COLUMBIA, MAPPLE = "COL_2011-11-13_TDX_7_1_092", "Mapple_2006-04-17_ERS_20_2_061"


@pytest.fixture
def caffe(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, name in (("train", MAPPLE), ("test", COLUMBIA)):
        grey = rng.integers(1, 255, (24, 30), np.uint8)
        zones = np.repeat(np.array([0, 64, 127, 254], np.uint8), 6)[:, None].repeat(30, 1)
        grey[:3], grey[20, 5] = 0, 0
        write_image(tmp_path / "sar_images" / split / f"{name}.png", grey, "PNG")
        write_image(tmp_path / "zones" / split / f"{name}_zones.png", zones, "PNG")
    return tmp_path


def test_caffe_zones_become_classes_and_grey_levels_decibels(caffe: Path):
    dataset = open_dataset("caffe", caffe, decibels=DECIBELS, patch_px=16)
    assert dataset.groups == ("COL",) * 4 + ("Mapple",) * 4
    labels = np.repeat(np.array([255, 0, 1, 3], np.uint8), 6)[:, None].repeat(30, 1)
    assert (stitched(dataset.only(["COL"]), (24, 30)) == labels).all()
    whole = open_dataset("caffe", caffe, decibels=DECIBELS, splits=["train"])[0]
    assert present(whole) == {"vv"}
    level = channel(whole, "vv")
    assert np.isnan(level[:3]).all()  # beyond the image
    assert level[20, 5] == -25.0  # calm water, not missing
    grey = plt.imread(caffe / "sar_images" / "train" / f"{MAPPLE}.png")[3:] * 255
    assert level[3:] == pytest.approx(grey * 0.1 - 25, abs=1e-4)
    with pytest.raises(UsageError, match="not val"):
        open_dataset("caffe", caffe, decibels=DECIBELS, splits=["val"])


def caffe_files(folder: Path) -> tuple[Path, Path]:
    return (
        folder / "sar_images" / "train" / f"{MAPPLE}.png",
        folder / "zones" / "train" / f"{MAPPLE}_zones.png",
    )


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda sar, zones: zones.unlink(), "whole TIFF or PNG"),
        (lambda sar, zones: cut_short(sar), "whole TIFF or PNG"),
        (lambda sar, zones: sar.rename(sar.with_name("glacier.png")), "name like COL_2011"),
        (
            lambda sar, zones: write_image(zones, np.full((24, 30), 128, np.uint8), "PNG"),
            r"values 0, 64, 127, 254, found also \[128\]",
        ),
        (lambda sar, zones: write_image(zones, np.zeros((24, 31), np.uint8), "PNG"), "24 x 30"),
        (lambda sar, zones: write_image(sar, np.ones((24, 30), np.uint16), "PNG"), "uint8"),
        (lambda sar, zones: write_image(sar, np.ones((3, 24, 30), np.uint8), "PNG"), "1 band of"),
    ],
)
def test_a_damaged_caffe_image_is_named(
    caffe: Path, damage: Callable[[Path, Path], None], told: str
):
    damage(*caffe_files(caffe))
    with pytest.raises(DataError, match=told) as caught:
        list(open_dataset("caffe", caffe, decibels=DECIBELS))
    assert caught.value.kind == "dataset-format"
    assert "train" in str(caught.value)


# GlacierHack

FOUR = BandRule.uniform(1e-4, bands=4)


def write_tile(folder: Path, names: list[str], label: str, seed: int = 0) -> np.ndarray[Any, Any]:
    bands = np.random.default_rng(seed).integers(500, 9000, (5, 20, 24)).astype(np.uint16)
    bands[:, :2, :2] = 0
    for number, (name, band) in enumerate(zip(names, bands, strict=True), 1):
        write_image(folder / f"Band{number}" / name, band)
    mask = np.repeat(np.array([0, 85, 170, 255], np.uint8), 5)[:, None].repeat(24, 1)
    write_image(folder / label, mask)
    return bands


def first_phase(tile: str) -> list[str]:
    return [f"{band}_{band}_masked_{tile}.tif" for band in ("B2", "B3", "B4", "B6", "B10")]


@pytest.mark.parametrize(
    ("names", "label", "tile"),
    [
        (["img007.tif"] * 5, "labels/img007.tif", "007"),
        (first_phase("02_07"), "label/Y_output_resized_02_07.tif", "02_07"),
        (first_phase("02_07"), "label/Y02_07.tif", "02_07"),
    ],
)
def test_glacierhack_tiles_of_both_phases_are_read(
    tmp_path: Path, names: list[str], label: str, tile: str
):
    bands = write_tile(tmp_path, names, label)
    dataset = open_dataset("glacierhack", tmp_path, reflectance=FOUR)
    (patch,) = dataset
    assert dataset.groups == (tile,)
    assert present(patch) == {"blue", "green", "red", "swir1"}
    assert np.isnan(patch.features[:, :2, :2]).all()
    assert channel(patch, "swir1")[2:] == pytest.approx(np.sqrt(bands[3, 2:] * 1e-4), rel=1e-5)
    labels = np.repeat(np.arange(4, dtype=np.uint8), 5)[:, None].repeat(24, 1)
    labels[:2, :2] = 255
    assert (patch.labels == labels).all()
    cut = open_dataset("glacierhack", tmp_path, reflectance=FOUR, patch_px=7)
    assert (stitched(cut, (20, 24)) == labels).all()


def test_what_a_value_of_glacierhacks_masks_means_can_be_told(tmp_path: Path):
    write_tile(tmp_path, ["img1.tif"] * 5, "labels/img1.tif")
    other = {0: 0, 85: 2, 170: 1, 255: 255}
    (patch,) = open_dataset("glacierhack", tmp_path, reflectance=FOUR, classes=other)
    assert patch.labels[[2, 7, 12, 17], 10].tolist() == [0, 2, 1, 255]
    with pytest.raises(UsageError, match="classes for 0, 85, 170, 255"):
        open_dataset("glacierhack", tmp_path, reflectance=FOUR, classes={0: 0, 85: 1})


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: (f / "Band4" / "img1.tif").unlink(), "Band4: expected one file of tile 1"),
        (lambda f: (f / "labels" / "img1.tif").unlink(), "labels: expected one file of tile 1"),
        (lambda f: cut_short(f / "Band5" / "img1.tif"), "Band5.*whole TIFF"),
        (
            lambda f: write_image(f / "labels" / "img1.tif", np.full((20, 24), 86, np.uint8)),
            r"also \[86\]",
        ),
        (
            lambda f: write_image(f / "labels" / "img1.tif", np.zeros((20, 24), np.float32)),
            "1 band of uint8",
        ),
        (lambda f: write_image(f / "Band2" / "img1.tif", np.ones((9, 24), np.uint16)), "20 x 24"),
        (
            lambda f: (f / "Band1" / "img1.tif").rename(f / "Band1" / "scene.tif"),
            "name like img001",
        ),
    ],
)
def test_a_damaged_glacierhack_tile_is_named(
    tmp_path: Path, damage: Callable[[Path], None], told: str
):
    write_tile(tmp_path, ["img1.tif"] * 5, "labels/img1.tif")
    damage(tmp_path)
    with pytest.raises(DataError, match=told) as caught:
        list(open_dataset("glacierhack", tmp_path, reflectance=FOUR))
    assert caught.value.kind == "dataset-format"


# NIRD

LOW, HIGH = np.linspace(-0.02, 0.0, 6), np.linspace(0.9, 1.4, 6)
NIRD_RULES = {
    "optical": BandRule.between(LOW, HIGH),
    "dem": BandRule.between([-50, 0], [7000, 85]),
    "co_pol_sar": BandRule((3.0,), (-3.0,)),
    "cross_pol_sar": BandRule((3.0,), (-4.0,)),
}
TILE = (48, 64)


def write_nird(path: Path, tiles: dict[str, str], radar: tuple[str, ...] = ()) -> None:
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for name, subregion in tiles.items():
            tile = file.create_group(name)
            tile["optical"] = rng.uniform(0.05, 0.9, (*TILE, 6))
            tile["dem"] = rng.uniform(0.1, 0.9, (*TILE, 2))
            if name in radar:
                tile["co_pol_sar"] = rng.uniform(0.1, 0.9, (*TILE, 2))
                tile["cross_pol_sar"] = rng.uniform(0.1, 0.9, (*TILE, 2))
            kinds = rng.integers(0, 3, TILE)
            tile["bright_dark_outlines"] = np.eye(3)[kinds]
            tile["outlines"] = np.eye(2)[(kinds > 0).astype(int)]
            tile.attrs.update(
                region="ALP", subregion=subregion, height=TILE[0], width=TILE[1],
                padding_height=3, padding_width=4, original_height=41, original_width=55,
            )  # fmt: skip


@pytest.fixture
def nird(tmp_path: Path) -> Path:
    write_nird(tmp_path / "train.hdf5", {"t2": "ALP-1", "t1": "ALP-2"}, radar=("t1",))
    return tmp_path


def test_nird_tiles_lose_their_padding_and_their_normalisation(nird: Path):
    import h5py

    dataset = open_dataset("nird", nird, rules=NIRD_RULES)
    assert dataset.groups == ("ALP-2", "ALP-1")  # tiles by name
    patch = dataset[0]
    assert present(patch) == {*OPTICAL, "slope"}
    inner = (slice(3, 44), slice(4, 59))
    with h5py.File(nird / "train.hdf5") as file:
        tile = file["t1"]
        blue = tile["optical"][..., 0][inner] * (HIGH[0] - LOW[0]) + LOW[0]
        assert channel(patch, "blue") == pytest.approx(np.sqrt(blue), rel=1e-5)
        assert channel(patch, "slope") == pytest.approx(tile["dem"][..., 1][inner] * 85, rel=1e-5)
        truth = tile["outlines"][..., 1][inner]
    assert (patch.labels == truth).all()
    cut = open_dataset("nird", nird / "train.hdf5", rules=NIRD_RULES, patch_px=20)
    whole = np.full(TILE, 77, np.uint8)
    whole[inner] = truth
    assert (stitched(cut.only(["ALP-2"]), TILE) == whole).all()


def test_nird_radar_is_the_mean_power_of_both_orbits_and_may_be_missing(nird: Path):
    import h5py

    inputs = ["optical", "dem", "co_pol_sar", "cross_pol_sar"]
    with_radar, without = open_dataset("nird", nird, rules=NIRD_RULES, inputs=inputs)
    with h5py.File(nird / "train.hdf5") as file:
        stored = file["t1"]["co_pol_sar"][3:44, 4:59]
    truth = 10 * np.log10((10 ** (stored * 3 - 3)).mean(axis=2))
    assert channel(with_radar, "vv") == pytest.approx(truth, rel=1e-4, abs=1e-4)
    assert present(without) == {*OPTICAL, "slope"}


def test_nird_bright_and_dark_ice_are_labels(nird: Path):
    import h5py

    dataset = open_dataset("nird", nird, rules=NIRD_RULES, labels="bright_dark_outlines")
    with h5py.File(nird / "train.hdf5") as file:
        truth = file["t1"]["bright_dark_outlines"][3:44, 4:59].argmax(axis=2)
    assert (dataset[0].labels == truth).all()


@pytest.mark.parametrize("name", ["bright_dark_outlines", "outlines"])
def test_nird_labels_are_refused_as_inputs_by_name(nird: Path, name: str):
    rules = NIRD_RULES | {name: BandRule.uniform(1.0, bands=3)}
    with pytest.raises(UsageError, match=f"'{name}' holds labels") as caught:
        open_dataset("nird", nird, rules=rules, inputs=["optical", name])
    assert caught.value.kind == "label-as-input"


def test_nird_inputs_without_a_channel_or_a_rule_are_refused(nird: Path):
    with pytest.raises(UsageError, match="'in_sar' has no channel"):
        open_dataset("nird", nird, rules=NIRD_RULES, inputs=["optical", "in_sar"])
    with pytest.raises(UsageError, match="'lidar' is not among"):
        open_dataset("nird", nird, rules=NIRD_RULES, inputs=["lidar"])
    with pytest.raises(UsageError, match="'dem': expected a BandRule for 2 bands") as caught:
        open_dataset("nird", nird, rules={"optical": NIRD_RULES["optical"]})
    assert caught.value.kind == "rule-missing"


def test_nird_pixels_that_were_not_seen_are_unknown(nird: Path):
    def hide(file: Any) -> None:
        file["t1/optical"][10:12, 10:12, 3] = np.nan

    edit(hide)(nird / "train.hdf5")
    patch = open_dataset("nird", nird, rules=NIRD_RULES)[0]
    hidden = np.zeros(patch.labels.shape, bool)
    hidden[7:9, 6:8] = True
    assert (np.isnan(channel(patch, "blue")) == hidden).all()
    assert ((patch.labels == 255) == hidden).all()


def edit(change: Callable[[Any], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        import h5py

        with h5py.File(path, "a") as file:
            change(file)

    return apply


def replaced(file: Any, name: str, values: Any) -> None:
    attributes = dict(file[name].attrs)
    del file[name]
    file[name] = values
    file[name].attrs.update(attributes)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (edit(lambda f: f["t1"].pop("dem")), "an array /t1/dem"),
        (edit(lambda f: replaced(f, "t1/optical", np.zeros((*TILE, 5)))), r"\(48, 64, 6\)"),
        (edit(lambda f: replaced(f, "t1/optical", np.zeros((*TILE, 6), np.uint8))), "floats"),
        (edit(lambda f: replaced(f, "t1/outlines", np.ones((*TILE, 2)))), "one of 2 classes"),
        (edit(lambda f: replaced(f, "t1/outlines", np.full((*TILE, 2), 0.5))), "one of 2 classes"),
        (edit(lambda f: f["t1"].attrs.pop("subregion")), "attributes subregion of tile t1"),
        (cut_short, "whole HDF5 file"),
    ],
)
def test_a_damaged_nird_file_is_named(nird: Path, damage: Callable[[Path], None], told: str):
    damage(nird / "train.hdf5")
    with pytest.raises(DataError, match=told) as caught:
        list(open_dataset("nird", nird, rules=NIRD_RULES))
    assert caught.value.kind == "dataset-format"
    assert "train.hdf5" in str(caught.value)


def test_two_sets_of_nird_labels_that_disagree_are_noticed(nird: Path):
    edit(lambda f: replaced(f, "t1/outlines", np.eye(2)[np.zeros(TILE, int)]))(nird / "train.hdf5")
    with pytest.raises(DataError, match="the same ice in both sets of labels of tile t1"):
        open_dataset("nird", nird, rules=NIRD_RULES, labels="bright_dark_outlines")[0]


# DL4GAM

NAMES = ["B1", "B", "G", "R", "B5", "B6", "B7", "NIR", "B8A", "B9", "B10", "SWIR", "B12"]
CUBE = (140, 150)


def write_cube(path: Path, *, names: list[str] = NAMES) -> dict[str, Any]:
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[: CUBE[0], : CUBE[1]]
    own = (rows - 60) ** 2 + (cols - 60) ** 2 < 30**2
    other = (rows - 110) ** 2 + (cols - 110) ** 2 < 15**2
    values: dict[str, Any] = {
        "band_data": rng.integers(200, 9000, (len(names), *CUBE)).astype(np.uint16),
        "mask_nok": (cols < 5).astype(np.int8),
        "mask_crt_g": own.astype(np.int8),
        "mask_debris": (rows > 75).astype(np.int8),
        "mask_all_g_id": np.select([own, other], [17, 23], -1).astype(np.int32),
        "dem": (2000 + 3 * rows + 100 * np.sin(cols / 20)).astype(np.float32),
        "dhdt": rng.normal(size=CUBE).astype(np.float32),
    }
    values["band_data"][:, 0, 10] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", track_order=True) as file:
        for axis, coordinates in (
            ("band", np.arange(len(names))),
            ("y", 5.1e6 - 10.0 * np.arange(CUBE[0])),
            ("x", 4e5 + 10.0 * np.arange(CUBE[1])),
        ):
            file[axis] = coordinates
            file[axis].make_scale(axis)
        for name, array in values.items():
            stored = file.create_dataset(name, data=array, compression="gzip")
            for dim, axis in enumerate(("band", "y", "x")[-array.ndim :]):
                stored.dims[dim].attach_scale(file[axis])
        file["band_data"].attrs["long_name"] = np.array(names, dtype=h5py.string_dtype())
        file["band_data"].attrs["_FillValue"] = np.uint16(0)
        file["mask_all_g_id"].attrs["_FillValue"] = np.int32(-1)
    return values


@pytest.fixture
def cube(tmp_path: Path) -> Path:
    path = tmp_path / "inv" / "glacier_wide" / "g_17" / "S2A_2015-08-29.nc"
    write_cube(path)
    return path


def test_dl4gam_labels_its_own_glacier_and_leaves_its_neighbours_unknown(cube: Path):
    truth = write_cube(cube)
    dataset = open_dataset("dl4gam", cube.parents[2], reflectance=TENTH)
    (patch,) = dataset
    assert dataset.groups == ("g_17",)
    own, debris = truth["mask_crt_g"] == 1, truth["mask_debris"] == 1
    labels = np.select([own & debris, own], [2, 1], 0)
    labels[truth["mask_all_g_id"] == 23] = 255
    labels[:, :5], labels[0, 10] = 255, 255
    assert (patch.labels == labels).all()
    assert present(patch) == {*OPTICAL, "slope", "relative_elevation", "curvature"}
    seen = np.isfinite(channel(patch, "blue"))
    assert not seen[:, :5].any()
    assert not seen[0, 10]
    for name, band in zip(OPTICAL, (1, 2, 3, 7, 11, 12), strict=True):
        values = np.sqrt(truth["band_data"][band] * 1e-4)
        assert channel(patch, name)[seen] == pytest.approx(values[seen], rel=1e-5)


def test_dl4gam_terrain_is_the_engines_own_and_has_no_seams(cube: Path):
    truth = write_cube(cube)
    halo = terrain_halo(10.0)
    whole = describe_terrain(
        np.pad(truth["dem"], halo, constant_values=np.nan), resolution_m=10.0, convergence_deg=0.0
    )
    dataset = open_dataset("dl4gam", cube.parent, reflectance=TENTH, patch_px=64)
    for place, patch in zip(dataset.places, dataset, strict=True):
        for name in CHANNELS[GROUPS["terrain"]]:
            expected = whole[(TERRAIN_BANDS.index(name), *place.window.slices)]
            assert channel(patch, name) == pytest.approx(expected, abs=1e-3, nan_ok=True)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: write_cube(path, names=[*NAMES[:-1], "B13"]), "bands B12 in long_name"),
        (edit(lambda f: f.pop("mask_nok")), "an array /mask_nok"),
        (edit(lambda f: f.pop("band_data")), "band_data"),
        (edit(lambda f: replaced(f, "mask_nok", np.full(CUBE, 2, np.int8))), r"also \[2\]"),
        (edit(lambda f: replaced(f, "mask_all_g_id", np.zeros(CUBE))), "integers"),
        (edit(lambda f: replaced(f, "dem", np.zeros((9, 9), np.float32))), r"\(140, 150\)"),
        (edit(lambda f: replaced(f, "x", np.zeros(CUBE[1]))), "evenly spaced"),
        (cut_short, "whole HDF5 file"),
    ],
)
def test_a_damaged_dl4gam_cube_is_named(cube: Path, damage: Callable[[Path], None], told: str):
    damage(cube)
    with pytest.raises(DataError, match=told) as caught:
        list(open_dataset("dl4gam", cube.parent, reflectance=TENTH))
    assert caught.value.kind == "dataset-format"
    assert cube.name in str(caught.value)
