"""Training regions from a cube and an inventory: the cube's features, the outlines' labels."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from rasterio.features import shapes

from catalog.cube import Workspace, create_layer, shard_key, terrain_name, write_shard
from catalog.errors import UsageError
from catalog.grid import RegionGrid, region_grid
from catalog.simulation import RegionSpec, SeasonSpec
from model_serving.cube_regions import region_from_workspace
from model_serving.features import CHANNELS, GROUPS
from model_serving.regions import PreparedRegion, prepare_region

MADE = RegionSpec(
    name="MADE",
    seed=5,
    style="alpine",
    lon=-29.43,
    lat=46.55,
    size_km=4.0,
    seasons=(SeasonSpec("2018", 2018, 0.0, 2, 0.1, 0.1),),
)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> PreparedRegion:
    return prepare_region(MADE, tmp_path_factory.mktemp("made"), resolution_m=20)


def outlines_of(region: PreparedRegion, label: int) -> gpd.GeoDataFrame:
    """Outlines of a true class, along the edges of pixels."""
    truth = np.ascontiguousarray((region.labels()[0] == label).astype(np.uint8))
    found = [
        shapely.geometry.shape(shape)
        for shape, value in shapes(truth, transform=region.grid.transform)
        if value
    ]
    return gpd.GeoDataFrame(geometry=found, crs=region.grid.proj4)


def test_features_and_labels_of_a_cube_are_those_of_the_simulated_truth(
    simulated: PreparedRegion, tmp_path: Path
):
    reference = gpd.read_file(simulated.folder / "simulated" / "reference.gpkg")
    region = region_from_workspace(
        Workspace(simulated.folder / "workspace"),
        season="2018",
        grid=simulated.grid,
        inventory=reference,
        folder=tmp_path,
        name="made",
        debris=outlines_of(simulated, 2),
        lakes=outlines_of(simulated, 3),
    )
    np.testing.assert_array_equal(region.features(), simulated.features())
    assert region.features().dtype == np.float16
    np.testing.assert_array_equal(region.owners(), simulated.owners())
    labels, truth = region.labels()[0], simulated.labels()[0]
    seen = np.isfinite(simulated.features()[0, 0])
    assert (labels[~seen] == 255).all()
    both = seen & (truth != 255) & (labels != 255)
    # The outlines are finer than the pixels, so only pixels on an edge may differ.
    assert (labels == truth)[both].mean() > 0.985
    for label in (1, 2):
        overlap = ((labels == label) & (truth == label) & both).sum()
        assert overlap / (((labels == label) | (truth == label)) & both).sum() > 0.9
    assert region.glaciers == len(reference)
    assert region.ice_km2 == pytest.approx(simulated.ice_km2, rel=0.15)
    assert region.seasons == ("2018",)
    west, south, east, north = region.bbox
    assert west < -29.43 < east
    assert south < 46.55 < north


# A small cube made by hand


def write_cube(
    folder: Path, *, multiple: int = 1, sar: bool = True, terrain: bool = True
) -> tuple[Workspace, RegionGrid]:
    grid = region_grid([10.0, 10.03], [46.0, 46.02], resolution_m=20, shard_px=64, chunk_px=32)
    pixels, workspace = grid.coarsened(multiple), Workspace(folder)
    rng = np.random.default_rng(0)
    names = {"cube.zarr/2020/optical": 6}
    names |= {"cube.zarr/2020/sar": 2} if sar else {}
    names |= {terrain_name(pixels): 8} if terrain else {}
    for name, bands in names.items():
        create_layer(workspace, name, pixels)
        for shard in pixels.shards():
            values = rng.integers(1500, 9000, (bands, pixels.shard_px, pixels.shard_px))
            if name.endswith("optical"):
                values[:, :4, :4] = 0
            dtype = np.float32 if name.endswith("terrain") else np.uint16
            write_shard(workspace, name, shard, values.astype(dtype))
    return workspace, grid


def square(grid: RegionGrid, row: float, col: float, edge: float) -> shapely.Polygon:
    """A square in pixels of the grid, in grid coordinates."""
    corners = ((col, row), (col + edge, row), (col + edge, row + edge), (col, row + edge))
    return shapely.Polygon([grid.transform @ corner for corner in corners])


def frame(grid: RegionGrid, *squares: tuple[float, float, float]) -> gpd.GeoDataFrame:
    made = [square(grid, *one) for one in squares]
    return gpd.GeoDataFrame(geometry=made, crs=grid.proj4).to_crs(4326)


def test_outlines_become_classes_one_over_the_other(tmp_path: Path):
    workspace, grid = write_cube(tmp_path / "cube")
    region = region_from_workspace(
        workspace,
        season="2020",
        grid=grid,
        inventory=frame(grid, (10, 10, 20), (50, 50, 30)),
        debris=frame(grid, (25, 10, 10)),  # rows 30 to 35 lie beyond the glacier
        lakes=frame(grid, (12, 12, 4), (5, 40, 6)),
        doubtful=frame(grid, (90, 90, 10), (60, 60, 3)),
        doubtful_buffer_m=60.0,
        covered=frame(grid, (0, 0, 120)),
        folder=tmp_path / "made",
        name="made",
    )
    expected = np.zeros(grid.shape, np.uint8)
    expected[10:30, 10:30], expected[50:80, 50:80] = 1, 1
    expected[25:30, 10:20], expected[30:35, 10:20] = 2, 255
    expected[90:100, 87:103], expected[87:103, 90:100] = 255, 255
    expected[120:], expected[:, 120:] = 255, 255
    expected[12:16, 12:16], expected[5:11, 40:46] = 3, 3
    for shard in grid.shards():
        row, col = (part.start for part in shard.window)
        expected[row : row + 4, col : col + 4] = 255
    found = region.labels()[0]
    corners = np.zeros(grid.shape, bool)
    corners[86:104, 86:104] = True
    corners[90:100, 86:104] = corners[86:104, 90:100] = False
    # ^ the buffer's round corners
    assert (found == expected)[~corners].all()
    owners = region.owners()
    assert (owners[10:30, 10:30] == 1).all()
    assert (owners[50:80, 50:80] == 2).all()
    assert np.isin(owners, (0, 1, 2)).all()
    assert region.ice_km2 == pytest.approx(np.isin(found, (1, 2)).sum() * 0.0004)


@pytest.mark.parametrize("multiple", [2, 4])
def test_a_season_of_coarser_pixels_is_read_on_its_own_grid(tmp_path: Path, multiple: int):
    workspace, grid = write_cube(tmp_path / "cube", multiple=multiple)
    region = region_from_workspace(
        workspace,
        season="2020",
        grid=grid,
        inventory=frame(grid, (16, 16, 32)),
        folder=tmp_path / "made",
        name="made",
    )
    coarse = grid.coarsened(multiple)
    assert region.grid == coarse
    assert region.features().shape == (1, 11, *coarse.shape)
    inside = slice(16 // multiple, 48 // multiple)
    assert (region.owners()[inside, inside] == 1).all()
    assert region.owners().sum() == (32 // multiple) ** 2
    stored = workspace.array("cube.zarr/2020/optical")[:]
    seen = (stored > 0).all(axis=0)
    root = np.sqrt(np.maximum(stored[0] * 1e-4 - 0.1, 0))
    assert region.features()[0, 0][seen] == pytest.approx(root[seen], abs=1e-3)
    assert np.isfinite(region.features()[0, GROUPS["terrain"]]).all()
    again = region_from_workspace(
        workspace,
        season="2020",
        grid=coarse,
        inventory=frame(grid, (16, 16, 32)),
        folder=tmp_path / "other",
        name="made",
    )
    assert again.fingerprint == region.fingerprint


def test_layers_that_were_not_made_are_missing_and_nothing_else_is(tmp_path: Path):
    workspace, grid = write_cube(tmp_path / "cube", sar=False, terrain=False)
    region = region_from_workspace(
        workspace,
        season="2020",
        grid=grid,
        inventory=frame(grid, (16, 16, 32)),
        folder=tmp_path / "made",
        name="made",
    )
    there = [
        name
        for name, values in zip(CHANNELS, region.features()[0], strict=True)
        if np.isfinite(values).any()
    ]
    assert there == list(CHANNELS[GROUPS["optical"]])


def test_a_finished_region_is_taken_as_it_is_until_the_cube_or_the_outlines_change(tmp_path: Path):
    workspace, grid = write_cube(tmp_path / "cube")
    folder = tmp_path / "made"

    def made(*squares: tuple[float, float, float]) -> tuple[PreparedRegion, int]:
        region = region_from_workspace(
            workspace,
            season="2020",
            grid=grid,
            inventory=frame(grid, *squares),
            folder=folder,
            name="made",
        )
        return region, (folder / "features.npy").stat().st_mtime_ns

    first, written = made((16, 16, 32))
    assert made((16, 16, 32)) == (first, written)
    other, rewritten = made((16, 16, 31))
    assert rewritten > written
    assert other.fingerprint != first.fingerprint
    lost = next(iter(grid.shards()))
    workspace.delete(shard_key("cube.zarr/2020/optical", lost.row, lost.col))
    without, _ = made((16, 16, 31))
    assert without.fingerprint != other.fingerprint
    assert (without.labels()[0][lost.window] == 255).all()
    assert not list(folder.glob(".*partial"))


def test_what_cannot_be_labelled_is_refused_by_name(tmp_path: Path):
    workspace, grid = write_cube(tmp_path / "cube")

    def made(
        season: str = "2020", on: RegionGrid = grid, inventory: gpd.GeoDataFrame | None = None
    ) -> None:
        outlines = frame(grid, (16, 16, 32)) if inventory is None else inventory
        region_from_workspace(
            workspace, season=season, grid=on, inventory=outlines, folder=tmp_path / "m", name="m"
        )

    with pytest.raises(UsageError, match="season '1999' has no cube") as caught:
        made(season="1999")
    assert caught.value.kind == "season-grid"
    other = region_grid([10.0, 10.1], [46.0, 46.1], resolution_m=20, shard_px=64, chunk_px=32)
    with pytest.raises(UsageError, match=r"season '2020' has .* no whole multiple") as caught:
        made(on=other)
    assert caught.value.kind == "season-grid"
    with pytest.raises(UsageError, match="inventory name no reference system"):
        made(inventory=frame(grid, (16, 16, 32)).set_crs(None, allow_override=True))
    with pytest.raises(UsageError, match="no glacier of the inventory"):
        made(inventory=frame(grid, (9000, 9000, 32)))
    assert not (tmp_path / "m").exists()
