"""Shared borders, complexes and overlaps, against what is counted on painted cells."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from made_packages import STEP, cell
from pyproj import Geod
from skimage.measure import label as connected

from catalog.errors import DataError
from change_detection.topology import (
    areas_km2,
    dissolve_complexes,
    overlap_areas_m2,
    remove_overlaps,
    shared_borders,
    touching_pairs,
    utm_lengths_m,
)

KEY = ["rgi_g_id_1", "rgi_g_id_2"]
GEOD = Geod(ellps="WGS84")


def painted(labels: np.ndarray) -> gpd.GeoDataFrame:
    """Connected patches of equal label as glaciers of one outline each, cell by cell."""
    patches = connected(labels, connectivity=1, background=0)
    rows = []
    for number in range(1, patches.max() + 1):
        cells = [cell(c, r) for r, c in zip(*np.nonzero(patches == number), strict=True)]
        rows.append((f"P{number:03d}", shapely.union_all(cells)))
    ids = [name for name, _ in rows]
    return gpd.GeoDataFrame({"rgi_id": ids}, geometry=[g for _, g in rows], crs=4326)


def edges_between(patches: np.ndarray) -> dict[tuple[str, str], int]:
    """Cell edges that each two patches share."""
    found: dict[tuple[str, str], int] = {}
    for one, two in ((patches[1:], patches[:-1]), (patches[:, 1:], patches[:, :-1])):
        for a, b in zip(one.ravel(), two.ravel(), strict=True):
            if a and b and a != b:
                key = (f"P{min(a, b):03d}", f"P{max(a, b):03d}")
                found[key] = found.get(key, 0) + 1
    return found


cells = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).integers(0, 4, (6, 6))
)


@settings(max_examples=60, deadline=None)
@given(cells)
def test_borders_are_the_cell_edges_that_two_glaciers_share(labels: np.ndarray):
    frame = painted(labels)
    rows = shared_borders(frame)
    assert (rows.geom_type == "LineString").all() and (rows.rgi_g_id_1 < rows.rgi_g_id_2).all()
    degrees = rows.assign(degrees=shapely.length(rows.geometry)).groupby(KEY).degrees.sum()
    wanted = edges_between(connected(labels, connectivity=1, background=0))
    assert {k: round(v / STEP) for k, v in degrees.items()} == wanted
    assert degrees.to_numpy() == pytest.approx([STEP * wanted[k] for k in degrees.index], rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(cells)
def test_complexes_are_the_patches_of_ice_and_hold_every_glacier_once(labels: np.ndarray):
    frame = painted(labels)
    ice = connected(labels > 0, connectivity=1, background=0)
    patches = connected(labels, connectivity=1, background=0)
    wanted = {
        tuple(f"P{n:03d}" for n in np.unique(patches[ice == number]))
        for number in range(1, ice.max() + 1)
    }
    found = dissolve_complexes(frame)
    assert set(found.members) == wanted and list(found.members) == sorted(wanted)
    assert (found.frame.geom_type == "Polygon").all() and found.frame.is_valid.all()
    total = areas_km2(frame.geometry.to_numpy()).sum()
    assert found.frame.area_km2.sum() == pytest.approx(total, rel=1e-9)
    points = shapely.points(found.frame.cenlon, found.frame.cenlat)
    assert found.frame.contains(gpd.GeoSeries(points, crs=4326)).all()


@settings(max_examples=60, deadline=None)
@given(cells, st.randoms(use_true_random=False))
def test_borders_and_complexes_do_not_depend_on_the_order_of_the_rows(labels, random):
    frame = painted(labels)
    order = list(range(len(frame)))
    random.shuffle(order)
    shuffled = frame.iloc[order].reset_index(drop=True)
    one, two = shared_borders(frame), shared_borders(shuffled)
    assert one[["rgi_g_id_1", "rgi_g_id_2"]].equals(two[["rgi_g_id_1", "rgi_g_id_2"]])
    np.testing.assert_allclose(one.length_m, two.length_m, rtol=1e-9)
    assert dissolve_complexes(frame).members == dissolve_complexes(shuffled).members


def test_glaciers_that_meet_in_a_point_share_no_border_and_no_complex():
    frame = painted(np.array([[1, 0], [0, 2]]))
    assert shared_borders(frame).empty
    assert dissolve_complexes(frame).members == (("P001",), ("P002",))


def test_a_glacier_on_a_nunatak_shares_the_whole_outline_of_the_hole():
    labels = np.ones((3, 3), int)
    labels[1, 1] = 2
    (row,) = shared_borders(painted(labels)).itertuples()
    assert row.geometry.length == pytest.approx(4 * STEP)
    assert dissolve_complexes(painted(labels)).members == (("P001", "P002"),)


def test_a_border_is_found_where_vertices_of_one_side_lie_beside_the_other():
    left = cell(0, 0)
    corners = list(cell(1, 0).exterior.coords)
    west = min(c[0] for c in corners)
    between = [(west + d, 46.8 + STEP * t) for t, d in ((0.3, 2e-10), (0.6, -2e-10))]
    east = max(c[0] for c in corners)
    right = shapely.Polygon(
        [(west, 46.8), (east, 46.8), (east, 46.81), (west, 46.81), *between[::-1]]
    )
    frame = gpd.GeoDataFrame({"rgi_id": ["a", "b"]}, geometry=[left, right], crs=4326)
    border = np.array([shapely.LineString([(west, 46.8), (west, 46.81)])])
    assert shared_borders(frame).length_m.sum() == pytest.approx(utm_lengths_m(border)[0], abs=0.01)
    found = dissolve_complexes(frame)
    assert found.members == (("a", "b"),) and found.frame.geom_type[0] == "Polygon"


def test_overlapping_glaciers_are_one_complex():
    frame = gpd.GeoDataFrame(
        {"rgi_id": ["a", "b"]}, geometry=[cell(0, 0), cell(0.5, 0.5)], crs=4326
    )
    assert dissolve_complexes(frame).members == (("a", "b"),)


def test_a_complex_has_the_region_of_its_largest_glacier():
    frame = painted(np.array([[1, 2, 2]])).assign(
        o1region=["13", "14"], o2region=["13-05", "14-01"]
    )
    row = dissolve_complexes(frame).frame.iloc[0]
    assert (row.o1region, row.o2region) == ("14", "14-01")


def test_without_glaciers_there_are_no_borders_and_no_complexes():
    nothing = painted(np.zeros((2, 2), int))
    assert shared_borders(nothing).empty
    assert dissolve_complexes(nothing).members == ()


def test_an_invalid_outline_is_refused_by_its_id():
    bow_tie = shapely.Polygon([(10.8, 46.8), (10.81, 46.81), (10.81, 46.8), (10.8, 46.81)])
    frame = gpd.GeoDataFrame({"rgi_id": ["a", "x"]}, geometry=[cell(0, 0), bow_tie], crs=4326)
    for compute in (shared_borders, dissolve_complexes):
        with pytest.raises(
            DataError, match="outline of x is not valid: Self-intersection"
        ) as error:
            compute(frame)
        assert error.value.kind == "bad-geometry"


@settings(max_examples=60, deadline=None)
@given(st.floats(-179.5, 179.5), st.floats(-79, 83), st.floats(0, 360), st.floats(5, 5000))
def test_lengths_in_utm_are_true_to_the_scale_of_the_projection(lon, lat, azimuth, metres):
    end = GEOD.fwd(lon, lat, azimuth, metres)[:2]
    if abs(end[0] - lon) > 180 or not -79.9 < end[1] < 83.9:
        return
    line = np.array([shapely.LineString([(lon, lat), end])])
    assert utm_lengths_m(line)[0] == pytest.approx(metres, rel=1.1e-3)
    # ^ between 0.9996 and about 1.001 in a zone, 12 degrees wide in Svalbard


@settings(max_examples=60, deadline=None)
@given(st.floats(-179, 178), st.floats(-85, 84), st.floats(0.001, 0.5), st.floats(0.001, 0.5))
def test_areas_are_those_of_the_ellipsoid(lon, lat, width, height):
    shape = shapely.segmentize(shapely.box(lon, lat, lon + width, lat + height), 0.0005)
    geodesic = abs(GEOD.geometry_area_perimeter(shape)[0]) / 1e6
    assert areas_km2(np.array([shape]))[0] == pytest.approx(geodesic, rel=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.integers(0, 30)] * 2, *[st.integers(1, 12)] * 2), min_size=2, max_size=8
    )
)
def test_removing_overlaps_leaves_disjoint_outlines_with_the_area_of_their_union(places):
    boxes = np.array([cell(x / 4, y / 4, w / 4, h / 4) for x, y, w, h in places], dtype=object)
    kept = remove_overlaps(boxes)
    assert shapely.is_valid(kept).all()
    assert areas_km2(kept).sum() == pytest.approx(
        areas_km2(np.array([shapely.union_all(boxes)]))[0], rel=1e-9
    )
    assert overlap_areas_m2(kept, *touching_pairs(kept))[0].max(initial=0.0) <= 1e-6
    assert (areas_km2(kept) <= areas_km2(boxes) * (1 + 1e-9)).all()


def test_an_overlap_goes_where_it_makes_the_outlines_shorter():
    wide, tongue = cell(0, 0, 4, 4), cell(3, 1, 2, 0.5)
    kept = remove_overlaps(np.array([tongue, wide], dtype=object))
    assert kept[1].equals(wide) and kept[0].equals(tongue - wide)
