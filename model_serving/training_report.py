"""A training on one self-contained HTML page: curves, scores, maps of what was held out, the card.

One law: the page draws what the metrics file, the card, the regions and what was measured on them
hold, and trains nothing.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from catalog.cube import CLASSES, ICE_CLASSES, UNKNOWN
from model_serving.calibration_figure import reliability_diagram
from model_serving.ensemble import Ensemble, load_ensemble
from model_serving.inference import map_features
from model_serving.measured import Measured
from model_serving.metrics import iou
from model_serving.model_card import group_tables, model_card, score_table
from model_serving.regions import PreparedRegion
from model_serving.runtimes import choose_runtime

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["REPORT", "training_report"]

Array = npt.NDArray[Any]

REPORT = "training.html"
_COLOURS = ("#dfe3e6", "#2b7bba", "#c8701d", "#5e4fa2")
# ^ of the classes, in their order: those of the engine's report
_SEEDS = ("#1d2733", "#c8701d", "#2b7bba", "#5e4fa2", "#b2182b")
_SMOOTH = 25
_CUT_PX = 480
# ^ edge of an example, about
_DPI = 150
_STYLE = {
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "legend.frameon": False,
    "text.parse_math": False,
}


@dataclass(frozen=True, slots=True)
class _Curve:
    """One member's training as its metrics tell it."""

    name: str
    fold: int
    seed: int
    losses: Array
    seconds: float
    scores: dict[int, float]
    """Step -> validation score."""


def training_report(
    folder: Path,
    metrics: bytes,
    regions: Sequence[PreparedRegion] = (),
    *,
    measured: Mapping[str, Measured] | None = None,
    examples: int = 3,
) -> str:
    """Make the page of a training.

    Parameters
    ----------
    folder
        Of the finished ensemble.
    metrics
        The training's ``metrics.jsonl``.
    regions
        Among them the training regions to be mapped by the members that hold them out.
    measured
        What was measured, by the name of the maps; its reliability is drawn.
    examples
        Maps shown: of regions of different folds, as far as there are any.

    Returns
    -------
    str
        HTML that needs no other file.
    """
    import jinja2
    import matplotlib as mpl

    ensemble, curves = load_ensemble(folder), _curves(metrics)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True
    )
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        scored = any(curve.scores for curve in curves)
        pictures = {
            "losses": _uri(_loss_figure(curves)),
            "validations": _uri(_score_figure(curves)) if scored else None,
            "examples": list(_examples(ensemble, regions, examples)),
            "reliabilities": dict(_reliabilities(measured or {})),
        }
    columns, rows = score_table(ensemble.card)
    return environment.get_template("training_report.html").render(
        card=ensemble.card,
        scores={"columns": columns, "rows": rows},
        groups=group_tables(ensemble.card),
        members=[_row(curve) for curve in curves],
        text=model_card(ensemble.card),
        smooth=_SMOOTH,
        **pictures,
    )


def _curves(metrics: bytes) -> list[_Curve]:
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for line in metrics.splitlines():
        told = json.loads(line)
        lines.setdefault(told["member"], []).append(told)
    return [
        _Curve(
            name,
            steps[0]["fold"],
            steps[0]["seed"],
            np.array([s["loss"] for s in steps]),
            sum(s["seconds"] or 0.0 for s in steps),
            {s["step"]: s["validation_score"] for s in steps if "validation_score" in s},
        )
        for name, steps in sorted(lines.items())
    ]


def _row(curve: _Curve) -> dict[str, Any]:
    tenth = max(1, len(curve.losses) // 10)
    best = max(curve.scores, key=lambda step: curve.scores[step], default=None)
    return {
        "name": curve.name,
        "steps": len(curve.losses),
        "loss": f"{curve.losses[-tenth:].mean():.3f}",
        "score": "–" if best is None else f"{curve.scores[best]:.3f}",
        "best": "–" if best is None else best,
        "seconds": f"{curve.seconds:.0f}",
    }


# --- figures -------------------------------------------------------------------------------------


def _panels(curves: Sequence[_Curve], *, label: str) -> tuple[Figure, Iterator[tuple[Any, _Curve]]]:
    """A panel a fold with shared axes, and each curve with its panel."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folds = sorted({curve.fold for curve in curves})
    columns = min(3, len(folds))
    rows = -(-len(folds) // columns)
    figure = Figure(figsize=(7.2, 0.4 + 1.7 * rows), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for fold, axis in zip(folds, axes, strict=False):
        axis.set_title(f"holds out fold {fold}", loc="left")
        axis.grid(color="#e3e7eb", linewidth=0.5)
    for axis in axes[len(folds) :]:
        axis.set_visible(False)
    for axis in axes[len(folds) - columns : len(folds)]:
        axis.tick_params(labelbottom=True)
    figure.supxlabel("step", fontsize=7)
    figure.supylabel(label, fontsize=7)
    return figure, ((axes[folds.index(curve.fold)], curve) for curve in curves)


def _loss_figure(curves: Sequence[_Curve]) -> Figure:
    figure, panels = _panels(curves, label="training loss")
    top = max(float(np.quantile(curve.losses, 0.98)) for curve in curves)
    for axis, curve in panels:
        colour = _SEEDS[curve.seed % len(_SEEDS)]
        steps = np.arange(1, len(curve.losses) + 1)
        axis.plot(steps, curve.losses, color=colour, linewidth=0.4, alpha=0.25)
        width = min(_SMOOTH, len(steps))
        mean = np.convolve(curve.losses, np.ones(width) / width, mode="valid")
        axis.plot(steps[width - 1 :], mean, color=colour, label=f"seed {curve.seed}")
        axis.set_ylim(0, top)
        axis.legend(loc="upper right")
    return figure


def _score_figure(curves: Sequence[_Curve]) -> Figure:
    figure, panels = _panels(curves, label="validation score")
    for axis, curve in panels:
        if not curve.scores:
            continue
        colour = _SEEDS[curve.seed % len(_SEEDS)]
        steps, scores = list(curve.scores), list(curve.scores.values())
        best = int(np.argmax(scores))
        axis.plot(steps, scores, color=colour, linewidth=1, label=f"seed {curve.seed}")
        axis.plot(steps[best], scores[best], "o", color=colour, markersize=3)
        axis.legend(loc="lower right")
    return figure


def _reliabilities(measured: Mapping[str, Measured]) -> Iterator[tuple[str, str]]:
    """Name of the maps, and the diagram of their stated probability of ice."""
    titles = ("Before temperatures", "After temperatures")
    for maps, found in measured.items():
        before, after = (
            found.before["ice_calibration_error"],
            found.after["ice_calibration_error"],
        )
        if any(counts.pixels for counts in before):
            yield maps, _data_uri(reliability_diagram(before, after, what="glacier", titles=titles))


def _examples(
    ensemble: Ensemble, regions: Sequence[PreparedRegion], count: int
) -> Iterator[dict[str, Any]]:
    """The last season of one region a fold, mapped by the members that hold it out."""
    held = {r.name: r.fold for r in ensemble.regions}
    shown: dict[int, PreparedRegion] = {}
    for region in sorted(regions, key=lambda r: r.name):
        if region.name in held:
            shown.setdefault(held[region.name], region)
    for fold, region in sorted(shown.items())[:count]:
        season = len(region.seasons) - 1
        labels = region.labels()[season]
        cut = _richest(labels, max(_CUT_PX, ensemble.window_px))
        raw = np.asarray(region.features()[(season, slice(None), *cut)], np.float32)
        truth, mapped, members = labels[cut], *_mapped(ensemble, raw, fold)
        known = (truth != UNKNOWN) & (mapped != UNKNOWN)
        score = iou(np.isin(mapped[known], ICE_CLASSES), np.isin(truth[known], ICE_CLASSES))
        yield {
            "name": region.name,
            "season": region.seasons[season],
            "members": members,
            "iou": f"{score:.3f}",
            "picture": _uri(_map_figure(raw, truth, mapped)),
        }


def _mapped(ensemble: Ensemble, raw: Array, fold: int) -> tuple[Array, int]:
    """Classes by the mean of the members that hold out a fold, 255 where nothing was seen."""
    runtime = choose_runtime(config=ensemble.config)
    voters = [m for m in ensemble.members if fold in m.folds]
    maps = [
        map_features(ensemble.predictor(m, runtime), raw, m, plan=ensemble.window_plan)
        for m in voters
    ]
    classes = np.mean(maps, axis=0).argmax(axis=0).astype(np.uint8)
    return np.where(np.isfinite(raw[0]), classes, np.uint8(UNKNOWN)), len(voters)


def _richest(labels: Array, edge: int) -> tuple[slice, slice]:
    """The square in which most is known and most classes are common; steps of a quarter."""
    height, width = (min(edge, n) for n in labels.shape)
    best, where = -1.0, (0, 0)
    for row in {*range(0, labels.shape[0] - height + 1, edge // 4), labels.shape[0] - height}:
        for col in {*range(0, labels.shape[1] - width + 1, edge // 4), labels.shape[1] - width}:
            part = labels[row : row + height, col : col + width]
            shares = np.bincount(part[part < len(CLASSES)], minlength=len(CLASSES)) / part.size
            worth = float(np.sqrt(shares).sum())
            if (worth, (-row, -col)) > (best, (-where[0], -where[1])):
                best, where = worth, (row, col)
    return slice(where[0], where[0] + height), slice(where[1], where[1] + width)


def _map_figure(raw: Array, truth: Array, mapped: Array) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(7.2, 2.85), dpi=_DPI)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.09, top=0.92, wspace=0.04)
    colour = raw[[2, 1, 0]].transpose(1, 2, 0)
    # ^ roots of reflectance as they are: dark ground shows, and snow is not burnt out
    seen = np.isfinite(colour)
    high = float(np.quantile(colour[seen], 0.99)) if seen.any() else 1.0
    shown = np.where(seen, np.clip(np.nan_to_num(colour) / max(high, 1e-6), 0, 1), 1.0)
    pictures = (shown, _painted(truth), _painted(mapped))
    titles = ("true colour", "labels", "map")
    for axis, picture, title in zip(figure.subplots(1, 3), pictures, titles, strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(title, loc="left")
        axis.set_axis_off()
    handles = [Patch(color=c, label=n) for n, c in zip(CLASSES, _COLOURS, strict=True)]
    figure.legend(handles=handles, loc="lower center", ncols=len(CLASSES))
    return figure


def _painted(classes: Array) -> Array:
    from matplotlib.colors import to_rgb

    palette = np.ones((256, 3))
    palette[: len(_COLOURS)] = [to_rgb(colour) for colour in _COLOURS]
    return np.asarray(palette[classes])


def _uri(figure: Figure) -> str:
    """A figure as PNG in a data URI; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return _data_uri(buffer.getvalue())


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
