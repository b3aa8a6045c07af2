"""What all commands share: exit codes, the console, the usual settings file."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

__all__ = ["BAD_SETTINGS", "DONE", "REGION_FILE", "STOPPED", "WITH_FAILURES", "console_out"]

DONE, BAD_SETTINGS, WITH_FAILURES, STOPPED = 0, 2, 3, 4
"""Exit codes: done (or another run is at it), bad settings before any work, finished with recorded
failures, stopped and can be resumed."""
REGION_FILE = Path("region.yaml")


def console_out() -> Console:
    """Console of what a command has to say; progress and errors go to the other stream."""
    return Console(stderr=False)
