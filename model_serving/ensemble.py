"""An ensemble on disk: members in safetensors, one card, and who may map which pixel.

Nothing here executes what it reads: weights are safetensors whose SHA-256 stands in the card.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from catalog.cube import CLASSES
from catalog.errors import UsageError
from model_serving.features import CHANNELS, Normalisation
from model_serving.folds import OUTSIDE, TrainingRegion
from model_serving.glacier_seg import GlacierSeg, GlacierSegConfig

__all__ = ["CARD", "Ensemble", "Member", "bits", "load_ensemble", "pack_member", "unpack_member"]

CARD = "card.json"
_DEFAULT = Path(__file__).parent / "weights" / "default"
_CARD_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Member:
    """One trained network of an ensemble."""

    name: str
    fold: int
    """Fold whose regions it never saw."""
    seed: int
    normalisation: Normalisation
    sha256: str
    """Checksum of its weights file."""
    orientation: int = 0
    """How it looks at a window: 0 as it is, 1 turned by half, 2 transposed. The scan runs one way
    only: members that look differently make different mistakes, and their mean fewer."""
    ice_offset: float = 0.0
    """Added to the logits of the ice classes; chosen on regions of other folds."""


@dataclass(frozen=True, slots=True)
class Ensemble:
    """An ensemble as described by its card; weights are loaded when asked for."""

    folder: Path
    card: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the ensemble."""
        return str(self.card["name"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the card, which holds the checksums of all weights."""
        text = json.dumps(self.card, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def config(self) -> GlacierSegConfig:
        """Shape shared by all members."""
        return GlacierSegConfig.from_dict(self.card["network"])

    @property
    def window_px(self) -> int:
        """Edge of the windows the members map best, pixels."""
        return int(self.card["window_px"])

    @property
    def members(self) -> tuple[Member, ...]:
        """All members, in the order of the bits of the ``votes`` layer."""
        return tuple(
            Member(
                m["name"],
                int(m["fold"]),
                int(m["seed"]),
                Normalisation(tuple(m["mean"]), tuple(m["std"])),
                m["sha256"],
                int(m.get("orientation", 0)),
                float(m.get("ice_offset", 0.0)),
            )
            for m in self.card["members"]
        )

    @property
    def regions(self) -> tuple[TrainingRegion, ...]:
        """Regions the members were trained on."""
        return tuple(TrainingRegion.from_dict(r) for r in self.card["regions"])

    @property
    def area_calibration(self) -> dict[str, Any]:
        """Factors on the ensemble's spread of areas and changes, and where they come from."""
        return dict(self.card["area_calibration"])

    def network(self, member: Member) -> GlacierSeg:
        """Load one member, ready for inference.

        Raises
        ------
        UsageError
            As :meth:`weights`.
        """
        return unpack_member(self.weights(member), self.config)

    def weights(self, member: Member) -> bytes:
        """Read the weights of one member.

        Raises
        ------
        UsageError
            Where they are missing or are not those of the card.
        """
        path = self.folder / f"{member.name}.safetensors"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UsageError(
                f"weights of member {member.name} are missing at {path}: {error}",
                kind="weights-missing",
            ) from error
        found = hashlib.sha256(data).hexdigest()
        if found != member.sha256:
            raise UsageError(
                f"{path} is not the file its card describes: sha256 {found[:12]}, "
                f"expected {member.sha256[:12]}; restore the ensemble folder",
                kind="weights-mismatch",
            )
        return data

    def may_vote(self, folds: npt.NDArray[np.int16]) -> npt.NDArray[np.bool_]:
        """Which member may vote at which pixel.

        Parameters
        ----------
        folds : ``(y, x)`` int16
            Fold map of the pixels, see :func:`model_serving.folds.fold_map`.

        Returns
        -------
        ``(member, y, x)`` bool
            Outside all training regions every member votes; inside one, only the members that
            hold it out.
        """
        own = np.array([m.fold for m in self.members], np.int16)[:, None, None]
        return np.asarray((folds == OUTSIDE) | (folds == own))


def load_ensemble(name_or_path: str | Path = "default") -> Ensemble:
    """Read the card of an ensemble.

    Parameters
    ----------
    name_or_path
        ``"default"`` for the ensemble shipped with the package, otherwise a folder.

    Raises
    ------
    UsageError
        Where there is no card, it cannot be used, it describes other bands or classes than the
        engine's, or the weights are not those it describes.
    """
    folder = _DEFAULT if str(name_or_path) == "default" else Path(name_or_path)
    try:
        card = json.loads((folder / CARD).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no ensemble at {folder}: {error}; give 'default' or a folder that holds {CARD}",
            kind="ensemble-missing",
        ) from error
    _check_card(card, folder)
    ensemble = Ensemble(folder, card)
    try:
        _ = ensemble.config, ensemble.regions, ensemble.window_px
        factors = [float(ensemble.area_calibration[k]) for k in ("scale", "regional_scale")]
        members = ensemble.members
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{folder / CARD} cannot be used: {error!r}", kind="ensemble-mismatch"
        ) from error
    if not all(factor > 0 for factor in factors):
        raise UsageError(
            f"{folder / CARD}: area_calibration needs positive factors, found {factors}",
            kind="ensemble-mismatch",
        )
    for member in members:
        ensemble.weights(member)
        # ^ before any work: an ensemble that cannot map must not be found out after the cubes
    return ensemble


def _check_card(card: Any, folder: Path) -> None:
    if not isinstance(card, dict):
        raise UsageError(f"{folder / CARD} holds no object", kind="ensemble-mismatch")
    expected = {
        "format": _CARD_FORMAT,
        "channels": list(CHANNELS),
        "classes": list(CLASSES),
    }
    for key, value in expected.items():
        if card.get(key) != value:
            raise UsageError(
                f"{folder / CARD}: {key} is {card.get(key)!r}, this engine expects {value!r}",
                kind="ensemble-mismatch",
            )
    missing = {"name", "network", "window_px", "members", "regions", "area_calibration"} - set(card)
    if missing:
        raise UsageError(
            f"{folder / CARD} lacks {', '.join(sorted(missing))}", kind="ensemble-mismatch"
        )
    if not 0 < len(card["members"]) <= 32:
        raise UsageError(
            f"{folder / CARD} names {len(card['members'])} members; 1 to 32 fit the votes layer",
            kind="ensemble-mismatch",
        )


def pack_member(network: GlacierSeg) -> bytes:
    """Serialise weights in half precision, the form in which members are stored and served."""
    state = network.state_dict()
    kept = {
        k: (v.half() if v.is_floating_point() else v).contiguous()
        for k, v in sorted(state.items())
        if not k.endswith("num_batches_tracked")
    }
    return save_tensors(kept)


def unpack_member(data: bytes, config: GlacierSegConfig) -> GlacierSeg:
    """Rebuild a network from :func:`pack_member`, in float32 and evaluation mode.

    Raises
    ------
    UsageError
        Where the file is damaged or holds other tensors than the network needs.
    """
    network = GlacierSeg(config)
    try:
        tensors = {k: v.float() for k, v in load_tensors(data).items()}
        result = network.load_state_dict(tensors, strict=False)
    except (RuntimeError, ValueError, OSError) as error:
        raise UsageError(f"weights do not fit the network: {error}", kind="weights-mismatch") from (
            error
        )
    except Exception as error:  # safetensors raises its own, undocumented class
        raise UsageError(f"weights are damaged: {error}", kind="weights-damaged") from error
    lost = [k for k in result.missing_keys if not k.endswith("num_batches_tracked")]
    if lost or result.unexpected_keys:
        raise UsageError(
            f"weights do not fit the network: missing {lost}, unknown {result.unexpected_keys}",
            kind="weights-mismatch",
        )
    return network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def bits(flags: Sequence[npt.NDArray[np.bool_]] | npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
    """Pack ``(member, y, x)`` booleans into one ``(y, x)`` uint32, member i in bit i."""
    out = np.zeros(np.asarray(flags[0]).shape, np.uint32)
    for i, flag in enumerate(flags):
        out |= flag.astype(np.uint32) << np.uint32(i)
    return out
