"""The one tree of errors, grouped by what a caller does about them.

Every error carries a stable, machine-readable ``kind`` which is written into receipts and failure
tables. Kinds are append-only: their meaning never changes.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DataError", "EngineError", "SetAside", "SourceError", "StoreError", "UsageError"]


class EngineError(Exception):
    """Base of all errors the engine raises on purpose.

    Parameters
    ----------
    message
        What was asked, what was found, what to do. Never contains a secret or a query string.
    kind
        Stable machine-readable name of the fault, for example ``"raster-truncated"``.
    """

    default_kind = "engine"

    def __init__(self, message: str, *, kind: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind or self.default_kind

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), str(self), self.kind))


def _rebuild(cls: type[EngineError], message: str, kind: str) -> EngineError:
    # Exceptions with keyword-only arguments do not survive pickling between workers by themselves.
    return cls(message, kind=kind)


class SourceError(EngineError):
    """A catalogue or an asset could not be reached: try again later."""

    default_kind = "source-unreachable"


class DataError(EngineError):
    """Input data is broken or unusable: set it aside, record it, go on."""

    default_kind = "bad-data"


class UsageError(EngineError):
    """The user asked for something impossible: stop before any work is done."""

    default_kind = "bad-usage"


class StoreError(EngineError):
    """The workspace cannot be written or is damaged: stop at once, mark nothing as done."""

    default_kind = "store"


@dataclass(frozen=True, slots=True, order=True)
class SetAside:
    """Something that was not used, and why: one line of the failure table."""

    what: str
    """Name of the scene, asset, glacier or field that was left out."""
    kind: str
    """Stable name of the fault, as in :class:`EngineError`."""
    reason: str
    """What was found, and what was expected."""
