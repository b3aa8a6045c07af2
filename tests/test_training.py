"""Training draws what it says, and the same command makes the same ensemble again."""

from __future__ import annotations

import hashlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from catalog.cube import UNKNOWN
from catalog.errors import DataError, UsageError
from catalog.grid import region_grid
from catalog.simulation import RegionSpec, SeasonSpec
from inventory_engine.audits import verdict
from model_serving.ensemble import CARD, load_ensemble
from model_serving.leaks import audit_ensemble
from model_serving.measured import RELIABILITY, SCORES
from model_serving.member_training import METRICS
from model_serving.model_card import MODEL_CARD
from model_serving.regions import PreparedRegion, keep_region
from model_serving.training import REPORT, Recipe, WindowSampler, train_ensemble

SIDE = 128
RECIPE = Recipe(batch=64, window_px=32)
TOLD = r"made 20(17|20) row \d+ column \d+ \d+ x \d+ px"


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


def test_a_batch_tells_what_it_was_cut_from(region: PreparedRegion):
    drawn = sampler(region)
    assert drawn.drawn == ()
    drawn.batch()
    assert len(drawn.drawn) == RECIPE.batch
    assert all(re.fullmatch(TOLD, told) for told in drawn.drawn)


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
    for name, executor in (("one", "processes"), ("two", "ray")):
        work = tmp_path / f"w-{name}"
        train_ensemble(tmp_path / name, work=work, executor=executor, **wanted)
        lines = [json.loads(line) for line in (work / METRICS).read_text().splitlines()]
        assert [(x["fold"], x["seed"], x["step"]) for x in lines] == [
            (fold, seed, step) for fold in (0, 1) for seed in (0, 1, 2) for step in (1, 2)
        ]
    assert checksums(tmp_path / "one") == checksums(tmp_path / "two")
    for name in (SCORES, RELIABILITY, REPORT):
        one, two = ((tmp_path / f"w-{run}" / name).read_bytes() for run in ("one", "two"))
        if name != REPORT:  # it tells the seconds
            assert one == two
            assert {"out of fold", "unseen"} == set(pd.read_csv(io.BytesIO(one)).maps)
    audited = audit_ensemble(tmp_path / "one", work=tmp_path / "w-one")
    assert (audited.leaks, audited.unseen) == ((), {})
    assert verdict(audited) == "no leak; 10 of 10 kinds were looked at in full"
    assert (tmp_path / "one" / MODEL_CARD).exists()
    assert not list((tmp_path / "w-one").rglob("*checkpoint*"))
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


def shrunk(region: PreparedRegion, folder: Path, *, name: str, ice_km2: float) -> PreparedRegion:
    """The same region under another name."""
    folder.mkdir()
    for file in region.folder.glob("*.npy"):
        (folder / file.name).write_bytes(file.read_bytes())
    made = replace(region, name=name, folder=folder, ice_km2=ice_km2, fingerprint=name)
    keep_region(made, "made")
    return made


@pytest.mark.slow
def test_regions_that_are_prepared_already_are_trained_on_with_some_aside_to_stop_by(
    region: PreparedRegion, tmp_path: Path
):
    own = [shrunk(region, tmp_path / n, name=n, ice_km2=1.0) for n in ("A", "B", "C", "D")]
    recipe = Recipe(
        folds=2,
        seeds=3,
        steps=4,
        batch=1,
        window_px=32,
        serve_window_px=96,
        validation_regions=1,
        validate_every=2,
        network="glacier-seg-paper",
        network_options={"widths": (8, 8), "embeddings": ("involution", "convolution")},
    )
    out = tmp_path / "out"
    card = train_ensemble(out, work=tmp_path / "work", regions=own, recipe=recipe)
    held = {r["name"]: r["fold"] for r in card["regions"]}
    for member in card["members"]:
        seen, aside = set(member["trained_on"]), set(member["validated_on"])
        assert len(seen) == len(aside) == 1
        assert not seen & aside
        assert all(held[name] != member["fold"] for name in seen | aside)
        assert member["validation"]["step"] in (2, 4)
    assert {tuple(m["validated_on"]) for m in card["members"] if m["fold"] == 0} == {
        (name,) for name, fold in held.items() if fold != 0
    }
    assert card["area_calibration"]["source"] == "not calibrated yet"
    assert audit_ensemble(out, work=tmp_path / "work").unseen == {}
    assert load_ensemble(out).config.widths == (8, 8)


def test_what_cannot_be_trained_is_refused_before_any_work(region: PreparedRegion, tmp_path: Path):
    own = [shrunk(region, tmp_path / n, name=n, ice_km2=1.0) for n in ("A", "B")]
    for wanted, told in (
        ({"regions": own, "specs": [small(0)]}, "not both"),
        ({"regions": [own[0], own[0]]}, "two regions named A"),
        ({"recipe": Recipe(folds=2, validate_every=5)}, "need each other"),
        ({"recipe": Recipe(folds=2, network_options={"wide": 3})}, "has no option wide"),
        ({"executor": "slurm"}, "no executor 'slurm'; known are processes, ray"),
    ):
        with pytest.raises(UsageError, match=told):
            train_ensemble(
                tmp_path / "out",
                work=tmp_path / "work",
                **{"regions": own, "recipe": Recipe(folds=2)} | wanted,
            )
    assert not (tmp_path / "out").exists()


def test_a_region_in_which_nothing_can_be_told_apart_is_refused(region: PreparedRegion):
    labels = np.zeros_like(region.labels())
    labels[:, 40:50] = UNKNOWN
    np.save(region.folder / "labels.npy", labels)
    with pytest.raises(DataError, match="nothing can be told apart in made: all of it is backgr"):
        sampler(region)
