"""How a network is run: one setting, several runtimes, the same class maps.

A runtime is chosen once, when a run is planned, and enters the identity of every map.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from catalog.errors import UsageError
from model_serving.extras import absent, require
from model_serving.glacier_seg import GlacierSeg, GlacierSegConfig
from model_serving.selective_scan import available_backends

__all__ = [
    "RUNTIMES",
    "Precision",
    "Predictor",
    "Runtime",
    "TorchPredictor",
    "choose_runtime",
    "missing",
]

Array = npt.NDArray[np.float32]
Predictor = Callable[[Array], Array]
"""Normalised window ``(channel, y, x)`` to what the network says, ``(class, y, x)``."""
RuntimeName = Literal["fused", "torch", "onnx", "openvino", "cuda"]
Precision = Literal["float32", "bfloat16"]

RUNTIMES: dict[str, tuple[str, ...]] = {
    "fused": ("numba",),
    "torch": ("torch",),
    "onnx": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino"),
    "cuda": ("torch",),
}
"""Runtimes, fastest exact one of a CPU first, and the packages each needs."""
_SCAN_PACKAGES = {"mamba_ssm": "mamba-ssm", "triton": "triton", "torch": "torch"}


@dataclass(frozen=True, slots=True)
class Runtime:
    """A chosen runtime. See :func:`choose_runtime`."""

    name: RuntimeName
    threads: int = 1
    """Threads that share the work of one window."""
    precision: Precision = "float32"

    def predictor(self, network: GlacierSeg) -> Predictor:
        """Make a network ready to be run."""
        if self.name == "fused":
            from model_serving.fused import FusedGlacierSeg

            return FusedGlacierSeg(network, threads=self.threads)
        if self.name in {"torch", "cuda"}:
            device = "cpu" if self.name == "torch" else "cuda"
            return TorchPredictor(
                network, threads=self.threads, device=device, precision=self.precision
            )
        from model_serving.export import to_onnx

        return self.onnx_predictor(to_onnx(network).SerializeToString())

    def onnx_predictor(self, model: bytes) -> Predictor:
        """Make an ONNX model ready to be run: in OpenVINO where that is the runtime.

        Raises
        ------
        UsageError
            Where the packages are missing or the model cannot be read.
        """
        name = "openvino" if self.name == "openvino" else "onnx"
        require(f"runtime {name}", *RUNTIMES[name])
        from model_serving.onnx_runtimes import OnnxRuntime, OpenVino

        if name == "openvino":
            return OpenVino(model, threads=self.threads, precision=self.precision)
        return OnnxRuntime(model, threads=self.threads)

    def fingerprint(self, *, brings_onnx: bool = False) -> dict[str, Any]:
        """Describe what decides the bytes of a map besides its inputs and weights.

        ``brings_onnx``: some members are ONNX models, which run beside the chosen runtime.
        """
        facts: dict[str, Any] = {
            "device": "cpu",
            "machine": platform.machine(),
            "precision": self.precision,
            "runtime": self.name,
            "torch": torch.__version__,
        }
        if brings_onnx and self.name in {"fused", "torch", "cuda"}:
            facts |= {"onnxruntime": _version("onnxruntime"), "threads": self.threads}
        if self.name == "fused":
            # Its work is cut alike for any number of threads, so these are left out.
            from llvmlite.binding import get_host_cpu_name

            return facts | {"numba": _version("numba"), "processor": get_host_cpu_name()}
        if self.name == "cuda":
            _require_gpu()
            scan = available_backends("cuda")[0]
            return facts | {
                "device": torch.cuda.get_device_name(),
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
                "scan": f"{scan} {_version(_SCAN_PACKAGES[scan])}",
            }
        facts |= {"threads": self.threads, "kernels": torch.backends.cpu.get_cpu_capability()}
        if self.name == "torch":
            return facts | {"scan": available_backends()[0]}
        package = RUNTIMES[self.name][-1]
        return facts | {package: _version(package)}


class TorchPredictor:
    """The network as it is trained, on a CPU or a GPU.

    Parameters
    ----------
    network
        In evaluation mode; it is moved to the device.
    threads
        Of the CPU.
    device
        ``cpu`` or ``cuda``.
    precision
        ``bfloat16`` is that of the head only, which holds nine tenths of the arithmetic: the scan
        adds up thousands of tokens and stays in float32.
    """

    def __init__(
        self, network: GlacierSeg, *, threads: int, device: str, precision: Precision
    ) -> None:
        self.network, self.threads, self.device = network.to(device), threads, device
        self.half = precision == "bfloat16"

    def __call__(self, window: Array) -> Array:
        """Class logits ``(class, y, x)`` float32 of one window ``(channel, y, x)``."""
        torch.set_num_threads(self.threads)
        # ^ OpenMP counts for each calling thread anew, and Ray builds and calls in different ones
        x = torch.from_numpy(window).unsqueeze(0).contiguous(memory_format=torch.channels_last)
        # A GPU would otherwise round float32 to 19 bits, and add in any order.
        exact = torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        )
        half = torch.autocast(self.device, torch.bfloat16, enabled=self.half)
        with torch.inference_mode(), exact, half:
            logits: Array = self.network(x.to(self.device))[0].float().cpu().numpy()
        return logits


def missing(runtime: str) -> list[str]:
    """Packages that a runtime needs and that are not installed."""
    return absent(*RUNTIMES[runtime])


def choose_runtime(
    name: str = "auto",
    *,
    config: GlacierSegConfig | None,
    threads: int = 1,
    precision: Precision = "float32",
) -> Runtime:
    """Choose how to run networks of one shape on this machine.

    Parameters
    ----------
    name
        One of :data:`RUNTIMES`, or ``auto``: the compiled inference form where it can run such a
        network, otherwise torch. A GPU is used only where ``cuda`` is asked for.
    config
        Shape of the networks; None where all are ONNX models.
    threads
        See :class:`Runtime`.
    precision
        ``bfloat16`` halves the time of OpenVINO on processors that have it, and changes some
        pixels; on a GPU it is that of the head. The other runtimes compute in float32 only.

    Raises
    ------
    UsageError
        Where the runtime is unknown, its packages are missing, or it cannot run such a network.
    """
    obstacle = _obstacle(config)
    if name == "auto" and config is None:
        name = "onnx"
    if name == "auto":
        name = "torch" if obstacle or missing("fused") else "fused"
    if name not in RUNTIMES:
        raise UsageError(
            f"there is no runtime {name!r}; known are auto, {', '.join(RUNTIMES)}",
            kind="runtime-unknown",
        )
    if name == "fused" and obstacle:
        raise UsageError(
            f"the fused runtime cannot run this network: {obstacle}; use torch or onnx",
            kind="runtime-unfit",
        )
    if precision != "float32" and name not in {"openvino", "cuda"}:
        raise UsageError(
            f"runtime {name} computes in float32 only; set precision to float32, or the runtime "
            "to openvino or cuda",
            kind="runtime-unfit",
        )
    require(f"runtime {name}", *RUNTIMES[name])
    if name == "cuda":
        _require_gpu()
    return Runtime(name, threads, precision)  # type: ignore[arg-type]


def _require_gpu() -> None:
    if not torch.cuda.is_available():
        raise UsageError(
            "runtime cuda needs a GPU that torch can use, and sees none here; run where there is "
            "one, or set model.runtime to auto",
            kind="runtime-missing",
        )


def _obstacle(config: GlacierSegConfig | None) -> str:
    """What keeps the compiled inference form from running networks of a shape, besides numba."""
    if config is None:
        return "it is an ONNX model"
    if missing("fused"):
        return ""
    from model_serving.fused import unfit

    return unfit(config)


def _version(package: str) -> str:
    return importlib.metadata.version(package)
