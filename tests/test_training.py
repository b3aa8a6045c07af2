"""Training draws what it says, and the same command makes the same ensemble again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from catalog.errors import UsageError
from catalog.grid import region_grid
from catalog.simulation import RegionSpec, SeasonSpec
from model_serving.ensemble import CARD, load_ensemble
from model_serving.regions import UNKNOWN, PreparedRegion
from model_serving.training import Recipe, WindowSampler, train_ensemble

SIDE = 128
RECIPE = Recipe(batch=64, window_px=32)


@pytest.fixture
def region(tmp_path: Path) -> PreparedRegion:
    """Two seasons: a strip of each class, ground that ice has left, and a corner never seen."""
    labels = np.zeros((2, SIDE, SIDE), np.uint8)
    labels[:, :10], labels[:, 30:34], labels[:, 60:64] = 1, 2, 3
    owners = np.zeros((SIDE, SIDE), np.int32)
    owners[:10] = 1
    owners[90:94] = 2  # was ice once: glacier 2 has melted
    rng = np.random.default_rng(0)
    features = rng.uniform(0.2, 0.6, (2, 11, SIDE, SIDE)).astype(np.float16)
    features[:, :, -20:, -20:] = np.nan
    for name, values in (("features", features), ("labels", labels), ("owners", owners)):
        np.save(tmp_path / f"{name}.npy", values)
    grid = region_grid([10.0, 10.01], [46.0, 46.01], resolution_m=20, shard_px=SIDE, chunk_px=64)
    return PreparedRegion(
        "made", 1, tmp_path, grid, (9.9, 45.9, 10.1, 46.1), ("2017", "2020"), 2, 1.0, "fingerprint"
    )


def sampler(region: PreparedRegion, seed: int = 0) -> WindowSampler:
    return WindowSampler([region], RECIPE, np.random.default_rng(seed))


def test_windows_of_equal_seeds_are_equal(region: PreparedRegion):
    (x1, y1), (x2, y2), (x3, _) = (sampler(region, seed).batch() for seed in (0, 0, 1))
    assert (x1 == x2).all()
    assert (y1 == y2).all()
    assert (x1 != x3).any()


def test_windows_are_laid_around_rare_classes_and_ground_that_ice_has_left(
    region: PreparedRegion,
):
    drawn = sampler(region)
    centres = [drawn._centre() for _ in range(1200)]
    share = {
        kind: np.mean([first <= row < first + 4 for _, _, row, _ in centres])
        for kind, first in (("debris", 30), ("water", 60), ("exposed", 90))
    }
    # Chance alone would put 4 rows of 128 into 3 % of the windows.
    assert share["debris"] == pytest.approx(2 / 6 + 0.02, abs=0.05)
    assert share["water"] == pytest.approx(1 / 6 + 0.02, abs=0.04)
    assert share["exposed"] == pytest.approx(1 / 12 + 0.02, abs=0.03)
    # In the first season ice has left nothing: a difference is but the outline on the raster.
    chance = [season for _, season, row, _ in centres if 90 <= row < 94]
    assert np.mean(chance) > 0.75


def test_what_was_not_seen_is_unknown_and_no_input_is_missing(region: PreparedRegion):
    x, labels = sampler(region).batch()
    assert x.shape == (RECIPE.batch, 11, 32, 32)
    assert np.isfinite(x.numpy()).all()
    found = set(np.unique(labels.numpy()))
    assert UNKNOWN in found
    assert found <= {0, 1, 2, 3, UNKNOWN}


def test_optical_bands_alone_and_all_inputs_are_both_taught(region: PreparedRegion):
    x, _ = sampler(region).batch()
    radar, terrain = ((x[:, part] != 0).any(dim=(1, 2, 3)) for part in (slice(6, 8), slice(8, 11)))
    kinds = {(bool(a), bool(b)) for a, b in zip(radar, terrain, strict=True)}
    assert kinds == {(False, False), (False, True), (True, False), (True, True)}
    assert (x[:, :6] != 0).any(dim=(1, 2, 3)).float().mean() > 0.9  # some lie in what was not seen


def small(index: int) -> RegionSpec:
    seasons = tuple(SeasonSpec(str(y), y, 40.0 * (y - 2018) / 3, 1, 0.1, 0.1) for y in (2018, 2021))
    return RegionSpec(f"TINY{index}", 500 + index, "alpine", -30.0 - 5 * index, 46.0, 4.0, seasons)


def checksums(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.mark.slow
def test_the_same_command_makes_the_same_ensemble_and_keeps_what_is_finished(tmp_path: Path):
    recipe = Recipe(folds=2, seeds=3, steps=2, batch=1, window_px=64, serve_window_px=128)
    wanted = {"specs": [small(0), small(1)], "calibration": [small(2)], "recipe": recipe}
    for name in ("one", "two"):
        train_ensemble(tmp_path / name, work=tmp_path / f"w-{name}", **wanted)
    assert checksums(tmp_path / "one") == checksums(tmp_path / "two")
    finished = tmp_path / "w-one" / "members"
    before = {p.name: p.stat().st_mtime_ns for p in finished.glob("member*")}
    train_ensemble(tmp_path / "again", work=tmp_path / "w-one", **wanted)
    assert {p.name: p.stat().st_mtime_ns for p in finished.glob("member*")} == before
    assert checksums(tmp_path / "again") == checksums(tmp_path / "one")
    ensemble = load_ensemble(tmp_path / "one")
    assert [m.folds for m in ensemble.members] == [(0,)] * 3 + [(1,)] * 3
    seen = {
        m["name"]: m["trained_on"]
        for m in json.loads((ensemble.folder / CARD).read_text())["members"]
    }
    held = {r.fold: r.name for r in ensemble.regions}
    assert all(held[m.folds[0]] not in seen[m.name] for m in ensemble.members)


def test_too_few_regions_or_seeds_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="5 folds need as many regions, found 1"):
        train_ensemble(tmp_path, work=tmp_path / "work", specs=[small(0)])
    with pytest.raises(UsageError, match="fewer than 3 members"):
        train_ensemble(tmp_path, work=tmp_path / "work", recipe=Recipe(seeds=2))


def test_labels_lie_on_their_inputs_at_every_zoom(region: PreparedRegion):
    """The class changes where the input does, to a tenth of a pixel on average."""
    labels, features = np.array(region.labels()), np.array(region.features())
    labels[:], features[:] = 0, 0.2
    labels[:, :, 64:] = 1
    features[:, :6, :, 64:] = 0.8
    np.save(region.folder / "labels.npy", labels)
    np.save(region.folder / "features.npy", features)
    shifts = []
    for x, target in zip(*sampler(region).batch(), strict=True):
        low, high = x[0].min(), x[0].max()
        bright = x[0] > (low + high) / 2
        if high - low > 1:
            inside, ice = bright.sum().item(), (target == 1).sum().item()
            shifts.append((ice - inside) / 32)
    assert len(shifts) > 10
    assert abs(np.mean(shifts)) < 0.1
