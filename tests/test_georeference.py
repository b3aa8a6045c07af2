"""Real readers find the store where it lies, with its values: xarray, rioxarray, GDAL."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rioxarray  # noqa: F401  registers the accessor
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS
from rasters import small_grid

from catalog.assets import gdal_env  # noqa: F401  before rasterio: it sets GDAL's drivers
from catalog.composites import create_season
from catalog.cube import NOT_SEEN, TERRAIN_BANDS, Workspace, write_shard
from catalog.georeference import georeference
from catalog.terrain import create_terrain
from model_serving.inference import create_map

import rasterio  # isort: skip
from affine import Affine  # isort: skip

GRID = small_grid(shard_px=64, chunk_px=32, size_m=600)
PLACES = {
    "Alps": (10.8, 46.8),
    "Svalbard": (16.0, 78.5),
    "antimeridian": (179.99, 66.0),
    "Patagonia": (-73.2, -50.0),
    "Antarctica": (-60.0, -70.0),
}


def filled(layer: str, fill: float, dtype: str, bands: int | None) -> np.ndarray:
    shape = (64, 64) if bands is None else (bands, 64, 64)
    values = np.full(shape, fill, dtype)
    values[..., :, 32:] = 100 if layer == "probability" else 2000 if dtype == "uint16" else 3
    return values


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cube and a map; the western half of the first shard was not seen."""
    workspace = Workspace(tmp_path_factory.mktemp("store"))
    for season in ("2018", "2024"):
        create_season(workspace, season, GRID, sar=True)
        create_map(workspace, season, GRID)
    create_terrain(workspace, GRID, collections=["cop-dem-glo-30"])
    shard = GRID.shard(0, 0)
    for name, fill, dtype, bands in (
        ("cube.zarr/2024/optical", 0, "uint16", 6),
        ("cube.zarr/2024/sar", 0, "uint16", 2),
        ("cube.zarr/2024/observations", 0, "uint8", None),
        ("cube.zarr/terrain", np.nan, "float32", len(TERRAIN_BANDS)),
        ("map.zarr/2024/probability", NOT_SEEN, "uint8", 4),
        ("map.zarr/2024/votes", 0, "uint32", None),
    ):
        values = filled(name.rsplit("/", 1)[1], fill, dtype, bands)
        write_shard(workspace, name, shard, values)
    return workspace.path("")


def opened(store: Path, name: str, group: str | None = None) -> xr.Dataset:
    return xr.open_zarr(store / name, group=group, consolidated=False, decode_coords="all")


@pytest.mark.parametrize(
    ("name", "group"), [("cube.zarr", "2024"), ("cube.zarr", None), ("map.zarr", "2018")]
)
def test_xarray_and_rioxarray_find_the_place_of_every_group(
    store: Path, name: str, group: str | None
) -> None:
    data = opened(store, name, group)
    assert CRS.from_user_input(data.rio.crs) == GRID.crs
    assert data.rio.transform() == GRID.transform
    assert data.rio.shape == GRID.shape
    for array in data.data_vars.values():
        assert CRS.from_user_input(array.rio.crs) == GRID.crs
        assert array.rio.transform() == GRID.transform
        assert "spatial_ref" in array.coords
    assert data["x"].attrs["standard_name"] == "projection_x_coordinate"
    assert data["y"].attrs["axis"] == "Y"


def test_what_was_not_seen_is_nan_and_the_rest_in_physical_units(store: Path) -> None:
    season, chart, terrain = (
        opened(store, "cube.zarr", "2024"),
        opened(store, "map.zarr", "2024"),
        opened(store, "cube.zarr"),
    )
    expected = {"optical": 0.1, "sar": -48.0}
    for name, value in expected.items():
        part = season[name][:, :64, :64].to_numpy()
        assert np.isnan(part[..., :32]).all()
        np.testing.assert_allclose(part[..., 32:], value, atol=1e-6)
    assert season["optical"].attrs["units"] == "1"
    assert season["sar"].attrs["units"] == "dB"
    probability = chart["probability"][:, :64, :64].to_numpy()
    assert np.isnan(probability[..., :32]).all()
    np.testing.assert_allclose(probability[..., 32:], 100 / 254, rtol=1e-6)
    heights = terrain["terrain"][:, :64, :64].to_numpy()
    assert np.isnan(heights[..., :32]).all()
    assert (heights[..., 32:] == 3).all()


def test_counts_and_bits_stay_whole_numbers_and_zero_is_zero(store: Path) -> None:
    looks = opened(store, "cube.zarr", "2024")["observations"]
    votes = opened(store, "map.zarr", "2024")["votes"]
    assert (looks.dtype, votes.dtype) == ("uint8", "uint32")
    for array in (looks, votes):
        assert (array[:64, :32] == 0).all()
        assert (array[:64, 32:64] == 3).all()


def test_a_cube_opens_as_one_tree_with_its_terrain(store: Path) -> None:
    tree = xr.open_datatree(
        store / "cube.zarr", engine="zarr", consolidated=False, decode_coords="all"
    )
    assert set(tree.children) == {"2018", "2024"}
    assert tree["terrain"].dims == ("parameter", "y", "x")
    assert tree["2024/optical"].dims == ("band", "y", "x")


@settings(max_examples=30, deadline=None)
@given(
    place=st.sampled_from(sorted(PLACES)),
    resolution=st.sampled_from([10.0, 20.0, 30.0]),
)
def test_an_array_tells_its_place_by_itself(place: str, resolution: float) -> None:
    lon, lat = PLACES[place]
    epsg = (32600 if lat > 0 else 32700) + int((lon + 180) // 6) + 1
    grid = small_grid(centre=(lon, lat), epsg=epsg, resolution_m=resolution)
    told = georeference(grid)
    assert CRS.from_wkt(told["proj:wkt2"]) == grid.crs
    assert Affine(*told["spatial:transform"]) == grid.transform
    assert tuple(told["spatial:shape"]) == grid.shape
    assert {convention["name"] for convention in told["zarr_conventions"]} == {"proj:", "spatial:"}


def test_every_array_of_a_store_carries_its_place(store: Path) -> None:
    workspace, arrays = Workspace(store), 0
    for name in workspace.names(""):
        array = name.removesuffix("/zarr.json")
        if name.endswith("/zarr.json") and array.rsplit("/", 1)[-1] not in (
            "x", "y", "spatial_ref", "2018", "2024", "cube.zarr", "map.zarr",
        ):  # fmt: skip
            attributes = dict(workspace.array(array).attrs)
            assert attributes | georeference(GRID) == attributes
            arrays += 1
    assert arrays == 2 * (5 + 4) + 1


GDAL = tuple(int(part) for part in rasterio.__gdal_version__.split(".")[:2])


@pytest.mark.parametrize("array", ["2024/optical", "2024/observations", "terrain"])
def test_gdal_reads_shards_from_3_13_on_and_says_so_before(store: Path, array: str) -> None:
    """Where the documentation's sentence on versions is no longer true, this fails."""
    name = f'ZARR:"{store / "cube.zarr"}":/{array}'
    if GDAL < (3, 13):
        with pytest.raises(rasterio.errors.RasterioIOError, match="sharding_indexed"):
            rasterio.open(name)
        return
    with rasterio.open(name) as found:
        assert CRS.from_user_input(found.crs) == GRID.crs
        assert found.transform == GRID.transform
        assert found.shape == GRID.shape


def test_an_older_gdal_reads_what_rioxarray_writes(store: Path, tmp_path: Path) -> None:
    optical = opened(store, "cube.zarr", "2024")["optical"]
    optical.rio.to_raster(tmp_path / "optical.tif")
    with rasterio.open(tmp_path / "optical.tif") as found:
        assert CRS.from_user_input(found.crs) == GRID.crs
        assert found.transform == GRID.transform
        pixels = found.read(3, masked=True)
        assert pixels.mask[:64, :32].all()
        reflectance = pixels[:64, 32:64] * found.scales[2] + found.offsets[2]
        np.testing.assert_allclose(reflectance, 0.1, atol=1e-6)
