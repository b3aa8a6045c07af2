"""An ensemble that goes on learning in a user's region holds out that region's glaciers too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Small
from ensembles import write_ensemble
from safetensors.torch import load_file
from test_territories import region_of, squares

from catalog.errors import UsageError
from model_serving.ensemble import CARD, load_ensemble
from model_serving.fine_tuning import Tuning, _coarse, _groups, fine_tune, tune_member
from model_serving.folds import TrainingRegion, fold_map
from model_serving.leaks import audit_ensemble
from model_serving.losses import make_loss
from model_serving.model_card import MODEL_CARD
from model_serving.regions import PreparedRegion
from model_serving.territories import divide_region

QUICK = Tuning(steps=2, batch=1, window_px=32, validate_every=1, buffer_m=40.0)


@pytest.fixture
def region(tmp_path: Path) -> PreparedRegion:
    """Six glaciers, brighter than the ground, some of their ice debris-covered; a lake."""
    folder = tmp_path / "own"
    folder.mkdir()
    owners = squares((5, 5), (5, 50), (60, 30), (60, 90), (100, 10), (100, 100))
    made = region_of(folder, owners)
    labels = made.labels()
    labels[0, 12:17][labels[0, 12:17] == 1] = 2
    labels[0, 64:68][labels[0, 64:68] == 1] = 2
    labels[0, 40:50, 60:75] = 3
    features = np.random.default_rng(0).uniform(0.2, 0.4, (1, 11, 128, 128)).astype(np.float16)
    features[0, :6] += 0.4 * (labels[0] == 1)
    np.save(folder / "labels.npy", labels)
    np.save(folder / "features.npy", features)
    return made


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    far = [TrainingRegion(f"T{f}", f, f, (-10.0 + f, 40.0, -9.5 + f, 40.5), 9, 8.0) for f in (0, 1)]
    return write_ensemble(tmp_path / "parent", regions=tuple(far))


@pytest.mark.slow
def test_each_member_goes_on_from_its_own_weights_without_the_glaciers_it_will_map(
    region: PreparedRegion, parent: Path, tmp_path: Path
):
    before = load_ensemble(parent)
    wanted = {"tuning": QUICK, "workers": 1}
    card = fine_tune(before, region, tmp_path / "out", work=tmp_path / "w", **wanted)
    after = load_ensemble(tmp_path / "out")
    assert after.card == json.loads(json.dumps(card))
    shared = divide_region(region, [0, 1])
    for old, new, entry in zip(before.members, after.members, card["members"], strict=True):
        (fold,) = new.folds
        assert (old.name, old.folds, old.normalisation) == (new.name, new.folds, new.normalisation)
        assert entry["parent_sha256"] == old.sha256 != new.sha256
        own = {f"own/{g}" for g in shared.held_out(fold)}
        aside = set(entry["validated_on"])
        tuned = {f"own/{g}" for g in entry["tuned_glaciers"]}
        assert own.isdisjoint(aside | tuned)
        assert f"own/fold{fold}" not in entry["trained_on"]
        assert f"own/fold{1 - fold}" in entry["trained_on"]
        assert aside.isdisjoint(tuned)
        assert len(own | aside | tuned) == 6
    audited = audit_ensemble(tmp_path / "out")
    assert audited.leaks == ()
    assert "own/fold0" in audited.unseen["barrier"]
    assert card["fine_tuning"]["held_out"] == {
        str(fold): [f"own/{g}" for g in shared.held_out(fold)] for fold in (0, 1)
    }
    assert card["parent"]["fingerprint"] == before.fingerprint
    assert card["parent"]["members"] == {m.name: m.sha256 for m in before.members}
    assert "not measured again" in card["area_calibration"]["source"]
    assert "Fine-tuned on own" in (tmp_path / "out" / MODEL_CARD).read_text()
    # Who may vote where: inside the region only those that hold the nearest glacier out.
    owners = region.owners()
    for shard in region.grid.shards():
        place = (
            slice(shard.row * 64, shard.row * 64 + 64),
            slice(shard.col * 64, shard.col * 64 + 64),
        )
        votes = after.may_vote(fold_map(shard, after.regions))
        for member, may in zip(after.members, votes, strict=True):
            voted = set(np.unique(owners[place][may])) - {0}
            assert voted <= set(shared.held_out(member.folds[0]))
    # Again from nothing, and by Ray: the same ensemble, byte for byte.
    fine_tune(before, region, tmp_path / "two", work=tmp_path / "w2", executor="ray", **wanted)
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "two").iterdir())
    for name in names:
        one, two = ((tmp_path / d / name).read_bytes() for d in ("out", "two"))
        assert hashlib.sha256(one).digest() == hashlib.sha256(two).digest(), name


@pytest.mark.parametrize(
    ("condition", "may_change"),
    [
        ("statistics", ("running_mean", "running_var")),
        ("affine", ("norm", "project")),
        ("all", ("",)),
    ],
)
def test_only_what_the_region_conditions_changes(
    condition: str,
    may_change: tuple[str, ...],
    region: PreparedRegion,
    parent: Path,
    tmp_path: Path,
):
    entry = tune_member(
        parent=parent,
        number=1,
        region=region,
        territories=divide_region(region, [0, 1]),
        tuning=replace(QUICK, condition=condition, statistics_batches=2),
        folder=tmp_path / "members",
    )
    old = load_file(parent / f"{entry['name']}.safetensors")
    new = load_file(tmp_path / "members" / f"{entry['name']}.safetensors")
    changed = {k for k in old if not torch.equal(old[k].float(), new[k].float())}
    assert changed
    assert all(any(part in name for part in may_change) for name in changed), changed
    statistics = {k for k in changed if "running" in k}
    assert bool(statistics) == (condition == "statistics")
    assert ("validated_on" in entry) == (condition != "statistics")


def test_classes_that_the_labels_do_not_tell_apart_are_learnt_as_one(region: PreparedRegion):
    assert _groups(region) == ((0,), (1,), (2,), (3,))
    np.save(region.folder / "labels.npy", np.minimum(region.labels(), 1))
    assert _groups(region) == ((0, 3), (1, 2))


def test_a_merged_loss_asks_for_the_sum_of_the_probabilities():
    weights = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    merged = _coarse("ce_dice", weights, ((0, 3), (1, 2)))
    labels = torch.tensor([[[0, 1], [255, 1]]])
    torch.manual_seed(0)
    logits = torch.randn(1, 4, 2, 2)
    p = logits.softmax(dim=1)
    by_hand = torch.stack([p[:, 0] + p[:, 3], p[:, 1] + p[:, 2]], dim=1).log()
    two = make_loss("ce_dice", class_weights=weights[:2])
    assert merged(logits, labels).item() == pytest.approx(two(by_hand, labels).item(), rel=1e-5)
    # What stays among the merged classes costs nothing.
    turned = logits[:, [3, 2, 1, 0]]
    assert merged(turned, labels).item() == pytest.approx(merged(logits, labels).item(), rel=1e-5)


def test_an_ensemble_that_has_seen_the_place_or_holds_nothing_out_is_refused(
    region: PreparedRegion, parent: Path, tmp_path: Path
):
    card = json.loads((parent / CARD).read_text())
    near = TrainingRegion("NEAR", 1, 1, (10.0, 46.0, 10.5, 46.5), 2, 1.0)
    for change, kind, told in (
        ({"regions": [near.to_dict()]}, "region-seen", "trained on NEAR, which own meets"),
        (
            {"members": [m | {"fold": 0} for m in card["members"]]},
            "tuning-unfit",
            "holds out one of at least two folds",
        ),
    ):
        (parent / CARD).write_text(json.dumps(card | change))
        with pytest.raises(UsageError, match=told) as caught:
            fine_tune(load_ensemble(parent), region, tmp_path / "out", work=tmp_path / "w")
        assert caught.value.kind == kind
    with pytest.raises(UsageError, match="condition 'style' is none of"):
        Tuning(condition="style")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_tunes_an_ensemble_on_a_region_that_was_mapped(
    small: Small, finished: Path, engine: Callable[..., Any], tmp_path: Path
):
    settings = small.settings(tmp_path, workspace=str(finished / "work"))
    out = tmp_path / "out"
    process = engine(
        "fine-tune",
        out,
        "--region",
        settings,
        "--ensemble",
        small.ensemble,
        "--steps",
        2,
        "--cut-complexes",
        "--work",
        tmp_path / "work",
        "--season",
        "2018",
    )
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert "3 members in" in told
    assert "IoU on glaciers they have not seen:" in told
    tuned = load_ensemble(out)
    assert tuned.name == "untrained-small"
    assert {r.name for r in tuned.regions} == {f"small/fold{f}" for f in (0, 1, 2)}
