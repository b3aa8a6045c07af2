"""The section ``sensors`` of the settings: collections that a user describes.

What is in it is checked by :func:`catalog.user_sensors.read_sensor`; here stands only how that
meets the rest of the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator

from catalog.errors import UsageError
from catalog.user_sensors import SensorSpec, read_sensor

__all__ = ["UserSensor", "require_kinds", "sensor_specs"]


def _readable(values: dict[str, Any]) -> dict[str, Any]:
    try:
        read_sensor("", values)
    except UsageError as error:
        raise ValueError(str(error)) from None
    return values


UserSensor = Annotated[dict[str, Any], AfterValidator(_readable)]
"""What the settings say of one collection, checked."""


def sensor_specs(sensors: Mapping[str, UserSensor]) -> dict[str, SensorSpec]:
    """What the user's collections hold, by name."""
    return {name: read_sensor(name, values) for name, values in sensors.items()}


def require_kinds(
    sensors: Mapping[str, UserSensor], collections: Mapping[str, Sequence[str]]
) -> None:
    """Refuse a collection that is used for what it is not.

    Parameters
    ----------
    sensors
        The user's collections.
    collections
        ``optical``, ``sar`` and ``dem`` -> names of the collections used for it.

    Raises
    ------
    ValueError
        Naming it.
    """
    for kind, names in collections.items():
        for name in names:
            found = sensors.get(name, {}).get("kind", kind)
            if found != kind:
                raise ValueError(
                    f"expected {name} to be of the kind {kind}, since it stands in "
                    f"catalog.collections.{kind}; found {found}"
                )
