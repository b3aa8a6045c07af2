"""The look of the report: one palette, one type size, and how a figure becomes bytes.

Pure drawing, no reading. Equal figures give equal bytes: no dates, no software names, no random
ids.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

__all__ = [
    "CLEAN",
    "DEBRIS",
    "GAIN",
    "INK",
    "LOSS",
    "MUTED",
    "PAGE_WIDTH_IN",
    "WATER",
    "figure_style",
    "jpeg_uri",
    "new_figure",
    "panel_letter",
    "png_bytes",
    "season_colours",
    "svg_bytes",
    "svg_uri",
]

INK, MUTED, GRID = "#1d2733", "#6b7785", "#e3e7eb"
CLEAN, DEBRIS, WATER = "#2b7bba", "#c8701d", "#5e4fa2"
LOSS, GAIN = "#b2182b", "#2166ac"
# ^ blue against orange and red against blue stay apart for the common colour-vision deficiencies
PAGE_WIDTH_IN = 7.2
# ^ the double-column width of most journals (183 mm)
_DPI = 200
_PRINT_DPI = 300
_FONTS = "Helvetica Neue, Helvetica, Arial, DejaVu Sans, sans-serif"
_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    # ^ shipped with matplotlib: the layout must not depend on the fonts of a machine
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "text.parse_math": False,
    # ^ names of glaciers are text, also where they hold a dollar sign
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.4,
    "ytick.minor.size": 1.4,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "hatch.linewidth": 0.4,
    "svg.fonttype": "none",
    "svg.hashsalt": "glacier-inventory-engine",
    "savefig.facecolor": "white",
    "path.simplify": True,
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw with the report's own settings, whatever the user's matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_RC)
        yield


def new_figure(width_in: float, height_in: float) -> Figure:
    """Make an empty Agg figure of the given size, free of the global pyplot state."""
    figure = Figure(figsize=(width_in, height_in), dpi=_DPI, layout=None)
    FigureCanvasAgg(figure)
    return figure


def panel_letter(axes: Any, letter: str) -> None:
    """Put the bold panel letter above the upper-left corner of the axes."""
    axes.annotate(
        letter,
        (0, 1),
        xytext=(-2, 4),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=8.5,
        fontweight="bold",
        ha="right",
        va="bottom",
    )


def season_colours(count: int) -> list[str]:
    """Colours of the seasons in the order of time: one ordered ramp, dark to bright."""
    ramp = mpl.colormaps["plasma"]
    stops = np.linspace(0.08, 0.74, count) if count > 1 else np.array([0.3])
    return [mpl.colors.to_hex(ramp(float(stop))) for stop in stops]


def png_bytes(figure: Figure) -> bytes:
    """Raster form of a figure for print, 300 dpi."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_PRINT_DPI, metadata={"Software": None})
    return buffer.getvalue()


def svg_bytes(figure: Figure) -> bytes:
    """Vector form of a figure; text stays text."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue().replace("'DejaVu Sans'", _FONTS).encode()


def svg_uri(figure: Figure) -> str:
    """Vector form of a figure as a data URI."""
    data = base64.b64encode(svg_bytes(figure)).decode("ascii")
    return "data:image/svg+xml;base64," + data


def jpeg_uri(figure: Figure, *, budget_bytes: int) -> str:
    """Raster form of a figure as a data URI, at the best quality that fits the budget.

    Notes
    -----
    Photographs are several times smaller as JPEG than as PNG; colour is not sub-sampled, so that
    thin outlines keep their colour.
    """
    canvas = figure.canvas
    if not isinstance(canvas, FigureCanvasAgg):
        canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    data = b""
    for quality in (92, 86, 78, 68, 56):
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=quality, subsampling=0, optimize=True)
        data = buffer.getvalue()
        if len(data) <= budget_bytes:
            break
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
