"""The command `compare`: what it writes, tells and refuses, and real files against geopandas."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from conftest import COMMAND
from outline_files import outlines, square
from PIL import Image
from test_cli import call, told

from catalog.errors import StoreError, UsageError
from change_detection.comparison import COMPARISON_SCHEMA
from inventory_engine.compare import SUMMARY, Request, compare_files

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("INVENTORY_ENGINE_TEST_DATA", ROOT.parent / "shared" / "data"))
COLUMNS = [
    *("glacier_id", "date_from", "date_to", "area_from_km2", "area_to_km2", "area_change_km2"),
    *("area_change_sigma_km2", "rate_km2_per_year", "rate_percent_per_year", "event"),
]
EQUAL_AREA = "+proj=laea +lat_0={} +lon_0={} +datum=WGS84 +units=m"
# ^ near the glaciers, but not centred as the engine's: a line is not as straight far away
SHAPES = {
    **{f"G{i}": square(2500 * (i % 3), 2500 * (i // 3)) for i in range(9)},
    "<script>alert(1)</script>": square(9000, 0),
}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    later = {name: shapely.box(*(shape.bounds[:2]), shape.bounds[2] - 200, shape.bounds[3])
             for name, shape in SHAPES.items() if name != "G4"}  # fmt: skip
    return (
        outlines(tmp_path / "a.gpkg", SHAPES, src_date=["2000-08-01"] * 10),
        outlines(tmp_path / "b.gpkg", later, src_date=["2010-08-01"] * 9),
    )


def sums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def real(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the real outlines are not at {path} (set INVENTORY_ENGINE_TEST_DATA)")
    return path


class Page(HTMLParser):
    """Text of a page, what it links to, and whether its tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "img", "br", "input", "link"}:
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_command_writes_tables_figures_and_a_page(files, tmp_path: Path):
    out = tmp_path / "out"
    result = call("compare", *files, "--id-field", "code", "--out", out, "--outline-error", "5,2")
    assert result.returncode == 0, told(result)
    assert "2000 to 2010" in told(result) and "1 vanished" in told(result)
    change = pd.read_csv(out / "change.csv", keep_default_na=False, na_values=[""])
    assert list(change.columns) == COLUMNS
    parquet = pd.read_parquet(out / "change.parquet")
    assert list(parquet.columns) == COLUMNS == COMPARISON_SCHEMA.names
    numbers = COLUMNS[3:9]
    pd.testing.assert_frame_equal(parquet[numbers], change[numbers])
    summary = json.loads((out / SUMMARY).read_text())
    assert summary["files"] == {n: s for n, s in sums(out).items() if n != SUMMARY}
    totals = summary["pairs"][0]
    for name in ("area_from_km2", "area_to_km2", "area_change_km2"):
        assert totals[name] == pytest.approx(parquet[name].sum(), rel=1e-9)
    assert totals["events"] == {"vanished": 1}
    assert [date["outline_error_m"] for date in summary["dates"]] == [5, 2]
    for name in ("change_map", "most_changed", "size_classes"):
        picture = np.asarray(Image.open(out / "figures" / f"{name}.png").convert("RGB"))
        assert picture.shape[1] == 2160 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
        assert (out / "figures" / f"{name}.svg").read_bytes().startswith(b"<?xml")
    outline = gpd.read_parquet(out / "outlines.parquet")
    assert len(outline) == 19 and outline.crs.to_epsg() == 4326
    assert outline["area_km2"].sum() == pytest.approx(
        totals["area_from_km2"] + totals["area_to_km2"], rel=1e-9
    )


def test_the_page_stands_alone_and_runs_nothing_of_a_file(files, tmp_path: Path):
    summary = compare_files(Request(files, ("code",)), tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    assert not page.open
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert sum(link.startswith("data:image") for link in page.links) == 3
    assert text.count("<script>") == 1 and "&lt;script&gt;alert(1)" in text
    words = " ".join(" ".join(page.words).split())
    change = f"{summary['pairs'][0]['area_change_km2']:.1f}".replace("-", "−")
    assert f"Area change, 2000 to 2010 {change}" in words
    for part in ("Problems in the files", "Limits", "Methods", "Data used", "no ice in 2010"):
        assert part in words


def test_equal_files_make_equal_bytes(files, tmp_path: Path):
    request = Request(files, ("code",))
    compare_files(request, tmp_path / "1")
    compare_files(request, tmp_path / "2")
    first = sums(tmp_path / "1")
    assert first == sums(tmp_path / "2")
    compare_files(request, tmp_path / "1")
    assert first == sums(tmp_path / "1") and len(first) > 12


def test_what_an_earlier_comparison_left_is_taken_away_and_nothing_else(files, tmp_path: Path):
    out = tmp_path / "out"
    three = Request((*files, files[1]), ("code",), dates=("2000", "2010", "2020"))
    compare_files(three, out)
    assert (out / "tables" / "trend.csv").exists()
    (out / "tables" / "mine.csv").write_text("mine")
    compare_files(Request(files, ("code",)), out)
    assert not (out / "tables" / "trend.csv").exists()
    assert (out / "tables" / "mine.csv").read_text() == "mine"


def test_a_result_that_could_not_be_finished_is_none(files, tmp_path: Path):
    out = tmp_path / "out"
    compare_files(Request(files, ("code",)), out)
    blocked = out / "report.html"
    blocked.unlink()
    (blocked / "in the way").mkdir(parents=True)
    with pytest.raises(StoreError):
        compare_files(Request(files), out)
    assert not (out / SUMMARY).exists()


@pytest.mark.slow
def test_killed_while_it_writes_it_leaves_a_whole_result_or_none(files, tmp_path: Path):
    out = tmp_path / "out"
    command = [*COMMAND, "compare", *map(str, files), "--id-field", "code", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ends = time.monotonic() + 240
    while not (out / "change.csv").exists() and time.monotonic() < ends:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if (out / SUMMARY).exists():
        named = json.loads((out / SUMMARY).read_text())["files"]
        assert named.items() <= sums(out).items()
    compare_files(Request(files, ("code",)), out)
    compare_files(Request(files, ("code",)), tmp_path / "unbroken")
    whole = {n: s for n, s in sums(out).items() if not n.endswith(".partial")}
    assert whole == sums(tmp_path / "unbroken")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dates", "2000"], "one date for each of the 2 files"),
        (["--id-field", "a,b,c"], "one for each of the 2 files"),
        (["--outline-error", "wide"], "takes numbers"),
        (["--coverage", "nowhere.gpkg"], "hull, same, or a file"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(files, tmp_path: Path, arguments, words):
    from inventory_engine.compare import listed, numbers

    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    out = tmp_path / "out"
    with pytest.raises(UsageError, match=words):
        compare_files(
            Request(
                files,
                listed(given.get("--id-field", "")),
                dates=listed(given.get("--dates", "")),
                outline_errors_m=numbers("--outline-error", given.get("--outline-error", "15")),
                coverage=given.get("--coverage", "hull"),
            ),
            out,
        )
    assert not out.exists()


# --- real files against plain geopandas ----------------------------------------------------------


@pytest.mark.real_data
def test_svalbard_over_three_dates_is_what_geopandas_says(tmp_path: Path):
    path = real("svalbard/svalbard.gpkg")
    out = tmp_path / "out"
    result = call("compare", path, "--id-field", "name", "--date-field", "year", "--out", out)
    assert result.returncode == 0, told(result)
    plain = gpd.read_file(path)
    plain["km2"] = plain.to_crs(EQUAL_AREA.format(78.8, 12.3)).area / 1e6
    wide = plain.pivot_table(index="name", columns="year", values="km2")
    table = pd.read_csv(out / "change.csv", keep_default_na=False, na_values=[""])
    assert len(table) == 10
    for (first, second), group in table.groupby(["date_from", "date_to"]):
        old, new = wide[float(first[:4])], wide[float(second[:4])]
        rows = group.set_index("glacier_id")
        years = (pd.Timestamp(second) - pd.Timestamp(first)).days / 365.2425
        close = {"rel": 1e-6, "abs": 1e-9}
        assert rows["area_from_km2"].to_dict() == pytest.approx(old.to_dict(), **close)
        assert rows["area_to_km2"].to_dict() == pytest.approx(new.to_dict(), **close)
        change = new - old
        assert rows["area_change_km2"].to_dict() == pytest.approx(change.to_dict(), rel=1e-5)
        rate, percent = change / years, 100 * change / years / old
        assert rows["rate_km2_per_year"].to_dict() == pytest.approx(rate.to_dict(), rel=1e-5)
        assert rows["rate_percent_per_year"].to_dict() == pytest.approx(percent.to_dict(), rel=1e-5)
    summary = json.loads((out / SUMMARY).read_text())
    total = wide.sum()
    assert [d["area_km2"] for d in summary["dates"]] == pytest.approx(total.tolist(), rel=1e-6)
    period = summary["period"]
    assert period["area_change_km2"] == pytest.approx(total[2007.0] - total[1936.0], rel=1e-6)
    days = np.array([np.datetime64(f"{y:.0f}-07-15").astype(int) for y in total.index])
    slopes = {n: np.polyfit(days / 365.2425, row, 1)[0] for n, row in wide.iterrows()}
    trend = pd.read_csv(out / "tables" / "trend.csv").set_index("glacier_id")
    assert trend["trend_km2_per_year"].to_dict() == pytest.approx(slopes, rel=1e-4)
    assert len(trend) == 5
    detached = pd.read_csv(out / "tables" / "events.csv")
    assert detached["glacier_id"].tolist() == ["Midtre Lovenbreen"]
    assert (out / "report.html").stat().st_size > 100_000


@pytest.mark.real_data
def test_svalbard_twice_has_not_changed_at_all(tmp_path: Path):
    path = real("svalbard/svalbard.gpkg")
    summary = compare_files(Request((path, path), ("name",)), tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "change.csv")
    assert (table[COLUMNS[5:9]] == 0).all(axis=None) and len(table) == 5
    assert table["event"].isna().all()
    assert summary["pairs"][0]["area_change_sigma_correlated_km2"] == 0


@pytest.mark.real_data
def test_rhone_between_two_glims_dates_is_what_geopandas_says(tmp_path: Path):
    path = real("rhone/glims_polygons.shp")
    out = tmp_path / "out"
    summary = compare_files(Request((path,), ("glac_id",)), out)
    raw = gpd.read_file(path)
    raw["geometry"] = shapely.make_valid(shapely.force_2d(raw.geometry.to_numpy()))
    raw = raw.to_crs(EQUAL_AREA.format(46.6, 8.3))
    dates = {}
    for year in ("1998", "2009"):
        rows = raw[raw["src_date"].str[:4] == year]
        ice = rows[rows["line_type"] == "glac_bound"].dissolve("glac_id")[["geometry"]]
        rock = rows[rows["line_type"] == "intrnl_rock"].dissolve("glac_id").geometry
        cut = ice.geometry.difference(rock.reindex(ice.index).fillna(shapely.Polygon()))
        dates[year] = ice.set_geometry(cut)
    old, new = dates["1998"], dates["2009"]
    assert (len(old), len(new), len(old.index.intersection(new.index))) == (55, 90, 44)
    areas = [date["area_km2"] for date in summary["dates"]]
    assert areas == pytest.approx([d.area.sum() / 1e6 for d in (old, new)], rel=1e-6)

    table = pd.read_csv(out / "change.csv").set_index("glacier_id")
    assert table.loc[old.index, "area_from_km2"].to_dict() == pytest.approx(
        (old.area / 1e6).to_dict(), rel=1e-6
    )
    # Glaciers and later outlines that meet each other only: the plain difference by id.
    pairs = gpd.overlay(
        old.reset_index(), new.reset_index(), how="intersection", keep_geom_type=True
    )
    pairs = pairs[pairs.area > 1]
    alone = pairs[
        ~pairs["glac_id_1"].duplicated(keep=False) & ~pairs["glac_id_2"].duplicated(keep=False)
    ]
    same = alone[alone["glac_id_1"] == alone["glac_id_2"]]["glac_id_1"].tolist()
    assert len(same) >= 20
    plain = (new.area[same] - old.area[same]) / 1e6
    assert table.loc[same, "area_change_km2"].to_dict() == pytest.approx(
        plain.to_dict(), rel=1e-5, abs=1e-8
    )
    # Everywhere: what of the later ice lies in an old outline is that glacier's, at least.
    inside = pairs.assign(km2=pairs.area / 1e6).groupby("glac_id_1")["km2"].sum()
    assert (table.loc[inside.index, "area_to_km2"] >= inside - 1e-8).all()
    # The totals are those of all outlines but the ones that one file does not cover.
    lost = table[table["event"] == "unobserved"]
    assert lost.loc["G008458E46536N", "area_from_km2"] == pytest.approx(0.849, abs=1e-3)
    period = summary["period"]
    for column, everything in zip(("area_from_km2", "area_to_km2"), areas, strict=True):
        assert period[column] == pytest.approx(everything - lost[column].sum(), rel=1e-9)
    years = (pd.Timestamp("2009-09-15") - pd.Timestamp("1998-08-31")).days / 365.2425
    rate = (period["area_to_km2"] - period["area_from_km2"]) / years
    assert period["rate_km2_per_year"] == pytest.approx(rate, rel=1e-9)
    repaired = pd.read_csv(out / "tables" / "problems.csv").query("kind == 'repaired-geometry'")
    assert repaired["glacier_id"].tolist() == ["G008379E46648N"]
    assert re.search("1 × repaired-geometry", (out / "report.html").read_text())
