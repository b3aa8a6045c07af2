"""Sensors a user adds: which assets of a collection are which bands, and what their pixels mean.

Pure, no I/O. A collection that is described here is read as it says, also one that is known.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

from catalog.cube import OPTICAL_BANDS, SAR_BANDS
from catalog.errors import UsageError
from catalog.items import bad_field, band_number, band_source, find_asset, make_scene, nodata_of
from catalog.scenes import BandSource, MaskRule, Scene, SceneKind

__all__ = ["BandSpec", "MaskSpec", "SensorSpec", "describe_with", "read_sensor"]

UserMaskKind = Literal["scl", "qa_pixel", "values", "bits"]
_ROLES: dict[SceneKind, tuple[str, ...]] = {
    "optical": OPTICAL_BANDS,
    "sar": SAR_BANDS,
    "dem": ("elevation",),
}
_SENSOR_KEYS = ("kind", "bands", "mask")
_BAND_KEYS = {
    "optical": ("asset", "scale", "offset", "nodata", "slope", "intercept"),
    "sar": ("asset", "nodata"),
    "dem": ("asset", "nodata"),
}
# ^ radar is linear gamma0 and elevation metres: their pixels are taken as they are
_MASK_KEYS = ("asset", "kind", "clear", "unusable", "spreading")


@dataclass(frozen=True, slots=True)
class BandSpec:
    """One band: where it is, and how its pixels become physical values."""

    asset: str
    """Key of the asset in an item."""
    scale: float | None = None
    """Reflectance = pixel x scale + offset; None: as the item says."""
    offset: float | None = None
    nodata: float | None = None
    """Pixel value without data; None: as the item says, or 0 in optical bands."""
    slope: float = 1.0
    """Reflectance as Sentinel-2 would see it = slope x reflectance + intercept."""
    intercept: float = 0.0


@dataclass(frozen=True, slots=True)
class MaskSpec:
    """The band that tells cloud and shadow."""

    asset: str
    kind: UserMaskKind
    """``scl`` or ``qa_pixel`` as Sentinel-2 and Landsat have them, or by ``rule``."""
    rule: MaskRule | None = None


@dataclass(frozen=True, slots=True)
class SensorSpec:
    """What the items of one collection hold."""

    collection: str
    kind: SceneKind
    bands: dict[str, BandSpec]
    """Role -> band; all roles of the kind, in their order."""
    mask: MaskSpec | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready settings, from which :func:`read_sensor` makes this again."""
        usual = asdict(BandSpec(""))
        values: dict[str, Any] = {
            "kind": self.kind,
            "bands": {
                role: {k: v for k, v in asdict(band).items() if v != usual[k]}
                for role, band in self.bands.items()
            },
        }
        if self.mask is not None:
            rule = {} if self.mask.rule is None else asdict(self.mask.rule)
            listed = {k: list(v) for k, v in rule.items() if k in _MASK_KEYS and v}
            values["mask"] = {"asset": self.mask.asset, "kind": self.mask.kind} | listed
        return values


def describe_with(spec: SensorSpec, item: Mapping[str, Any]) -> Scene:
    """Scene of an item of the spec's collection.

    Raises
    ------
    DataError
        ``bad-item`` where an asset or a field is missing or malformed.
    """
    bands = [_band(spec, item, role) for role in _ROLES[spec.kind]]
    masks = [] if spec.mask is None else [_mask(spec.mask, item)]
    return make_scene(
        item,
        spec.kind,
        sensor=spec.collection,
        bands=bands,
        masks=masks,
        dtype="float32",
        # ^ any type of pixels, and a zero may be a value
    )


def _band(spec: SensorSpec, item: Mapping[str, Any], role: str) -> BandSource:
    band = spec.bands[role]
    key, asset = find_asset(item, (band.asset,))
    scale, offset, nodata = 1.0, 0.0, band.nodata
    if spec.kind == "optical":
        scale, offset = (
            _said(item, asset, name, said)
            for name, said in (("scale", band.scale), ("offset", band.offset))
        )
    if nodata is None:
        nodata = nodata_of(item, asset, 0.0 if spec.kind == "optical" else None)
    return band_source(
        item,
        role,
        key=key,
        scale=band.slope * scale,
        offset=band.slope * offset + band.intercept,
        nodata=nodata,
    )


def _said(
    item: Mapping[str, Any], asset: Mapping[str, Any], name: str, said: float | None
) -> float:
    """Scale or offset: the user's, or else the item's; an offset that nobody names is 0."""
    value = band_number(item, asset, name) if said is None else said
    if value is None and name == "scale":
        raise bad_field(item, "raster:bands.scale", None, "a number here or in the settings")
    return value or 0.0


def _mask(mask: MaskSpec, item: Mapping[str, Any]) -> BandSource:
    key, asset = find_asset(item, (mask.asset,))
    nodata = None
    # ^ by a rule, a value without data is one that is not clear, or is named among the unusable
    if mask.rule is None:
        nodata = nodata_of(item, asset, 1.0 if mask.kind == "qa_pixel" else 0.0)
    return band_source(
        item, mask.kind, key=key, scale=1.0, offset=0.0, nodata=nodata, rule=mask.rule
    )


def read_sensor(collection: str, values: Any) -> SensorSpec:
    """Check what a user wrote about one collection.

    Parameters
    ----------
    collection
        Name of the collection.
    values
        Plain values as YAML gives them: ``kind``, ``bands`` and ``mask``.

    Raises
    ------
    UsageError
        ``settings``: naming every fault with its key, what was expected and the nearest valid name.
    """
    faults: list[str] = []
    fields = _section(values, "", _SENSOR_KEYS, faults=faults, needed=("kind", "bands"))
    kind = _one_of(fields.get("kind"), "kind", tuple(_ROLES), faults=faults)
    bands, mask = {}, None
    if kind is not None and "bands" in fields:
        roles = _ROLES[cast(SceneKind, kind)]
        listed = _section(fields["bands"], "bands", roles, faults=faults, needed=roles)
        bands = {r: _read_band(listed[r], f"bands.{r}", kind, faults) for r in roles if r in listed}
    if fields.get("mask") is not None:
        if kind in ("sar", "dem"):
            faults.append("mask: expected none, only optical bands have one")
        mask = _read_mask(fields["mask"], faults)
    if faults:
        raise UsageError("; ".join(faults), kind="settings")
    return SensorSpec(collection, cast(SceneKind, kind), bands, mask)


def _read_band(values: Any, where: str, kind: str, faults: list[str]) -> BandSpec:
    fields = _section(values, where, _BAND_KEYS[kind], faults=faults, needed=("asset",))
    asset = _text(fields.get("asset"), f"{where}.asset", faults)
    numbers = {
        key: number
        for key in _BAND_KEYS[kind][1:]
        if (number := _number(fields.get(key), f"{where}.{key}", faults)) is not None
    }
    faults += [
        f"{where}.{key}: expected a number above 0, found {numbers[key]}"
        for key in ("scale", "slope")
        if numbers.get(key, 1.0) <= 0
    ]
    return BandSpec(asset, **numbers)


def _read_mask(values: Any, faults: list[str]) -> MaskSpec | None:
    fields = _section(values, "mask", _MASK_KEYS, faults=faults, needed=("asset", "kind"))
    asset = _text(fields.get("asset"), "mask.asset", faults)
    kind = _one_of(fields.get("kind"), "mask.kind", get_args(UserMaskKind), faults=faults)
    lists = {
        key: _whole_numbers(fields.get(key), f"mask.{key}", kind, faults)
        for key in ("clear", "unusable", "spreading")
    }
    if kind is None:
        return None
    if kind in ("scl", "qa_pixel"):
        faults += [f"mask.{key}: expected none with the kind {kind}" for key in lists if lists[key]]
        return MaskSpec(asset, cast(UserMaskKind, kind))
    if kind == "bits" and lists["clear"]:
        faults.append("mask.clear: expected none with the kind bits; name the unusable bits")
    elif bool(lists["clear"]) == bool(lists["unusable"]):
        faults.append("mask: expected one of clear and unusable, found both or neither")
    return MaskSpec(asset, cast(UserMaskKind, kind), MaskRule(**lists))


def _section(
    values: Any, where: str, known: Sequence[str], *, faults: list[str], needed: Sequence[str]
) -> dict[str, Any]:
    """Known keys of a section; the others and the missing ones are faults."""
    prefix = f"{where}." if where else ""
    if not isinstance(values, Mapping):
        faults.append(f"{where or 'sensor'}: expected a section with {', '.join(known)}")
        return {}
    odd = [str(key) for key in values if key not in known]
    faults += [f"{prefix}{key}: unknown key; {_nearest(key, known)}" for key in odd]
    missing = [key for key in needed if values.get(key) is None]
    faults += [f"{prefix}{key}: missing; expected a value here" for key in missing]
    return {key: values[key] for key in known if values.get(key) is not None}


def _nearest(found: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(found, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"


def _one_of(found: Any, where: str, known: Sequence[str], *, faults: list[str]) -> str | None:
    if found in known:
        return str(found)
    if found is not None:
        faults.append(f"{where}: found {str(found)[:40]!r}; {_nearest(str(found), known)}")
    return None


def _text(found: Any, where: str, faults: list[str]) -> str:
    if found is not None and (not isinstance(found, str) or not found):
        faults.append(f"{where}: expected the key of an asset, found {str(found)[:40]!r}")
    return str(found)


def _number(found: Any, where: str, faults: list[str]) -> float | None:
    if found is None:
        return None
    try:
        number = math.nan if isinstance(found, bool) else float(found)
        # ^ YAML 1.1 reads 1e-4, without a dot, as text
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        faults.append(f"{where}: expected a finite number, found {str(found)[:40]!r}")
        return None
    return number


def _whole_numbers(found: Any, where: str, kind: str | None, faults: list[str]) -> tuple[int, ...]:
    most = 15 if kind == "bits" else 65535
    if found is None:
        return ()
    entries = found if isinstance(found, list | tuple) else [None]
    if not all(type(entry) is int and 0 <= entry <= most for entry in entries):
        faults.append(f"{where}: expected a list of whole numbers from 0 to {most}")
        return ()
    return tuple(sorted(set(entries)))
