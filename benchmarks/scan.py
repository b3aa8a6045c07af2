"""The selective scan on a CPU: every backend against the plain loop and against a floor.

The floor is the larger of two times that are measured in the same rounds: copying as many bytes as
the scan must read and write, and doing its arithmetic with all numbers in registers. That is an
exponential, two products and two fused additions for each token, channel and state; the backward
pass takes an exponential, two products and one fused addition to have the states again, and two
products and six fused additions for the gradients. One thread. Then the errors of each backend
against the recurrence in float64, and a training step of the whole network with each of them::

    python benchmarks/scan.py             # some five minutes
    python benchmarks/scan.py --quick
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from measure import Call, interleaved, machine, ratio, reuse_memory, spread, table
from numba import njit
from torch.nn import functional

from model_serving.compiled.lanes import WIDTH, exp2_negative, fma, load, store
from model_serving.compiled.lanes import spread as lanes
from model_serving.glacier_seg import GlacierSeg
from model_serving.selective_scan import available_backends, scan_recurrence, selective_scan

Array = npt.NDArray[np.float32]
Tensors = dict[str, torch.Tensor]
Run = Callable[[Tensors], torch.Tensor]

_STATES = 16
_COPIED = 2**26
# ^ bytes of the array whose copy tells the rate: more than the caches hold
_LOOP_TOKENS = 4096
# ^ the plain loop is differentiated up to this length: it keeps every state
_SLOW_S = 0.6
_ZERO = np.float32(0)


@njit(nogil=True, boundscheck=False, error_model="numpy")  # type: ignore[untyped-decorator]
def _forward_floor(rows: Any, rounds: int, out: Any) -> None:
    """Arithmetic of the scan for four independent states of sixteen channels, ``rounds`` times."""
    # The step changes from round to round, as far as the compiler knows, so that nothing can be
    # moved out of the loop; all results are stored in the end, so that nothing can be left out.
    step, growth = load(rows, 0), load(rows, WIDTH)
    b0, b1, b2, b3 = load(rows, 32), load(rows, 48), load(rows, 64), load(rows, 80)
    r0, r1, r2, r3 = load(rows, 96), load(rows, 112), load(rows, 128), load(rows, 144)
    h0 = h1 = h2 = h3 = y = lanes(_ZERO)
    for _ in range(rounds):
        step = step + growth
        h0 = fma(exp2_negative(step * r0), h0, step * b0)
        y = fma(b1, h0, y)
        h1 = fma(exp2_negative(step * r1), h1, step * b1)
        y = fma(b2, h1, y)
        h2 = fma(exp2_negative(step * r2), h2, step * b2)
        y = fma(b3, h2, y)
        h3 = fma(exp2_negative(step * r3), h3, step * b3)
        y = fma(b0, h3, y)
    store(out, 0, y)
    store(out, WIDTH, h0 + h1 + h2 + h3)


@njit(nogil=True, boundscheck=False, error_model="numpy")  # type: ignore[untyped-decorator]
def _backward_floor(rows: Any, rounds: int, out: Any) -> None:
    """Arithmetic of the backward pass for two independent states, ``rounds`` times."""
    step, growth = load(rows, 0), load(rows, WIDTH)
    b0, b1, r0, r1 = load(rows, 32), load(rows, 48), load(rows, 96), load(rows, 112)
    h0 = h1 = a0 = a1 = b_0 = b_1 = c_0 = c_1 = d_0 = d_1 = gx = gstep = lanes(_ZERO)
    for _ in range(rounds):
        step = step + growth
        decay0, decay1 = exp2_negative(step * r0), exp2_negative(step * r1)
        n0, n1 = fma(decay0, h0, step * b0), fma(decay1, h1, step * b1)
        g0, g1 = fma(b1, step, a0), fma(b0, step, a1)
        c_0, c_1 = fma(step, n0, c_0), fma(step, n1, c_1)
        b_0, b_1 = fma(g0, step, b_0), fma(g1, step, b_1)
        gx = fma(g1, b1, fma(g0, b0, gx))
        a0, a1 = g0 * decay0, g1 * decay1
        e0, e1 = a0 * h0, a1 * h1
        d_0, d_1 = fma(e0, step, d_0), fma(e1, step, d_1)
        gstep = fma(e1, r1, fma(e0, r0, gstep))
        h0, h1 = n0, n1
    store(out, 0, gx + gstep + a0 + a1 + h0 + h1)
    store(out, WIDTH, b_0 + b_1 + c_0 + c_1 + d_0 + d_1)


def inputs(length: int, channels: int, *, dtype: torch.dtype = torch.float32) -> Tensors:
    """Random inputs of a scan, steps as they are in a trained network."""
    rng = np.random.default_rng(0)
    shapes = {
        "u": (1, length, channels),
        "delta": (1, length, channels),
        "B": (1, length, _STATES),
        "C": (1, length, _STATES),
        "D": (channels,),
    }
    found = {name: torch.from_numpy(rng.normal(size=shape)) for name, shape in shapes.items()}
    found["delta"] = torch.exp(found["delta"] - 3)
    found["A"] = -torch.arange(1.0, _STATES + 1).repeat(channels, 1)
    return {name: tensor.to(torch.float32).to(dtype) for name, tensor in found.items()}


def backends() -> dict[str, Run]:
    """All backends of this machine's CPU, and the plain loop."""

    def run(name: Any, tensors: Tensors) -> torch.Tensor:
        return selective_scan(**tensors, backend=name)

    found: dict[str, Run] = {n: functools.partial(run, n) for n in available_backends()}
    found["loop"] = lambda tensors: scan_recurrence(**tensors)
    return found


def forward(run: Run, tensors: Tensors) -> Call:
    """One forward pass."""

    def call() -> None:
        with torch.inference_mode():
            run(tensors)

    return call


def gradients(run: Run, tensors: Tensors) -> tuple[torch.Tensor, ...]:
    """Gradients of all inputs for a gradient of ones."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    y = run(leaves)
    return torch.autograd.grad(y, list(leaves.values()), torch.ones_like(y))


def scan_bytes(length: int, channels: int, *, backward: bool) -> int:
    """Bytes that a scan reads and writes, each array once."""
    wide, narrow = 4 * length * channels, 4 * length * _STATES
    once = 3 * wide + 2 * narrow
    return once + 5 * wide + 4 * narrow if backward else once


def floor_calls(length: int, channels: int, *, backward: bool) -> dict[str, Call]:
    """Copy some bytes; do all arithmetic of a scan."""
    rng = np.random.default_rng(0)
    rows = rng.uniform(0.1, 1, 10 * WIDTH).astype(np.float32)
    rows[:WIDTH], rows[WIDTH : 2 * WIDTH] = 0.1, 1e-9
    rows[6 * WIDTH :] *= -16
    # ^ from row 6 on they are rates
    out = np.zeros(2 * WIDTH, np.float32)
    source, target = np.ones((2, _COPIED), np.uint8)
    vectors = length * channels * _STATES // WIDTH

    def arithmetic() -> None:
        _forward_floor(rows, vectors // 4, out)
        if backward:
            _backward_floor(rows, vectors // 2, out)

    return {"copy": lambda: np.copyto(target, source), "arithmetic": arithmetic}


def timed(length: int, channels: int, rounds: int, *, backward: bool) -> dict[str, Any]:
    """Time all backends and the floor at one length and width."""
    tensors = inputs(length, channels)
    calls = floor_calls(length, channels, backward=backward)
    for name, run in backends().items():
        if name == "loop" and backward and length > _LOOP_TOKENS:
            continue
        calls[name] = (
            functools.partial(gradients, run, tensors) if backward else forward(run, tensors)
        )
    seconds = interleaved(calls, rounds, slow_s=_SLOW_S)
    copied = np.asarray(seconds.pop("copy")) * (
        scan_bytes(length, channels, backward=backward) / (2 * _COPIED)
    )
    arithmetic = np.asarray(seconds.pop("arithmetic"))
    seconds["floor"] = np.maximum(copied, arithmetic).tolist()
    return {
        "length": length,
        "channels": channels,
        "backward": backward,
        "bytes_s": float(np.median(copied)),
        "arithmetic_s": float(np.median(arithmetic)),
        "s": seconds,
    }


def rows_of(result: dict[str, Any]) -> list[list[str]]:
    """Rows of a table, one a backend."""
    seconds = result["s"]
    count = result["length"] * result["channels"] * _STATES
    rows = []
    for name in [*backends(), "floor"]:
        cells = [f"{result['length']}", f"{result['channels']}", name]
        if name not in seconds:
            rows.append([*cells, "left out", "", "", ""])
            continue
        each = spread([1e9 * s / count for s in seconds[name]])
        cells.append(each.text(3))
        cells.append(f"{ratio(seconds[name], seconds['floor']):.2f}")
        for slower in ("torch", "loop"):
            known = slower in seconds and name != "floor"
            cells.append(f"{ratio(seconds[slower], seconds[name]):.2f}" if known else "-")
        rows.append(cells)
    return rows


def errors(length: int = 2048, channels: int = 32) -> list[list[str]]:
    """Largest errors of each backend against the recurrence in float64, by largest value."""
    exact, single = (
        inputs(length, channels, dtype=kind) for kind in (torch.float64, torch.float32)
    )
    loop = backends()["loop"]
    truth = (loop(exact), *gradients(loop, exact))
    rows = []
    for name, run in backends().items():
        found = (run(single), *gradients(run, single))
        off = [
            float((f - t).abs().max() / t.abs().max()) for f, t in zip(found, truth, strict=True)
        ]
        rows.append([name, f"{off[0]:.1e}", f"{max(off[1:]):.1e}"])
    return rows


def training(rounds: int, *, size: int, threads: int, half: bool) -> dict[str, list[float]]:
    """Seconds of forward and backward of the whole network, two windows, with each backend.

    ``half``: the head computes in bfloat16, as when the engine trains.
    """
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    network = GlacierSeg().train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(2, network.config.channels, size, size)
    x = x.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(network.config.classes, (2, size, size))

    def step(name: Any) -> None:
        network.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = network(x, backend=name)
        torch.autograd.backward(functional.cross_entropy(logits.float(), labels))

    calls = {name: functools.partial(step, name) for name in available_backends()}
    found = interleaved(calls, rounds)
    torch.set_num_threads(1)
    return found


def _print_scans(results: Sequence[dict[str, Any]], *, backward: bool) -> None:
    headers = ("tokens", "channels", "backend", "ns a token, channel and state", "/ floor",
               "torch / it", "loop / it")  # fmt: skip
    shown = [r for r in results if r["backward"] == backward]
    print(f"\n{'forward and backward' if backward else 'forward'}, 16 states, one thread\n")
    print(table(headers, [row for result in shown for row in rows_of(result)]))
    for r in shown:
        print(
            f"floor at {r['length']} x {r['channels']}: arithmetic "
            f"{1e3 * r['arithmetic_s']:.2f} ms, bytes {1e3 * r['bytes_s']:.2f} ms"
        )


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--tokens", type=int, nargs="+", default=[4096, 16384, 65536], help="lengths")
    add("--channels", type=int, nargs="+", default=[32, 64], help="widths")
    add("--rounds", type=int, default=12, help="how often each backend is timed")
    add("--quick", action="store_true", help="one length, one width, four rounds")
    add("--json", type=Path, help="write all numbers to this file")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.tokens, arguments.channels, arguments.rounds = [4096], [32], 4
    reuse_memory()
    torch.set_num_threads(1)
    facts = machine(("numpy", "numba", "torch"))
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    results = []
    for backward in (False, True):
        results += [
            timed(length, channels, arguments.rounds, backward=backward)
            for length in arguments.tokens
            for channels in arguments.channels
        ]
        _print_scans(results, backward=backward)
    print("\nlargest error by largest value, against float64, 2048 tokens, 32 channels\n")
    print(table(("backend", "output", "worst gradient"), errors()))
    # The engine trains a member a core, so the first is what its users wait for.
    ways = {"one thread, head in bfloat16": (1, True), "two threads, float32": (2, False)}
    steps = {
        title: training(arguments.rounds, size=256, threads=threads, half=half)
        for title, (threads, half) in ways.items()
    }
    for title, times in steps.items():
        print(f"\ntraining step, 256 px, two windows, {title}\n")
        rows = [
            [name, spread([1e3 * v for v in s]).text(0), f"{ratio(s, times['torch']):.2f}"]
            for name, s in times.items()
        ]
        print(table(("scan", "ms", "/ torch"), rows))
    if arguments.json:
        found = {"machine": facts, "scans": results, "training_s": steps}
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
