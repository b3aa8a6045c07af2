"""An ensemble on disk: members in safetensors or ONNX, one card, and who may map which pixel.

Nothing here executes what it reads: weights are safetensors, or ONNX models of standard operators,
whose SHA-256 stands in the card.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from catalog.cube import CLASSES, ICE_CLASSES, Workspace
from catalog.errors import UsageError
from model_serving.features import CHANNELS, Normalisation
from model_serving.folds import OUTSIDE, TrainingRegion
from model_serving.glacier_seg import GlacierSeg, GlacierSegConfig
from model_serving.onnx_members import CLASS_NAMES, check_onnx
from model_serving.patches import MAP_HALO_PX, WindowPlan
from model_serving.runtimes import Predictor, Runtime

__all__ = [
    "CARD",
    "Ensemble",
    "Member",
    "bits",
    "export_ensemble",
    "load_ensemble",
    "pack_member",
    "unpack_member",
]

CARD = "card.json"
_DEFAULT = Path(__file__).parent / "weights" / "default"
_CARD_FORMAT = 1
_ORIENTATIONS = (0, 1, 2)
_LARGEST_OFFSET = 20.0
# ^ of log-odds: with more, a class is certain everywhere
_COLDEST = 0.05
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Member:
    """One trained network of an ensemble."""

    name: str
    folds: tuple[int, ...]
    """Folds whose regions it never saw; none if it was trained on all regions of the card."""
    seed: int
    normalisation: Normalisation
    sha256: str
    """Checksum of its weights file."""
    file: str = ""
    """Name of its weights file."""
    channels: tuple[str, ...] = CHANNELS
    """Inputs it takes, in its order."""
    classes: tuple[str, ...] = CLASSES
    """What it tells apart, in its order."""
    logits: bool = True
    """Whether it gives logits, not probabilities."""
    orientation: int = 0
    """How it looks at a window: 0 as it is, 1 turned by half, 2 transposed. The scan runs one way
    only: members that look differently make different mistakes, and their mean fewer."""
    ice_offset: float = 0.0
    """Added to the logits of the ice classes; chosen on regions of other folds."""
    temperature: float = 1.0
    """What its logits are divided by, so that its probabilities are shares; as the offset."""

    @property
    def is_onnx(self) -> bool:
        """Whether it is an ONNX model that somebody brought."""
        return self.file.endswith(".onnx")

    @classmethod
    def from_card(cls, entry: dict[str, Any]) -> Member:
        """Read one entry of a card's ``members``.

        Raises
        ------
        KeyError, TypeError, ValueError
            Where something is missing or cannot be understood.
        """
        file = str(entry.get("file", f"{entry['name']}.safetensors"))
        if Path(file).name != file or not file.endswith((".safetensors", ".onnx")):
            raise ValueError(f"file {file!r} must be a .safetensors or .onnx file in the folder")
        held_out = entry["fold"]
        member = cls(
            name=str(entry["name"]),
            folds=tuple(held_out or ()) if not isinstance(held_out, int) else (held_out,),
            seed=int(entry.get("seed", 0)),
            normalisation=Normalisation(
                tuple(float(v) for v in entry["mean"]), tuple(float(v) for v in entry["std"])
            ),
            sha256=str(entry["sha256"]),
            file=file,
            channels=tuple(entry.get("channels", CHANNELS)),
            classes=tuple(entry.get("classes", CLASSES)),
            logits={"logits": True, "probabilities": False}[entry.get("output", "logits")],
            orientation=int(entry.get("orientation", 0)),
            ice_offset=float(entry.get("ice_offset", 0.0)),
            temperature=float(entry.get("temperature", 1.0)),
        )
        member._check()
        return member

    def _check(self) -> None:
        self._check_numbers()
        unknown = set(self.channels) - set(CHANNELS)
        strange = set(self.classes) - set(CLASS_NAMES)
        if unknown or len(set(self.channels)) != len(self.channels) or not self.channels:
            raise ValueError(
                f"{self.name}: channels {list(self.channels)} are not some of {list(CHANNELS)}"
            )
        if strange or not any(CLASS_NAMES[c] in ICE_CLASSES for c in self.classes):
            raise ValueError(
                f"{self.name}: classes {list(self.classes)} are not some of {list(CLASS_NAMES)} "
                "with an ice class among them"
            )
        if not len(self.normalisation.mean) == len(self.normalisation.std) == len(self.channels):
            raise ValueError(f"{self.name}: mean and std need {len(self.channels)} values")
        if not self.is_onnx and (self.channels != CHANNELS or self.classes != CLASSES):
            raise ValueError(
                f"{self.name}: only an ONNX member has channels and classes of its own"
            )

    def _check_numbers(self) -> None:
        mean, std = self.normalisation.mean, self.normalisation.std
        if not np.isfinite([*mean, *std]).all() or min(std, default=0.0) <= 0:
            raise ValueError(f"{self.name}: mean and std must be finite, std positive")
        if self.orientation not in _ORIENTATIONS:
            raise ValueError(f"{self.name}: orientation {self.orientation} is none of 0, 1, 2")
        if not abs(self.ice_offset) <= _LARGEST_OFFSET:
            raise ValueError(f"{self.name}: ice_offset {self.ice_offset} is beyond 20")
        if not _COLDEST <= self.temperature <= 1 / _COLDEST:
            raise ValueError(f"{self.name}: temperature {self.temperature} is not in 0.05 to 20")
        if self.temperature != 1.0 and not self.logits:
            raise ValueError(f"{self.name}: a temperature needs a network that gives logits")
        if not all(isinstance(fold, int) for fold in self.folds):
            raise ValueError(f"{self.name}: fold {self.folds} is no whole number, nor several")


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
    def config(self) -> GlacierSegConfig | None:
        """Shape shared by all members that are no ONNX models; None where all are."""
        return GlacierSegConfig.from_dict(self.card["network"]) if "network" in self.card else None

    @property
    def brings_onnx(self) -> bool:
        """Whether any member is an ONNX model."""
        return any(member.is_onnx for member in self.members)

    @property
    def window_px(self) -> int:
        """Edge of the windows the members map best, pixels."""
        return int(self.card["window_px"])

    @property
    def window_plan(self) -> WindowPlan:
        """How its windows cover a raster."""
        return WindowPlan(self.window_px, self.window_px - 2 * MAP_HALO_PX)

    @property
    def resolution_m(self) -> tuple[float, float]:
        """Finest and coarsest pixel edge it was trained for; any, where the card does not say."""
        finest, coarsest = self.card.get("resolution_m", (0.0, np.inf))
        return float(finest), float(coarsest)

    @property
    def members(self) -> tuple[Member, ...]:
        """All members, in the order of the bits of the ``votes`` layer."""
        return tuple(Member.from_card(m) for m in self.card["members"])

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
        if member.is_onnx or self.config is None:
            raise UsageError(
                f"member {member.name} is an ONNX model, which has no trainable form here",
                kind="ensemble-mismatch",
            )
        return unpack_member(self.weights(member), self.config)

    def predictor(self, member: Member, runtime: Runtime) -> Predictor:
        """Load one member, ready to be run.

        Raises
        ------
        UsageError
            As :meth:`weights`, and where the runtime cannot run it.
        """
        if member.is_onnx:
            return runtime.onnx_predictor(self.weights(member))
        return runtime.predictor(self.network(member))

    def weights(self, member: Member) -> bytes:
        """Read the weights of one member.

        Raises
        ------
        UsageError
            Where they are missing or are not those of the card.
        """
        path = self.folder / member.file
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
        return np.stack([np.isin(folds, (OUTSIDE, *m.folds)) for m in self.members])


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
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"no ensemble at {folder}: {error}; give 'default' or a folder that holds {CARD}",
            kind="ensemble-missing",
        ) from error
    _check_card(card, folder)
    ensemble = Ensemble(folder, card)
    try:
        _ = ensemble.config, ensemble.regions, ensemble.window_px, ensemble.resolution_m
        factors = [float(ensemble.area_calibration[k]) for k in ("scale", "regional_scale")]
        members = ensemble.members
        _check_window(ensemble)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{folder / CARD} cannot be used: {error!r}", kind="ensemble-mismatch"
        ) from error
    if not all(0 < factor < np.inf for factor in factors):
        raise UsageError(
            f"{folder / CARD}: area_calibration needs positive factors, found {factors}",
            kind="ensemble-mismatch",
        )
    twice = [
        f"{a.name} and {b.name}"
        for a, b in combinations(members, 2)
        if a.name == b.name or (a.sha256, a.orientation) == (b.sha256, b.orientation)
    ]
    if twice:
        raise UsageError(
            f"{folder / CARD}: {', '.join(twice)} are one member, which must not vote twice",
            kind="ensemble-mismatch",
        )
    shapes = {} if ensemble.config is None else _shapes(ensemble.config)
    for member in members:
        # Before any work: an ensemble that cannot map must not be found out after the cubes.
        weights = ensemble.weights(member)
        if member.is_onnx:
            check_onnx(
                weights,
                where=str(folder / member.file),
                channels=len(member.channels),
                classes=len(member.classes),
                window_px=ensemble.window_px,
            )
        elif ensemble.config is not None:
            _fitting(weights, shapes)
    return ensemble


def export_ensemble(
    ensemble: Ensemble, folder: str | Path, *, progress: Progress | None = None
) -> list[Path]:
    """Write every member as an ONNX model, and a card that makes the folder an ensemble.

    Parameters
    ----------
    ensemble
        What to write.
    folder
        Where to; files that are there are replaced, the card last.
    progress
        Called with what is done, how many are and how many there are.

    Returns
    -------
    list of Path
        The models.

    Raises
    ------
    UsageError
        Where onnx is missing.
    StoreError
        Where a file cannot be written.
    """
    from model_serving.export import export

    folder, files, entries = Path(folder), [], []
    for member, entry in zip(ensemble.members, ensemble.card["members"], strict=True):
        path = folder / f"{member.name}.onnx"
        if member.is_onnx:
            Workspace(folder).put(path.name, ensemble.weights(member))
        else:
            network, window = ensemble.network(member), ensemble.window_px
            export(network, path, channels=CHANNELS, classes=CLASSES, window_px=window)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        entries.append(entry | {"file": path.name, "sha256": sha256})
        files.append(path)
        if progress:
            progress("members", len(files), len(ensemble.members))
    card = {k: v for k, v in ensemble.card.items() if k != "network"} | {"members": entries}
    Workspace(folder).put(CARD, json.dumps(card, indent=1).encode())
    return files


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
    members = card.get("members", [])
    if not isinstance(members, list) or not all(isinstance(m, dict) for m in members):
        raise UsageError(
            f"{folder / CARD}: members is no list of objects", kind="ensemble-mismatch"
        )
    needed = {"name", "window_px", "members", "regions", "area_calibration"}
    if any("file" not in m for m in members):
        needed.add("network")
    missing = needed - set(card)
    if missing:
        raise UsageError(
            f"{folder / CARD} lacks {', '.join(sorted(missing))}", kind="ensemble-mismatch"
        )
    if not 0 < len(members) <= 32:
        raise UsageError(
            f"{folder / CARD} names {len(members)} members; 1 to 32 fit the votes layer",
            kind="ensemble-mismatch",
        )


def _check_window(ensemble: Ensemble) -> None:
    window, config = ensemble.window_px, ensemble.config
    stride = config.stride if config is not None else 1
    shared = 2 * MAP_HALO_PX
    if window <= shared or window % stride:
        raise ValueError(
            f"window_px {window} must be a multiple of {stride} and more than {shared}"
        )


def _shapes(config: GlacierSegConfig) -> dict[str, torch.Size]:
    """Names and shapes of the tensors of a network, without making one.

    Raises
    ------
    UsageError
        Where there is no network of that shape.
    """
    try:
        with torch.device("meta"):
            return {k: v.shape for k, v in GlacierSeg(config).state_dict().items()}
    except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(
            f"there is no network of the shape {config}: {error}", kind="ensemble-mismatch"
        ) from error


def _check_tensors(tensors: dict[str, torch.Tensor], shapes: dict[str, torch.Size]) -> None:
    counters = {k for k in shapes if k.endswith("num_batches_tracked")}
    lost = sorted(shapes.keys() - counters - tensors.keys())
    strange = sorted(tensors.keys() - shapes.keys())
    other = [
        f"size mismatch for {k}: {tuple(v.shape)}, the network has {tuple(shapes[k])}"
        for k, v in tensors.items()
        if k in shapes and v.shape != shapes[k]
    ]
    if lost or strange or other:
        raise UsageError(
            f"weights do not fit the network: missing {lost}, unknown {strange}; "
            + "; ".join(other[:3]),
            kind="weights-mismatch",
        )
    for name, value in tensors.items():
        if not value.is_floating_point():
            raise UsageError(
                f"weights are damaged: {name} is {value.dtype}", kind="weights-damaged"
            )
        if not bool(value.isfinite().all()) or (
            name.endswith("running_var") and bool((value < 0).any())
        ):
            # An infinite variance switches off what it normalises, and every map looks all right.
            raise UsageError(
                f"weights are damaged: {name} holds numbers that no training leaves behind",
                kind="weights-damaged",
            )


def _fitting(data: bytes, shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    try:
        tensors = load_tensors(data)
    except Exception as error:  # safetensors raises its own, undocumented class
        raise UsageError(f"weights are damaged: {error}", kind="weights-damaged") from error
    _check_tensors(tensors, shapes)
    return tensors


def pack_member(network: GlacierSeg) -> bytes:
    """Serialise weights in half precision, the form in which members are stored and served.

    A tensor with numbers that half precision does not hold, such as a large variance, stays as it
    is: infinite, it would switch off what it normalises, and nobody would see.
    """
    state = network.state_dict()
    kept = {
        k: (v.half() if bool(v.half().isfinite().all()) else v).contiguous()
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
    tensors = _fitting(data, _shapes(config))
    network = GlacierSeg(config)
    network.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=False)
    return network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def bits(flags: Sequence[npt.NDArray[np.bool_]] | npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
    """Pack ``(member, y, x)`` booleans into one ``(y, x)`` uint32, member i in bit i."""
    out = np.zeros(np.asarray(flags[0]).shape, np.uint32)
    for i, flag in enumerate(flags):
        out |= flag.astype(np.uint32) << np.uint32(i)
    return out
