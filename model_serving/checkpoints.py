"""Where a training that was cut off left its state: tensors in safetensors, the rest in JSON.

One law: tensors first, then the note that names them and their checksum. So a training killed at
any moment finds a whole checkpoint, this one or the one before.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from catalog.cube import Workspace
from catalog.errors import StoreError

__all__ = ["Checkpoint", "Checkpoints"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a training between two steps."""

    step: int
    """Steps done."""
    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]
    """JSON-ready; floats come back as they were, bit by bit."""


class Checkpoints:
    """The last checkpoint of one training.

    Parameters
    ----------
    folder
        Where it lies; may be shared by trainings of other names.
    name
        Of the training.
    identity
        What decides the training: data, recipe, code. A checkpoint of another identity is none.
    """

    def __init__(self, folder: Path, *, name: str, identity: str) -> None:
        self.folder, self.name, self.identity = folder, name, identity
        self._files = Workspace(folder)

    @property
    def _note(self) -> str:
        return f"{self.name}.checkpoint.json"

    def save(self, state: Checkpoint) -> None:
        """Write a checkpoint in place of the one before.

        Raises
        ------
        StoreError
            Where it cannot be written; the one before stays.
        """
        data = save_tensors({k: v.detach().cpu().contiguous() for k, v in state.tensors.items()})
        file = f"{self.name}.step-{state.step:06d}.safetensors"
        note = {
            "identity": self.identity,
            "step": state.step,
            "file": file,
            "sha256": hashlib.sha256(data).hexdigest(),
            "facts": state.facts,
        }
        self._files.put(file, data)
        self._files.put(self._note, json.dumps(note).encode())
        self._sweep(but=file)

    def load(self) -> Checkpoint | None:
        """Read the last checkpoint; None where there is none of this identity.

        Raises
        ------
        StoreError
            ``checkpoint-damaged`` where its tensors are not those it was written with.
        """
        text = self._files.get(self._note)
        if text is None:
            return None
        note = json.loads(text)
        if note["identity"] != self.identity:
            return None
        data = self._files.get(note["file"])
        if data is None or hashlib.sha256(data).hexdigest() != note["sha256"]:
            raise StoreError(
                f"the checkpoint {self.folder / note['file']} is damaged or gone: delete "
                f"{self._note} beside it, and this training starts anew",
                kind="checkpoint-damaged",
            )
        return Checkpoint(note["step"], load_tensors(data), note["facts"])

    def last_step(self) -> int | None:
        """Steps done at the last checkpoint of this identity; None where there is none."""
        note = json.loads(self._files.get(self._note) or b"{}")
        return note["step"] if note.get("identity") == self.identity else None

    def delete(self) -> None:
        """Remove the checkpoint: the training has finished."""
        self._files.delete(self._note)
        self._sweep(but="")

    def _sweep(self, *, but: str) -> None:
        # Also drafts, which a process that was killed while writing leaves behind.
        for path in self.folder.glob(f"*{self.name}.step-*.safetensors*"):
            if path.name != but:
                path.unlink(missing_ok=True)
