"""Windows are varied as said, features and labels together, and nothing is made up."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from catalog.errors import UsageError
from model_serving.augmentation import Augmentation, augment
from model_serving.features import CHANNELS, GROUPS

STILL = Augmentation.none()
EDGE = 48


def window(seed: int = 0, edge: int = EDGE) -> tuple[np.ndarray, np.ndarray]:
    """A window of noise with missing and unknown pixels."""
    rng = np.random.default_rng(seed)
    raw = rng.uniform(0.2, 0.8, (len(CHANNELS), edge, edge)).astype(np.float32)
    raw[GROUPS["sar"]] = rng.normal(-12, 2, (2, edge, edge))
    raw[:, rng.random((edge, edge)) < 0.05] = np.nan
    labels = rng.integers(0, 4, (edge, edge)).astype(np.uint8)
    labels[np.isnan(raw[0])] = 255
    return raw, labels


def painted(edge: int = EDGE) -> tuple[np.ndarray, np.ndarray]:
    """A bright blob off the centre, of one class in the labels."""
    raw = np.full((len(CHANNELS), edge, edge), 0.2, np.float32)
    labels = np.zeros((edge, edge), np.uint8)
    mark = (slice(edge // 3, edge // 3 + 12), slice(edge // 2, edge // 2 + 9))
    raw[(slice(None), *mark)], labels[mark] = 0.9, 2
    return raw, labels


moves = st.builds(
    lambda rotation, shear, shift, flip, turns: replace(
        STILL, rotation_deg=rotation, shear=shear, shift=shift, flip=flip, quarter_turns=turns
    ),
    st.floats(0, 30),
    st.floats(0, 0.2),
    st.floats(0, 0.15),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.booleans(),
)


def test_without_ranges_a_window_comes_back_as_it_was():
    raw, labels = window()
    before = raw.copy()
    x, y = augment(raw, labels, rng=np.random.default_rng(0), how=STILL)
    assert x.tobytes() == raw.tobytes()
    assert y.tobytes() == labels.tobytes()
    augment(raw, labels, rng=np.random.default_rng(0), how=Augmentation.of_the_papers())
    assert raw.tobytes() == before.tobytes()  # nor is the input ever changed


@given(st.integers(0, 100))
@settings(deadline=None, max_examples=10)
def test_equal_seeds_give_equal_windows(seed):
    raw, labels = window()
    how = Augmentation.of_the_papers()
    one, two, other = (
        augment(raw, labels, rng=np.random.default_rng(s), how=how) for s in (seed, seed, seed + 1)
    )
    assert one[0].tobytes() == two[0].tobytes()
    assert one[1].tobytes() == two[1].tobytes()
    assert one[0].tobytes() != other[0].tobytes()


@given(how=moves, seed=st.integers(0, 1000), edge=st.sampled_from([EDGE, 32, 70]))
@settings(deadline=None, max_examples=60)
def test_a_mark_painted_in_features_and_labels_stays_together(how, seed, edge):
    x, y = augment(*painted(), rng=np.random.default_rng(seed), how=how, window_px=edge)
    bright, ice = np.nan_to_num(x) > 0.55, y == 2
    assert ice.sum() > 20
    for channel in bright:
        # Half way between bright and dark differs from the nearest pixel at corners alone.
        assert (channel ^ ice).sum() <= 0.15 * ice.sum() + 8
        apart = np.subtract(ndimage.center_of_mass(channel), ndimage.center_of_mass(ice))
        assert np.hypot(*apart) < 0.35


@given(how=moves, seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_what_is_missing_moves_as_the_labels_do_and_nothing_is_made_up(how, seed):
    raw, labels = window(seed)
    x, y = augment(raw, labels, rng=np.random.default_rng(seed), how=how)
    # A pixel is unknown exactly where it is missing: so it was, and so it stays.
    assert (np.isnan(x[0]) == (y == 255)).all()
    assert (np.isnan(x) == np.isnan(x[0])).all()
    assert (np.nanmin(x, axis=(1, 2)) >= np.nanmin(raw, axis=(1, 2)) - 1e-4).all()
    assert (np.nanmax(x, axis=(1, 2)) <= np.nanmax(raw, axis=(1, 2)) + 1e-4).all()
    assert set(np.unique(y)) <= {0, 1, 2, 3, 255}


def test_a_missing_pixel_neither_spreads_nor_darkens_its_neighbours():
    raw, labels = painted()
    raw[:], raw[:, 20:24, 20:24] = 0.5, np.nan
    how = replace(STILL, rotation_deg=30.0, quarter_turns=True)
    for seed in range(20):
        x, _ = augment(raw, labels, rng=np.random.default_rng(seed), how=how)
        inner = x[:, 8:-8, 8:-8]
        assert abs(int(np.isnan(inner[0]).sum()) - 16) <= 5
        assert np.nanmax(abs(x - 0.5)) < 1e-5


def test_ground_beyond_the_window_is_missing_and_unknown():
    raw, labels = painted()
    x, y = augment(raw, labels, rng=np.random.default_rng(3), how=replace(STILL, shift=0.4))
    away = np.isnan(x).all(axis=0)
    assert 0.05 < away.mean() < 0.7
    assert (y[away] == 255).all()
    assert (y[~away] != 255).all()


@pytest.mark.parametrize("edge", [24, 33, 48, 70])
def test_resampling_is_that_of_the_shipped_members_training(edge: int):
    raw, labels = window(edge=47)  # an odd edge: no pixel lies half way between two
    raw = np.nan_to_num(raw, nan=0.5)
    x, y = augment(raw, labels, rng=np.random.default_rng(0), how=STILL, window_px=edge)
    source = torch.from_numpy(raw)[None]
    target = torch.from_numpy(labels)[None, None].float()
    wanted = torch.nn.functional.interpolate(source, (edge, edge), mode="bilinear")[0]
    nearest = torch.nn.functional.interpolate(target, (edge, edge), mode="nearest-exact")[0, 0]
    assert np.allclose(x, wanted.numpy(), atol=1e-4)
    assert (y == nearest.numpy()).all()


def test_light_radar_and_lost_inputs_are_varied_by_the_formula():
    """The same random numbers, taken in the same order, in the formula written down once more."""
    raw, labels = window()
    how = Augmentation(quarter_turns=False, flip=0.0, contrast=0.0)
    for seed in range(12):
        x, _ = augment(raw, labels, rng=np.random.default_rng(seed), how=how)
        rng, wanted = np.random.default_rng(seed), raw.copy()
        gain = math.exp(rng.normal(0, 0.12)) * np.exp(rng.normal(0, 0.05, 6))
        haze = abs(rng.normal(0, 0.02)) * np.array([1, 0.8, 0.6, 0.4, 0.1, 0.05])
        light = raw[:6] ** 2 * gain[:, None, None] + haze[:, None, None]
        light += 0.004 * rng.standard_normal((6, EDGE, EDGE), np.float32)
        wanted[:6] = np.sqrt(np.maximum(light, 0))
        wanted[6:8] += rng.normal(0, 0.7)
        lost = rng.choice(4, p=(0.35, 0.3, 0.1, 0.25))
        wanted[6:8] = np.nan if lost in (0, 1) else wanted[6:8]
        wanted[8:] = np.nan if lost in (0, 2) else wanted[8:]
        np.testing.assert_allclose(x, wanted, rtol=0, atol=1e-5)


def test_zooms_are_log_uniform_between_half_a_window_and_one_and_a_half():
    rng, how = np.random.default_rng(0), Augmentation()
    cuts = np.array([how.cut_px(192, rng=rng) for _ in range(4000)])
    assert 96 <= cuts.min() < 100
    assert 284 < cuts.max() <= 288
    assert np.median(np.log(cuts / 192)) == pytest.approx(math.log(0.75) / 2, abs=0.03)
    assert STILL.cut_px(192, rng=rng) == 192


def test_all_eight_orientations_are_equally_likely():
    mark, labels = painted()
    how = replace(STILL, quarter_turns=True, flip=0.5)
    rng = np.random.default_rng(0)
    seen: dict[bytes, int] = {}
    for _ in range(1600):
        _, y = augment(mark, labels, rng=rng, how=how)
        seen[y.tobytes()] = seen.get(y.tobytes(), 0) + 1
    assert len(seen) == 8
    assert all(abs(count - 200) < 60 for count in seen.values())


@pytest.mark.parametrize("looks", [1.0, 4.0, 20.0])
def test_speckle_keeps_the_mean_power_and_has_the_variance_of_its_looks(looks: float):
    raw, labels = painted(200)
    raw[GROUPS["sar"]] = -10.0
    how = replace(STILL, looks=looks)
    x, _ = augment(raw, labels, rng=np.random.default_rng(0), how=how)
    power = 10 ** (x[GROUPS["sar"]] / 10) / 0.1
    assert power.mean() == pytest.approx(1, abs=0.02)
    assert power.var() * looks == pytest.approx(1, abs=0.05)
    assert abs(np.corrcoef(power[0].ravel(), power[1].ravel())[0, 1]) < 0.02
    rest = [i for i in range(len(CHANNELS)) if i not in (6, 7)]
    assert (x[rest] == raw[rest]).all()


def test_brightness_and_contrast_act_on_reflectance_not_on_its_root():
    raw, labels = window()
    light = raw[GROUPS["optical"]].astype(float) ** 2
    brighter, _ = augment(
        raw, labels, rng=np.random.default_rng(1), how=replace(STILL, brightness=0.02)
    )
    added = brighter[GROUPS["optical"]].astype(float) ** 2 - light
    assert 1e-4 < abs(np.nanmean(added)) <= 0.02
    assert np.nanstd(added) < 1e-6
    starker, _ = augment(
        raw, labels, rng=np.random.default_rng(1), how=replace(STILL, contrast=0.3)
    )
    after = starker[GROUPS["optical"]].astype(float) ** 2
    stretched = np.nanstd(after, axis=(1, 2)) / np.nanstd(light, axis=(1, 2))
    assert np.nanmean(after, axis=(1, 2)) == pytest.approx(np.nanmean(light, axis=(1, 2)), abs=0.01)
    assert stretched == pytest.approx(np.full(6, stretched[0]), abs=1e-3)
    assert 0.01 < abs(stretched[0] - 1) <= 0.3


def test_no_channel_has_a_direction_that_would_have_to_turn_with_its_window():
    assert CHANNELS[GROUPS["terrain"]] == ("slope", "relative_elevation", "curvature")
    assert not [name for name in CHANNELS if "aspect" in name]


def test_impossible_ranges_and_windows_are_named():
    with pytest.raises(UsageError, match="shear=-1"):
        Augmentation(shear=-1)
    with pytest.raises(UsageError, match=r"zoom=\(2, 1\), looks=0.5"):
        Augmentation(zoom=(2, 1), looks=0.5)
    with pytest.raises(UsageError, match="gain_sd=nan"):
        Augmentation(gain_sd=math.nan)
    raw, labels = window()
    with pytest.raises(UsageError, match="no square window"):
        augment(raw[:, :-1], labels[:-1], rng=np.random.default_rng(0), how=STILL)
