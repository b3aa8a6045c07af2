"""What happened to a glacier between two maps that a difference of areas does not tell.

One law: an event is told with what it is known by, and nothing is told of what was not seen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from change_detection.accounts import MIN_AREA_KM2, MIN_OBSERVED

__all__ = ["MAP_EVENTS", "map_events"]

MAP_EVENTS: dict[str, str] = {
    "unobserved": "under 80 % of the reference outline was seen at one of the dates",
    "vanished": "observed, no ice left",
    "appeared": "ice where there was none at the first date",
    "below-minimum": "fell under 0.01 km2, the least of RGI 7.0; still counted",
    "merged": "touches a glacier that it was apart from",
    "split": "in more pieces of at least 0.01 km2, none with three quarters of the ice",
    "tributary-detached": "in more pieces, the largest with at least three quarters of the ice",
    "surged?": "the terminus advanced by 300 m or more, and by 100 m a year or more",
    "advanced": "grew by more than two standard deviations, at least 0.01 km2 beyond its outline",
}
"""Events, the first that holds first, and what they mean."""

_LEAST = MIN_AREA_KM2 * (1 - 1e-9)
_TRUNK = 0.75
_SURGE_M, _SURGE_M_PER_YEAR = 300.0, 100.0
# ^ glaciers that surge advance by hundreds of metres within a few years (Sevestre and Benn 2015,
#   Journal of Glaciology 61, 646-662); a question, as the map sees no velocity

Floats = npt.NDArray[np.float64]


def map_events(
    old: pd.DataFrame,
    new: pd.DataFrame,
    pixels: pd.DataFrame,
    *,
    change: Floats,
    sigma: Floats,
    years: Floats,
) -> pd.DataFrame:
    """Find all events between two seasons.

    Parameters
    ----------
    old, new
        Accounts of the two (``change_detection.accounts.ACCOUNT_SCHEMA``) by glacier.
    pixels
        Differences (``change_detection.differences.DIFFERENCE_SCHEMA``) of the same glaciers;
        missing where pixels were not compared.
    change, sigma : ``(glacier,)``
        Area change and its standard deviation, km2; NaN where none is reported.
    years : ``(glacier,)``
        Between the two.

    Returns
    -------
    DataFrame
        ``glacier_id``, ``event`` (one of :data:`MAP_EVENTS`) and ``evidence``: by glacier, then in
        the order of the events.
    """
    compared = np.isfinite(change)
    rows: list[dict[str, Any]] = []
    for i, glacier in enumerate(old.index):
        before, after = old.iloc[i], new.iloc[i]
        found = _unobserved(before, after)
        if compared[i]:
            found |= _of_areas(before, after, change=change[i], sigma=sigma[i])
            found |= _of_pieces(before, after)
            found |= _of_pixels(pixels.iloc[i], years=float(years[i]))
        rows += [
            {"glacier_id": glacier, "event": name, "evidence": found[name]}
            for name in MAP_EVENTS
            if name in found
        ]
    return pd.DataFrame(rows, columns=["glacier_id", "event", "evidence"], dtype=object)


def _unobserved(before: Any, after: Any) -> dict[str, str]:
    shares = [float(row["obs_fraction"]) for row in (before, after)]
    if all(share >= MIN_OBSERVED for share in shares):
        return {}
    told = " and ".join("none" if np.isnan(s) else f"{100 * s:.0f} %" for s in shares)
    return {"unobserved": f"{told} of the outline seen at the two dates"}


def _of_areas(before: Any, after: Any, *, change: float, sigma: float) -> dict[str, str]:
    was, now = float(before["area_km2"]), float(after["area_km2"])
    beyond = float(after["area_beyond_km2"] - before["area_beyond_km2"])
    told = f"{was:.4f} km2 before, {now:.4f} km2 now"
    cases = {
        "vanished": was > 0 and now == 0,
        "appeared": was == 0 and now > 0,
        "below-minimum": was >= _LEAST > now > 0,
    }
    found = {name: told for name, holds in cases.items() if holds}
    if change > 2 * sigma and beyond >= _LEAST:
        grown = f"grew by {change:.3f} km2 with a standard deviation of {sigma:.3f}"
        found["advanced"] = f"{grown}, {beyond:.3f} km2 of it beyond the outline"
    return found


def _of_pieces(before: Any, after: Any) -> dict[str, str]:
    unseen = max(float(before["area_unseen_km2"]), float(after["area_unseen_km2"]))
    was, now = int(before["n_parts"]), int(after["n_parts"])
    if not 0 < was < now or unseen >= MIN_AREA_KM2:
        # What was not seen counts as ice: it may bridge a gap, or part two pieces when it is seen.
        return {}
    share = float(after["largest_part_km2"]) / float(after["area_km2"])
    name = "tributary-detached" if share >= _TRUNK else "split"
    pieces = "1 piece" if was == 1 else f"{was} pieces"
    return {name: f"{pieces} before, {now} now, the largest with {100 * share:.0f} % of the ice"}


def _of_pixels(row: Any, *, years: float) -> dict[str, str]:
    found = {}
    if isinstance(row["neighbours_to"], (list, np.ndarray)):
        joined = sorted(set(row["neighbours_to"]) - set(row["neighbours_from"]))
        if joined:
            found["merged"] = f"touches {', '.join(joined)}, from which it was apart"
    moved = row["terminus_change_m"]
    moved = np.nan if moved is None else float(moved)
    if moved >= _SURGE_M and moved >= _SURGE_M_PER_YEAR * years:
        found["surged?"] = f"the terminus advanced {moved:.0f} m in {years:.1f} years"
    return found
