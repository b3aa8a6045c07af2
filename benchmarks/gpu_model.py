"""Inference of Glacier-Seg on a CUDA GPU against SegFormer-B0 and against a floor.

Tiles per second in several precisions and forms, interleaved round by round: eager, as a CUDA graph
and compiled. Beside each stands the floor: the larger of the time of its arithmetic and of its
bytes, at the rates of matrix products and copies that are measured in the same run. Bytes are those
of a network whose modules each read their inputs and write their outputs once. Then the scan
backends of this machine: their errors against the recurrence in float64 and what they take; and the
share of pixels that keep their class in bfloat16.

Needs torch and numpy only; takes SegFormer-B0 from transformers and trained weights through
safetensors where these are installed::

    python benchmarks/gpu_model.py
    python benchmarks/gpu_model.py --size 512 --batch 1 8 64 --rounds 10 --quick

It leaves with code 2 where there is no CUDA.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

ROOT = Path(__file__).resolve().parents[1]
if importlib.util.find_spec("model_serving") is None:
    sys.path.insert(0, str(ROOT))
    # ^ on a GPU machine the engine itself is often not installed

from measure import Spread, interleaved, machine, ratio, spread, table  # noqa: E402
from windows import saved_windows, smooth_fields  # noqa: E402

from model_serving.glacier_seg import GlacierSeg, GlacierSegConfig  # noqa: E402
from model_serving.selective_scan import (  # noqa: E402
    available_backends,
    scan_recurrence,
    selective_scan,
)

__all__ = ["Cost", "Rates", "costs", "floor_s", "total"]

Array = npt.NDArray[np.float32]
Call = Callable[[], object]
Network = Callable[[torch.Tensor], torch.Tensor]

Kind = Literal["stage", "head", "vector"]

_WEIGHTS = ROOT / "model_serving" / "weights" / "default"
_EXP = 5
# ^ fused multiply-adds that one exponential counts as
_PACKAGES = ("torch", "triton", "mamba-ssm", "transformers", "numpy")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one part of the network costs for one tile."""

    part: str
    macs: float
    """Multiply-adds."""
    numbers: float
    """Numbers read and written when each module reads inputs and writes outputs once."""
    kind: Kind = "stage"
    """``head`` may run in half precision, ``stage`` stays in float32; ``vector`` is no product of
    matrices, so that neither TF32 nor half precision speeds it up."""


def costs(config: GlacierSegConfig, size: int, *, authors_head: bool = False) -> list[Cost]:
    """Count the work of a tile, part by part, from the shape of the network.

    Parameters
    ----------
    config
        Shape of the network.
    size
        Edge of the tile, pixels.
    authors_head
        Count the head as published, with its fusion after the upsampling, not before.

    Returns
    -------
    list of Cost
        For one tile; weights are left out, which a batch reads once.
    """
    found: list[Cost] = []
    inside, wide = config.channels, config.head_width
    sizes = [size >> (k + 1) for k in range(len(config.widths))]
    for k, (outside, edge) in enumerate(zip(config.widths, sizes, strict=True)):
        pixels = edge * edge
        name = f"stage {k + 1}"
        if config.embeddings[k] == "involution":
            hidden = max(1, inside // 4)
            macs = inside * hidden + 9 * hidden + 9 * inside + inside * outside
        else:
            macs = 9 * inside * outside
        found.append(Cost(f"{name} embedding", pixels * macs, pixels * (4 * inside + outside)))
        found += _block(name, config, outside, pixels, ways=len(config.ways[k]))
        inside = outside
    fine = sizes[0] ** 2
    for k, (width, edge) in enumerate(zip(config.widths, sizes, strict=True)):
        pixels = edge * edge
        fused = fine if authors_head else pixels
        # A coarse share is read again where the sum of all is formed and written: in the first.
        numbers = pixels * (width + (2 if k else 1) * wide)
        macs = pixels * width * wide + fused * wide * wide
        found.append(Cost(f"head share {k + 1}", macs, numbers, kind="head"))
    found.append(Cost("head 3 x 3", fine * 9 * wide * wide, fine * 2 * wide, kind="head"))
    said = config.detail or config.classes
    classify = fine * (wide + said) + size * size * said
    found.append(Cost("head classes", fine * wide * said, classify, kind="head"))
    if config.detail:
        whole, detail = size * size, config.detail
        look = Cost(
            "detail look", whole * 9 * config.channels * detail, whole * (config.channels + detail)
        )
        macs = whole * detail * (9 * detail + config.classes)
        found += [look, Cost("detail", macs, whole * (2 * detail + config.classes), kind="head")]
    return found


def _block(
    name: str, config: GlacierSegConfig, width: int, pixels: int, *, ways: int
) -> list[Cost]:
    """Mixer and MLP of one stage."""
    inner, states = config.expand * width, config.state
    rank = math.ceil(width / 16)
    selected = rank + 2 * states
    inwards = Cost(
        f"{name} in", ways * pixels * 2 * width * inner, ways * pixels * (width + 2 * inner)
    )
    select = Cost(
        f"{name} taps, select",
        ways * pixels * (inner * config.kernel + inner * selected + rank * inner),
        ways * pixels * (3 * inner + 2 * states),
        # ^ u twice (in, out), the step, and both projections
    )
    # Each state: an exponential and its argument, two products, two fused additions.
    scan = Cost(
        f"{name} scan",
        ways * pixels * inner * states * (_EXP + 4),
        ways * pixels * (4 * inner + 2 * states),
        # ^ u, step and gate are read, the output is written
        kind="vector",
    )
    outwards = Cost(
        f"{name} out", ways * pixels * inner * width, pixels * (ways * inner + 2 * width)
    )
    hidden = config.mlp_ratio * width
    mlp = Cost(f"{name} MLP", pixels * 2 * width * hidden, pixels * 2 * width)
    return [inwards, select, scan, outwards, mlp]


def total(found: Sequence[Cost], kind: Kind | None = None) -> tuple[float, float]:
    """Multiply-adds and numbers of all parts, or of those of one kind."""
    chosen = [c for c in found if kind in {None, c.kind}]
    return sum(c.macs for c in chosen), sum(c.numbers for c in chosen)


@dataclass(frozen=True, slots=True)
class Rates:
    """What the GPU does in a second, measured."""

    copy: float
    """Bytes read and written by a copy."""
    float32: float
    """Multiply-adds of a product of float32 matrices, without TF32."""
    tf32: float
    """The same with TF32."""
    bfloat16: float
    """The same in bfloat16."""


def floor_s(found: Sequence[Cost], rates: Rates, *, precision: str) -> tuple[float, float]:
    """Seconds that the arithmetic and the bytes of one tile take at the rates of this GPU.

    Parameters
    ----------
    found
        See :func:`costs`.
    rates
        Of this GPU.
    precision
        ``float32``; ``tf32`` for all products of matrices; or ``bfloat16``, which leaves those of
        the stages to TF32 and in the head moves half the bytes.
    """
    stage_rate = rates.float32 if precision == "float32" else rates.tf32
    speeds: dict[Kind, float] = {
        "stage": stage_rate,
        "head": getattr(rates, precision),
        "vector": rates.float32,
    }
    arithmetic = sum(c.macs / speeds[c.kind] for c in found)
    halved = 2 * total(found, "head")[1] if precision == "bfloat16" else 0
    return arithmetic, (4 * total(found)[1] - halved) / rates.copy


@dataclass(frozen=True, slots=True)
class Form:
    """How a network is run."""

    name: str
    precision: str
    graph: bool = False
    compiled: bool = False


FORMS = (
    Form("eager", "float32"),
    Form("eager", "tf32"),
    Form("eager", "bfloat16"),
    Form("CUDA graph", "tf32", graph=True),
    Form("CUDA graph", "bfloat16", graph=True),
    Form("compiled, CUDA graph", "bfloat16", graph=True, compiled=True),
)
_QUICK = (FORMS[0], FORMS[2], FORMS[4])


@contextlib.contextmanager
def _precision(name: str) -> Iterator[None]:
    """Run a block in one precision of matrix products and convolutions."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name != "float32"
    try:
        with torch.autocast("cuda", torch.bfloat16, enabled=name == "bfloat16"):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _synchronised(call: Call) -> Call:
    def run() -> None:
        call()
        torch.cuda.synchronize()

    return run


def _captured(call: Call, pool: Any) -> Call:
    """Record a call as a CUDA graph; what comes back replays it."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # One pool for all graphs: a replay leaves nothing there that another needs.
    with torch.cuda.graph(graph, pool=pool):
        call()
    return graph.replay


def formed(network: Network, x: torch.Tensor, form: Form, *, pool: Any = None) -> Call:
    """Make a call that runs a network on one batch in some form, and waits for its end."""
    run = network
    if form.compiled:
        torch.compiler.reset()
        # ^ or it gives up compiling after so many batch sizes
        run = torch.compile(network, dynamic=False)

    def call() -> torch.Tensor:
        with torch.inference_mode(), _precision(form.precision):
            return run(x)

    return _synchronised(_captured(call, pool) if form.graph else call)


def measured_rates(rounds: int) -> Rates:
    """Measure how fast this GPU copies and multiplies; the best of some rounds."""
    source = torch.ones(2**28, device="cuda")
    target = torch.empty_like(source)
    calls: dict[str, Call] = {"copy": _synchronised(lambda: target.copy_(source))}
    edge = 8192
    matrices = torch.randn(2, edge, edge, device="cuda")
    halves = matrices.to(torch.bfloat16)

    def product(pair: torch.Tensor, precision: str) -> None:
        with torch.inference_mode():
            torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
            torch.matmul(pair[0], pair[1])
            torch.backends.cuda.matmul.allow_tf32 = False

    for name, pair in (("float32", matrices), ("tf32", matrices), ("bfloat16", halves)):
        calls[name] = _synchronised(functools.partial(product, pair, name))
    best = {name: min(values) for name, values in interleaved(calls, rounds, least_s=0.02).items()}
    return Rates(
        copy=2 * source.numel() * 4 / best["copy"],
        **{name: edge**3 / best[name] for name in ("float32", "tf32", "bfloat16")},
    )


def trained() -> tuple[GlacierSeg, tuple[float, ...], tuple[float, ...], str]:
    """A network with the mean and spread of its inputs, and what it is."""
    card = _WEIGHTS / "card.json"
    if not card.exists() or importlib.util.find_spec("safetensors") is None:
        torch.manual_seed(0)
        network = GlacierSeg()
        channels = network.config.channels
        return network.eval(), (0.0,) * channels, (1.0,) * channels, "random weights"
    values = json.loads(card.read_text())
    member = values["members"][0]
    network = GlacierSeg(GlacierSegConfig.from_dict(values["network"]))
    file = member.get("file", f"{member['name']}.safetensors")
    loaded = importlib.import_module("safetensors.torch").load_file(_WEIGHTS / file)
    # Counters of batches are not stored, and not used here.
    network.load_state_dict({k: v.float() for k, v in loaded.items()}, strict=False)
    return network.eval(), tuple(member["mean"]), tuple(member["std"]), f"weights of {file}"


def segformer(channels: int, classes: int) -> Any | None:
    """SegFormer-B0 with logits at the resolution of its input; None without transformers."""
    if importlib.util.find_spec("transformers") is None:
        return None
    try:
        peers = importlib.import_module("peers")
        network = peers.PEERS["segformer-b0"].network()
    except (ImportError, RuntimeError) as error:
        print(f"no SegFormer-B0 here: {error}")
        return None
    if (channels, classes) != (peers.CHANNELS, peers.CLASSES):
        return None
    return network


def tile_rates(
    networks: dict[str, Network],
    images: torch.Tensor,
    forms: Sequence[Form],
    *,
    rounds: int,
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Time one batch for each network and form; those that fail are named and left out.

    Returns
    -------
    tuple of dict
        Seconds of each round; and of what is run eagerly the memory it takes at most, MiB.
    """
    calls: dict[str, Call] = {}
    memory: dict[str, float] = {}
    torch.cuda.empty_cache()
    pool = torch.cuda.graph_pool_handle()
    for title, network in networks.items():
        for form in forms:
            if form.compiled and title.endswith("torch scan"):
                continue
                # ^ its loops unrolled would compile for minutes
            name = f"{title} | {form.name} | {form.precision}"
            try:
                call = formed(network, images, form, pool=pool)
                held = _peak_mib(call)
            except Exception as error:  # noqa: BLE001 - compilers raise classes of all kinds
                print(f"{name}: cannot run: {str(error).splitlines()[0][:200]}")
                torch.cuda.empty_cache()
                continue
            calls[name] = call
            if not form.graph:
                memory[name] = held
    return interleaved(calls, rounds, least_s=0.02, warmups=3), memory


def _peak_mib(call: Call) -> float:
    """Most memory that a call takes on the GPU beyond what was taken before."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def rate_rows(
    seconds: dict[str, list[float]],
    memory: dict[str, float],
    batch: int,
    found: Sequence[Cost],
    rates: Rates,
) -> list[list[str]]:
    """Rows of the table of tile rates."""
    rows = []
    reference = next((n for n in seconds if n.startswith("SegFormer-B0 | eager | float32")), "")
    for name, values in seconds.items():
        title, form, precision = name.split(" | ")
        each = spread([batch / s for s in values])
        cells = [str(batch), title, form, precision, each.text(0)]
        cells.append(f"{ratio(seconds[reference], values):.2f}" if reference else "-")
        if title.startswith("Glacier-Seg"):
            floor = max(floor_s(found, rates, precision=precision))
            cells += [f"{1 / floor:.0f}", f"{spread(values).median / batch / floor:.1f}"]
        else:
            cells += ["-", "-"]
        rows.append([*cells, f"{memory[name]:.0f}" if name in memory else "-"])
    return rows


def scan_inputs(
    batch: int, length: int, channels: int, *, states: int = 16, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Random inputs of a scan, steps as they are in a trained network."""
    rng = np.random.default_rng(0)
    wide, narrow = (batch, length, channels), (batch, length, states)
    shapes = {"u": wide, "delta": wide, "B": narrow, "C": narrow, "D": (channels,)}
    found = {name: torch.from_numpy(rng.normal(size=shape)) for name, shape in shapes.items()}
    found["delta"] = torch.exp(found["delta"] - 3)
    found["A"] = -torch.arange(1.0, states + 1).repeat(channels, 1)
    return {name: tensor.float().to("cuda", dtype) for name, tensor in found.items()}


def _gradients(
    run: Callable[..., torch.Tensor], tensors: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    y = run(**leaves)
    return torch.autograd.grad(y, list(leaves.values()), torch.ones_like(y))


def _backends() -> dict[str, Callable[..., torch.Tensor]]:
    names: Sequence[Any] = available_backends("cuda")
    return {name: functools.partial(selective_scan, backend=name) for name in names}


def scan_parity(length: int = 2048, channels: int = 32) -> list[list[str]]:
    """Largest errors of each backend against the recurrence in float64, by largest value."""
    exact = scan_inputs(1, length, channels, dtype=torch.float64)
    truth = (scan_recurrence(**exact), *_gradients(scan_recurrence, exact))
    single = scan_inputs(1, length, channels)
    rows = []
    for name, run in _backends().items():
        found = (run(**single), *_gradients(run, single))
        off = [
            float((f - t).abs().max() / t.abs().max()) for f, t in zip(found, truth, strict=True)
        ]
        rows.append([name, f"{off[0]:.1e}", f"{max(off[1:]):.1e}"])
    return rows


def scan_rows(size: int, batch: int, rounds: int, rates: Rates) -> list[list[str]]:
    """Time of the scan of the first stage with each backend, forward, and with the backward."""
    length, channels, states = (size // 2) ** 2, 32, 16
    tensors = scan_inputs(batch, length, channels)

    def alone(run: Callable[..., torch.Tensor]) -> None:
        with torch.inference_mode():
            run(**tensors)

    backends = _backends()
    forward = {n: _synchronised(functools.partial(alone, r)) for n, r in backends.items()}
    both = {
        n: _synchronised(functools.partial(_gradients, r, tensors)) for n, r in backends.items()
    }
    once = 4 * batch * length * (3 * channels + 2 * states) / rates.copy
    twice = once + 4 * batch * length * (5 * channels + 4 * states) / rates.copy
    rows = []
    for kind, calls, floor in (("forward", forward, once), ("and backward", both, twice)):
        seconds = interleaved(calls, rounds, least_s=0.02)
        for name, values in seconds.items():
            ms: Spread = spread([1e3 * v for v in values])
            share = f"{spread(values).median / floor:.1f}"
            rows.append([name, kind, str(batch), ms.text(2), share])
    return rows


def same_classes(network: GlacierSeg, images: torch.Tensor) -> float:
    """Share of pixels whose class in bfloat16 is that in float32."""
    same = count = 0
    with torch.inference_mode():
        for i in range(len(images)):
            maps = []
            for precision in ("float32", "bfloat16"):
                with _precision(precision):
                    maps.append(network(images[i : i + 1]).argmax(dim=1))
            same += int((maps[0] == maps[1]).sum())
            count += maps[0].numel()
    return same / count


def _images(arguments: argparse.Namespace, mean: Any, std: Any) -> tuple[torch.Tensor, str]:
    """Normalised windows on the GPU, as many as the largest batch."""
    if arguments.windows:
        found = saved_windows(arguments.windows, arguments.size)
    else:
        found = smooth_fields(8, arguments.size, mean=mean, std=std)
    scaled = (found.raw - np.asarray(mean)[:, None, None]) / np.asarray(std)[:, None, None]
    scaled = np.nan_to_num(np.clip(scaled, -6, 6)).astype(np.float32)
    images = torch.from_numpy(scaled[np.arange(max(arguments.batch)) % len(scaled)])
    return images.to("cuda", memory_format=torch.channels_last), found.source


def _print_costs(found: Sequence[Cost], size: int) -> None:
    macs, numbers = total(found)
    share = total(found, "head")[0] / macs
    print(
        f"\none tile of {size} px: {macs / 1e9:.2f} G multiply-adds, {share:.0%} of them in the "
        f"head; {4 * numbers / 2**20:.0f} MiB in float32"
    )


def _scanning(network: GlacierSeg, backend: Any) -> Network:
    def run(x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = network(x, backend=backend)
        return out

    return run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--size", type=int, default=512, help="edge of the tiles, pixels")
    add("--batch", type=int, nargs="+", default=[1, 4, 16, 64], help="tiles of one call")
    add("--rounds", type=int, default=20, help="how often each form is timed")
    add("--windows", type=Path, help="NumPy archive with raw features in its array `windows`")
    add("--quick", action="store_true", help="three forms only")
    add("--json", type=Path, help="write all numbers to this file")
    return parser


def main() -> int:
    """Measure and print tables."""
    arguments = _parser().parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device is here: this benchmark needs one", file=sys.stderr)
        return 2
    facts = machine(_PACKAGES) | {"gpu": torch.cuda.get_device_name()}
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    rates = measured_rates(arguments.rounds)
    products = (f"{p} {getattr(rates, p) / 1e12:.1f}" for p in ("float32", "tf32", "bfloat16"))
    print(f"copy {rates.copy / 1e12:.2f} TB/s; T multiply-adds/s: {', '.join(products)}")
    network, mean, std, weights = trained()
    found = costs(network.config, arguments.size)
    _print_costs(found, arguments.size)
    images, source = _images(arguments, mean, std)
    network = network.to("cuda", memory_format=torch.channels_last)  # type: ignore[call-overload]
    networks = {f"Glacier-Seg, {n} scan": _scanning(network, n) for n in available_backends("cuda")}
    peer = segformer(network.config.channels, network.config.classes)
    if peer is not None:
        networks["SegFormer-B0"] = peer.to("cuda", memory_format=torch.channels_last)
    rows, times = [], {}
    for batch in arguments.batch:
        seconds, memory = tile_rates(
            networks, images[:batch], _QUICK if arguments.quick else FORMS, rounds=arguments.rounds
        )
        rows += rate_rows(seconds, memory, batch, found, rates)
        times[batch] = seconds
    print(f"\ntiles of {arguments.size} px a second, {weights}\n")
    print(table(("batch", "network", "form", "precision", "tiles/s", "/ SegFormer eager float32",
                 "floor, tiles/s", "times the floor", "peak MiB"), rows))  # fmt: skip
    print("\nscan: largest error by largest value, against float64, 2048 tokens, 32 channels\n")
    parity = scan_parity()
    print(table(("backend", "output", "worst gradient"), parity))
    print(f"\nscan of the first stage at {arguments.size} px, ms; floor: its bytes\n")
    scans = scan_rows(arguments.size, min(16, max(arguments.batch)), arguments.rounds, rates)
    print(table(("backend", "pass", "batch", "ms", "times the floor"), scans))
    agreement = same_classes(network, images[: min(8, len(images))])
    print(f"\nsame class in bfloat16 as in float32: {100 * agreement:.4f} % of pixels ({source})")
    if arguments.json:
        values = {"machine": facts, "rates": asdict(rates), "tiles_s": times, "parity": parity,
                  "scan": scans, "same_class": agreement}  # fmt: skip
        arguments.json.write_text(json.dumps(values, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
