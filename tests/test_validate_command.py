"""The command `validate`: what it reads, tells, writes and draws, and how it ends."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from made_packages import cell, glaciers, outlines, whole_package
from matplotlib.colors import to_rgb
from PIL import Image
from test_cli import call, told

from catalog.errors import StoreError, UsageError
from change_detection.validation.inventory import Package, validate_package
from inventory_engine.validation import read_package, validate_files, write_findings
from inventory_engine.validation_map import _COLOURS, draw_findings


@pytest.fixture
def package(tmp_path: Path) -> dict[str, Path]:
    """Files of a package that keeps every rule, by what they are."""
    whole = whole_package()
    paths = {
        "glaciers": tmp_path / "g.shp",
        "complexes": tmp_path / "c.gpkg",
        "intersects": tmp_path / "i.parquet",
        "hypsometry": tmp_path / "hypsometry.csv",
        "members": tmp_path / "CtoG.json",
        "links": tmp_path / "links.csv",
    }
    whole.glaciers.to_file(paths["glaciers"])
    whole.complexes.to_file(paths["complexes"])
    whole.intersects.to_parquet(paths["intersects"])
    whole.hypsometry.to_csv(paths["hypsometry"], index=False, quoting=csv.QUOTE_NONNUMERIC)
    whole.links[0].to_csv(paths["links"], index=False, quoting=csv.QUOTE_NONNUMERIC)
    paths["members"].write_text(json.dumps(whole.members))
    return paths


def spoiled() -> gpd.GeoDataFrame:
    """Four faults: a crossing, an overlap, a slope and a date."""
    bow_tie = shapely.Polygon([(10.78, 46.80), (10.79, 46.81), (10.79, 46.80), (10.78, 46.81)])
    frame = glaciers([*outlines()[:-1], cell(-0.9, 0)])
    frame.loc[2, "slope_deg"] = 99.0
    frame.loc[3, "src_date"] = ""
    shapes = [*frame.geometry[:4], bow_tie, frame.geometry[5]]
    return frame.set_geometry(gpd.GeoSeries(shapes, crs=4326))


def test_a_whole_package_of_files_ends_with_0(package: dict[str, Path]):
    result = call(
        *("validate", package["glaciers"], "--complexes", package["complexes"]),
        *("--intersects", package["intersects"], "--hypsometry", package["hypsometry"]),
        *("--links", package["members"], "--links", package["links"]),
    )
    assert result.returncode == 0, told(result)
    assert result.stdout.strip() == "6 glaciers, every rule is kept"


@pytest.mark.parametrize("name", ["g.gpkg", "g.shp", "g.geojson", "g.parquet"])
def test_every_format_is_read_without_inventing_faults(name: str, tmp_path: Path):
    path = tmp_path / name
    frame = glaciers()
    frame.to_parquet(path) if name.endswith("parquet") else frame.to_file(path)
    assert validate_files(path) == ([], 6)


def test_findings_are_told_line_by_line_written_and_drawn(tmp_path: Path):
    path, out = tmp_path / "spoiled.gpkg", tmp_path / "out"
    spoiled().to_file(path)
    result = call("validate", path, "--out", out)
    assert result.returncode == 3, told(result)
    lines = [line for line in result.stdout.splitlines() if "RGI2000" in line]
    assert len(lines) == 4 and sum(line.startswith("error") for line in lines) == 3
    assert "6 glaciers, 3 errors, 1 warning" in result.stdout
    rows = pd.read_csv(out / "findings.csv")
    assert Counter(rows.rule) == {
        "geometry-invalid": 1,
        "overlap": 1,
        "range": 1,
        "date-missing": 1,
    }
    for row in rows.itertuples():
        assert any(row.glacier in line and row.message in line for line in lines)
    points = gpd.read_file(out / "findings.geojson")
    assert points.crs.to_epsg() == 4326 and len(points) == 4
    np.testing.assert_allclose(points.geometry.x, rows.lon, atol=1e-7)
    picture = np.asarray(Image.open(out / "findings.png").convert("RGB"))
    for colour in _COLOURS[:4]:
        same = (picture == np.round(255 * np.array(to_rgb(colour)))).all(axis=-1)
        assert same.sum() > 100, colour


def test_a_derived_inventory_is_held_to_its_own_ids_and_warnings_end_with_0(tmp_path: Path):
    path = tmp_path / "own.gpkg"
    glaciers(profile="derived").assign(src_date="").to_file(path)
    result = call("validate", path, "--profile", "derived")
    assert result.returncode == 0, told(result)
    assert "6 glaciers, 6 warnings" in result.stdout
    found, _ = validate_files(path)
    assert sum("expected RGI2000-v7.x-G-<o1>-<nnnnn>" in f.message for f in found) == 6
    with pytest.raises(UsageError, match="known are rgi7, derived"):
        validate_files(path, profile="rgi6")


def test_what_cannot_be_read_ends_with_2_and_writes_nothing(
    package: dict[str, Path], tmp_path: Path
):
    broken = tmp_path / "broken.json"
    broken.write_text('{"C": "G"}')
    out = tmp_path / "out"
    result = call("validate", package["glaciers"], "--links", broken, "--out", out)
    assert result.returncode == 2 and "holds no lists of members" in told(result)
    assert not out.exists()


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", '{"C": 3}', "[" * 100_000])
def test_lists_of_members_that_are_none_are_refused(
    text: str, package: dict[str, Path], tmp_path: Path
):
    path = tmp_path / "members.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"members\.json") as error:
        read_package(package["glaciers"], links=[path])
    assert error.value.kind == "inventory-unreadable"


def test_tables_that_are_none_are_refused(package: dict[str, Path], tmp_path: Path):
    path = tmp_path / "table.csv"
    for content in (b"", b"\xff\xfe\x00", b'a,b\n"1'):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"table\.csv"):
            read_package(package["glaciers"], hypsometry=path)
    with pytest.raises(UsageError, match="expected one"):
        read_package(package["glaciers"], links=[package["members"]] * 2)


def test_hostile_names_stay_text_in_every_output(tmp_path: Path):
    frame = glaciers()
    frame["rgi_id"] = ["=1+1", "[red]x[/red]", "a\nerror  b", "\x1b[31m", "<script>", "$x_1^2$"]
    path, out = tmp_path / "hostile.gpkg", tmp_path / "out"
    frame.to_file(path)
    result = call("validate", path, "--out", out)
    lines = [line for line in result.stdout.splitlines() if " id-pattern " in line]
    assert result.returncode == 3 and len(lines) == 6 + 1
    assert "[red]x[/red]" in result.stdout and "\x1b" not in result.stdout
    rows = pd.read_csv(out / "findings.csv")
    assert rows.glacier[0] == "'=1+1" and len(rows) == 6


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write into"):
        write_findings([], tmp_path / "file", glaciers=glaciers(), title="")


def test_equal_inventories_make_equal_files(tmp_path: Path):
    path = tmp_path / "spoiled.gpkg"
    spoiled().to_file(path)
    for name in ("one", "two"):
        validate_files(path, out=tmp_path / name)
    for file in ("findings.csv", "findings.geojson", "findings.png"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_map_over_the_antimeridian_is_as_narrow_as_its_glaciers():
    boxes = [shapely.box(lon, 71.0, lon + 0.05, 71.02) for lon in (179.9, -179.96)]
    frame = glaciers(boxes).assign(slope_deg=99.0)
    found = validate_package(Package(frame))
    axes = draw_findings(frame, found, title="Wrangel").axes[0]
    west, east = axes.get_xlim()
    assert 179.5 < west < 179.95 < 180.05 < east < 180.5
    labels = [axes.xaxis.get_major_formatter()(v) for v in (179.95, 180.0, 180.05)]
    assert labels == ["179.95°E", "180°W", "179.95°W"]


def test_a_map_without_findings_or_places_can_be_drawn():
    frame = glaciers()
    assert len(draw_findings(frame, [], title="clean").axes) == 1
    found = validate_package(Package(frame.drop(columns="lmax_m")))
    assert len(draw_findings(frame, found, title="columns").axes) == 1
    nothing = frame.set_geometry(gpd.GeoSeries([None] * len(frame), crs=4326))
    assert draw_findings(nothing, validate_package(Package(nothing)), title="none").axes


def test_close_views_show_every_kind_before_one_twice():
    frame = spoiled()
    frame["aspect_sec"] = 5
    found = validate_package(Package(frame))
    titles = [
        a.get_title(loc="left").split()[1] for a in draw_findings(frame, found, title="").axes[1:]
    ]
    assert len(titles) == 8
    assert set(titles[:5]) == {f.rule for f in found} and titles[5:] == ["aspect-sector"] * 3
