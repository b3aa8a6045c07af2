"""Features, windows, folds, losses, metrics and ensembles keep their promises."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod

from catalog.cube import TERRAIN_BANDS
from catalog.errors import UsageError
from catalog.grid import region_grid
from model_serving.ensemble import bits, load_ensemble, pack_member, unpack_member
from model_serving.evaluation import area_calibration
from model_serving.features import CHANNELS, GROUPS, Normalisation, raw_features
from model_serving.folds import OUTSIDE, TrainingRegion, assign_folds, fold_map, smallest_gap_km
from model_serving.glacier_seg import GlacierSeg, GlacierSegConfig
from model_serving.losses import cross_entropy_dice
from model_serving.metrics import (
    RATIO_THRESHOLDS,
    Overlaps,
    confusion_matrix,
    iou,
    ratio_masks,
)
from model_serving.patches import WindowPlan


def test_features_are_physical_and_missing_stays_missing():
    optical = np.full((6, 2, 2), 1000 + 2500, np.uint16)
    optical[3, 0, 0] = 0
    sar = np.full((2, 2, 2), 40_000, np.uint16)
    terrain = np.stack([np.full((2, 2), v, np.float32) for v in (3000, 20, -5, np.nan)])
    x = raw_features(optical, sar, terrain)
    assert x.shape == (len(CHANNELS), 2, 2)
    assert np.isnan(x[GROUPS["optical"], 0, 0]).all()
    assert np.allclose(x[GROUPS["optical"], 1, 1], 0.5)
    assert np.allclose(x[GROUPS["sar"], 1, 1], -10)
    assert x[8, 0, 0] == 20
    assert np.isnan(x[10]).all()
    assert np.isnan(raw_features(optical, None, None)[6:]).all()


def test_terrain_features_are_taken_by_name():
    optical = np.full((6, 2, 2), 3500, np.uint16)
    terrain = np.stack([np.full((2, 2), i, np.float32) for i in range(len(TERRAIN_BANDS))])
    terrain[TERRAIN_BANDS.index("aspect_sin")] = np.nan  # what no network reads does not matter
    x = raw_features(optical, None, terrain)
    names = CHANNELS[GROUPS["terrain"]]
    assert [TERRAIN_BANDS[int(v)] for v in x[GROUPS["terrain"], 0, 0]] == list(names)
    assert raw_features(optical, None, terrain[:4]).tobytes() == x.tobytes()  # as stored before


def test_normalisation_leaves_missing_values_out_and_makes_them_the_mean():
    samples = np.random.default_rng(0).normal(3, 2, (len(CHANNELS), 5000)).astype(np.float32)
    samples[0, :100] = np.nan
    norm = Normalisation.measured(samples)
    x = norm.apply(samples[:, :, None])
    assert abs(x[1].mean()) < 1e-3
    assert abs(x[1].std() - 1) < 1e-3
    assert (x[0, :100] == 0).all()
    samples[4] = np.nan
    with pytest.raises(ValueError, match="swir1"):
        Normalisation.measured(samples)


@given(window=st.integers(2, 40), step=st.floats(0.2, 1), extra=st.integers(0, 100))
@settings(deadline=None)
def test_windows_cover_every_pixel_and_end_with_the_raster(window, step, extra):
    plan = WindowPlan(window, max(1, int(window * step)))
    length = window + extra
    covered = np.zeros((length, length))
    for y, x in plan.windows(length, length):
        assert (y.stop - y.start, x.stop - x.start) == (window, window)
        covered[y, x] += plan.weights()
    assert covered.min() > 0


def test_a_raster_smaller_than_a_window_is_named():
    with pytest.raises(ValueError, match="smaller than a window"):
        WindowPlan(64, 32).starts(63)


@given(st.lists(st.floats(0.1, 100), min_size=5, max_size=20))
def test_folds_are_complete_and_balanced_by_area(areas):
    folds = assign_folds(areas, 5)
    load = [sum(a for a, f in zip(areas, folds, strict=True) if f == k) for k in range(5)]
    assert set(folds) == set(range(5))
    assert max(load) - min(load) <= max(areas) + 1e-9


def make_region(name, fold, lon):
    return TrainingRegion(name, 1, fold, (lon, 45.0, lon + 0.2, 45.1), 3, 10.0)


def test_a_fold_map_marks_training_regions_and_leaves_the_rest_outside():
    grid = region_grid([10.0, 10.4], [44.9, 45.2], resolution_m=100, shard_px=256, chunk_px=64)
    regions = [make_region("a", 3, 10.0), make_region("far", 1, 60.0)]
    maps = [fold_map(shard, regions) for shard in grid.shards()]
    marked = sum((m == 3).sum() for m in maps) * grid.pixel_area_km2
    assert {int(v) for m in maps for v in np.unique(m)} == {OUTSIDE, 3}
    assert marked == pytest.approx(15.77 * 11.11, rel=0.03)
    assert smallest_gap_km(regions) > 3000


def test_the_gap_between_two_folds_is_that_of_their_nearest_points_on_the_ellipsoid():
    def gap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
        boxes = (
            TrainingRegion(n, 1, f, b, 1, 1.0)
            for f, (n, b) in enumerate(zip("ab", (one, other), strict=True))
        )
        return smallest_gap_km(list(boxes))

    def between(lon: float, lat: float, lon2: float, lat2: float) -> float:
        return Geod(ellps="WGS84").inv(lon, lat, lon2, lat2)[2] / 1000

    # Far north a degree of longitude is least at the upper of the latitudes that both have.
    svalbard = gap((15.0, 78.0, 15.5, 78.2), (16.5, 78.05, 17.0, 78.3))
    assert svalbard == pytest.approx(between(15.5, 78.2, 16.5, 78.2), rel=1e-3)
    corner = gap((10.0, 80.0, 10.5, 80.1), (11.0, 80.15, 12.0, 80.3))
    assert corner == pytest.approx(between(10.5, 80.1, 11.0, 80.15), rel=1e-3)
    over = gap((179.5, -40.0, 179.9, -39.8), (-179.9, -39.9, -179.5, -39.7))
    assert over == pytest.approx(between(179.9, -39.9, -179.9, -39.9), rel=1e-3)
    assert gap((10.0, 46.0, 10.1, 46.1), (10.05, 46.05, 10.3, 46.3)) == 0
    parts = [
        TrainingRegion(
            n, 1, f, (10.0, 46.0, 11.0, 46.1), 1, 1.0, area=shapely.box(*b).__geo_interface__
        )
        for f, (n, b) in enumerate(
            {"a": (10.0, 46.0, 10.2, 46.1), "b": (10.4, 46.0, 11.0, 46.1)}.items()
        )
    ]
    assert smallest_gap_km(parts) == pytest.approx(between(10.2, 46.1, 10.4, 46.1), rel=1e-3)
    assert smallest_gap_km(parts[:1]) == float("inf")


def test_the_loss_ignores_what_was_not_seen():
    torch.manual_seed(0)
    logits, labels = torch.randn(1, 4, 8, 8), torch.randint(0, 4, (1, 8, 8))
    labels[:, :4] = 255
    changed = logits.clone()
    changed[:, :, :4] += 10
    weights = torch.ones(4)
    a = cross_entropy_dice(logits, labels, weights=weights)
    assert a == cross_entropy_dice(changed, labels, weights=weights)
    perfect = torch.nn.functional.one_hot(labels.clamp(max=3), 4).permute(0, 3, 1, 2) * 50.0
    assert cross_entropy_dice(perfect, labels, weights=weights) < 0.02 < a


def test_metrics_count_what_they_say():
    a, b = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert iou(a, b) == pytest.approx(1 / 3)
    assert np.isnan(iou(a & ~a, a & ~a))
    table = confusion_matrix(np.array([0, 1, 1, 255]), np.array([0, 0, 1, 1]), classes=2)
    assert table.tolist() == [[1, 1], [0, 1]]


def test_overlaps_of_pieces_are_those_of_the_whole_and_find_the_best_band_ratio():
    red, swir = np.array([0.5, 0.6, 0.2, 0.3]), np.array([0.1, 0.1, 0.2, 0.1])
    truth = np.array([True, True, False, False])
    whole, pieces = Overlaps(), Overlaps()
    whole.add(ratio_masks(red, swir), truth)
    for part in (slice(0, 1), slice(1, 4)):
        pieces.add(ratio_masks(red[part], swir[part]), truth[part])
    assert whole.ious == pieces.ious
    by_threshold = dict(zip(RATIO_THRESHOLDS, whole.ious, strict=True))
    assert by_threshold[0.5] == 2 / 4
    assert by_threshold[1.0] == 2 / 3
    assert by_threshold[3.5] == max(whole.ious) == 1
    assert by_threshold[5.5] == 1 / 2
    nothing = Overlaps()
    nothing.add([truth & ~truth], truth & ~truth)
    assert np.isnan(nothing.ious[0])


def test_votes_are_packed_one_bit_a_member():
    flags = np.random.default_rng(0).random((15, 4, 5)) < 0.5
    packed = bits(list(flags))
    for i, flag in enumerate(flags):
        assert (((packed >> i) & 1).astype(bool) == flag).all()


def test_a_batch_of_which_nothing_is_known_teaches_nothing_and_is_no_fault():
    logits = torch.randn(2, 4, 8, 8, requires_grad=True)
    loss = cross_entropy_dice(
        logits, torch.full((2, 8, 8), 255, dtype=torch.int64), weights=torch.ones(4)
    )
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_a_member_survives_packing_and_damage_is_named():
    torch.manual_seed(0)
    network = GlacierSeg().eval()
    data = pack_member(network)
    back = unpack_member(data, GlacierSegConfig())
    x = torch.randn(1, 11, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(back(x), network(x), atol=5e-2)
    assert pack_member(back) == data
    with pytest.raises(UsageError, match=r"damaged|fit"):
        unpack_member(data[:-100], GlacierSegConfig())
    with pytest.raises(UsageError, match="fit"):
        unpack_member(data, GlacierSegConfig(channels=5))


def test_a_card_for_other_bands_or_a_missing_card_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no ensemble"):
        load_ensemble(tmp_path / "nowhere")
    (tmp_path / "card.json").write_text(json.dumps({"format": 1, "channels": ["red"]}))
    with pytest.raises(UsageError, match="channels"):
        load_ensemble(tmp_path)


def calibration_results(
    *, regions: int, error: float, shared_error: float, members: int = 15
) -> list[dict]:
    """Maps of made-up glaciers whose members scatter by 0.1 km2 each and by 0.05 km2 together."""
    rng = np.random.default_rng(1)
    results = []
    for k in range(regions):
        for _ in range(3):
            truth = rng.uniform(1, 3, 20)
            scatter = rng.normal(0, 0.1, (members, 20)) + rng.normal(0, 0.05, (members, 1))
            off = rng.normal(0, error, 20) + rng.normal(0, shared_error)
            results.append(
                {
                    "region": f"r{k}",
                    "member_km2": truth + scatter,
                    "true_km2": truth,
                    "mapped_km2": truth + off,
                }
            )
    return results


@pytest.mark.parametrize("shared_error", [0.0, 0.3])
def test_calibrated_intervals_cover_what_they_promise_in_regions_they_were_not_fitted_on(
    shared_error: float,
):
    found = area_calibration(calibration_results(regions=150, error=0.2, shared_error=shared_error))
    cover = found["coverage"]
    assert cover["glaciers_68"] == pytest.approx(0.683, abs=0.01)
    assert cover["glaciers_95"] == pytest.approx(0.95, abs=0.02)
    assert cover["totals_95"] >= 0.93
    assert (found["regions"], found["pairs"], found["glaciers"]) == (150, 450, 9000)
    # The spread of one glacier: hypot(0.1, 0.05) km2; errors beyond it widen the interval.
    expected = np.hypot(0.2, shared_error) / np.hypot(0.1, 0.05)
    assert found["scale"] == pytest.approx(expected, rel=0.1)
    assert found["areas"]["scale"] == pytest.approx(expected, rel=0.1)
    if shared_error:
        assert found["regional_scale"] > 4
    else:
        assert found["regional_scale"] == 1


def test_glaciers_on_which_members_agree_but_are_wrong_are_not_left_out():
    results = calibration_results(regions=4, error=0.2, shared_error=0.0)
    for result in results:
        result["member_km2"][:, :12] = result["true_km2"][:12]
    with pytest.raises(ValueError, match="do not differ"):
        area_calibration(results)


def test_without_two_seasons_of_a_region_nothing_can_be_calibrated():
    results = calibration_results(regions=1, error=0.2, shared_error=0.0)[:1]
    with pytest.raises(ValueError, match="nothing to calibrate on"):
        area_calibration(results)
