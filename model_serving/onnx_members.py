"""Networks that users bring: any ONNX segmentation model, with a card, as a member of an ensemble.

The card says what the model cannot: the bands it takes and how they are normalised, the classes it
gives, and which regions it was trained on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from catalog.cube import CLASSES
from catalog.errors import UsageError
from model_serving.extras import require

__all__ = ["CLASS_NAMES", "check_onnx", "engine_probabilities"]

CLASS_NAMES: dict[str, int] = {name: i for i, name in enumerate(CLASSES)} | {
    "other": 0,
    "ice": 1,
    "glacier": 1,
}
"""Names a model's classes may have, and the engine's class each counts as. A model that does not
tell debris-covered from clean ice votes for clean ice; the ice as a whole is what it says."""
_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}


def engine_probabilities(
    output: npt.NDArray[np.float32], classes: tuple[str, ...], *, logits: bool
) -> npt.NDArray[np.float32]:
    """Turn what a network says into probabilities of the engine's classes.

    Parameters
    ----------
    output : ``(class, y, x)`` float32
        Of the network. One class alone is set against background.
    classes
        Names of its classes, see :data:`CLASS_NAMES`.
    logits
        Whether they still need a softmax (of several) or a logistic function (of one).

    Returns
    -------
    ``(4, y, x)`` float32, summing to 1
    """
    values = torch.from_numpy(np.ascontiguousarray(output))
    if len(classes) == 1:
        own = values.sigmoid() if logits else values
        values, classes = torch.cat([1 - own, own]), (CLASSES[0], *classes)
    elif logits:
        values = values.softmax(dim=0)
    found: npt.NDArray[np.float32] = values.numpy()
    if classes == CLASSES:
        return found
    result = np.zeros((len(CLASSES), *found.shape[1:]), np.float32)
    for name, share in zip(classes, found, strict=True):
        result[CLASS_NAMES[name]] += share
    return result


def check_onnx(data: bytes, *, where: str, channels: int, classes: int, window_px: int) -> None:
    """Check that a model is what its card says.

    Parameters
    ----------
    data
        The ONNX file.
    where
        What to call it in an error.
    channels, classes
        How many of each the card promises.
    window_px
        Edge of the windows it will be given.

    Raises
    ------
    UsageError
        Where it cannot be read, leans on other files or on operators that are not standard, or
        takes or gives something else than its card says.
    """
    model = _parsed(data, where)
    _check_self_contained(model, where)
    inputs = _free_inputs(model)
    if len(inputs) != 1 or len(model.graph.output) != 1:
        names = [v.name for v in (*inputs, *model.graph.output)]
        raise _mismatch(where, f"it needs one input and one output, found {names}")
    _check_shape(where, "input", inputs[0], (channels, window_px, window_px))
    _check_shape(where, "output", model.graph.output[0], (classes, window_px, window_px))


def _parsed(data: bytes, where: str) -> Any:
    require(f"the ONNX model {where}", "onnx")
    import onnx

    try:
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf and the checker raise classes of their own
        raise UsageError(
            f"{where} is no valid ONNX model: {str(error).splitlines()[0][:200]}",
            kind="weights-damaged",
        ) from error
    return model


def _check_self_contained(model: Any, where: str) -> None:
    own = {f.domain for f in model.functions}
    strange = sorted({n.domain for n in model.graph.node} - _DOMAINS - own)
    if strange:
        raise _mismatch(where, f"it uses operators of {', '.join(strange)}, only standard ones run")
    outside = [t.name for t in model.graph.initializer if t.external_data]
    if outside:
        raise _mismatch(
            where, f"its weights {outside[:3]} are in another file; save it as one file"
        )


def _free_inputs(model: Any) -> list[Any]:
    held = {t.name for t in model.graph.initializer}
    return [v for v in model.graph.input if v.name not in held]


def _check_shape(where: str, role: str, value: Any, expected: tuple[int, int, int]) -> None:
    kind = value.type.tensor_type
    if kind.elem_type != 1:
        raise _mismatch(where, f"its {role} {value.name} is not float32")
    dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
    wanted = (1, *expected)
    fits = len(dims) == len(wanted) and all(
        d in (None, 0, w) for d, w in zip(dims, wanted, strict=True)
    )
    if not fits:
        raise _mismatch(where, f"its {role} {value.name} is {dims}, the card asks for {wanted}")


def _mismatch(where: str, why: str) -> UsageError:
    return UsageError(f"{where}: {why}", kind="weights-mismatch")
