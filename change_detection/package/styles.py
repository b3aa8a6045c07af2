"""How QGIS draws the layers of a package."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["STYLES"]

_BLUE, _DEEP, _RED, _GREY = "77,148,204", "16,70,122", "200,60,40", "60,60,60"


def _options(**values: str) -> str:
    rows = (f'<Option name="{k}" value="{v}" type="QString"/>' for k, v in values.items())
    return f'<Option type="Map">{"".join(rows)}</Option>'


def _symbol(kind: str, layer: str, options: str) -> str:
    return (
        f'<symbol type="{kind}" name="0" alpha="1" clip_to_extent="1" force_rhr="0">'
        f'<layer class="{layer}" enabled="1" locked="0" pass="0">{options}</layer></symbol>'
    )


def _style(symbol: str, fields: Sequence[tuple[str, str]] = ()) -> str:
    aliases = "".join(
        f'<alias index="{i}" field="{name}" name="{alias}"/>'
        for i, (name, alias) in enumerate(fields)
    )
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
        '<qgis version="3.22.0" styleCategories="Symbology|Fields">'
        '<renderer-v2 type="singleSymbol" enableorderby="0" forceraster="0" symbollevels="0">'
        f"<symbols>{symbol}</symbols></renderer-v2>"
        f"<aliases>{aliases}</aliases></qgis>\n"
    )


STYLES = {
    "glaciers": _style(
        _symbol(
            "fill",
            "SimpleFill",
            _options(
                color=f"{_BLUE},70",
                outline_color=f"{_DEEP},255",
                outline_style="solid",
                outline_width="0.26",
                outline_width_unit="MM",
                style="solid",
            ),
        )
    ),
    "complexes": _style(
        _symbol(
            "fill",
            "SimpleFill",
            _options(
                color="0,0,0,0",
                outline_color=f"{_GREY},255",
                outline_style="dash",
                outline_width="0.3",
                outline_width_unit="MM",
                style="no",
            ),
        )
    ),
    "intersects": _style(
        _symbol(
            "line",
            "SimpleLine",
            _options(
                line_color=f"{_RED},255",
                line_style="solid",
                line_width="0.4",
                line_width_unit="MM",
            ),
        )
    ),
}
"""QML of each layer: blue glaciers, red borders, dashed complexes."""
