"""Networks that others segment such images with, at our channels and classes, as ONNX models.

Random weights: what is compared is speed and memory. Every exported model is checked against its
torch form before it is used. As a script it exports all peers and prints their sizes::

    python benchmarks/peers.py --size 256
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from measure import table
from torch import nn

from model_serving import peers as networks
from model_serving.extras import absent
from model_serving.peers import build_peer

__all__ = ["CACHE", "CHANNELS", "CLASSES", "PEERS", "OnnxModel", "OpenVinoModel", "Peer", "export"]

Array = npt.NDArray[np.float32]

CHANNELS, CLASSES = 11, 4
CACHE = Path(tempfile.gettempdir()) / "glacier-inventory-benchmarks"
"""Where exported models and the simulated region are kept by default."""
_OPSET = 18
_TOLERANCE = 1e-3
# ^ of the largest logit, between an exported model and its torch form


@dataclass(frozen=True, slots=True)
class Peer:
    """A network of :mod:`model_serving.peers` to compare with."""

    title: str
    name: str
    """What it is called there."""
    options: Mapping[str, Any] = field(default_factory=dict)

    def missing(self) -> list[str]:
        """Packages that are not installed, with those of the export."""
        return absent(*networks.PEERS[self.name].needs, "onnx", "onnxscript", "onnxruntime")

    def network(self) -> nn.Module:
        """Build it in evaluation mode, always with the same weights."""
        torch.manual_seed(0)
        built = build_peer(self.name, channels=CHANNELS, classes=CLASSES, **self.options)
        return built.eval()


PEERS: dict[str, Peer] = {
    name: Peer(networks.PEERS[name].title, name)
    for name in (
        "segformer-b0",
        "unet-resnet34",
        "unet-efficientnet-b3",
        "deeplabv3plus-resnet50",
    )
} | {"unet-31m": Peer("U-Net 31 M", "unet", {"widths": (64, 128, 256, 512, 1024)})}


def export(name: str, size: int, *, batch: int = 1, folder: Path = CACHE) -> Path:
    """Export a peer at a fixed shape, check it, and keep it for the next time.

    Parameters
    ----------
    name
        One of :data:`PEERS`.
    size
        Edge of the windows, pixels.
    batch
        Windows of one call.
    folder
        Where it is kept.

    Returns
    -------
    Path
        The ONNX file.

    Raises
    ------
    RuntimeError
        Where the exported model gives other numbers than the network.
    """
    version = torch.__version__.split("+")[0]
    path = folder / f"{name}-{size}px-b{batch}-torch{version}-opset{_OPSET}.onnx"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    network = PEERS[name].network()
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(batch, CHANNELS, size, size)))
    part = path.with_suffix(f".{os.getpid()}.part")
    # ^ renamed when it is whole: a half-written model must never be found
    with torch.inference_mode():
        truth: Array = network(x.float()).numpy()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (x.float(),), part, opset_version=_OPSET, dynamo=True, external_data=False
        )
    found = OnnxModel(part, threads=1)(x.float().numpy())
    error = float(np.abs(found - truth).max() / np.abs(truth).max())
    if not error < _TOLERANCE:
        part.unlink()
        raise RuntimeError(f"{name} exported at {size} px is off by {error:.2g} of its logits")
    part.rename(path)
    return path


class OnnxModel:
    """An ONNX file in onnxruntime on the CPU.

    Parameters
    ----------
    path
        The model, of one input and one output.
    threads
        Threads that share one call.
    """

    def __init__(self, path: Path, *, threads: int) -> None:
        ort = importlib.import_module("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # ^ its threads would go on spinning into the time of the next contender
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._name = self._session.get_inputs()[0].name

    def __call__(self, x: Array) -> Array:
        """Logits ``(batch, class, y, x)`` of windows ``(batch, channel, y, x)``."""
        out: Array = self._session.run(None, {self._name: x})[0]
        return out


class OpenVinoModel:
    """An ONNX file in OpenVINO on the CPU.

    Parameters
    ----------
    path
        The model, of one input and one output.
    threads
        Threads that share one call.
    precision
        ``fp32`` or ``bf16``.
    """

    def __init__(self, path: Path, *, threads: int, precision: str = "fp32") -> None:
        openvino = importlib.import_module("openvino")
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        }
        self._model = openvino.Core().compile_model(path, "CPU", settings)
        self._request = self._model.create_infer_request()

    def __call__(self, x: Array) -> Array:
        """Logits ``(batch, class, y, x)`` of windows ``(batch, channel, y, x)``."""
        out: Array = self._request.infer([x], share_inputs=True)[0]
        return out


def main() -> None:
    """Export all peers and print how large they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="edge of the windows, pixels")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where models are kept")
    arguments = parser.parse_args()
    rows = []
    for name, peer in PEERS.items():
        if peer.missing():
            rows.append([peer.title, f"not installed: {', '.join(peer.missing())}", ""])
            continue
        path = export(name, arguments.size, folder=arguments.cache)
        count = sum(p.numel() for p in peer.network().parameters())
        rows.append([peer.title, f"{count / 1e6:.2f}", f"{path.stat().st_size / 2**20:.1f}"])
    print(table(("network", "parameters, M", "ONNX file, MiB"), rows))


if __name__ == "__main__":
    main()
