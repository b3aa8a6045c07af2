"""The cube benchmark compares like with like: its jobs give the same cube from the same rasters."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from cube_jobs import JOBS, differences, layers_of, measured
from made_scenes import BANDS, Season, made_season
from range_server import sent, served

from catalog.assets import AssetPolicy
from catalog.cube import DATE_MISSING


@pytest.fixture(scope="module")
def season(tmp_path_factory: pytest.TempPathFactory) -> Season:
    folder = tmp_path_factory.mktemp("season")
    return made_season(folder, dates=5, shard_px=128, chunk_px=64, block_px=64)


@pytest.fixture(scope="module")
def folder(season: Season) -> Path:
    return Path(season.items[0]["assets"]["blue"]["href"]).parents[1]


def test_scenes_are_made_once_and_found_again(season: Season, folder: Path) -> None:
    stamp = (folder / "season.json").stat().st_mtime_ns
    again = made_season(folder.parent, dates=5, shard_px=128, chunk_px=64, block_px=64)
    assert again == season
    assert (folder / "season.json").stat().st_mtime_ns == stamp
    assert len(list(folder.rglob("*.tif"))) == 5 * (len(BANDS) + 1)


def test_the_engine_composes_clouds_and_swath_edges_of_all_days(
    season: Season, folder: Path, tmp_path: Path
) -> None:
    cost = measured(lambda: JOBS["engine"](season, tmp_path, AssetPolicy((str(folder),))))
    assert cost.seconds > 0
    assert cost.peak_mib > 50
    layers = layers_of(season, tmp_path)
    assert len(np.unique(layers["observations"])) > 2
    assert len(np.unique(layers["date"][layers["date"] != DATE_MISSING])) > 2


def test_rasters_over_http_give_the_same_cube(season: Season, folder: Path, tmp_path: Path) -> None:
    JOBS["engine"](season, tmp_path / "disk", AssetPolicy((str(folder),)))
    with served(folder) as url:
        moved = season.moved(str(folder), url)
        JOBS["engine"](moved, tmp_path / "http", AssetPolicy((url.removeprefix("http://"),)))
        requests, size = sent(url)
    assert requests >= 5 * (len(BANDS) + 1)
    assert size > 0
    disk, http = layers_of(season, tmp_path / "disk"), layers_of(season, tmp_path / "http")
    for name, values in disk.items():
        assert values.tobytes() == http[name].tobytes(), name


def test_odc_stac_and_plain_rasterio_agree_with_the_engine(
    season: Season, folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("odc.stac")
    policy = AssetPolicy((str(folder),))
    for name in ("odc-stac", "engine"):
        JOBS[name](season, tmp_path / name, policy)
    found = list(
        differences(season, policy, peer=tmp_path / "odc-stac", engine=tmp_path / "engine")
    )
    assert len(found) == 7
    for what, value, limit in found:
        assert value <= limit, what
