"""What a catalogue answered is kept, means the same when read again, and answers nothing else."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import pytest
import rustac
from rasters import dem_item, landsat_item, optical_item, sar_item

from catalog.cube import Workspace
from catalog.errors import DataError, SetAside, UsageError
from catalog.saved_search import read_search, save_search
from catalog.scenes import Scene
from catalog.search import SearchResult
from catalog.sensors import describe_item

DATA = Path(os.environ.get("INVENTORY_ENGINE_TEST_DATA", "../shared/data"))
QUESTION = {"collections": ["sentinel-2-l2a"], "boxes": [(10.0, 46.0, 11.0, 47.0)], "start": None}
FAULT = SetAside("S2X", "bad-item", "no datetime")


def sorted_scenes(items: list[dict]) -> tuple[Scene, ...]:
    return tuple(sorted(map(describe_item, items), key=lambda s: (s.datetime, s.id)))


@pytest.fixture
def scenes(tmp_path: Path) -> tuple[Scene, ...]:
    return sorted_scenes(
        [
            optical_item(tmp_path, "S2A", when="2024-08-01T10:00:00.123456Z"),
            landsat_item(tmp_path, "LC08", when="2024-08-02T10:00:00Z", kelvin=270.0),
            sar_item(tmp_path, "S1A", when="2024-08-03T05:00:00Z", paint=0.1),
            dem_item(tmp_path, "DEM", paint=lambda x, y: x + y, west=10.75, south=46.75),
        ]
    )


def test_a_saved_search_is_read_again_as_it_was(tmp_path: Path, scenes: tuple[Scene, ...]) -> None:
    workspace = Workspace(tmp_path / "workspace")
    result = SearchResult(scenes, (FAULT,))
    save_search(workspace, "2024-optical", result, question=QUESTION)
    assert read_search(workspace, "2024-optical", question=QUESTION) == result
    files = sorted((tmp_path / "workspace" / "search").iterdir())
    written = [path.stat().st_mtime_ns for path in files]
    save_search(workspace, "2024-optical", result, question=QUESTION)
    assert [path.stat().st_mtime_ns for path in files] == written
    emptied = SearchResult((), ())
    save_search(workspace, "2024-optical", emptied, question=QUESTION)
    assert read_search(workspace, "2024-optical", question=QUESTION) == emptied


def test_a_search_kept_by_another_version_is_asked_again(
    tmp_path: Path, scenes: tuple[Scene, ...]
) -> None:
    workspace = Workspace(tmp_path / "workspace")
    save_search(workspace, "2024-optical", SearchResult(scenes, ()), question=QUESTION)
    parquet, note = (workspace.path(f"search/2024-optical.{end}") for end in ("parquet", "json"))
    items = rustac.read_sync(str(parquet))["features"]
    for item in items:
        scene = json.loads(item["properties"]["gie:scene"])
        scene["mask"] = scene.pop("masks")
        item["properties"]["gie:scene"] = json.dumps(scene)
    rustac.write_sync(str(parquet), items)
    told = json.loads(note.read_text())
    told["sha256"] = hashlib.sha256(parquet.read_bytes()).hexdigest()
    note.write_text(json.dumps(told))
    with pytest.raises(UsageError, match=r"another version.*searches again") as caught:
        read_search(workspace, "2024-optical", question=QUESTION)
    assert caught.value.kind == "search-missing"


@pytest.mark.real_data
def test_real_scenes_of_every_sensor_are_read_again_as_they_were(tmp_path: Path) -> None:
    workspace, kept = Workspace(tmp_path), 0
    for path in sorted((DATA / "stac").glob("*json")):
        found = json.loads(path.read_text())
        items = found if isinstance(found, list) else found.get("features", [found])
        scenes = []
        for item in items:
            try:
                scenes.append(describe_item(item))
            except DataError:
                continue
        result = SearchResult(tuple(sorted(scenes, key=lambda s: (s.datetime, s.id))), ())
        save_search(workspace, path.stem, result, question=QUESTION)
        assert read_search(workspace, path.stem, question=QUESTION) == result
        kept += len(scenes)
    assert kept > 50


def test_the_file_is_geoparquet_that_others_read(tmp_path: Path, scenes: tuple[Scene, ...]) -> None:
    save_search(Workspace(tmp_path), "x", SearchResult(scenes, ()), question=QUESTION)
    frame = gpd.read_parquet(tmp_path / "search" / "x.parquet")
    assert frame.crs.to_epsg() in {None, 4326}
    assert sorted(frame["id"]) == sorted(scene.id for scene in scenes)
    for scene in scenes:
        box = frame.loc[frame["id"] == scene.id].geometry.iloc[0].bounds
        assert box == pytest.approx(scene.bbox)


def test_another_question_has_no_kept_answer(tmp_path: Path, scenes: tuple[Scene, ...]) -> None:
    workspace = Workspace(tmp_path / "workspace")
    with pytest.raises(UsageError, match="no search is kept for x") as caught:
        read_search(workspace, "x", question=QUESTION)
    assert caught.value.kind == "search-missing"
    save_search(workspace, "x", SearchResult(scenes, ()), question=QUESTION)
    for change in ({"start": "2024-08-01"}, {"collections": []}, {"catalog": "elsewhere"}):
        with pytest.raises(UsageError, match="another catalogue, place or time"):
            read_search(workspace, "x", question=QUESTION | change)


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_a_damaged_search_is_named(tmp_path: Path, scenes: tuple[Scene, ...], damage: str) -> None:
    workspace = Workspace(tmp_path / "workspace")
    save_search(workspace, "x", SearchResult(scenes, ()), question=QUESTION)
    path = tmp_path / "workspace" / "search" / "x.parquet"
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(UsageError, match="is damaged"):
        read_search(workspace, "x", question=QUESTION)
    path.with_suffix(".json").write_text("{")
    with pytest.raises(UsageError, match="a damaged search is kept for x"):
        read_search(workspace, "x", question=QUESTION)


def test_signatures_of_links_are_not_kept(tmp_path: Path, scenes: tuple[Scene, ...]) -> None:
    def signed(scene: Scene) -> Scene:
        bands = [
            replace(band, href=f"https://host.example/{band.asset}.tif?sig=canary-123")
            for band in scene.bands
        ]
        return replace(scene, bands=tuple(bands))

    workspace = Workspace(tmp_path / "workspace")
    result = SearchResult(tuple(map(signed, scenes)), ())
    save_search(workspace, "x", result, question=QUESTION)
    for path in (tmp_path / "workspace").rglob("*"):
        assert path.is_dir() or b"canary" not in path.read_bytes()
    again = read_search(workspace, "x", question=QUESTION)
    assert [s.fingerprint for s in again.scenes] == [s.fingerprint for s in result.scenes]
