"""Rasters a user supplies come to the pixels of the grid, and only their sense with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyproj import Transformer
from rasters import CENTRE, UTM, centres, small_grid, utm_frame, write_tif

from catalog.assets import AssetPolicy, OpenAssets
from catalog.cube import Outcome, Workspace, read_shard
from catalog.errors import DataError, UsageError
from catalog.extra_layers import (
    EXTRA_LAYERS,
    build_layer_shard,
    create_extra_layer,
    layer_boxes,
    layer_policy,
    layer_source,
)
from catalog.grid import Shard
from catalog.scenes import BandSource

X0, Y0 = Transformer.from_crs(4326, UTM, always_xy=True).transform(*CENTRE)


def shard_at_centre() -> Shard:
    grid = small_grid()
    return grid.shard(grid.rows // 2, grid.cols // 2)


def plane(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x - X0) / 1000 - (y - Y0) / 500


def raster(
    folder: Path, name: str, *, epsg: int = UTM, west: float = -2400, width: float = 4800
) -> Path:
    """A rate of change that is a plane in UTM 32 N, whatever the raster's own projection."""
    frame, edge = utm_frame(pixel=100, epsg=epsg)
    frame = frame @ type(frame).translation((west + 2400) / 100, 0)
    cols = round(width / 100)
    x, y = (part[:, :cols] for part in centres(frame, edge))
    if epsg != UTM:
        x, y = Transformer.from_crs(epsg, UTM, always_xy=True).transform(x, y)
    values = plane(x, y).astype(np.float32)
    return write_tif(folder / name, values, frame, crs=f"EPSG:{epsg}", nodata=-9999)


def built(
    folder: Path, sources: list[BandSource], name: str = "dhdt"
) -> tuple[np.ndarray, Outcome]:
    shard = shard_at_centre()
    workspace = Workspace(folder / f"workspace-{len(list(folder.iterdir()))}")
    create_extra_layer(workspace, name, shard.grid, attributes={"period": "2000/2020"})
    outcome = build_layer_shard(
        workspace, name, shard, rasters=sources, policy=AssetPolicy((str(folder),))
    )
    array = f"cube.zarr/layers/{name}"
    assert outcome.outputs.keys() == {f"{array}/{shard.id}"}
    assert workspace.array(array).attrs["period"] == "2000/2020"
    return read_shard(workspace, array, shard), outcome


def truth() -> tuple[np.ndarray, np.ndarray]:
    """The plane at the pixels of the shard, and their metres east of the middle."""
    shard = shard_at_centre()
    rows, cols = np.mgrid[shard.window] + 0.5
    x, y = Transformer.from_crs(shard.grid.proj4, UTM, always_xy=True).transform(
        *(shard.grid.transform @ (cols, rows))
    )
    return plane(x, y), x - X0


@pytest.mark.parametrize("epsg", [UTM, 32633, 3035])
def test_a_raster_of_any_projection_gives_its_values_where_they_are(
    tmp_path: Path, epsg: int
) -> None:
    values, outcome = built(tmp_path, [layer_source(str(raster(tmp_path, "a.tif", epsg=epsg)))])
    expected, _ = truth()
    assert values.dtype == np.float32
    assert np.abs(values - expected).max() < 0.02  # a metre or two on a slope of 1/500 a metre
    assert outcome.facts == {"rasters": 1, "valid_fraction": 1.0}
    assert outcome.set_aside == ()


def test_tiles_are_joined_without_a_seam_and_in_any_order(tmp_path: Path) -> None:
    (whole := tmp_path / "whole").mkdir()
    expected, _ = built(tmp_path, [layer_source(str(raster(whole, "a.tif")))])
    tiles = [
        layer_source(str(raster(tmp_path, f"{name}.tif", west=west, width=width)))
        for name, west, width in (("w", -2400, 2900), ("m", 500, 200), ("e", 700, 1700))
    ]
    one, outcome = built(tmp_path, tiles)
    other, _ = built(tmp_path, tiles[::-1])
    np.testing.assert_array_equal(one, expected)
    np.testing.assert_array_equal(other, expected)
    assert outcome.facts["rasters"] == 3


def test_where_no_raster_is_there_is_no_value(tmp_path: Path) -> None:
    source = layer_source(str(raster(tmp_path, "w.tif", west=-2400, width=2900)))
    values, outcome = built(tmp_path, [source])
    _, east = truth()
    assert np.isfinite(values[east < 400]).all()
    assert np.isnan(values[east > 600]).all()
    assert 0 < outcome.facts["valid_fraction"] < 1
    nothing, outcome = built(tmp_path, [])
    assert np.isnan(nothing).all()
    assert outcome.facts == {"rasters": 0, "valid_fraction": 0.0}


@pytest.mark.parametrize("junk", [-9999.0, 1e30, np.nan, np.inf])
def test_fill_values_that_no_field_told_do_not_bleed_into_their_neighbours(
    tmp_path: Path, junk: float
) -> None:
    frame, edge = utm_frame(pixel=100)
    x, y = centres(frame, edge)
    values = np.where(x - X0 > 500, junk, plane(x, y)).astype(np.float32)
    source = layer_source(str(write_tif(tmp_path / "a.tif", values, frame)))
    found, _ = built(tmp_path, [source])
    expected, east = truth()
    seen = np.isfinite(found)
    assert not seen[east > 650].any()
    assert seen[east < 350].all()
    assert np.abs(found - expected)[seen].max() < 0.2


def test_scaled_integers_become_values(tmp_path: Path) -> None:
    frame, edge = utm_frame(pixel=20)
    pixels = np.full((edge, edge), 128, np.uint8)
    pixels[:, : edge // 2 + 20] = 0
    path = write_tif(tmp_path / "c.tif", pixels, frame)
    source = layer_source(str(path), scale=1 / 255, nodata=0)
    values, _ = built(tmp_path, [source], name="coherence")
    seen = np.isfinite(values)
    assert 0 < seen.mean() < 1
    assert values[seen] == pytest.approx(128 / 255, abs=1e-6)
    zeros, _ = built(tmp_path, [layer_source(str(path), scale=1 / 255)], name="coherence")
    assert np.isfinite(zeros).all()  # a coherence of 0 is one
    assert zeros.min() == 0


def test_a_raster_that_cannot_be_used_is_named_and_the_others_are(tmp_path: Path) -> None:
    frame, edge = utm_frame(pixel=100)
    good = raster(tmp_path, "good.tif")
    lost = write_tif(tmp_path / "lost.tif", np.zeros((edge, edge), np.float32), frame, crs=None)
    cut = raster(tmp_path, "cut.tif")
    cut.write_bytes(cut.read_bytes()[:-200])
    sources = [layer_source(str(path)) for path in (good, lost, cut, tmp_path / "gone.tif")]
    sources.append(layer_source("/etc/other.tif"))
    values, outcome = built(tmp_path, sources)
    assert [(fault.what, fault.kind) for fault in outcome.set_aside] == [
        ("cut.tif", "raster-truncated"),
        ("gone.tif", "asset-missing"),
        ("lost.tif", "geo-mismatch"),
        ("other.tif", "href-refused"),
    ]
    assert np.isfinite(values).all()
    assert outcome.facts["rasters"] == 1


def test_a_layer_that_is_none_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    shard = shard_at_centre()
    workspace = Workspace(tmp_path)
    for create in (
        lambda: create_extra_layer(workspace, "dhdx", shard.grid),
        lambda: build_layer_shard(workspace, "dhdx", shard, rasters=[], policy=AssetPolicy(())),
    ):
        with pytest.raises(UsageError, match=r"no layer 'dhdx'; did you mean 'dhdt'\?") as caught:
            create()
        assert caught.value.kind == "unknown-layer"
    with pytest.raises(UsageError, match=f"known are {', '.join(EXTRA_LAYERS)}"):
        create_extra_layer(workspace, "velocity", shard.grid)


def test_a_scale_below_zero_turns_the_values_and_not_the_limits(tmp_path: Path) -> None:
    """Thinning given as a positive number."""
    path = str(raster(tmp_path, "thinning.tif"))
    plain, _ = built(tmp_path, [layer_source(path)])
    turned, outcome = built(tmp_path, [layer_source(path, scale=-1.0)])
    assert outcome.facts["valid_fraction"] == 1.0
    assert np.allclose(turned, -plain)


def test_what_the_user_names_may_be_read_and_nothing_else() -> None:
    policy = layer_policy(
        [
            "/data/a.tif",
            "https://example.org/b.tif",
            "http://127.0.0.1:9000/c.tif",
            "s3://ice/d.tif",
        ]
    )
    assert policy.allowed == ("/data", "127.0.0.1:9000", "example.org", "s3://ice")
    for refused in ("/etc/passwd.tif", "https://example.com/b.tif"):
        with pytest.raises(DataError, match="is not opened"):
            policy.check(refused)


def test_a_raster_tells_where_it_lies(tmp_path: Path) -> None:
    band = layer_source(str(raster(tmp_path, "here.tif")))
    with OpenAssets(AssetPolicy((str(tmp_path),))) as assets:
        (box,) = layer_boxes(assets, band) or []
        assert layer_boxes(assets, layer_source(str(tmp_path / "gone.tif"))) is None
    west, south, east, north = box
    assert west < CENTRE[0] < east and south < CENTRE[1] < north
    assert east - west < 0.2
