"""What all benchmarks share: interleaved rounds, medians with their spread, tables, the machine.

Needs numpy and the standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["Call", "Spread", "interleaved", "machine", "ratio", "reuse_memory", "spread", "table"]

Call = Callable[[], object]

_PAUSE_S = 0.02
# ^ between two contenders: threads of the first that still spin must not slow the second


_MALLOC = {
    "M_ARENA_MAX": (-8, 1),
    "M_MMAP_THRESHOLD": (-3, 2**30),
    "M_TRIM_THRESHOLD": (-1, 2**31 - 1),
}
# ^ glibc's numbers of these settings, and what they are set to


def reuse_memory() -> None:
    """Keep the memory of large arrays for the next ones, as the engine's workers do.

    Otherwise each is given back to the system and asked for again: that takes contenders different
    shares of their time, and none of them is to blame. Does nothing where there is no glibc.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        for number, value in _MALLOC.values():
            library.mallopt(number, value)


@dataclass(frozen=True, slots=True)
class Spread:
    """Median of repeated measurements and the middle four fifths of them."""

    median: float
    low: float
    """10th percentile."""
    high: float
    """90th percentile."""

    def text(self, digits: int = 1) -> str:
        """Write it as ``median [low-high]``."""
        return f"{self.median:.{digits}f} [{self.low:.{digits}f}-{self.high:.{digits}f}]"


def spread(values: Sequence[float]) -> Spread:
    """Median, 10th and 90th percentile; rounds that were left out (NaN) do not count."""
    low, middle, high = np.nanpercentile(np.asarray(values, np.float64), (10, 50, 90))
    return Spread(float(middle), float(low), float(high))


def ratio(values: Sequence[float], reference: Sequence[float]) -> float:
    """Median over the rounds of ``values / reference``; NaN where they share no round."""
    shares = np.asarray(values, np.float64) / np.asarray(reference, np.float64)
    shares = shares[np.isfinite(shares)]
    return float(np.median(shares)) if len(shares) else float("nan")


def interleaved(
    calls: Mapping[str, Call],
    rounds: int,
    *,
    slow_s: float = float("inf"),
    every: int = 4,
    least_s: float = 0.05,
    warmups: int = 2,
) -> dict[str, list[float]]:
    """Time contenders round by round, each round in another order.

    Whatever else the machine does then hits all of them alike, and ratios within a round hold.

    Parameters
    ----------
    calls
        What to time, by name.
    rounds
        How often.
    slow_s, every
        Contenders slower than this many seconds take part in every so manieth round only.
    least_s
        Fast contenders are repeated within a round until it lasts about as long as this.
    warmups
        Calls before the first round; the last tells how fast a contender is.

    Returns
    -------
    dict
        Seconds of one call in each round; NaN where a contender was left out.
    """
    repeats = {}
    slow = set()
    for name, call in calls.items():
        took = float("inf")
        for _ in range(warmups):
            took = min(took, _seconds(call, 1))
        repeats[name] = max(1, round(least_s / took))
        if took > slow_s:
            slow.add(name)
    order = list(calls)
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds):
        rng.shuffle(order)
        for name in order:
            if name in slow and index % every:
                times[name].append(float("nan"))
                continue
            time.sleep(_PAUSE_S)
            times[name].append(_seconds(calls[name], repeats[name]))
    return times


def _seconds(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a Markdown table that can also be read as it stands; numbers to the right."""
    cells = [list(headers), *map(list, rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(headers))]
    numeric = [i > 0 and any(row[i][:1].isdigit() for row in rows) for i in range(len(headers))]
    rule = ["-" * (w - 1) + ":" if n else "-" * w for w, n in zip(widths, numeric, strict=True)]

    def line(row: Sequence[str]) -> str:
        parts = [
            c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)
        ]
        return f"| {' | '.join(parts)} |"

    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


def machine(packages: Sequence[str] = ()) -> dict[str, str]:
    """Describe the processor and the versions of packages that are installed."""
    facts = {
        "processor": platform.processor() or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0),
    }
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        lines = [line.split(":", 1) for line in listing.read_text().splitlines() if ":" in line]
        known = {key.strip(): value.strip() for key, value in lines}
        flags = known.get("flags", known.get("Features", "")).split()
        facts["processor"] = known.get("model name", facts["processor"])
        facts["avx512f"] = "yes" if "avx512f" in flags else "no"
        facts["avx512_bf16"] = "yes" if "avx512_bf16" in flags else "no"
        facts["amx_bf16"] = "yes" if "amx_bf16" in flags else "no"
    facts["python"] = platform.python_version()
    for package in packages:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    return facts
