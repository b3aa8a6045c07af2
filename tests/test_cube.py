from __future__ import annotations

import hashlib
import multiprocessing
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import rioxarray  # noqa: F401  registers the accessor
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS
from rasters import small_grid

from catalog.cube import (
    DATE_MISSING,
    LAYERS,
    OPTICAL_BANDS,
    Workspace,
    create_layer,
    read_shard,
    read_window,
    shard_checksum,
    write_shard,
)
from catalog.errors import StoreError, UsageError
from catalog.grid import RegionGrid

NAME = "cube.zarr/2024/optical"
GRID = small_grid(shard_px=64, chunk_px=32, size_m=600)


def noise(seed: int, grid: RegionGrid = GRID) -> np.ndarray:
    shape = (len(OPTICAL_BANDS), grid.shard_px, grid.shard_px)
    return np.random.default_rng(seed).integers(1, 9000, shape).astype(np.uint16)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path / "workspace")
    create_layer(workspace, NAME, GRID)
    return workspace


def shard_file(workspace: Workspace, row: int, col: int) -> Path:
    return workspace.path(f"{NAME}/c/0/{row}/{col}")


def test_what_is_written_is_read_back_with_its_neighbours(workspace: Workspace) -> None:
    for shard in GRID.shards():
        write_shard(workspace, NAME, shard, noise(shard.row * 10 + shard.col))
    one = GRID.shard(0, 0)
    np.testing.assert_array_equal(read_shard(workspace, NAME, one), noise(0))
    wide = read_shard(workspace, NAME, one, halo=8)
    np.testing.assert_array_equal(wide[:, 8:-8, 8:-8], noise(0))
    np.testing.assert_array_equal(wide[:, 8:-8, -8:], noise(1)[:, :, :8])
    assert not wide[:, :8].any()  # beyond the grid stands the fill value


def test_equal_values_are_equal_bytes_and_have_the_checksum_of_the_file(
    tmp_path: Path, workspace: Workspace
) -> None:
    shard = GRID.shard(0, 1)
    first = write_shard(workspace, NAME, shard, noise(1))
    assert write_shard(workspace, NAME, shard, noise(1)) == first
    other = Workspace(tmp_path / "other")
    create_layer(other, NAME, GRID)
    assert write_shard(other, NAME, shard, noise(1)) == first
    stored = shard_file(workspace, 0, 1).read_bytes()
    assert hashlib.sha256(stored).hexdigest() == first
    assert shard_checksum(workspace, NAME, shard) == first
    assert write_shard(workspace, NAME, shard, noise(2)) != first


def test_an_empty_shard_is_stored_too(workspace: Workspace) -> None:
    """Else one that is missing could not be told from one that is empty."""
    checksum = write_shard(workspace, NAME, GRID.shard(0, 0), np.zeros_like(noise(0)))
    assert shard_file(workspace, 0, 0).exists()
    assert shard_checksum(workspace, NAME, GRID.shard(0, 0)) == checksum


def test_a_missing_shard_is_noticed_by_its_checksum(workspace: Workspace) -> None:
    shard = GRID.shard(0, 0)
    write_shard(workspace, NAME, shard, noise(0))
    shard_file(workspace, 0, 0).unlink()
    assert shard_checksum(workspace, NAME, shard) is None


@settings(max_examples=300, deadline=None)
@given(st.tuples(st.integers(1, 8), st.integers(1, 130), st.integers(1, 130)), st.booleans())
def test_anything_but_one_whole_shard_is_refused_before_a_byte_is_written(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int, int], retyped: bool
) -> None:
    workspace = Workspace(tmp_path_factory.getbasetemp() / "refused")
    create_layer(workspace, NAME, GRID)
    values = np.zeros(shape, np.float32 if retyped else np.uint16)
    if shape == (6, 64, 64) and not retyped:
        return
    with pytest.raises(StoreError, match="takes shards of"):
        write_shard(workspace, NAME, GRID.shard(0, 0), values)
    assert not [name for name in workspace.names(NAME) if "/c/" in name]


def test_a_store_laid_out_for_another_grid_is_refused(workspace: Workspace) -> None:
    for other in (
        small_grid(shard_px=64, chunk_px=32, size_m=6000),
        small_grid(shard_px=32, chunk_px=32, size_m=600),
    ):
        values = np.zeros((6, other.shard_px, other.shard_px), np.uint16)
        with pytest.raises(StoreError):
            write_shard(workspace, NAME, other.shard(0, 0), values)
    assert not [name for name in workspace.names(NAME) if "/c/" in name]


def test_every_flipped_bit_is_found_by_the_reader_or_by_the_checksum(workspace: Workspace) -> None:
    shard = GRID.shard(0, 0)
    good = write_shard(workspace, NAME, shard, noise(0))
    path = shard_file(workspace, 0, 0)
    data = path.read_bytes()
    rng = np.random.default_rng(3)
    read_errors = 0
    for _ in range(100):
        broken = bytearray(data)
        broken[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        assert shard_checksum(workspace, NAME, shard) != good
        try:
            found = read_shard(workspace, NAME, shard)
        except StoreError as error:
            assert error.kind == "chunk-damaged"
            read_errors += 1
        else:
            np.testing.assert_array_equal(found, noise(0))  # never silently wrong
    assert read_errors > 90


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_shard_is_found(workspace: Workspace, part: float) -> None:
    shard = GRID.shard(0, 0)
    good = write_shard(workspace, NAME, shard, noise(0))
    path = shard_file(workspace, 0, 0)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    assert shard_checksum(workspace, NAME, shard) != good
    if part == 0:
        return  # to zarr a shard of no bytes is a shard that was never written: see the checksum
    with pytest.raises(StoreError) as caught:
        read_shard(workspace, NAME, shard)
    assert caught.value.kind == "chunk-damaged"


@pytest.mark.parametrize("left", [b"", b"no shard at all", "half", "bit flipped in the index"])
def test_whatever_damage_a_shard_has_it_can_be_written_again(
    workspace: Workspace, left: bytes | str
) -> None:
    shard = GRID.shard(0, 1)
    good = write_shard(workspace, NAME, shard, noise(1))
    path = shard_file(workspace, 0, 1)
    data = bytearray(path.read_bytes())
    if left == "half":
        data = data[: len(data) // 2]
    elif isinstance(left, str):
        data[-10] ^= 1
    else:
        data = bytearray(left)
    path.write_bytes(data)
    assert shard_checksum(workspace, NAME, shard) != good
    assert write_shard(workspace, NAME, shard, noise(1)) == good
    np.testing.assert_array_equal(read_shard(workspace, NAME, shard), noise(1))


def test_repairing_one_shard_leaves_the_others_alone(workspace: Workspace) -> None:
    for shard in GRID.shards():
        write_shard(workspace, NAME, shard, noise(7))
    before = {name: workspace.path(name).stat().st_mtime_ns for name in workspace.names(NAME)}
    write_shard(workspace, NAME, GRID.shard(0, 1), noise(8))
    after = {name: workspace.path(name).stat().st_mtime_ns for name in workspace.names(NAME)}
    assert [name for name in before if before[name] != after[name]] == [f"{NAME}/c/0/0/1"]
    np.testing.assert_array_equal(read_shard(workspace, NAME, GRID.shard(0, 0)), noise(7))


@settings(max_examples=100, deadline=None)
@given(st.integers(-40, 200), st.integers(-40, 200), st.integers(1, 80), st.integers(1, 80))
def test_windows_that_overhang_the_array_are_filled(
    tmp_path_factory: pytest.TempPathFactory, row: int, col: int, height: int, width: int
) -> None:
    workspace = Workspace(tmp_path_factory.getbasetemp() / "windows")
    if not workspace.has_array(NAME):
        create_layer(workspace, NAME, GRID)
        for shard in GRID.shards():
            write_shard(workspace, NAME, shard, noise(shard.row * 10 + shard.col))
    array = workspace.array(NAME)
    whole = np.pad(np.asarray(array[...]), ((0, 0), (120, 300), (120, 300)))
    found = read_window(array, row, col, shape=(height, width))
    expected = whole[:, row + 120 : row + 120 + height, col + 120 : col + 120 + width]
    np.testing.assert_array_equal(found, expected)


def test_xarray_opens_the_cube_with_its_projection_and_physical_values(
    workspace: Workspace,
) -> None:
    for layer in ("date", "observations"):
        create_layer(workspace, f"cube.zarr/2024/{layer}", GRID)
    values = noise(1)
    values[:, 0, 0] = 0
    write_shard(workspace, NAME, GRID.shard(0, 0), values)
    days = np.full((64, 64), 19950, np.int32)
    days[0, 0] = DATE_MISSING
    write_shard(workspace, "cube.zarr/2024/date", GRID.shard(0, 0), days)
    store = str(workspace.path("cube.zarr"))
    cube = xr.open_zarr(store, group="2024", consolidated=False, decode_coords="all")
    assert CRS.from_user_input(cube.rio.crs) == GRID.crs
    assert cube.rio.transform() == GRID.transform
    optical = cube["optical"]
    assert optical.dims == ("band", "y", "x")
    reflectance = optical[:, :64, :64].to_numpy()
    assert np.isnan(reflectance[:, 0, 0]).all()
    np.testing.assert_allclose(reflectance[:, 1:], values[:, 1:] * 1e-4 - 0.1, atol=1e-6)
    assert optical.attrs["band"] == list(OPTICAL_BANDS)
    assert float(cube["x"][0]) == GRID.left + GRID.resolution_m / 2
    assert float(cube["y"][0]) == GRID.top - GRID.resolution_m / 2
    assert cube["date"][5, 5].to_numpy() == np.datetime64("2024-08-15")
    assert np.isnat(cube["date"][0, 0].to_numpy())


@pytest.mark.parametrize("layer", sorted(LAYERS))
def test_every_layer_can_be_created_twice_and_starts_empty(tmp_path: Path, layer: str) -> None:
    workspace = Workspace(tmp_path)
    name = "cube.zarr/terrain" if layer == "terrain" else f"cube.zarr/2024/{layer}"
    create_layer(workspace, name, GRID)
    array = workspace.array(name)
    assert str(array.dtype) == LAYERS[layer].dtype
    values = np.zeros((*array.shape[:-2], 64, 64), array.dtype)
    checksum = write_shard(workspace, name, GRID.shard(0, 0), values)
    create_layer(workspace, name, GRID)  # keeps what is there
    assert shard_checksum(workspace, name, GRID.shard(0, 0)) == checksum
    untouched = read_shard(workspace, name, GRID.shard(1, 1))
    np.testing.assert_array_equal(untouched, np.full_like(untouched, LAYERS[layer].fill))


def test_an_array_that_was_never_made_is_asked_for_in_words(workspace: Workspace) -> None:
    with pytest.raises(StoreError, match="run the stage that makes it first"):
        workspace.array("cube.zarr/1999/optical")
    assert not workspace.has_array("cube.zarr/1999/optical")


def test_a_file_is_deleted_once_and_its_absence_is_no_fault(tmp_path: Path) -> None:
    for workspace in (Workspace(tmp_path), Workspace("memory:///")):
        workspace.put("a/b.txt", b"text")
        for _ in range(2):
            workspace.delete("a/b.txt")
            assert workspace.get("a/b.txt") is None


def test_files_are_put_got_and_listed(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert workspace.get("records/a.json") is None
    workspace.put("records/b.json", b"b")
    workspace.put("records/deep/a.json", b"old")
    workspace.put("records/deep/a.json", b"a")
    (tmp_path / "records" / ".a.json.123.partial").write_bytes(b"half")
    assert workspace.get("records/deep/a.json") == b"a"
    assert workspace.names("records") == ["records/b.json", "records/deep/a.json"]
    assert workspace.names("nothing") == []


def _put_for_ever(folder: str) -> None:
    workspace = Workspace(folder)
    while True:
        for letter in (b"a", b"b"):
            workspace.put("state.json", letter * 300_000)


def test_a_killed_writer_leaves_all_of_the_old_or_all_of_the_new(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.put("state.json", b"a" * 300_000)
    context = multiprocessing.get_context("fork")
    for kill in range(12):
        writer = context.Process(target=_put_for_ever, args=(str(tmp_path),))
        writer.start()
        time.sleep(0.02 + 0.005 * kill)
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        data = workspace.get("state.json")
        assert data in (b"a" * 300_000, b"b" * 300_000)
    assert workspace.names("") == ["state.json"]


def test_a_workspace_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="file/x: File exists"):
        Workspace(tmp_path).put("file/x", b"1")
    with pytest.raises(UsageError, match="cannot open the workspace"):
        Workspace("nonsense://bucket")


def test_a_workspace_survives_the_way_to_a_worker(tmp_path: Path) -> None:
    copy = pickle.loads(pickle.dumps(Workspace(tmp_path / "w")))
    assert repr(copy) == repr(Workspace(tmp_path / "w"))
