"""What this machine can run, which of it is chosen, and why: tried, not guessed."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from rich.table import Table

from catalog.errors import EngineError
from model_serving.ensemble import Ensemble, Member, load_ensemble
from model_serving.runtimes import RUNTIMES, Runtime, choose_runtime, missing
from model_serving.selective_scan import available_backends

__all__ = ["Check", "examination_table", "examine", "machine_facts"]

_WINDOW_PX = 256
_Subject = tuple[Ensemble, Member, Any]
# ^ what is tried: a member of an ensemble on a window


@dataclass(frozen=True, slots=True)
class Check:
    """What came of trying one runtime."""

    name: str
    chosen: bool
    note: str
    milliseconds: float | None = None
    """For one window on one thread; None where it cannot run."""
    difference: float | None = None
    """Largest difference of a logit from torch (of a brought ONNX model: from onnxruntime),
    relative to the largest logit."""


def machine_facts() -> dict[str, str]:
    """What of the machine decides how fast it maps."""
    from llvmlite.binding import get_host_cpu_features, get_host_cpu_name

    features = get_host_cpu_features()
    vectors = [n for n in ("avx2", "avx512f", "avx512bf16", "amx-tile", "neon") if features.get(n)]
    return {
        "processor": f"{get_host_cpu_name()}, {os.cpu_count()} cores, {', '.join(vectors) or '-'}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "Python": sys.version.split()[0],
        "torch": torch.__version__,
        "numba": importlib.metadata.version("numba"),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else _why_no_gpu(),
        "scan on the CPU": ", ".join(available_backends()),
    }


def _why_no_gpu() -> str:
    if torch.version.cuda is None:
        return "none used: this torch was built without CUDA"
    return "none found by CUDA"


def examine(ensemble: str = "default") -> list[Check]:
    """Run one member of an ensemble in every runtime: one of ours, where it has any.

    Raises
    ------
    UsageError
        Where the ensemble cannot be loaded.
    """
    loaded = load_ensemble(ensemble)
    chosen = choose_runtime(config=loaded.config).name
    member = min(loaded.members, key=lambda m: m.is_onnx)
    edge = loaded.window_px if member.is_onnx else _WINDOW_PX
    # ^ a network that somebody brought may take no other window than its own
    shape = (len(member.channels), edge, edge)
    window = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    subject = (loaded, member, window)
    truth = _outcome(*subject, Runtime("onnx" if member.is_onnx else "torch"))[0]
    return [_check(name, name == chosen, subject, truth) for name in RUNTIMES]


def _check(name: str, chosen: bool, subject: _Subject, truth: Any) -> Check:
    absent = missing(name)
    if absent:
        return Check(name, chosen, f"not installed: {', '.join(absent)}")
    try:
        runtime = choose_runtime(name, config=subject[0].config)
        found, seconds = _outcome(*subject, runtime)
    except EngineError as error:
        return Check(name, chosen, str(error))
    difference = float(np.abs(found - truth).max() / np.abs(truth).max())
    note = "used where model.runtime is auto" if chosen else "can be used"
    return Check(name, chosen, note, seconds * 1000, difference)


def _outcome(
    ensemble: Ensemble, member: Member, window: Any, runtime: Runtime
) -> tuple[Any, float]:
    predict = ensemble.predictor(member, runtime)
    predict(window)  # the first call compiles
    times = []
    for _ in range(3):
        began = time.perf_counter()
        found = predict(window)
        times.append(time.perf_counter() - began)
    return found, min(times)


def examination_table(checks: list[Check]) -> Table:
    """Lay the checks out for the terminal."""
    table = Table(title="runtimes, one window on one thread", title_justify="left")
    for column in ("runtime", "ms", "differs by", ""):
        table.add_column(column, justify="left" if column in {"runtime", ""} else "right")
    for check in checks:
        table.add_row(
            f"[bold]{check.name}[/bold]" if check.chosen else check.name,
            "-" if check.milliseconds is None else f"{check.milliseconds:.0f}",
            "-" if check.difference is None else f"{check.difference:.0e}",
            check.note,
        )
    return table
