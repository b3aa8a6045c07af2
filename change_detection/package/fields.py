"""What the columns of an inventory mean, in words: the metadata beside its tables."""

from __future__ import annotations

import json

__all__ = [
    "COMPLEX_FIELDS",
    "GLACIER_FIELDS",
    "INTERSECT_FIELDS",
    "SUBMISSION_FIELDS",
    "Field",
    "fields_json",
]

Field = tuple[str, str, str]
"""Type, unit and meaning of a column."""

GLACIER_FIELDS: dict[str, Field] = {
    "rgi_id": ("str", "", "id of the outline in this inventory; not an id of the RGI"),
    "o1region": ("str", "", "first-order region of the RGI; empty where the reference has none"),
    "o2region": ("str", "", "second-order region of the RGI; empty where the reference has none"),
    "glims_id": ("str", "", "GLIMS id of the reference glacier; empty where it has none"),
    "anlys_id": ("int", "", "GLIMS analysis; -999: there is none"),
    "subm_id": ("int", "", "submission, see the table of submissions"),
    "src_date": ("str", "ISO 8601", "median day of acquisition of the outline's pixels"),
    "cenlon": ("float", "degrees_east", "longitude of a point inside the outline"),
    "cenlat": ("float", "degrees_north", "latitude of a point inside the outline"),
    "utm_zone": ("int", "", "UTM zone of that point"),
    "area_km2": ("float", "km2", "area on the ellipsoid: pixels times the area of a pixel"),
    "primeclass": ("int", "", "form of the reference glacier, 0 to 9 as GLIMS numbers them"),
    "conn_lvl": ("int", "", "connectivity to an ice sheet: 0 none, 1 weak"),
    "surge_type": ("int", "", "evidence of surging: 0 none to 3 observed, 9 not assigned"),
    "term_type": ("int", "", "terminus: 0 land, 1 marine, 2 lake, 3 shelf, 9 not assigned"),
    "glac_name": ("str", "", "name; empty where the reference has none"),
    "is_rgi6": ("int", "", "1 where the outline is that of RGI 6.0"),
    "termlon": ("float", "degrees_east", "longitude of the lowest place on the outline"),
    "termlat": ("float", "degrees_north", "latitude of the lowest place on the outline"),
    "zmin_m": ("float", "m", "lowest elevation"),
    "zmax_m": ("float", "m", "highest elevation"),
    "zmed_m": ("float", "m", "median elevation"),
    "zmean_m": ("float", "m", "mean elevation"),
    "slope_deg": ("float", "degrees", "mean slope"),
    "aspect_deg": ("float", "degrees", "mean direction downslope, clockwise from true north"),
    "aspect_sec": ("int", "", "its sector: 1 north, 2 north-east, ... 8 north-west, 9 unknown"),
    "dem_source": ("str", "", "elevation model; empty where there is none"),
    "lmax_m": ("int", "m", "longest centreline in the horizontal plane (Kienholz et al. 2014)"),
}
"""Of the glaciers."""

COMPLEX_FIELDS: dict[str, Field] = {
    "rgi_id": ("str", "", "id of the complex in this inventory"),
    "o1region": ("str", "", "first-order region of its largest glacier"),
    "o2region": ("str", "", "second-order region of its largest glacier"),
    "cenlon": ("float", "degrees_east", "longitude of a point inside the outline"),
    "cenlat": ("float", "degrees_north", "latitude of a point inside the outline"),
    "utm_zone": ("int", "", "UTM zone of that point"),
    "area_km2": ("float", "km2", "area on the ellipsoid"),
}
"""Of the complexes: glaciers that share a border, dissolved."""

INTERSECT_FIELDS: dict[str, Field] = {
    "rgi_id": ("str", "", "id of the line in this inventory"),
    "rgi_g_id_1": ("str", "", "glacier on one side"),
    "rgi_g_id_2": ("str", "", "glacier on the other side"),
    "length_m": ("float", "m", "length in the plane of the UTM zone"),
}
"""Of the borders that two glaciers share."""

SUBMISSION_FIELDS: dict[str, Field] = {
    "subm_id": ("int", "", "number of the submission"),
    "n_outlines": ("int", "", "outlines of it"),
    "area_km2": ("float", "km2", "area of them"),
    "anlys_time": (
        "str",
        "ISO 8601",
        "when they were drawn; empty: an equal run gives equal files",
    ),
    "release_dt": ("str", "ISO 8601", "when they were released; empty until they are"),
    "proc_desc": ("str", "", "how they were drawn"),
    "chief_affl": ("str", "", "institution"),
    "submitters": ("str", "", "who submits them"),
    "analysts": ("str", "", "who drew them"),
    "rc_id": ("int", "", "GLIMS regional centre; -999: none"),
}
"""Of the submissions."""


def fields_json(fields: dict[str, Field]) -> bytes:
    """Metadata of a table as JSON."""
    told = {
        name: {"datatype": kind, "unit": unit, "description": meaning}
        for name, (kind, unit, meaning) in fields.items()
    }
    return json.dumps(told, indent=1, ensure_ascii=False).encode() + b"\n"
