"""A shard is mapped once, the same way every time, and never by a member that saw it."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import torch
from ensembles import write_ensemble

from catalog.cube import NOT_SEEN, Workspace, create_layer, read_shard, write_shard
from catalog.errors import UsageError
from catalog.grid import region_grid
from model_serving.ensemble import load_ensemble
from model_serving.folds import TrainingRegion
from model_serving.inference import ShardMapper, create_map, map_shard

SEASON = "2024"


@pytest.fixture(scope="module")
def grid():
    return region_grid([10.0, 10.06], [46.0, 46.02], resolution_m=20, shard_px=256, chunk_px=64)


@pytest.fixture(scope="module")
def painted(grid, tmp_path_factory):
    """A cube of smooth random reflectance with a corner that was never seen."""
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    create_layer(workspace, f"cube.zarr/{SEASON}/optical", grid)
    rng = np.random.default_rng(0)
    for shard in grid.shards():
        coarse = rng.uniform(1200, 9000, (6, 8, 8))
        values = np.kron(coarse, np.ones((32, 32))).astype(np.uint16)
        values[:, :50, :40] = 0
        write_shard(workspace, f"cube.zarr/{SEASON}/optical", shard, values)
    create_map(workspace, SEASON, grid)
    return workspace


def layer(workspace, name, shard):
    return read_shard(workspace, f"map.zarr/{SEASON}/{name}", shard)


def test_outside_all_training_regions_every_member_votes(painted, grid, tmp_path):
    ensemble = load_ensemble(write_ensemble(tmp_path / "ensemble"))
    shard = grid.shard(0, 0)
    outcome = map_shard(painted, SEASON, shard, ensemble)
    probability = layer(painted, "probability", shard)
    unseen = np.zeros((256, 256), bool)
    unseen[:50, :40] = True
    assert (probability[:, unseen] == NOT_SEEN).all()
    assert np.abs(probability[:, ~unseen].astype(int).sum(axis=0) - 254).max() <= 2
    assert set(np.unique(layer(painted, "voters", shard)[~unseen])) == {0b111111}
    assert (layer(painted, "voters", shard)[unseen] == 0).all()
    assert (layer(painted, "spread", shard)[~unseen] != NOT_SEEN).all()
    assert outcome.facts["inputs"] == ["optical"]
    assert len(outcome.outputs) == 4


def test_no_member_maps_a_region_it_was_trained_on(painted, grid, tmp_path):
    shard = grid.shard(0, 0)
    west, south, east, north = shard.lonlat_boxes[0]
    half = TrainingRegion("seen", 1, 1, (west, south, (west + east) / 2, north), 1, 1.0)
    ensemble = load_ensemble(write_ensemble(tmp_path / "ensemble", regions=(half,)))
    map_shard(painted, SEASON, shard, ensemble)
    voters = layer(painted, "voters", shard)
    seen = voters > 0
    holders = 0b111000  # the three members of fold 1 held the region out
    assert set(np.unique(voters[:, :100][seen[:, :100]])) == {holders}
    assert set(np.unique(voters[:, 160:][seen[:, 160:]])) == {0b111111}
    assert (layer(painted, "votes", shard) & ~voters == 0).all()
    mapped = {name: layer(painted, name, shard) for name in ("probability", "spread")}
    holders_only = write_ensemble(tmp_path / "holders", folds=2)
    card = json.loads((holders_only / "card.json").read_text())
    card["members"] = [m for m in card["members"] if m["fold"] == 1]
    (holders_only / "card.json").write_text(json.dumps(card))
    map_shard(painted, SEASON, shard, load_ensemble(holders_only))
    # Where the others saw the region, the map is the one that they had no part in.
    for name, values in mapped.items():
        alone = layer(painted, name, shard)
        assert (values[..., :100] == alone[..., :100]).all()
        assert (values[..., 160:] != alone[..., 160:]).any()


def test_with_fewer_than_three_voters_the_spread_is_not_available(painted, grid, tmp_path):
    ensemble = load_ensemble(write_ensemble(tmp_path / "ensemble", folds=1, seeds=2))
    shard = grid.shard(0, 0)
    map_shard(painted, SEASON, shard, ensemble)
    assert (layer(painted, "spread", shard) == NOT_SEEN).all()
    assert (layer(painted, "probability", shard) != NOT_SEEN).any()


def test_order_and_company_of_shards_do_not_change_a_byte(painted, grid, tmp_path):
    ensemble = load_ensemble(write_ensemble(tmp_path / "ensemble"))
    shards = list(grid.shards())
    mapper = ShardMapper(painted, ensemble)
    forwards = [mapper.map(SEASON, s).outputs for s in shards]
    fresh = [ShardMapper(painted, ensemble).map(SEASON, s).outputs for s in reversed(shards)]
    assert forwards == fresh[::-1]


def test_a_mapper_keeps_to_its_threads_also_when_another_thread_calls_it(painted, grid, tmp_path):
    mapper = ShardMapper(painted, load_ensemble(write_ensemble(tmp_path / "ensemble")))
    counted = []

    def call():
        torch.set_num_threads(2)
        mapper.map(SEASON, grid.shard(0, 0))
        counted.append(torch.get_num_threads())

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert counted == [1]


def test_a_season_without_a_cube_and_foreign_weights_are_refused(painted, grid, tmp_path):
    folder = write_ensemble(tmp_path / "ensemble")
    with pytest.raises(UsageError, match="no cube yet"):
        map_shard(painted, "1999", grid.shard(0, 0), load_ensemble(folder))
    weights = folder / "member-f1-s2.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UsageError, match="not the file its card describes"):
        load_ensemble(folder)
    weights.unlink()
    with pytest.raises(UsageError, match="weights of member member-f1-s2 are missing"):
        load_ensemble(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda card: [card], "holds no object"),
        (lambda card: card | {"area_calibration": {}}, "cannot be used: KeyError"),
        (lambda card: card | {"area_calibration": {"scale": 0, "regional_scale": 1}}, "positive"),
        (lambda card: card | {"members": [{"name": "a"}]}, "cannot be used"),
        (lambda card: card | {"members": []}, "names 0 members"),
        (lambda card: card | {"regions": [{"name": "x"}]}, "cannot be used"),
        (lambda card: card | {"network": {}}, "cannot be used"),
        (lambda card: card | {"classes": ["ice"]}, "classes is"),
    ],
)
def test_a_card_that_cannot_be_used_is_refused_in_words(tmp_path, change, words):
    folder = write_ensemble(tmp_path / "ensemble", folds=1)
    card = folder / "card.json"
    card.write_text(json.dumps(change(json.loads(card.read_text()))))
    with pytest.raises(UsageError, match=words):
        load_ensemble(folder)
