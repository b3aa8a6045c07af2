"""Numbers as words: how a value with its uncertainty is written. Pure."""

from __future__ import annotations

import math
import re
from typing import Any

__all__ = ["finite", "plain", "signed", "with_sigma", "without_secrets"]

NOT_AVAILABLE = "not available"
_URL_TAIL = re.compile(r"(?P<base>[A-Za-z][A-Za-z0-9+.-]*://[^\s?#\"'<>]*)[?#][^\s\"'<>]*")
_URL_USER = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^\s/@\"'<>]+@")


def plain(value: float, digits: int = 2) -> str:
    """Fixed number of decimals; "not available" for NaN."""
    return _minus(f"{value:,.{digits}f}") if math.isfinite(value) else NOT_AVAILABLE


def signed(value: float, digits: int = 2) -> str:
    """As :func:`plain`, always with a sign."""
    return _minus(f"{value:+,.{digits}f}") if math.isfinite(value) else NOT_AVAILABLE


def with_sigma(
    value: float,
    sigma: float,
    *,
    sign: bool = False,
    digits: int | None = None,
    missing: str = f"interval {NOT_AVAILABLE}",
) -> str:
    """Value ± sigma, rounded to two digits of sigma (at most four decimals).

    A missing sigma is said, never shown as zero.
    """
    if not math.isfinite(value):
        return NOT_AVAILABLE
    if digits is None:
        scale = sigma if math.isfinite(sigma) and sigma > 0 else max(abs(value) / 100, 1e-3)
        digits = min(4, max(0, 1 - math.floor(math.log10(scale))))
    number = signed(value, digits) if sign else plain(value, digits)
    if not math.isfinite(sigma):
        return f"{number} ({missing})"
    return f"{number} ± {plain(sigma, digits)}"


def without_secrets(value: Any) -> Any:
    """Copy of a JSON-ready value whose URLs have lost user names and query strings."""
    if isinstance(value, dict):
        return {str(key): without_secrets(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets(item) for item in value]
    if isinstance(value, str):
        return _URL_USER.sub(r"\g<scheme>", _URL_TAIL.sub(r"\g<base>", value))
    return value


def finite(value: Any) -> Any:
    """Copy of a value in which NaN and infinities became None, so that it is valid JSON."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _minus(text: str) -> str:
    """Use the true minus sign; and no sign on a value that rounds to zero."""
    if not any(character in "123456789" for character in text):
        text = text.lstrip("+-")
    return text.replace("-", "\N{MINUS SIGN}")
