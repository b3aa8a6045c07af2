"""What becomes of glaciers between files of outlines: areas, divides, events, errors, trends."""

from __future__ import annotations

import math
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_inventories import PROJ4, boxes, inventory
from outline_files import compared, events_of, outlines, problems_of, square
from scipy.stats import linregress

from change_detection.comparison import compare_series, trend_of
from change_detection.epochs import OutlineFile, read_series
from change_detection.margins import trace_margins
from change_detection.uncertainty import bounds_of_sum_km2

PER_EXAMPLE = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NUMBERS = [
    "area_change_km2",
    "area_change_sigma_km2",
    "rate_km2_per_year",
    "rate_percent_per_year",
]


def star(x: float, y: float, radius: float, rng: np.random.Generator) -> shapely.Polygon:
    """A ragged polygon around a place."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, 24))
    reach = radius * rng.uniform(0.5, 1.0, 24)
    return shapely.Polygon(np.stack([x + reach * np.cos(angles), y + reach * np.sin(angles)], 1))


def saved(folder: Path, frame: gpd.GeoDataFrame, name: str) -> Path:
    path = folder / name
    frame.rename(columns={"ref_id": "code"}).to_file(path)
    return path


# --- the same twice, in any order ----------------------------------------------------------------


@PER_EXAMPLE
@given(boxes(), st.booleans())
def test_one_inventory_twice_has_not_changed_in_the_least(tmp_path: Path, made, by_id):
    path = saved(tmp_path, inventory(made), "one.gpkg")
    for dates in (("2000", "2000"), ("2000", "2010")):
        result = compared(path, path, dates=dates, by_id=by_id)
        table = result.pairs[0].table
        assert len(table) == len(made)
        assert (table[NUMBERS] == 0).all(axis=None)
        assert set(table["event"]) == {""}
        totals = result.pairs[0].totals
        assert totals["area_change_km2"] == totals["rate_percent_per_year"] == 0
        assert totals["area_change_sigma_correlated_km2"] == 0


def test_a_thousand_ragged_glaciers_twice_have_not_changed_in_the_least(tmp_path: Path):
    rng = np.random.default_rng(1)
    shapes = {f"G{i:04d}": star(500 * (i % 40), 500 * (i // 40), 270, rng) for i in range(1000)}
    # ^ so close that a few overlap
    path = outlines(tmp_path / "one.gpkg", shapes)
    for by_id in (True, False):
        result = compared(path, path, path, by_id=by_id)
        for pair in (*result.pairs, result.period):
            assert len(pair.table) == 1000
            assert (pair.table[NUMBERS] == 0).all(axis=None)
            assert not pair.events
        assert (result.trend.iloc[:, 2:4] == 0).all(axis=None)
        assert "overlap" in {kind for kind, _ in problems_of(result)}
        assert ("copied", "") in problems_of(result)


@PER_EXAMPLE
@given(boxes(), st.randoms(use_true_random=False), st.booleans())
def test_order_of_rows_and_vertices_does_not_matter(tmp_path: Path, made, random, by_id):
    first = inventory(made)
    shrunk = [(w, s, w + 0.7 * (e - w), s + 0.9 * (n - s)) for w, s, e, n in made]
    later = inventory(shrunk)
    order = list(range(len(made)))
    random.shuffle(order)
    mixed = later.iloc[order].copy()
    mixed["geometry"] = [turned(shape, random.randrange(4)) for shape in mixed.geometry]
    one = saved(tmp_path, first, "1.gpkg")
    straight = compared(one, saved(tmp_path, later, "2.gpkg"), by_id=by_id)
    shuffled = compared(one, saved(tmp_path, mixed, "3.gpkg"), by_id=by_id)
    assert straight.pairs[0].table.equals(shuffled.pairs[0].table)
    assert straight.pairs[0].totals == shuffled.pairs[0].totals


def turned(shape: shapely.Polygon, step: int) -> shapely.Polygon:
    corners = list(shape.exterior.coords)[:-1]
    corners = corners[step:] + corners[:step]
    return shapely.Polygon(corners[::-1] if step % 2 else corners)


# --- areas and divides ---------------------------------------------------------------------------


@PER_EXAMPLE
@given(boxes(), st.floats(0.3, 1.3), st.booleans())
def test_the_parts_sum_to_the_outlines(tmp_path: Path, made, factor, by_id):
    grown = [(w, s, w + factor * (e - w), s + factor * (n - s)) for w, s, e, n in made]
    one, two = inventory(made), inventory(grown)
    result = compared(
        saved(tmp_path, one, "1.gpkg"), saved(tmp_path, two, "2.gpkg"), by_id=by_id, complete=True
    )
    pair = result.pairs[0]
    proj4 = result.series.proj4
    for column, frame in (("area_from_km2", one), ("area_to_km2", two)):
        union = frame.to_crs(proj4).union_all().area / 1e6
        assert pair.table[column].sum() == pytest.approx(union, rel=1e-9)
        assert pair.totals[column] == pytest.approx(union, rel=1e-9)
    assert pair.totals["area_change_km2"] == pytest.approx(
        pair.totals["area_to_km2"] - pair.totals["area_from_km2"], abs=1e-9
    )


@PER_EXAMPLE
@given(boxes(), st.floats(0.5, 0.99), st.floats(0.2, 0.8))
def test_later_outlines_cut_or_merged_leave_every_glacier_its_area(
    tmp_path: Path, made, factor, cut
):
    one = inventory(made)
    small = [(w, s, w + factor * (e - w), n) for w, s, e, n in made]
    halves = [
        part
        for w, s, e, n in small
        for part in ((w, s, e, s + cut * (n - s)), (w, s + cut * (n - s), e, n))
    ]
    two = inventory(small)
    merged = gpd.GeoDataFrame(
        {"ref_id": ["all"]}, geometry=[shapely.union_all(two.geometry.to_numpy())], crs=4326
    )
    first = saved(tmp_path, one, "1.gpkg")
    wanted = compared(first, saved(tmp_path, two, "2.gpkg"), by_id=False)
    for frame in (inventory(halves, [f"P{i}" for i in range(len(halves))]), merged):
        found = compared(first, saved(tmp_path, frame, "3.gpkg"), by_id=False)
        assert found.glaciers == wanted.glaciers
        np.testing.assert_allclose(found.area_km2, wanted.area_km2, rtol=5e-5, atol=1e-9)
        # ^ a vertex on a straight line is less than a millimetre beside it in another projection


def test_a_divide_that_moved_in_the_later_file_is_no_change(tmp_path: Path):
    one = outlines(tmp_path / "1.gpkg", {"A": square(0, 0), "B": square(1000, 0)})
    moved = {"A": shapely.box(0, 0, 1300, 1000), "B": shapely.box(1300, 0, 2000, 1000)}
    two = outlines(tmp_path / "2.gpkg", moved)
    for by_id in (True, False):
        table = compared(one, two, by_id=by_id).pairs[0].table
        assert table["area_change_km2"].to_numpy() == pytest.approx([0, 0], abs=1e-6)


def test_ice_beyond_goes_to_the_glacier_it_borders_on(tmp_path: Path):
    one = outlines(tmp_path / "1.gpkg", {"A": square(0, 0), "B": square(1000, 0)})
    tongue = shapely.box(1200, -500, 1800, 0)
    both = shapely.union_all([square(0, 0), square(1000, 0), tongue])
    two = outlines(tmp_path / "2.gpkg", {"A": both})
    table = compared(one, two).pairs[0].table.set_index("glacier_id")
    assert table["area_change_km2"].to_dict() == pytest.approx({"A": 0, "B": 0.3}, abs=1e-3)
    assert table.at["B", "event"] == "advanced"


def test_a_neighbour_that_the_first_file_lacks_is_new_not_an_advance(tmp_path: Path):
    frame = {"W": square(-3000, 0), "N": square(0, 3000), "E": square(4000, -2000)}
    one = outlines(tmp_path / "1.gpkg", frame | {"A": square(0, 0)})
    overlapping = shapely.box(990, 0, 1990, 1000)
    later = frame | {"A": square(0, 0), "B": overlapping}
    two = outlines(tmp_path / "2.gpkg", later)
    for by_id in (True, False):
        result = compared(one, two, by_id=by_id)
        table = result.pairs[0].table.set_index("glacier_id")
        assert (table["event"] == "new").sum() == 1
        assert table["area_change_km2"].max() == pytest.approx(0.99, rel=0.01)
        assert (table["area_change_km2"].abs() < 1e-9).sum() == 4


# --- events --------------------------------------------------------------------------------------

STORIES = ("steady", "vanished", "new", "below-minimum", "split", "tributary-detached", "advanced")


def story(kind: str, x: float, y: float) -> tuple[object, object]:
    """A glacier of one kind of fate at a place: its outline before and after, or None."""
    whole = square(x, y)
    cut = shapely.box(x + 480, y, x + 520, y + 1000)
    corner = shapely.box(x, y + 700, x + 1000, y + 740)
    fates = {
        "steady": (whole, whole),
        "vanished": (whole, None),
        "new": (None, whole),
        "below-minimum": (whole, square(x + 400, y + 400, 90)),
        "split": (whole, whole - cut),
        "tributary-detached": (whole, whole - corner - shapely.box(x, y + 900, x + 1000, y + 1000)),
        "advanced": (whole, shapely.box(x, y - 400, x + 1000, y + 1000)),
    }
    return fates[kind]


@pytest.mark.parametrize("by_id", [True, False])
def test_two_hundred_fates_are_all_told_right(tmp_path: Path, by_id: bool):
    rng = np.random.default_rng(5)
    side = 16
    before, after, wanted = {}, {}, {}
    for i in range(side * side):
        row, column = divmod(i, side)
        edge = {row, column} & {0, side - 1}
        # ^ on the rim nothing happens: it is what the files surely cover
        kind = "steady" if edge else STORIES[rng.integers(len(STORIES))]
        x, y = 2500.0 * column, 2500.0 * row
        name = f"G{i:03d}"
        old, new = story(kind, x, y)
        before |= {name: old} if old is not None else {}
        after |= {name: new} if new is not None else {}
        wanted[name] = set() if kind == "steady" else {kind}
    assert sum(map(bool, wanted.values())) > 150
    for a, b in ((17, 18), (50, 51), (100, 101)):
        # A tongue from each meets between the two.
        (ax, ay), (bx, _) = ((2500.0 * (i % side), 2500.0 * (i // side)) for i in (a, b))
        middle = (ax + 1000 + bx) / 2
        before |= {f"G{a:03d}": square(ax, ay), f"G{b:03d}": square(bx, ay)}
        after |= {
            f"G{a:03d}": shapely.box(ax, ay, middle, ay + 1000),
            f"G{b:03d}": shapely.box(middle, ay, bx + 1000, ay + 1000),
        }
        wanted |= {f"G{a:03d}": {"merged", "advanced"}, f"G{b:03d}": {"merged", "advanced"}}
    files = [
        outlines(tmp_path / f"{n}.gpkg", list(shapes.items()), glac_name=list(shapes))
        for n, shapes in enumerate((before, after))
    ]
    result = compared(*files, by_id=by_id)
    found = {result.names[name]: told for name, told in events_of(result).items()}
    assert {name: told for name, told in wanted.items() if told} == found
    table = result.pairs[0].table.set_index("glacier_id")["event"]
    first = {result.names[name]: event for name, event in table.items() if event}
    assert all(event in wanted[name] for name, event in first.items())
    assert all(event.evidence for event in result.pairs[0].events)


def test_what_is_below_the_least_area_still_counts(tmp_path: Path):
    one = outlines(tmp_path / "1.gpkg", {"A": square(0, 0), "B": square(3000, 0)})
    two = outlines(tmp_path / "2.gpkg", {"A": square(0, 0, 90), "B": square(3000, 0)})
    pair = compared(one, two).pairs[0]
    assert pair.table.set_index("glacier_id").at["A", "area_to_km2"] == pytest.approx(0.0081, 1e-3)
    assert pair.totals["area_to_km2"] == pytest.approx(1.0081, rel=1e-4)
    assert pair.table["event"].tolist() == ["below-minimum", ""]


def test_no_change_is_told_where_a_file_did_not_look(tmp_path: Path):
    shapes = {f"G{i}": square(2000 * i, 0) for i in range(5)}
    one = outlines(tmp_path / "1.gpkg", shapes)
    two = outlines(tmp_path / "2.gpkg", {k: v for k, v in shapes.items() if k not in {"G2", "G4"}})
    hull = compared(one, two)
    assert events_of(hull) == {"G2": {"vanished"}, "G4": {"unobserved"}}
    table = hull.pairs[0].table.set_index("glacier_id")
    assert math.isnan(table.at["G4", "area_change_km2"])
    assert hull.pairs[0].totals["area_from_km2"] == pytest.approx(4, rel=1e-3)
    assert hull.pairs[0].totals["area_not_compared_from_km2"] == pytest.approx(1, rel=1e-3)
    assert {("only-earlier", "G2"), ("only-earlier", "G4")} <= problems_of(hull)
    assert events_of(compared(one, two, complete=True))["G4"] == {"vanished"}
    clear = gpd.GeoSeries([shapely.box(-10, -500, 3500, 2000)], crs=PROJ4)
    seen = compared(one, two, coverage=clear.to_crs(hull.series.proj4).iloc[0])
    assert events_of(seen) == {name: {"unobserved"} for name in ("G2", "G3", "G4")}
    assert seen.pairs[0].totals["area_change_km2"] == 0


def test_a_row_without_an_outline_is_a_glacier_observed_to_be_gone(tmp_path: Path):
    one = outlines(tmp_path / "1.geojson", {"A": square(0, 0), "B": square(9000, 0)})
    two = outlines(tmp_path / "2.geojson", {"A": square(0, 0), "B": None})
    result = compared(one, two)
    assert events_of(result) == {"B": {"vanished"}}
    assert ("empty-geometry", "B") in problems_of(result)
    assert events_of(compared(one, two, by_id=False)) != {"B": {"vanished"}}


def test_without_growth_only_losses_count(tmp_path: Path):
    frame = {"W": square(-3000, 0), "N": square(0, 3000), "E": square(6000, -2000)}
    before = frame | {"A": square(0, 0)}
    after = frame | {"A": shapely.box(200, -500, 1000, 1000), "X": square(1500, 0)}
    third = frame | {"A": shapely.box(0, 0, 1000, 1000), "X": square(1500, 0)}
    files = [
        outlines(tmp_path / f"{i}.gpkg", shapes) for i, shapes in enumerate((before, after, third))
    ]
    free, clipped = compared(*files), compared(*files, growth=False)
    assert free.pairs[0].table.set_index("glacier_id").at["A", "area_to_km2"] == pytest.approx(
        1.2, rel=1e-3
    )
    tables = [pair.table.set_index("glacier_id") for pair in clipped.pairs]
    assert tables[0].at["A", "area_to_km2"] == pytest.approx(0.8, rel=1e-3)
    assert tables[1].at["A", "area_to_km2"] == pytest.approx(0.8, rel=1e-3)
    assert "X" not in tables[0].index and ("new-not-counted", "X") in problems_of(clipped)
    assert clipped.clipped_km2 == pytest.approx((0.0, 1.4, 1.2), rel=1e-3)
    assert all((table["area_change_km2"] <= 0).all() for table in tables)


# --- errors --------------------------------------------------------------------------------------


def test_divides_and_copied_lines_have_no_part_in_the_error(tmp_path: Path):
    one = outlines(tmp_path / "1.gpkg", {"A": square(0, 0), "B": square(1000, 0)})
    two = outlines(
        tmp_path / "2.gpkg", {"A": shapely.box(0, 200, 1000, 1000), "B": square(1000, 0)}
    )
    result = compared(one, two, error_m=10.0)
    assert result.sigma_km2[0] == pytest.approx([0.03, 0.03], rel=0.01)
    # A's lower edge moved by 200 m: it and the end of one side before, it alone after; the end of
    # the other side was a divide. B's outline is a copy, also where it has ground beside it now.
    free = np.hypot(1000 + 200, 1000) * 10 / 1e6
    sigma = result.pairs[0].table["area_change_sigma_km2"]
    assert sigma.to_numpy() == pytest.approx([free, 0], rel=0.02)


def test_margins_are_geodesic(tmp_path: Path):
    one = outlines(tmp_path / "1.gpkg", {"A": square(0, 0)})
    series = read_series(
        [OutlineFile(one, date="2000"), OutlineFile(one, date="2001")], by_id=False
    )
    frame = series.epochs[0].frame
    far = "+proj=laea +lat_0=10 +lon_0=60 +datum=WGS84 +units=m"
    for proj4 in (series.proj4, far):
        shape = frame.to_crs(proj4).geometry.iloc[0]
        length = trace_margins({"A": shape}, proj4).free_length_m()["A"]
        assert length == pytest.approx(4000, rel=2e-4)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=40))
def test_the_error_of_a_sum_lies_between_its_bounds(sigma):
    low, high = bounds_of_sum_km2(sigma)
    assert max(sigma) <= low <= high
    assert low == pytest.approx(math.sqrt(sum(s**2 for s in sigma)), rel=1e-9)
    assert high == pytest.approx(sum(sigma), rel=1e-9)


def test_intervals_cover_as_often_as_they_say(tmp_path: Path):
    rng = np.random.default_rng(11)
    radius = rng.uniform(200, 2000, 30)
    places = [(9000.0 * (i % 6), 9000.0 * (i // 6)) for i in range(30)]

    def disc(i: int, shrink: float) -> shapely.Polygon:
        return shapely.Point(places[i]).buffer(radius[i] - shrink, quad_segs=64)

    files = [
        outlines(tmp_path / f"{n}.gpkg", {f"G{i:02d}": disc(i, shrink) for i in range(30)})
        for n, shrink in enumerate((0.0, 120.0))
    ]
    error = 10.0
    pair = compared(*files, error_m=error).pairs[0]
    sigma = pair.table["area_change_sigma_km2"].to_numpy()

    def drawn(shape: tuple[int, ...]) -> np.ndarray:
        """Errors of the changes when both margins are drawn too far out or in."""
        off = rng.normal(0, error, (2, 1000, *shape))
        before, after = (2 * np.pi * (radius - s) * o for s, o in zip((0, 120), off, strict=True))
        return (after - before) / 1e6

    alone, together = drawn((30,)), drawn((1,))
    assert 0.63 <= (np.abs(alone) <= sigma).mean() <= 0.73
    totals = pair.totals
    independent = np.abs(alone.sum(axis=1)) <= totals["area_change_sigma_independent_km2"]
    one_error = np.abs(together.sum(axis=1)) <= totals["area_change_sigma_correlated_km2"]
    assert 0.63 <= independent.mean() <= 0.73
    assert 0.63 <= one_error.mean() <= 0.73


# --- time ----------------------------------------------------------------------------------------


def test_rates_follow_the_days_of_the_outlines(tmp_path: Path):
    one = outlines(tmp_path / "1.gpkg", {"A": square(0, 0), "B": square(3000, 0)},
                   src_date=["2000-08-01", "2001-08-01"])  # fmt: skip
    two = outlines(tmp_path / "2.gpkg", {"A": square(0, 0, 800), "B": square(3000, 0, 800)},
                   src_date=["2010-08-01", "2010-08-01"])  # fmt: skip
    wanted = [OutlineFile(one, "code"), OutlineFile(two, "code")]
    result = compare_series(read_series(wanted, by_id=True), by_id=True)
    table = result.pairs[0].table
    years = np.array([3652, 3287]) / 365.2425
    assert table["rate_km2_per_year"].to_numpy() == pytest.approx(-0.36 / years, rel=1e-3)
    assert table["date_from"].tolist() == ["2000-08-01", "2001-08-01"]
    totals = result.pairs[0].totals
    assert totals["mean_interval_years"] == pytest.approx(years.mean(), rel=1e-5)
    assert totals["rate_km2_per_year"] == pytest.approx(-0.72 / years.mean(), rel=1e-3)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0.01, 100), min_size=3, max_size=8),
    st.randoms(use_true_random=False),
)
def test_a_trend_is_the_line_of_least_squares(areas, random):
    count = len(areas)
    days = 30.0 * np.array(sorted(random.sample(range(-400, 660), count)))
    area = np.array(areas)[:, None]
    sigma = np.full((count, 1), 0.1)
    table, total = trend_of(["A"], area, days[:, None], sigma)
    line = linregress(days / 365.2425, areas)
    row = table.iloc[0]
    assert row["trend_km2_per_year"] == pytest.approx(line.slope, rel=1e-6, abs=1e-9)
    residuals = np.array(areas) - line.intercept - line.slope * days / 365.2425
    spread = ((days - days.mean()) ** 2).sum() / 365.2425**2
    error = math.sqrt((residuals**2).sum() / (count - 2) / spread)
    assert row["trend_standard_error_km2_per_year"] == pytest.approx(error, rel=1e-5, abs=1e-7)
    assert total["trend_km2_per_year"] == pytest.approx(line.slope, rel=1e-6, abs=1e-9)
    years = days / 365.2425
    drawn = 0.1 / math.sqrt(((years - years.mean()) ** 2).sum())
    assert row["trend_outline_sigma_km2_per_year"] == pytest.approx(drawn, rel=1e-6)


def test_two_dates_have_no_trend(tmp_path: Path):
    one = outlines(tmp_path / "1.gpkg", {"A": square(0, 0)})
    result = compared(one, one)
    assert result.trend is None and result.total_trend is None
    assert result.period is result.pairs[0]
