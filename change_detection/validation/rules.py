"""The rules of an inventory, how grave it is to break each, and what a finding is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["RULES", "Finding", "Profile", "Rule", "Severity"]

Severity = Literal["error", "warning"]
Profile = Literal["rgi7", "derived"]
"""``rgi7``: files of the Randolph Glacier Inventory 7; ``derived``: inventories that others make in
its form, with ids of their own."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule."""

    what: str
    """What must hold."""
    source: str
    """Where that is said; ``own`` where it follows from the meaning of the field alone."""
    rgi7: Severity | None = "error"
    """How grave it is to break it in RGI's files; None where it does not hold for them."""
    derived: Severity | None = "error"

    def severity(self, profile: Profile) -> Severity | None:
        """How grave it is to break the rule in files of a profile."""
        return self.rgi7 if profile == "rgi7" else self.derived


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One place where a rule is broken."""

    severity: Severity
    rule: str
    """Key of :data:`RULES`."""
    glacier: str
    """Id of the glacier, complex or line; ``row 17`` where it has none; empty for a whole file."""
    message: str
    """What was found and what was expected, with numbers."""
    lon: float
    """Degrees; NaN where there is no place."""
    lat: float

    @property
    def line(self) -> str:
        """The finding in one line."""
        place = f"  ({self.lon:.6f}, {self.lat:.6f})" if self.lon == self.lon else ""
        about = f"{self.glacier}: " if self.glacier else ""
        text = f"{self.severity:<7}  {self.rule:<18}  {about}{self.message}{place}"
        return "".join(c if c.isprintable() else "?" for c in text)


_GUIDE = "RGI user guide, glacier product"
_QUALITY = "RGI user guide, quality control"
_COMPLEX = "RGI user guide, glacier complex product"
_BORDERS = "RGI user guide, intersects product"

RULES: dict[str, Rule] = {
    "projection": Rule("longitude and latitude on WGS84 (EPSG:4326)", _GUIDE),
    "columns": Rule("all columns of the product are there", _GUIDE),
    "extra-columns": Rule("no other columns are there", _GUIDE, "warning", None),
    "column-type": Rule("each column holds text, whole or real numbers as described", _GUIDE),
    "id-pattern": Rule(
        "ids are `RGI2000-v7.x-G-<o1>-<nnnnn>`; "
        "derived: `<PREFIX>-v<X>-G-<o1>-<nnnnn>`, never RGI's",
        _GUIDE,
    ),
    "id-duplicate": Rule("an id names one row", _GUIDE),
    "id-region": Rule("the region in an id is `o1region`", _GUIDE),
    "region": Rule(
        "`o1region` is 01 to 20, `o2region` is `<o1>-<nn>`; derived: may be empty", _GUIDE
    ),
    "glims-id": Rule(
        "`glims_id` is `G<lon x 1000>E<lat x 1000>N|S`; derived: may be empty",
        "GLIMS",
        "error",
        "warning",
    ),
    "date": Rule("`src_date` is ISO 8601, after 1800 and not in the future", _GUIDE),
    "date-missing": Rule("`src_date` is known", _GUIDE, "warning", "warning"),
    "range": Rule("numbers and classes are among those described, or missing", _GUIDE),
    "elevations": Rule("minimum <= median, mean <= maximum elevation", "own"),
    "aspect-sector": Rule("`aspect_sec` is the sector of `aspect_deg`", _GUIDE),
    "utm-zone": Rule("`utm_zone` is that of the centre", _GUIDE),
    "encoding": Rule("text was read in its own encoding", "own", "warning", "warning"),
    "geometry-missing": Rule("every row has an outline that can be read", _GUIDE),
    "geometry-type": Rule("every outline is one Polygon, nunataks are its holes", _GUIDE),
    "geometry-invalid": Rule(
        "every outline is valid (OGC Simple Feature Access 1.2.1, 6.1.11)", _QUALITY
    ),
    "geometry-heights": Rule("vertices have no heights but 0", "own", "warning", "warning"),
    "coordinates": Rule(
        "vertices are finite and on the Earth, no outline is wider than 180°", "own"
    ),
    "minimum-area": Rule("no outline is smaller than 0.01 km²", _QUALITY),
    "duplicate": Rule("no outline holds the representative point of another", _QUALITY),
    "overlap": Rule("two outlines share at most 1e-6 m²", "RGI user guide, revisions"),
    "area": Rule("`area_km2` is the outline's area on the ellipsoid, to 0.01 %", _GUIDE),
    "centre": Rule("`cenlon`, `cenlat` lie inside the outline", _GUIDE),
    "terminus": Rule("`termlon`, `termlat` lie on the outline, to 1 m", _GUIDE, "error", "warning"),
    "complex-sum": Rule("the areas of complexes and of glaciers have one sum, to 1e-6", _COMPLEX),
    "complex-members": Rule(
        "each glacier lies in one complex (more than 0.999 of it), each complex holds a glacier",
        _COMPLEX,
    ),
    "complex-border": Rule("no two complexes share a border", _COMPLEX),
    "complex-links": Rule("the lists of members name what lies in each complex", _COMPLEX),
    "intersect-glaciers": Rule("a line names two glaciers of the inventory", _BORDERS),
    "intersect-line": Rule("a line is one LineString on the border of its glaciers", _BORDERS),
    "intersect-length": Rule("`length_m` is the line's length in UTM, to 0.1 m", _BORDERS),
    "intersect-border": Rule("the lines of two glaciers are all their border, to 0.1 m", _BORDERS),
    "hypsometry-columns": Rule("bins are 50 m high and ascend, named by their middle", _GUIDE),
    "hypsometry-rows": Rule("every glacier has one row, and no other has", _GUIDE),
    "hypsometry-sum": Rule("bins are whole per mille, not negative, with the sum 1000", _GUIDE),
    "hypsometry-area": Rule("`area_km2` is the glacier's", _GUIDE),
    "links-columns": Rule("all columns of the table of links are there", _GUIDE),
    "links-glaciers": Rule("links name glaciers of the inventory", _GUIDE),
    "links-values": Rule("overlaps exceed 200 m², and are their fractions of the areas", _GUIDE),
    "links-counts": Rule("counts and clusters agree with the rows", _GUIDE),
}
"""Every rule by its code."""
