"""Files of outlines as they come: every fault is named, repaired by rule, or set aside."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import pytest
import shapely
from made_inventories import PROJ4
from outline_files import compared, outlines, problems_of, square

from catalog.errors import UsageError
from change_detection.comparison import compare_series
from change_detection.epochs import OutlineFile, Problem, Series, read_series

RIM = {"W": square(-4000, 0), "E": square(9000, 0), "N": square(0, 9000), "S": square(0, -9000)}


def twice(path: Path, **how: object) -> Series:
    """A file read as two dates, with its ids."""
    dates = ("2000", "2010")
    return read_series([OutlineFile(path, "code", date=d, **how) for d in dates], by_id=True)


def named(series: Series, kind: str) -> list[Problem]:
    return [problem for problem in series.problems if problem.kind == kind]


def glaciers(series: Series, date: int = 0) -> list[str]:
    return series.epochs[date].frame["glacier_id"].tolist()


def test_a_crossed_outline_is_set_aside_by_name(tmp_path: Path):
    bow_tie = shapely.Polygon([(0, 0), (1000, 1000), (1000, 0), (0, 1000)])
    series = twice(outlines(tmp_path / "a.gpkg", RIM | {"X": bow_tie}))
    assert "X" not in glaciers(series)
    fault = named(series, "bad-geometry")[0]
    assert (fault.glacier_id, fault.done) == ("X", "set aside")
    assert "Self-intersection" in fault.found


def test_a_small_crossing_is_repaired_by_name(tmp_path: Path):
    spike = [(0, 0), (1000, 0), (1000, 1000), (503, 1000), (500, 1006), (497, 1000), (505, 1003)]
    shape = shapely.Polygon([*spike, (0, 1000)])
    assert not shape.is_valid
    series = twice(outlines(tmp_path / "a.gpkg", RIM | {"X": shape}))
    assert "X" in glaciers(series)
    fault = named(series, "repaired-geometry")[0]
    assert (fault.glacier_id, fault.done) == ("X", "repaired")
    assert "km2" in fault.found


def test_rows_of_one_id_are_dissolved_by_name(tmp_path: Path):
    pairs = [*RIM.items(), ("X", square(0, 0)), ("X", square(3000, 0)), ("X", square(0, 0))]
    series = twice(outlines(tmp_path / "a.gpkg", pairs))
    area = series.epochs[0].frame.set_index("glacier_id").area
    assert area["X"] == pytest.approx(2e6, rel=1e-3)
    assert [fault.glacier_id for fault in named(series, "duplicate-id")] == ["X", "X"]


def test_rows_without_an_id_a_polygon_or_a_shape_are_set_aside_by_name(tmp_path: Path):
    pairs = [*RIM.items(), (None, square(0, 0)), ("P", shapely.Point(0, 0)), ("L", None)]
    series = twice(outlines(tmp_path / "a.geojson", pairs))
    assert glaciers(series) == sorted(RIM)
    assert len(named(series, "missing-id")) == 2
    assert {fault.glacier_id for fault in named(series, "bad-geometry")} == {"P"}
    assert {fault.glacier_id for fault in named(series, "empty-geometry")} == {"L"}


def test_ground_of_two_outlines_goes_to_the_first_id_by_name(tmp_path: Path):
    pairs = RIM | {"A": square(0, 0), "B": square(900, 0)}
    series = twice(outlines(tmp_path / "a.gpkg", pairs))
    frame = series.epochs[0].frame.set_index("glacier_id")
    assert frame.area["A"] == pytest.approx(1e6, rel=1e-3)
    assert frame.area["B"] == pytest.approx(0.9e6, rel=1e-3)
    fault = named(series, "overlap")[0]
    assert fault.glacier_id == "B" and "glacier A" in fault.found
    assert frame.geometry["A"].intersection(frame.geometry["B"]).area < 1e-3


def test_an_outline_that_is_there_under_two_ids_counts_once(tmp_path: Path):
    series = twice(outlines(tmp_path / "a.gpkg", RIM | {"A": square(0, 0), "B": square(0, 0)}))
    assert "B" not in glaciers(series)
    assert named(series, "duplicate-outline")[0].glacier_id == "B"


def test_slivers_between_neighbours_are_told_in_one_line(tmp_path: Path):
    shapes = RIM | {
        f"G{i}": shapely.box(1000 * i, 0, 1000 * (i + 1) + 3e-4, 1000) for i in range(4)
    }
    series = twice(outlines(tmp_path / "a.gpkg", shapes))
    faults = named(series, "overlap-sliver")
    assert [fault.found[:7] for fault in faults] == ["3 pairs", "3 pairs"]


def test_earlier_outlines_of_an_id_are_superseded_by_name(tmp_path: Path):
    pairs = [*RIM.items(), ("A", square(0, 0)), ("A", square(0, 0, 500))]
    dates = ["2001-08-01"] * 4 + ["1999-08-01", "2001-08-01"]
    one = outlines(tmp_path / "1.gpkg", pairs, src_date=dates)
    two = outlines(tmp_path / "2.gpkg", RIM, src_date=["2010-08-01"] * 4)
    series = read_series([OutlineFile(one, "code"), OutlineFile(two, "code")], by_id=True)
    area = series.epochs[0].frame.set_index("glacier_id").area
    assert area["A"] == pytest.approx(0.25e6, rel=1e-3)
    assert named(series, "superseded-outline")[0].glacier_id == "A"


def test_outlines_without_a_date_have_no_rate(tmp_path: Path):
    one = outlines(tmp_path / "1.gpkg", RIM, src_date=["2000-08-01"] * 3 + [None])
    two = outlines(tmp_path / "2.gpkg", RIM | {"E": square(9000, 0, 500)},
                   src_date=["2010-08-01"] * 4)  # fmt: skip
    files = [OutlineFile(one, "code"), OutlineFile(two, "code")]
    series = read_series(files, by_id=True)
    assert [fault.glacier_id for fault in named(series, "undated")] == ["S"]
    table = compare_series(series, by_id=True).pairs[0].table.set_index("glacier_id")
    assert table.at["S", "date_from"] == ""
    assert table.at["E", "rate_km2_per_year"] == pytest.approx(-0.075, rel=1e-3)


def test_a_date_of_a_year_is_told(tmp_path: Path):
    pairs = [*RIM.items(), *RIM.items()]
    file = outlines(tmp_path / "1.gpkg", pairs, year=[1990] * 4 + [2000] * 4)
    series = read_series([OutlineFile(file, "code")], by_id=True)
    assert [epoch.label for epoch in series.epochs] == ["1990", "2000"]
    assert named(series, "imprecise-date")[0].found.startswith("8 rows")


def test_dates_that_run_backwards_have_no_rate(tmp_path: Path):
    one = outlines(tmp_path / "1.gpkg", RIM, src_date=["2000-08-01"] * 3 + ["2015-08-01"])
    smaller = RIM | {"S": square(0, -9000, 900)}
    two = outlines(tmp_path / "2.gpkg", smaller, src_date=["2010-08-01"] * 4)
    files = [OutlineFile(one, "code"), OutlineFile(two, "code")]
    result = compare_series(read_series(files, by_id=True), by_id=True)
    assert ("date-order", "S") in problems_of(result)
    row = result.pairs[0].table.set_index("glacier_id").loc["S"]
    assert row["area_change_km2"] < 0 and row.isna()["rate_km2_per_year"]


def test_ids_that_do_not_fit_the_ground_are_named(tmp_path: Path):
    before = RIM | {"A": square(0, 0), "B": square(2000, 0), "C": square(4000, 0)}
    after = RIM | {"B": square(0, 0), "X": square(2000, 0, 900), "C": square(4000, 0)}
    files = [outlines(tmp_path / f"{i}.gpkg", s) for i, s in enumerate((before, after))]
    result = compared(*files)
    assert {
        ("id-elsewhere", "B"),
        ("id-unknown", "X"),
        ("id-missing", "A"),
    } <= problems_of(result)
    table = result.pairs[0].table.set_index("glacier_id")
    assert table["area_change_km2"].to_dict() == pytest.approx(
        dict.fromkeys([*RIM, "A", "C"], 0) | {"B": -0.19}, abs=1e-3
    )


def test_a_later_outline_of_two_glaciers_is_cut_and_named(tmp_path: Path):
    one = outlines(tmp_path / "1.gpkg", RIM | {"A": square(0, 0), "B": square(1000, 0)})
    two = outlines(tmp_path / "2.gpkg", RIM | {"A": shapely.box(0, 0, 2000, 1000)})
    result = compared(one, two)
    assert ("undivided", "A") in problems_of(result)
    assert not result.pairs[0].events


def test_other_lines_of_a_glims_file_are_named(tmp_path: Path):
    shapes = [square(0, 0), square(200, 200, 200), square(300, 700, 100), square(5000, 5000, 100)]
    frame = gpd.GeoDataFrame(
        {
            "glac_id": ["A", "A", "A", "B"],
            "line_type": ["glac_bound", "intrnl_rock", "debris_cov", "intrnl_rock"],
            "src_date": ["2000-08-01"] * 4,
        },
        geometry=gpd.GeoSeries(shapes, crs=PROJ4).to_crs(4326),
    )
    file = tmp_path / "glims.gpkg"
    frame.to_file(file)
    series = read_series([OutlineFile(file), OutlineFile(file, date="2010")], by_id=False)
    assert series.epochs[0].frame.area.tolist() == pytest.approx([0.96e6], rel=1e-3)
    assert {fault.glacier_id for fault in named(series, "other-line-type")} == {"A", "B"}


def test_glaciers_without_ids_are_named_by_their_place(tmp_path: Path):
    frame = gpd.GeoDataFrame(
        geometry=gpd.GeoSeries([square(0, 0), square(3000, 0, 10), square(3000, 20, 10)], crs=PROJ4)
    )
    file = tmp_path / "bare.gpkg"
    frame.to_file(file)
    series = read_series([OutlineFile(file, date=d) for d in ("2000", "2010")], by_id=False)
    names = glaciers(series)
    assert names[0].startswith("G0100") and names[0].endswith("N")
    assert len(set(names)) == 3


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"date": "next year"}, "outlines-date", "must be a year"),
        ({"date": "2001-13-01"}, "outlines-date", "must be a year"),
        ({"date": None}, "outlines-date", "have no date"),
        ({"date": None, "date_field": "when"}, "reference-date", "found code"),
        ({"id_field": "ident"}, "reference-id", "found code"),
        ({"path": Path("nowhere.gpkg")}, "outlines-missing", "nowhere.gpkg"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_words(tmp_path: Path, change, kind, words):
    path = outlines(tmp_path / "1.gpkg", RIM)
    good = {"path": path, "id_field": "code", "date": "2000"}
    with pytest.raises(UsageError, match=words) as error:
        read_series([OutlineFile(**good), OutlineFile(**(good | change))], by_id=True)
    assert error.value.kind == kind


def test_files_of_other_places_times_or_nothing_are_refused(tmp_path: Path):
    one = outlines(tmp_path / "1.gpkg", RIM)
    far = outlines(tmp_path / "2.gpkg", {"A": square(50000, 50000)})
    dirty = outlines(tmp_path / "3.geojson", {"P": shapely.Point(0, 0)})
    read = {
        "outlines-apart": [(one, "2000"), (far, "2010")],
        "outlines-date": [(one, "2010"), (one, "2000")],
        "outlines-empty": [(one, "2000"), (dirty, "2010")],
    }
    for kind, files in read.items():
        with pytest.raises(UsageError) as error:
            read_series([OutlineFile(f, "code", date=d) for f, d in files], by_id=True)
        assert error.value.kind == kind
    with pytest.raises(UsageError, match="has one"):
        read_series([OutlineFile(one, "code", date="2000")], by_id=True)
    with pytest.raises(UsageError, match="one for each date"):
        twice(one, outline_errors_m=(1.0, 2.0, 3.0))
