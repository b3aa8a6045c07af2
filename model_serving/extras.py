"""Packages that not every installation has."""

from __future__ import annotations

import importlib.util

from catalog.errors import UsageError

__all__ = ["absent", "require"]


def absent(*packages: str) -> list[str]:
    """Those of some packages that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def require(what: str, *packages: str, extra: str = "onnx") -> None:
    """Stop where something needs packages that are not installed.

    Parameters
    ----------
    what
        What needs them.
    packages
        Names they are imported by.
    extra
        Optional dependencies of this package that they belong to.

    Raises
    ------
    UsageError
        Where one is missing; says what needs it and how to install it.
    """
    gone = absent(*packages)
    if gone:
        raise UsageError(
            f"{what} needs {', '.join(gone)}, not installed here; "
            f"pip install 'glacier-inventory-engine[{extra}]'",
            kind="runtime-missing",
        )
