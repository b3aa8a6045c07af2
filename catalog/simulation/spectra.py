"""End-member reflectance: measured once from labelled pixels, drawn from here ever after."""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from catalog.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["BANDS", "Spectrum", "draw", "load_spectra", "log_moments", "measure_spectra", "vary"]

BANDS: Final = ("B02", "B03", "B04", "B08", "B11", "B12")
_COLUMNS: Final = ("B2", "B3", "B4", "B8", "B11", "B12")
_SITES: Final = ("Gulkana", "SouthCascade")
# ^ the two other sites of the data set are kept for testing and never read
_CLASSES: Final = {1: "snow", 2: "shaded_snow", 3: "ice", 4: "rock", 5: "water"}

Spectrum = tuple["NDArray[np.float64]", "NDArray[np.float64]"]
"""Mean (6,) and covariance (6, 6) of reflectance in the order of ``BANDS``."""


def measure_spectra(csv: Path) -> dict[str, Any]:
    """Measure robust mean and covariance of each class from labelled Sentinel-2 pixels.

    Sites are weighted equally. Reflectance above 1 or not above 0 is dropped, then pixels farther
    than 3.5 robust standard deviations (median absolute deviation of the logarithm) in any band.

    Parameters
    ----------
    csv
        Table with columns site_name, class, B2, B3, B4, B8, B11, B12 (reflectance).

    Raises
    ------
    DataError
        The table lacks a column (kind ``"bad-data"``).
    """
    import pandas as pd

    table = pd.read_csv(csv)
    missing = {"site_name", "class", *_COLUMNS} - set(table.columns)
    if missing:
        raise DataError(f"{csv.name} lacks the columns {sorted(missing)}")
    table = table[table["site_name"].isin(_SITES)]
    classes: dict[str, Any] = {}
    for number, name in _CLASSES.items():
        means, spreads, counts = [], [], {}
        for site in _SITES:
            rows = table[(table["class"] == number) & (table["site_name"] == site)]
            values = _clean(rows[list(_COLUMNS)].to_numpy(dtype=np.float64))
            if len(values) < 30:
                continue
            counts[site] = len(values)
            means.append(values.mean(axis=0))
            spreads.append(np.cov(values.T) + np.outer(values.mean(axis=0), values.mean(axis=0)))
        mean = np.mean(means, axis=0)
        spread = np.mean(spreads, axis=0) - np.outer(mean, mean)
        classes[name] = {
            "mean": [round(float(v), 5) for v in mean],
            "covariance": [[float(f"{v:.5g}") for v in row] for row in spread],
            "pixels": counts,
        }
    return {
        "bands": list(BANDS),
        "sites": list(_SITES),
        "source": "labelled Sentinel-2 L2A surface reflectance, 2021, MIT licence",
        "classes": classes,
    }


def _clean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    values = values[((values > 0.0) & (values <= 1.0)).all(axis=1)]
    if len(values) < 30:
        return values
    logs = np.log(values)
    middle = np.median(logs, axis=0)
    spread = 1.4826 * np.median(np.abs(logs - middle), axis=0)
    near = (np.abs(logs - middle) <= 3.5 * spread).all(axis=1)
    return np.asarray(values[near], dtype=np.float64)


def load_spectra() -> dict[str, Spectrum]:
    """Read the committed statistics: class name to mean and covariance."""
    text = resources.files(__package__).joinpath("spectra.json").read_text(encoding="utf-8")
    classes = json.loads(text)["classes"]
    return {
        name: (np.array(entry["mean"]), np.array(entry["covariance"]))
        for name, entry in classes.items()
    }


def vary(
    spectrum: Spectrum, factors: tuple[float, ...] | float, *, spread: float = 1.0
) -> Spectrum:
    """Scale a spectrum band by band; ``spread`` scales the relative standard deviation."""
    scale = np.broadcast_to(np.asarray(factors, dtype=np.float64), (6,))
    return spectrum[0] * scale, spectrum[1] * np.outer(scale, scale) * spread**2


def log_moments(spectrum: Spectrum) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and matrix root of the log-normal law with the spectrum's mean and covariance."""
    mean, covariance = spectrum
    inside = np.log1p(covariance / np.outer(mean, mean))
    values, vectors = np.linalg.eigh(inside)
    values = np.maximum(values, 1e-8)
    vectors = vectors * np.sign(vectors.sum(axis=0) + 1e-9)
    root = vectors * np.sqrt(values)
    root = root[:, ::-1]
    # ^ first column: the strongest direction (overall brightness), which takes the smoothest field
    inside = root @ root.T
    return np.log(mean) - 0.5 * np.diag(inside), root


def draw(spectrum: Spectrum, fields: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn standard normal fields (6, n) into reflectance (6, n) of one class."""
    middle, root = log_moments(spectrum)
    logs = root.astype(np.float32) @ fields
    logs += middle.astype(np.float32)[:, None]
    return np.asarray(np.exp(logs), dtype=np.float32)
