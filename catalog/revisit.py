"""Revisits: how many days of a season a sensor should have seen each tile. Pure, no I/O.

Catalogues have been a third short without saying so (Element84/earth-search, issue 76): what is
there tells what is missing, since a satellite comes back to the same track after a fixed number of
days.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from catalog.processings import tile_of
from catalog.scenes import Scene, lon_spans

__all__ = ["Revisit", "count_revisits"]

_CYCLES = {
    "sentinel-2-msi": ((date(2015, 7, 1), 10), (date(2017, 7, 1), 5)),
    "landsat-oli": ((date(2013, 4, 11), 16), (date(2022, 2, 1), 8)),
}
# ^ sensor -> since when a track is seen again after how many days: by Sentinel-2A alone and with
#   Sentinel-2B, by Landsat 8 alone and with Landsat 9. Older Landsats and Sentinel-1 do not observe
#   all land each time, so what they should have seen is not known.
_SPARSE = 0.75
# ^ of the days expected; some are always lost to manoeuvres, and a third missing must be told
_SEEN_AGAIN = 3
# ^ passes after which a track is one; fewer may fall on one day of the cycle by chance
_FEWEST = 6
# ^ days expected; of fewer, chance alone takes a quarter


@dataclass(frozen=True, slots=True, order=True)
class Revisit:
    """Days on which one tile was seen in a season, whatever the clouds."""

    sensor: str
    tile: str
    """MGRS tile of Sentinel-2, path and row of Landsat."""
    found: int
    expected: int

    @property
    def is_sparse(self) -> bool:
        """Whether the catalogue seems to lack scenes: under three quarters of the days expected."""
        return self.found < _SPARSE * self.expected


def count_revisits(scenes: Iterable[Scene], *, start: date, end: date) -> tuple[Revisit, ...]:
    """Compare the days on which each tile was seen with those its satellites passed.

    A tile's tracks are found from its scenes: all passes of one track fall on the same day of the
    cycle. A track seen less than half as often as the tile's most frequent one only touches it and
    does not count; where none was seen three times, a tile is not judged.

    Parameters
    ----------
    scenes
        All scenes that the catalogue has, cloudy ones too.
    start, end
        First and last day of the season, none of them in the future. The cycle is that in force at
        the start.

    Returns
    -------
    tuple of Revisit
        Sorted; without sensors that observe irregularly, tiles that are not named, and tiles of
        which less than six days are expected.
    """
    days: defaultdict[tuple[str, str], set[date]] = defaultdict(set)
    for scene in scenes:
        tile = tile_of(scene)
        if tile and scene.datetime:
            days[scene.sensor, tile].add(_local_day(scene))
    found = []
    for (sensor, tile), seen in days.items():
        cycle = max((c for c in _CYCLES.get(sensor, ()) if c[0] <= start), default=None)
        if cycle:
            revisit = _compare(sensor, tile, seen, cycle=cycle[1], start=start, end=end)
            found += [revisit] if revisit.expected >= _FEWEST else []
    return tuple(sorted(found))


def _compare(
    sensor: str, tile: str, seen: set[date], *, cycle: int, start: date, end: date
) -> Revisit:
    season = range(start.toordinal(), end.toordinal() + 1)
    passes = [day.toordinal() for day in seen if day.toordinal() in season]
    tracks = Counter(day % cycle for day in passes)
    most = max(tracks.values(), default=0)
    often = {track for track, times in tracks.items() if 2 * times >= most >= _SEEN_AGAIN}
    return Revisit(
        sensor,
        tile,
        found=sum(day % cycle in often for day in passes),
        expected=sum(day % cycle in often for day in season),
    )


def _local_day(scene: Scene) -> date:
    """Day by mean solar time: passes near 180 degrees fall on both sides of midnight in UTC."""
    west, east = lon_spans(scene.bbox)[0]
    moment = datetime.fromisoformat(scene.datetime)
    return (moment + timedelta(hours=(west + east) / 2 / 15)).date()
