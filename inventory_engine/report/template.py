"""How the report's pages are filled in: everything is escaped, a missing value is an error."""

from __future__ import annotations

import jinja2

__all__ = ["environment"]


def environment() -> jinja2.Environment:
    """Templates of this package."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("inventory_engine.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
