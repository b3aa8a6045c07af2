"""Inference of Glacier-Seg on a CPU against peers: time, class maps, peak memory.

All contenders take turns round by round in one process per thread count; ratios are medians of the
ratios within a round. The reference is SegFormer-B0 in onnxruntime, float32. Peers have random
weights; Glacier-Seg has those of the default ensemble, and every runtime's class maps are compared
with the float32 network in torch. Glacier-Seg takes windows one by one, as the engine gives them;
peers take a whole batch. Peak memory is that of loading and running one contender in a process of
its own, less what the process held once its libraries were imported. Memory is reused between
calls as the engine's workers do it::

    python benchmarks/model.py                                        # all: about half an hour
    python benchmarks/model.py --size 512 --batch 1 --threads 1
    python benchmarks/model.py --quick --only glacier-seg unet-resnet34
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from measure import interleaved, machine, ratio, reuse_memory, spread, table
from windows import Windows, region_windows, saved_windows, smooth_fields

Array = npt.NDArray[Any]
Call = Callable[[], object]

_OURS, _REFERENCE, _SECOND = "glacier-seg", "segformer-b0", "unet-resnet34"
_SLOW_S, _EVERY = 1.5, 4
# ^ contenders slower than this a call take part in every fourth round
_BATCHED = (_OURS, _REFERENCE, _SECOND)
# ^ measured in batches too; the others would need many gigabytes beside each other
_MEMBERS, _FOLDS = 5, 3
# ^ members whose class maps are compared, and how many of the card lie between two of them
_PACKAGES = ("numpy", "numba", "torch", "onnxruntime", "openvino", "transformers",
             "segmentation-models-pytorch", "timm")  # fmt: skip
_LEGEND = f"""
/ SegFormer: ratio to SegFormer-B0 in onnxruntime fp32. / U-Net: to U-Net ResNet-34 in onnxruntime
fp32. / best SegFormer: to SegFormer-B0 in its fastest runtime of the same precision. same class:
pixels with the class of the fp32 network in torch, {_MEMBERS} members, two windows each. peak MiB:
memory of loading and running beyond that of the imports, with the first number of threads."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_TITLES = {"onnxruntime": "onnxruntime", "openvino": "OpenVINO", "torch": "torch", "fused": "fused"}


@dataclass(frozen=True, slots=True)
class Contender:
    """A network in a runtime."""

    network: str
    runtime: str
    precision: str = "fp32"

    @property
    def name(self) -> str:
        """What results are filed under."""
        return f"{self.network} {self.runtime} {self.precision}"

    @property
    def title(self) -> str:
        """Network as it is called in a table."""
        from peers import PEERS

        return "Glacier-Seg" if self.network == _OURS else PEERS[self.network].title


def contenders(only: Sequence[str]) -> list[Contender]:
    """All contenders, or those whose names hold one of some words, and the reference."""
    from peers import PEERS

    runs = [("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")]
    found = [Contender(_OURS, "fused"), Contender(_OURS, "torch")]
    found += [Contender(name, *run) for name in (_OURS, *PEERS) for run in runs]
    reference = Contender(_REFERENCE, "onnxruntime")
    return [c for c in found if not only or c == reference or any(o in c.name for o in only)]


def missing(contender: Contender) -> list[str]:
    """Packages or modules that a contender needs and that are not there."""
    from peers import PEERS

    needed = [contender.runtime] if contender.runtime in {"onnxruntime", "openvino"} else []
    if contender.network != _OURS:
        return [*PEERS[contender.network].missing(), *_absent(needed)]
    if needed:
        needed += ["onnx", "model_serving.export", "model_serving.onnx_runtimes"]
    return _absent([*needed, "numba"] if contender.runtime == "fused" else needed)


def _absent(names: Sequence[str]) -> list[str]:
    return [name for name in names if importlib.util.find_spec(name) is None]


@dataclass(frozen=True, slots=True)
class Task:
    """What one process measures."""

    kind: str
    """``times``, ``maps`` or ``memory``."""
    names: tuple[Contender, ...]
    size: int
    batch: int
    threads: int
    rounds: int
    windows: str
    """NumPy archive of raw ``windows``."""
    cache: str

    @classmethod
    def from_json(cls, text: str) -> Task:
        """Read what :meth:`run` has written."""
        values = json.loads(text)
        values["names"] = tuple(Contender(**c) for c in values["names"])
        return cls(**values)

    def run(self) -> dict[str, Any]:
        """Do it in a process of its own, with its number of threads set before any import."""
        environment = os.environ | dict.fromkeys(_THREADS, str(self.threads))
        environment["HF_HUB_OFFLINE"] = "1"
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "result.json"
            command = [sys.executable, __file__, "--task", json.dumps(asdict(self)), str(out)]
            subprocess.run(command, check=True, env=environment)
            found: dict[str, Any] = json.loads(out.read_text())
        return found


def member(index: int = 0) -> Any:
    """One member of the default ensemble, and its network."""
    from model_serving.ensemble import load_ensemble

    ensemble = load_ensemble()
    chosen = ensemble.members[index % len(ensemble.members)]
    return chosen, ensemble.network(chosen)


def predictor(contender: Contender, network: Any, threads: int) -> Callable[[Array], Array]:
    """Glacier-Seg as the engine runs it: one window to its logits."""
    if contender.runtime == "fused":
        from model_serving.fused import FusedGlacierSeg

        return FusedGlacierSeg(network, threads=threads)
    if contender.runtime == "torch":
        return _in_torch(network, threads)
    model = network if isinstance(network, bytes) else _as_onnx(network)
    runtimes = importlib.import_module("model_serving.onnx_runtimes")
    run: Callable[[Array], Array]
    if contender.runtime == "onnxruntime":
        run = runtimes.OnnxRuntime(model, threads=threads)
    else:
        precision = {"fp32": "float32", "bf16": "bfloat16"}[contender.precision]
        run = runtimes.OpenVino(model, threads=threads, precision=precision)
    return run


def _as_onnx(network: Any) -> bytes:
    model: bytes = (
        importlib.import_module("model_serving.export").to_onnx(network).SerializeToString()
    )
    return model


def _in_torch(network: Any, threads: int) -> Callable[[Array], Array]:
    import torch

    torch.set_num_threads(threads)

    def run(window: Array) -> Array:
        x = torch.from_numpy(window)[None].contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            logits: Array = network(x)[0].numpy()
        return logits

    return run


def prepared(contender: Contender, task: Task, images: Array) -> Call:
    """Load a contender; what comes back runs it once on all images."""
    if contender.network == _OURS:
        kept = Path(task.cache) / "glacier-seg.onnx"
        in_onnx = contender.runtime in {"onnxruntime", "openvino"}
        run = predictor(contender, kept.read_bytes() if in_onnx else member()[1], task.threads)
        windows = list(images)
        return lambda: [run(window) for window in windows]
    from peers import OnnxModel, OpenVinoModel, export

    path = export(contender.network, task.size, batch=task.batch, folder=Path(task.cache))
    if contender.runtime == "openvino":
        model = OpenVinoModel(path, threads=task.threads, precision=contender.precision)
        return lambda: model(images)
    session = OnnxModel(path, threads=task.threads)
    return lambda: session(images)


def images_of(task: Task) -> Array:
    """A batch of normalised windows."""
    raw = np.load(task.windows)["windows"]
    chosen = member()[0].normalisation.apply(raw)
    return np.ascontiguousarray(chosen[np.arange(task.batch) % len(chosen)], np.float32)


def measure_times(task: Task) -> dict[str, Any]:
    """Seconds of each contender in each round."""
    images = images_of(task)
    calls = {c.name: prepared(c, task, images) for c in task.names}
    return {"s": interleaved(calls, task.rounds, slow_s=_SLOW_S, every=_EVERY)}


def measure_maps(task: Task) -> dict[str, Any]:
    """Pixels of Glacier-Seg's class maps that are those of the float32 network in torch."""
    raw = np.load(task.windows)["windows"]
    same = dict.fromkeys((c.name for c in task.names), 0)
    count = 0
    for index in range(_MEMBERS):
        chosen, network = member(index * _FOLDS)
        # Two windows of each member: all windows are seen, each by several members.
        windows = chosen.normalisation.apply(raw[[index % len(raw), (index + 1) % len(raw)]])
        truth = [_in_torch(network, task.threads)(window).argmax(axis=0) for window in windows]
        count += sum(t.size for t in truth)
        for c in task.names:
            run = predictor(c, network, task.threads)
            for window, expected in zip(windows, truth, strict=True):
                same[c.name] += int((run(window).argmax(axis=0) == expected).sum())
    return {"same": same, "pixels": count, "members": _MEMBERS}


def measure_memory(task: Task) -> dict[str, Any]:
    """Peak memory of one contender beyond its imports, MiB."""
    (contender,) = task.names
    images = images_of(task)
    if contender.network == _OURS:
        member()
    names = {
        "fused": ["model_serving.fused"],
        "torch": ["model_serving.compiled.scan"],
        "onnxruntime": ["peers", "onnxruntime"],
        "openvino": ["peers", "openvino"],
    }[contender.runtime]
    for name in names:
        importlib.import_module(name)
    before = _peak_mib(anew=True)
    run = prepared(contender, task, images)
    for _ in range(3):
        run()
    return {"mib": _peak_mib() - before, "imports_mib": before}


def _peak_mib(*, anew: bool = False) -> float:
    """Largest memory this process has held; ``anew`` forgets what was held before, on Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    # Not getrusage: what that tells begins with the memory of the process that started this one.
    if anew:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 2**10


@dataclass(slots=True)
class Report:
    """What was measured at one number of threads, edge and batch."""

    task: Task
    seconds: dict[str, list[float]]
    memory: dict[str, float]
    maps: dict[str, Any]
    absent: dict[str, list[str]]

    def table(self, listed: Sequence[Contender]) -> str:
        """Lay it out."""
        fastest = {p: self._fastest(p) for p in ("fp32", "bf16")}
        rows = []
        for c in listed:
            cells = [c.title, f"{_TITLES[c.runtime]} {c.precision}"]
            if c.name not in self.seconds:
                why = self.absent.get(c.name)
                cells.append(f"not installed: {', '.join(why)}" if why else "left out")
                rows.append([*cells, "", "", "", "", ""])
                continue
            references = (
                Contender(_REFERENCE, "onnxruntime").name,
                Contender(_SECOND, "onnxruntime").name,
                fastest[c.precision],
            )
            each = [1e3 * s / self.task.batch for s in self.seconds[c.name]]
            cells.append(spread(each).text())
            cells += [self._ratio(c.name, reference) for reference in references]
            rows.append([*cells, self._agreement(c), self._memory(c)])
        headers = ("network", "runtime", "ms an image", "/ SegFormer", "/ U-Net",
                   "/ best SegFormer", "same class", "peak MiB")  # fmt: skip
        return table(headers, rows)

    def _fastest(self, precision: str) -> str:
        """Name of SegFormer-B0 in its fastest runtime."""
        found = [
            name
            for name in self.seconds
            if name.startswith(f"{_REFERENCE} ") and name.endswith(precision)
        ]
        return min(found, key=lambda n: spread(self.seconds[n]).median, default="")

    def _ratio(self, name: str, reference: str) -> str:
        if reference not in self.seconds:
            return "-"
        return f"{ratio(self.seconds[name], self.seconds[reference]):.2f}"

    def _agreement(self, contender: Contender) -> str:
        same = self.maps.get("same", {})
        if contender.name not in same:
            return "-"
        return f"{100 * same[contender.name] / self.maps['pixels']:.4f} %"

    def _memory(self, contender: Contender) -> str:
        found = self.memory.get(contender.name)
        return "-" if found is None else f"{found:.0f}"


def windows_file(arguments: argparse.Namespace, size: int) -> tuple[Path, str]:
    """Put the windows of one size where all processes find them; also says what they are."""
    found: Windows
    if arguments.windows:
        found = saved_windows(arguments.windows, size)
    elif arguments.fields:
        normalisation = member()[0].normalisation
        found = smooth_fields(4, size, mean=normalisation.mean, std=normalisation.std)
    else:
        found = region_windows(arguments.cache, size)
    path = arguments.cache / f"windows-{size}px.npz"
    np.savez(path, windows=found.raw)
    return path, found.source


def _compared(arguments: argparse.Namespace) -> tuple[list[Contender], dict[str, list[str]]]:
    """Contenders that can run, after exporting what they need, and what the others lack."""
    listed = contenders(arguments.only)
    absent = {c.name: missing(c) for c in listed if missing(c)}
    ready = [c for c in listed if c.name not in absent]
    if any(c.network == _OURS and c.runtime.startswith("o") for c in ready):
        (arguments.cache / "glacier-seg.onnx").write_bytes(_as_onnx(member()[1]))
    return ready, absent


def _chosen(
    ready: Sequence[Contender], size: int, batch: int, only: Sequence[str]
) -> list[Contender]:
    """Contenders of one edge and batch; says which are left out."""
    if batch == 1 or only:
        return list(ready)
    kept = [c for c in ready if c.network in _BATCHED]
    dropped = sorted({c.title for c in ready if c not in kept})
    if dropped:
        print(f"left out at {size} px, batch {batch}, unless named by --only: {', '.join(dropped)}")
    return kept


def _measure(
    arguments: argparse.Namespace, ready: Sequence[Contender], absent: dict[str, list[str]]
) -> list[Report]:
    reports: list[Report] = []
    maps: dict[int, dict[str, Any]] = {}
    memory: dict[tuple[int, int], dict[str, float]] = {}
    for size in arguments.size:
        path, source = windows_file(arguments, size)
        print(f"{size} px: {source}")
        for threads in arguments.threads:
            for batch in arguments.batch:
                names = _chosen(ready, size, batch, arguments.only)
                print(f"{size} px, batch {batch}, threads {threads} ...", file=sys.stderr)
                task = Task("times", tuple(names), size, batch, threads, arguments.rounds,
                            str(path), str(arguments.cache))  # fmt: skip
                _export_all(task)
                times = task.run()["s"]
                ours = tuple(c for c in names if c.network == _OURS)
                if size not in maps and ours:
                    maps[size] = Task("maps", ours, *_rest(task)).run()
                if not arguments.no_memory and (size, batch) not in memory:
                    memory[size, batch] = {
                        c.name: Task("memory", (c,), *_rest(task)).run()["mib"] for c in names
                    }
                held = memory.get((size, batch), {})
                reports.append(Report(task, times, held, maps.get(size, {}), absent))
    return reports


def _export_all(task: Task) -> None:
    """Export in this process, so that those that measure only read."""
    from peers import export

    for name in {c.network for c in task.names} - {_OURS}:
        export(name, task.size, batch=task.batch, folder=Path(task.cache))


def _rest(task: Task) -> tuple[Any, ...]:
    return task.size, task.batch, task.threads, task.rounds, task.windows, task.cache


def _parser() -> argparse.ArgumentParser:
    from peers import CACHE

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--size", type=int, nargs="+", default=[256, 512], help="edges of the windows, pixels")
    add("--threads", type=int, nargs="+", default=[1, 2], help="threads that share a window")
    add("--batch", type=int, nargs="+", default=[1, 8], help="windows of one call")
    add("--rounds", type=int, default=20, help="how often each contender is timed")
    add("--only", nargs="+", default=[], metavar="NAME",
        help="words of the contenders to keep, such as glacier-seg or bf16")  # fmt: skip
    add("--windows", type=Path, help="NumPy archive with raw features in its array `windows`")
    add("--fields", action="store_true", help="random fields instead of a simulated region")
    add("--no-memory", action="store_true", help="do not measure peak memory")
    add("--quick", action="store_true", help="256 px, one window, one thread, five rounds")
    add("--cache", type=Path, default=CACHE, help="where models and the region are kept")
    add("--json", type=Path, help="write all numbers to this file")
    return parser


def main() -> None:
    """Measure and print tables."""
    if sys.argv[1:2] == ["--task"]:
        reuse_memory()
        task = Task.from_json(sys.argv[2])
        kinds = {"times": measure_times, "maps": measure_maps, "memory": measure_memory}
        Path(sys.argv[3]).write_text(json.dumps(kinds[task.kind](task)))
        return
    arguments = _parser().parse_args()
    if arguments.quick:
        arguments.size, arguments.batch, arguments.threads = [256], [1], [1]
        arguments.rounds = 5
    arguments.cache.mkdir(parents=True, exist_ok=True)
    facts = machine(_PACKAGES)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    ready, absent = _compared(arguments)
    reports = _measure(arguments, ready, absent)
    for report in reports:
        task = report.task
        print(f"\n{task.size} px, batch {task.batch}, threads {task.threads}:"
              f" median of {task.rounds} rounds [10th-90th percentile]\n")  # fmt: skip
        print(report.table(contenders(arguments.only)))
    slow = sorted({n for r in reports for n, s in r.seconds.items() if np.isnan(s).any()})
    if slow:
        print(f"\nIn every {_EVERY}th round only, being slow: {', '.join(slow)}.")
    print(_LEGEND)
    if arguments.json:
        values = {"machine": facts, "reports": [asdict(r) for r in reports]}
        arguments.json.write_text(json.dumps(values, indent=1))


if __name__ == "__main__":
    main()
