"""Ranking: how good a look at a glacier is for mapping it. Pure, no I/O.

The one law: a look's score is the square root of the share of the glacier that it sees clearly,
times one minus the weighted penalties for what makes the mapped outline wrong; so what each cause
costs can be told in the same unit, and score and costs add up to one.

The square root, because the first hidden pixels cost least: they are filled from the next best
look, whereas the snow that a look shows is mapped. With half of a glacier hidden it loses 0.29.

The weights are argued, not fitted; they add up to one, so that a look with every fault scores 0:

* snow around, 0.5: seasonal snow on the ground beside a glacier hides its margin as surely as cloud
  does and, worse, is mapped as ice (Paul et al. 2009, *Ann. Glaciol.* 50(53), 119-126; Racoviteanu
  et al. 2009, same volume, 53-69). A ring white all over makes a look useless, however clear it is;
  it is not weighted like cloud, for some of the snow lies above the snow line all year.
* albedo, 0.15: snow on the glacier tells of the same snowfall, also where a glacier has no ground
  beside it; less than the ring, for its accumulation area is white in every look.
* hidden around, 0.15: beside cloud lie the thin cloud and the shadow that no mask finds, and where
  the ground beside a glacier is not seen, neither is its margin if that has moved.
* season, 0.1: far from the end of the ablation season what no pixel shows becomes likely, such as
  snow on debris; small, for the snow that counts is measured.
* shadow, 0.1: ice in shadow is hard to tell but not hidden, and much the same in all looks of a
  season.
"""

from __future__ import annotations

from datetime import date

import numpy as np
import numpy.typing as npt
import pandas as pd

__all__ = [
    "CAUSES",
    "COMPONENTS",
    "WEIGHTS",
    "ablation_end",
    "broadband_albedo",
    "days_from_ablation_end",
    "is_cloud",
    "is_snow",
    "losses",
    "rank",
]

COMPONENTS = (
    "coverage",
    "cloud",
    "hidden_around",
    "snow_around",
    "albedo",
    "season_days",
    "shadow",
    "sun_elevation",
)
"""What is measured of a look, NaN where it is not known: the share of the glacier that the scenes
cover; of that, the shares under cloud or its shadow and in the shadow of terrain; of the ring
around it the share that is hidden, under cloud or beyond the scenes, and of the rest the share
under snow; the glacier's mean albedo; signed days; degrees."""

WEIGHTS = {"snow_around": 0.5, "albedo": 0.15, "hidden_around": 0.15, "season": 0.1, "shadow": 0.1}
"""What each penalty counts; see the module for why."""

CAUSES = ("not_covered", "cloud", *WEIGHTS)
"""What a score is lost to."""

_UNKNOWN = 0.5
# ^ penalty of what cannot be measured: between the best and the worst
_NDSI = 0.4
_SNOW_NIR, _SNOW_GREEN = 0.11, 0.10
_CLOUD_GREEN, _CLOUD_SWIR = 0.25, 0.2
_DARK_ICE, _FRESH_SNOW = 0.15, 0.85
_SEASON_DAYS = 90.0
_SUN_HIGH, _SUN_LOW = 60.0, 15.0
_AWAY_DEG, _END_DAY = (28.0, 46.0, 78.0), (305.0, 258.0, 227.0)
# ^ distance from the equator; day of the year in the northern hemisphere: 1 November, 15 September,
#   15 August
_TROPIC = 23.44
_YEAR = 365.25

_Reflectance = npt.NDArray[np.floating]
_Mask = npt.NDArray[np.bool_]


def is_snow(green: _Reflectance, nir: _Reflectance, swir1: _Reflectance) -> _Mask:
    """Tell snow and clean ice from all else by the normalised-difference snow index.

    The index (Dozier 1989, *Remote Sens. Environ.* 28, 9-22) is at least 0.4, the near infrared
    above 0.11, which leaves water out (Hall et al. 1995, *Remote Sens. Environ.* 54, 127-140), and
    green above 0.10, which leaves out dark ground (Klein et al. 1998, *Hydrol. Process.* 12,
    1723-1744).

    Parameters
    ----------
    green, nir, swir1
        Surface reflectance at 0.56, 0.84 and 1.6 um.
    """
    index = (green - swir1) >= _NDSI * (green + swir1)
    return np.asarray(index & (nir > _SNOW_NIR) & (green > _SNOW_GREEN), bool)


def is_cloud(green: _Reflectance, nir: _Reflectance, swir1: _Reflectance) -> _Mask:
    """Tell cloud by its colour, for scenes that bring no mask.

    Cloud is bright in the visible, and at 1.6 um brighter than snow and ice of any grain, which
    absorb there; unlike bright rock and debris, whose spectrum rises up to there, it is darker at
    1.6 um than in the near infrared (the snow-index and rock tests of Irish 2000, *Proc. SPIE*
    4049, 348-355; the warm half of that scheme needs a thermal band). Neither thin cirrus nor the
    shadow of cloud is found, and ground half under snow may be taken for cloud: both are bad for
    mapping.

    Parameters
    ----------
    green, nir, swir1
        As for :func:`is_snow`.
    """
    bright = (green > _CLOUD_GREEN) & (swir1 > _CLOUD_SWIR)
    index = (green - swir1) < _NDSI * (green + swir1)
    return np.asarray(bright & index & (nir > swir1), bool)


def broadband_albedo(green: _Reflectance, nir: _Reflectance) -> _Reflectance:
    """Albedo of snow and glacier ice from two bands, clipped to 0..1.

    ``0.726 g - 0.322 g**2 - 0.051 n + 0.581 n**2``: Knap, Reijmer and Oerlemans 1999, *Int. J.
    Remote Sens.* 20, 2091-2110, measured on a glacier for Landsat TM bands 2 and 4.

    Parameters
    ----------
    green, nir
        Surface reflectance.
    """
    albedo = 0.726 * green - 0.322 * green**2 - 0.051 * nir + 0.581 * nir**2
    clipped: _Reflectance = np.clip(albedo, 0.0, 1.0)
    return clipped


def ablation_end(latitude: float) -> float | None:
    """Day of the year on which the ablation season usually ends, when least snow lies.

    In between straight lines over the distance from the equator: 1 November at 28 degrees, where
    the monsoon snows on glaciers in summer and the scenes of inventories are those of October to
    December (Racoviteanu et al. 2009); 15 September at 46 degrees, the Alps (Paul et al. 2009: end
    of August and September); 15 August at 78 degrees, Svalbard, where snow returns by the end of
    August. The southern hemisphere is half a year off: mid March in New Zealand. Between the
    tropics temperature has no season (Kaser and Osmaston 2002, *Tropical Glaciers*): None.

    Parameters
    ----------
    latitude
        Degrees north.
    """
    away = abs(latitude)
    if away <= _TROPIC:
        return None
    day = float(np.interp(away, _AWAY_DEG, _END_DAY))
    return day if latitude > 0 else (day + _YEAR / 2) % _YEAR


def days_from_ablation_end(day: date, latitude: float) -> float:
    """Days from the nearest end of an ablation season, negative before it; NaN in the tropics.

    Parameters
    ----------
    day
        Of the look.
    latitude
        Of the glacier, degrees north.
    """
    end = ablation_end(latitude)
    if end is None:
        return float("nan")
    return (day.timetuple().tm_yday - end + _YEAR / 2) % _YEAR - _YEAR / 2


def losses(frame: pd.DataFrame) -> pd.DataFrame:
    """What each cause takes from the score of each look.

    Penalties are: the shares of the ring under snow and hidden; the albedo on the way from
    debris and dark ice (0.15) to fresh snow (0.85; Cuffey and Paterson 2010, *The Physics of
    Glaciers*, table 5.2); days from the end of the ablation season, full from 90 on; the share in
    shadow where it is known, otherwise the height of the sun, from 60 degrees, when only walls are
    shaded, down to 15. What is not known counts as half, except the season: where there is none, no
    day is better than another.

    Parameters
    ----------
    frame
        Columns :data:`COMPONENTS`; one row a look.

    Returns
    -------
    DataFrame
        Columns :data:`CAUSES`, index of ``frame``; none is negative, a row's sum is at most 1, and
        what is left is the score.
    """
    sun = ((_SUN_HIGH - frame["sun_elevation"]) / (_SUN_HIGH - _SUN_LOW)).clip(0, 1)
    penalties = {
        "snow_around": frame["snow_around"].fillna(_UNKNOWN),
        "albedo": (
            ((frame["albedo"] - _DARK_ICE) / (_FRESH_SNOW - _DARK_ICE)).clip(0, 1).fillna(_UNKNOWN)
        ),
        "hidden_around": frame["hidden_around"].fillna(_UNKNOWN),
        "season": (frame["season_days"].abs() / _SEASON_DAYS).clip(0, 1).fillna(0.0),
        "shadow": frame["shadow"].fillna(sun).fillna(_UNKNOWN),
    }
    coverage, cloud = frame["coverage"], frame["cloud"].fillna(0.0)
    seen = coverage * (1.0 - cloud)
    worth = seen.clip(0, 1) ** 0.5
    each = 1.0 / (1.0 + worth)
    # ^ of what is lost to what is hidden, by the share of the glacier: 1 - sqrt(s) = (1 - s) * each
    lost = {"not_covered": (1.0 - coverage) * each, "cloud": coverage * cloud * each}
    lost |= {name: worth * weight * penalties[name] for name, weight in WEIGHTS.items()}
    return pd.DataFrame(lost, index=frame.index)


def rank(frame: pd.DataFrame) -> pd.DataFrame:
    """Give each look of each glacier its score and its rank among the glacier's looks.

    Parameters
    ----------
    frame
        Columns ``ref_id``, ``day``, ``sensor`` and :data:`COMPONENTS`, in any order of rows.

    Returns
    -------
    DataFrame
        With ``score`` (0..1, larger is better) and ``rank`` (1 is best), ordered by ``ref_id`` and
        ``rank``. Of equal scores the earlier day ranks first, then the sensor's name.
    """
    score = (1.0 - losses(frame).sum(axis=1)).clip(0, 1).round(6)
    ranked = frame.assign(score=score).sort_values(
        ["ref_id", "score", "day", "sensor"],
        ascending=[True, False, True, True],
        kind="stable",
        ignore_index=True,
    )
    ranked["rank"] = ranked.groupby("ref_id").cumcount().astype("int32") + 1
    return ranked
