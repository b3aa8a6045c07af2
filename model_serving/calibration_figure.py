"""The reliability diagram: what share of the pixels came true, against what was stated of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from catalog.errors import UsageError
from model_serving.calibration import ProbabilityCounts, calibration_error, reliability

__all__ = ["reliability_diagram"]

Array = npt.NDArray[Any]

_INK, _MUTED, _GRID, _LINE, _GAP = "#1d2733", "#6b7785", "#e3e7eb", "#2b7bba", "#b2182b"
_SIZE_IN = (7.2, 4.8)
# ^ the double-column width of most journals; the upper panels come out square
_LEAST_PIXELS = 50
# ^ a map with fewer pixels in a bin says nothing of its observed share
_LEAST_MAPS = 3
_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    # ^ shipped with matplotlib: the layout must not depend on the fonts of a machine
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.5,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "reliability",
}


def reliability_diagram(
    before: Sequence[ProbabilityCounts],
    after: Sequence[ProbabilityCounts],
    *,
    what: str = "ice",
    bins: int = 15,
    titles: tuple[str, str] = ("Before calibration", "After calibration"),
    kind: Literal["png", "svg"] = "png",
) -> bytes:
    """Draw reliability before and after calibration side by side, over the pixels in each bin.

    Parameters
    ----------
    before, after
        Counts of each map; the curve is that of all together, and the band holds the middle 80 % of
        the maps: pixels of one map are wrong together, so their number says little of how sure the
        curve is.
    what
        What the probability is of, for the labels of the axes.
    bins
        Of equal width; see :func:`model_serving.calibration.reliability`.
    titles
        Of the two panels.
    kind
        Of the picture: pixels (300 a inch) or vectors.

    Returns
    -------
    bytes
        The picture; equal for equal counts.

    Raises
    ------
    UsageError
        Where one of the two has no pixel.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not all(sum(part.pixels for part in parts) for parts in (before, after)):
        raise UsageError("there is no pixel to draw the reliability of: count at least one map")
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_RC)
        figure = Figure(figsize=_SIZE_IN, dpi=300, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(
            2, 2, sharex=True, sharey="row", gridspec_kw={"height_ratios": (3.4, 1)}
        )
        least = []
        for column, (parts, title) in enumerate(zip((before, after), titles, strict=True)):
            _curve(axes[0, column], parts, bins)
            least.append(_histogram(axes[1, column], ProbabilityCounts.total(parts), bins))
            axes[0, column].set_title(title)
            axes[0, column].annotate(
                "ab"[column],
                (0, 1),
                xytext=(-8, 6),
                xycoords="axes fraction",
                textcoords="offset points",
                fontsize=9,
                fontweight="bold",
                ha="right",
            )
            axes[1, column].set_xlabel(f"Stated probability of {what}")
        axes[0, 0].set_ylabel(f"Observed share of {what}")
        axes[1, 0].set(ylabel="Pixels (%)", ylim=(min(least) / 2, 100))
        axes[0, 0].legend(loc="upper left")
        buffer = io.BytesIO()
        still = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, metadata=still)
    return buffer.getvalue()


def _curve(ax: Any, parts: Sequence[ProbabilityCounts], bins: int) -> None:
    """Observed share against probability, the distance to the diagonal, and the spread of maps."""
    whole = ProbabilityCounts.total(parts)
    table = reliability(whole, bins=bins).dropna()
    x, y = table["probability"].to_numpy(), table["observed"].to_numpy()
    ax.plot((0, 1), (0, 1), color=_MUTED, linewidth=0.8, linestyle=(0, (4, 3)), label="perfect")
    spread = _spread(parts, bins)
    if spread is not None:
        ax.fill_between(
            *spread, color=_LINE, alpha=0.16, linewidth=0, label="middle 80 % of the maps"
        )
    ax.vlines(x, np.minimum(x, y), np.maximum(x, y), color=_GAP, linewidth=1.4, label="error")
    ax.plot(x, y, color=_LINE, linewidth=1.2, marker="o", markersize=3.2, label="observed")
    error = calibration_error(whole, bins=bins)
    ax.text(
        0.98,
        0.04,
        f"expected calibration error {error:.3f}\n{_counted(whole.pixels)} pixels, "
        f"{len(parts)} map{'s' * (len(parts) != 1)}",
        transform=ax.transAxes,
        ha="right",
        va="bottom",
        linespacing=1.5,
    )
    ax.set(xlim=(0, 1), ylim=(0, 1), xticks=np.arange(0, 1.1, 0.2), yticks=np.arange(0, 1.1, 0.2))


def _spread(parts: Sequence[ProbabilityCounts], bins: int) -> tuple[Array, Array, Array] | None:
    """Middle of each bin and the 10 % and 90 % quantiles of the maps' observed shares in it."""
    tables = [reliability(part, bins=bins) for part in parts]
    if len(tables) < _LEAST_MAPS:
        return None
    observed = np.stack(
        [t["observed"].where(t["count"] >= _LEAST_PIXELS).to_numpy(float) for t in tables]
    )
    stated = np.stack([t["probability"].to_numpy(float) for t in tables])
    enough = np.isfinite(observed).sum(axis=0) >= _LEAST_MAPS
    if not enough.any():
        return None
    low, high = np.nanquantile(observed[:, enough], (0.1, 0.9), axis=0)
    return np.nanmean(stated[:, enough], axis=0), low, high


def _histogram(ax: Any, counts: ProbabilityCounts, bins: int) -> float:
    """Share of the pixels in each bin; returns the smallest, percent."""
    table = reliability(counts, bins=bins)
    share = 100 * table["count"] / counts.pixels
    ax.bar(
        table["low"],
        share,
        width=table["high"] - table["low"],
        align="edge",
        color=_LINE,
        edgecolor="white",
        linewidth=0.4,
    )
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    return float(share[share > 0].min())


def _counted(number: int) -> str:
    for limit, word in ((10**9, "thousand million"), (10**6, "million")):
        if number >= limit:
            return f"{number / limit:.3g} {word}"
    return f"{number:,}"
