"""Map one shard: read the cube, run every member that may vote, blend, write once.

Deterministic: for a fixed runtime equal inputs give equal bytes, whatever the order or the number
of workers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from catalog.cube import (
    CLASSES,
    ICE_CLASSES,
    MIN_MEMBERS,
    NOT_SEEN,
    Outcome,
    Workspace,
    create_layer,
    read_shard,
    terrain_name,
    write_shard,
)
from catalog.errors import UsageError
from catalog.grid import RegionGrid, Shard
from model_serving.ensemble import Ensemble, Member, bits
from model_serving.features import CHANNELS, GROUPS, raw_features
from model_serving.folds import fold_map
from model_serving.onnx_members import engine_probabilities
from model_serving.patches import MAP_HALO_PX, WindowPlan
from model_serving.runtimes import Predictor, Runtime, choose_runtime

__all__ = [
    "ShardMapper",
    "create_map",
    "map_features",
    "map_halo_px",
    "map_shard",
    "with_ice_offset",
]

Array = npt.NDArray[Any]

_LAYERS = ("probability", "spread", "votes", "voters")


def map_halo_px(window_px: int, shard_px: int) -> int:
    """How far beyond a shard its map reads, pixels.

    Windows overlap by :data:`MAP_HALO_PX`; a shard smaller than a window is widened to it, so that
    any shard size can be mapped.
    """
    return max(MAP_HALO_PX, -(-(window_px - shard_px) // 2))


def create_map(workspace: Workspace, season: str, grid: RegionGrid) -> None:
    """Create the layers of ``map.zarr/<season>`` unless they are there."""
    for layer in _LAYERS:
        create_layer(workspace, f"map.zarr/{season}/{layer}", grid)


def with_ice_offset(probability: Array, offset: float) -> Array:
    """Shift the log-odds of ice, ``(class, y, x)`` float32 summing to 1 before and after.

    Where nothing was seen all classes are 0, and stay so.
    """
    if offset == 0.0:
        return probability
    shifted = probability.copy()
    shifted[list(ICE_CLASSES)] *= np.float32(np.exp(offset))
    total = shifted.sum(axis=0)
    return np.asarray(shifted / np.where(total > 0, total, 1))


def _turned(raster: Array, orientation: int) -> Array:
    """Turn ``(..., y, x)`` by half (1) or transpose it (2); each undoes itself."""
    if orientation == 1:
        return np.ascontiguousarray(raster[..., ::-1, ::-1])
    return np.ascontiguousarray(raster.swapaxes(-1, -2)) if orientation == 2 else raster


def map_features(predict: Predictor, raw: Array, member: Member, *, plan: WindowPlan) -> Array:
    """Class probabilities of a whole raster by one member, window by window, blended.

    Parameters
    ----------
    predict
        The member, ready to be run.
    raw : ``(channel, y, x)`` float32
        See :func:`model_serving.features.raw_features`.
    member
        Whose network it is: its inputs, normalisation, orientation, temperature and offset are
        applied.
    plan
        Windows.

    Returns
    -------
    ``(class, y, x)`` float32, summing to 1
    """
    seen = np.isfinite(raw[0])
    if member.channels != CHANNELS:
        raw = raw[[CHANNELS.index(name) for name in member.channels]]
    raw, seen = _turned(raw, member.orientation), _turned(seen, member.orientation)
    height, width = raw.shape[-2:]
    total = np.zeros((len(CLASSES), height, width), np.float32)
    weight_sum = np.zeros((height, width), np.float32)
    weights = plan.weights()
    for window in plan.windows(height, width):
        if not seen[window].any():
            weight_sum[window] += weights
            continue
        output = predict(member.normalisation.apply(raw[(slice(None), *window)]))
        if member.temperature != 1.0:
            output = output / np.float32(member.temperature)
        probability = engine_probabilities(output, member.classes, logits=member.logits)
        total[(slice(None), *window)] += probability * weights
        weight_sum[window] += weights
    blended = _turned(total / weight_sum, member.orientation)
    return with_ice_offset(blended, member.ice_offset / member.temperature)
    # ^ the offset is one of logits before they are divided


class ShardMapper:
    """Maps shards with one ensemble, holding the members in memory between shards.

    Parameters
    ----------
    workspace
        Holds the cube and receives the map.
    ensemble
        Who votes.
    runtime
        How the networks are run; part of the result's identity. The default runtime if not given.
    """

    def __init__(
        self, workspace: Workspace, ensemble: Ensemble, *, runtime: Runtime | None = None
    ) -> None:
        self.runtime = runtime or choose_runtime(config=ensemble.config)
        self.workspace = workspace
        self.ensemble = ensemble
        self.plan = ensemble.window_plan
        self._predictors: dict[str, Predictor] = {}

    def predictor(self, member: Member) -> Predictor:
        """The member, ready to be run; loaded once."""
        if member.name not in self._predictors:
            self._predictors[member.name] = self.ensemble.predictor(member, self.runtime)
        return self._predictors[member.name]

    def read_features(self, season: str, shard: Shard, *, halo: int) -> tuple[Array, list[str]]:
        """Raw features of a shard with a halo, and the groups of inputs that are present."""

        def layer(name: str) -> Array | None:
            if not self.workspace.has_array(name):
                return None
            return read_shard(self.workspace, name, shard, halo=halo)

        optical = layer(f"cube.zarr/{season}/optical")
        if optical is None:
            raise UsageError(f"season {season} has no cube yet; run the cube stage first")
        sar, terrain = layer(f"cube.zarr/{season}/sar"), layer(terrain_name(shard.grid))
        present = ["optical"]
        if sar is not None and (sar > 0).any():
            present.append("sar")
        raw = raw_features(optical, sar, terrain)
        if np.isfinite(raw[GROUPS["terrain"]]).any():
            present.append("terrain")
        return raw, present

    def map(self, season: str, shard: Shard) -> Outcome:
        """Map one shard and write its piece of ``map.zarr/<season>``."""
        torch.set_num_threads(self.runtime.threads)
        # ^ OpenMP counts for each calling thread anew, and Ray builds and calls in different ones
        halo = map_halo_px(self.plan.window, shard.grid.shard_px)
        raw, present = self.read_features(season, shard, halo=halo)
        inner = (..., slice(halo, -halo), slice(halo, -halo))
        seen = np.isfinite(raw[0])[inner]
        allowed = self.ensemble.may_vote(fold_map(shard, self.ensemble.regions)) & seen
        votes = [np.zeros(seen.shape, bool)] * len(allowed)
        mean = np.zeros((len(CLASSES), *seen.shape), np.float64)
        first = np.zeros(seen.shape, np.float64)
        second = np.zeros(seen.shape, np.float64)
        for i, member in enumerate(self.ensemble.members):
            if not allowed[i].any():
                continue
            predict = self.predictor(member)
            probability = map_features(predict, raw, member, plan=self.plan)[inner]
            ice = probability[list(ICE_CLASSES)].sum(axis=0)
            mean += np.where(allowed[i], probability, 0)
            first += np.where(allowed[i], ice, 0)
            second += np.where(allowed[i], ice.astype(np.float64) ** 2, 0)
            votes[i] = allowed[i] & (ice >= 0.5)
        count = allowed.sum(axis=0)
        layers = {
            "probability": _quantised(mean / np.maximum(count, 1), count > 0),
            "spread": _quantised(
                np.sqrt(
                    np.maximum(second - first**2 / np.maximum(count, 1), 0)
                    / np.maximum(count - 1, 1)
                ),
                count >= MIN_MEMBERS,
            ),
            "votes": bits(votes),
            "voters": bits(list(allowed)),
        }
        outputs = {}
        for name, values in layers.items():
            array = f"map.zarr/{season}/{name}"
            outputs[f"{array}/{shard.id}"] = write_shard(self.workspace, array, shard, values)
        facts = {
            "inputs": present,
            "seen_fraction": round(float(seen.mean()), 6),
            "members": [m.name for i, m in enumerate(self.ensemble.members) if allowed[i].any()],
        }
        return Outcome(outputs, facts=facts)


def map_shard(
    workspace: Workspace,
    season: str,
    shard: Shard,
    ensemble: Ensemble,
    *,
    runtime: Runtime | None = None,
) -> Outcome:
    """Map one shard on its own; see :class:`ShardMapper` for many."""
    return ShardMapper(workspace, ensemble, runtime=runtime).map(season, shard)


def _quantised(values: Array, valid: Array) -> Array:
    """Store values in [0, 1] as 0..254; :data:`NOT_SEEN` where not valid."""
    stored = np.clip(np.rint(values * 254), 0, 254).astype(np.uint8)
    return np.where(valid, stored, np.uint8(NOT_SEEN))
