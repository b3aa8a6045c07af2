"""Windows for training: around what is wanted, within what is allowed, as the seed says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from catalog.errors import UsageError
from catalog.grid import region_grid
from model_serving.datasets import Patch
from model_serving.datasets.sampling import (
    ANYWHERE,
    EXPOSED,
    ModalityShares,
    WindowSource,
    _roomy,
    drop_modalities,
)
from model_serving.features import GROUPS
from model_serving.regions import PreparedRegion

SIDE = 96


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> PreparedRegion:
    """Two seasons: strips of ice, debris and water, and ground that ice has left."""
    folder = tmp_path_factory.mktemp("region")
    labels = np.zeros((2, SIDE, SIDE), np.uint8)
    labels[:, :10], labels[:, 30:33], labels[:, 60:62] = 1, 2, 3
    owners = np.zeros((SIDE, SIDE), np.int32)
    owners[:10], owners[80:83] = 1, 2
    features = np.random.default_rng(0).uniform(0.2, 0.6, (2, 11, SIDE, SIDE)).astype(np.float16)
    features[:, :, -9:, -9:] = np.nan
    for name, values in (("features", features), ("labels", labels), ("owners", owners)):
        np.save(folder / f"{name}.npy", values)
    grid = region_grid([10.0, 10.01], [46.0, 46.01], resolution_m=20, shard_px=SIDE, chunk_px=48)
    return PreparedRegion(
        "made", 1, folder, grid, (9.9, 45.9, 10.1, 46.1), ("2017", "2020"), 2, 1.0, "fingerprint"
    )


def patch(label: int, group: str = "scene") -> Patch:
    labels = np.zeros((40, 40), np.uint8)
    labels[7:9, 30:32] = label
    features = np.full((11, 40, 40), np.nan, np.float32)
    features[GROUPS["optical"]] = 0.1 * label
    return Patch(features, labels, group)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.02, 0.2))
def test_a_window_lies_wholly_in_allowed_pixels(region: PreparedRegion, seed: int, share: float):
    rng = np.random.default_rng(seed)
    allowed = ndimage.binary_opening(
        ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), 8) > -share / 10, np.ones((9, 9))
    )
    allowed[:20, :20] = True
    source = WindowSource([region], window_px=32, allowed=[allowed])
    for _ in range(30):
        drawn = source.draw(rng)
        assert allowed[drawn.window.slices].all()
        assert 16 <= drawn.window.height == drawn.window.width < 48


def test_a_window_is_as_large_as_was_drawn_wherever_it_fits(region: PreparedRegion):
    allowed = np.zeros((SIDE, SIDE), bool)
    allowed[:50] = True
    sizes = {}
    for name, mask in (("all", None), ("half", allowed)):
        rng = np.random.default_rng(1)
        source = WindowSource([region], window_px=32, allowed=[mask])
        sizes[name] = np.sort([source.draw(rng).window.height for _ in range(400)])
    assert np.median(sizes["half"]) == pytest.approx(np.median(sizes["all"]), abs=2)


def test_rare_classes_are_wanted_within_allowed_pixels_alone(region: PreparedRegion):
    allowed = np.zeros((SIDE, SIDE), bool)
    allowed[20:50] = True
    source = WindowSource([region], window_px=24, allowed=[allowed], wanted=(2,))
    rng = np.random.default_rng(0)
    found = [set(np.unique(source.read(source.draw(rng))[1])) for _ in range(100)]
    assert all(2 in labels for labels in found)
    assert not any({1, 3} & labels for labels in found)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 7))
def test_pixels_with_room_around_are_the_morphological_opening(seed: int, size: int):
    allowed = np.random.default_rng(seed).random((19, 23)) < 0.8
    expected = ndimage.binary_opening(np.pad(allowed, size), np.ones((size, size)), origin=0)[
        size:-size, size:-size
    ]
    assert (_roomy(allowed, size) == expected).all()


def test_a_region_without_room_is_refused_by_name(region: PreparedRegion):
    allowed = np.zeros((SIDE, SIDE), bool)
    allowed[:15] = True
    with pytest.raises(UsageError, match="made: no window of 16 pixels") as caught:
        WindowSource([region], window_px=32, allowed=[allowed])
    assert caught.value.kind == "nothing-to-draw"
    with pytest.raises(UsageError, match=r"expected allowed pixels \(96, 96\)"):
        WindowSource([region], window_px=32, allowed=[allowed[1:]])
    with pytest.raises(UsageError, match="no region and no patch"):
        WindowSource(window_px=32)
    with pytest.raises(UsageError, match="no such classes"):
        WindowSource([region], window_px=32, wanted=(9,))


def test_of_many_patches_those_that_hold_a_rare_class_are_taken(region: PreparedRegion):
    patches = [patch(1) for _ in range(50)] + [patch(2), patch(0)]
    source = WindowSource(patches=[patches], window_px=16, wanted=(ANYWHERE, 2, 2, 2))
    rng = np.random.default_rng(0)
    drawn = [source.draw(rng) for _ in range(400)]
    assert np.mean([d.layer == 50 for d in drawn]) == pytest.approx(0.75, abs=0.06)
    raw, labels = source.read(next(d for d in drawn if d.layer == 50))
    assert 2 in labels
    assert np.nanmax(raw) == pytest.approx(0.2)
    both = WindowSource([region], [patches], window_px=16)
    shares = np.bincount([both.draw(rng).source for _ in range(400)]) / 400
    assert shares == pytest.approx([0.5, 0.5], abs=0.08)


def test_large_patches_keep_few_centres_that_reach_all_parts_of_a_class():
    labels = np.full((512, 512), 1, np.uint8)
    wide = Patch(np.zeros((11, 512, 512), np.float32), labels, "scene")
    source = WindowSource(patches=[[wide]], window_px=20, wanted=(1,))
    assert sum(len(found) for found in source._sources[0][0].centres.values()) <= 1024
    rng = np.random.default_rng(0)
    windows = np.array([source.draw(rng).window for _ in range(2000)])
    reached = np.histogram2d(windows[:, 0], windows[:, 1], bins=(8, 8))[0]
    assert reached.min() > 12


def test_windows_of_equal_seeds_are_equal_and_patches_smaller_than_a_window_are_taken_whole():
    source = WindowSource(patches=[[patch(2), patch(3)]], window_px=200)
    one, other = (
        [source.draw(rng) for _ in range(50)]
        for rng in (np.random.default_rng(3), np.random.default_rng(3))
    )
    assert one == other
    assert {d.window for d in one} == {(0, 0, 40, 40)}


def test_ground_that_ice_has_left_is_told_from_the_second_season_on(region: PreparedRegion):
    source = WindowSource([region], window_px=10, zoom=(0.1, 0.11), wanted=(EXPOSED,))
    rng = np.random.default_rng(0)
    rows = {0: set(), 1: set()}
    for _ in range(600):
        drawn = source.draw(rng)
        rows[drawn.layer].add(drawn.window.row)
    assert rows[1] <= {80, 81, 82}
    assert len(rows[0]) > 60


# Modality dropout


def whole() -> np.ndarray:
    return np.ones((11, 3, 3), np.float32)


def test_inputs_are_lost_as_often_as_the_shares_say():
    rng = np.random.default_rng(0)
    kept = [np.isfinite(drop_modalities(whole(), rng=rng)).all(axis=(1, 2)) for _ in range(4000)]
    optical, sar, terrain = (np.array(kept)[:, GROUPS[name]].all(axis=1) for name in GROUPS)
    assert optical.all()
    assert np.mean(~sar & ~terrain) == pytest.approx(0.35, abs=0.03)
    assert np.mean(~sar & terrain) == pytest.approx(0.30, abs=0.03)
    assert np.mean(sar & ~terrain) == pytest.approx(0.10, abs=0.03)


def test_dropout_draws_as_the_present_sampler_and_leaves_its_argument_alone():
    one, other = np.random.default_rng(7), np.random.default_rng(7)
    for _ in range(500):
        raw = whole()
        out = drop_modalities(raw, rng=one)
        assert np.isfinite(raw).all()
        lost = other.choice(4, p=(0.35, 0.3, 0.1, 0.25))
        assert np.isnan(out[GROUPS["sar"]]).all() == (lost in (0, 1))
        assert np.isnan(out[GROUPS["terrain"]]).all() == (lost in (0, 2))


def test_a_window_keeps_what_is_its_only_input():
    raw = np.full((11, 3, 3), np.nan, np.float32)
    raw[6] = -12
    rng = np.random.default_rng(0)
    assert all((drop_modalities(raw, rng=rng)[6] == -12).all() for _ in range(50))
    with pytest.raises(UsageError, match="sum to at most 1"):
        ModalityShares(optical_only=0.9, without_sar=0.2)
