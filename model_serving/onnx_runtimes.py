"""Runtimes for ONNX models: onnxruntime and OpenVINO, one window at a time.

One window at a time, so that its bytes do not depend on which others came with it; on one machine
and for one number of threads equal windows give equal bytes.

The packages are needed by the classes, not by the import of this module.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from catalog.errors import UsageError

__all__ = ["OnnxRuntime", "OpenVino"]

Array = npt.NDArray[np.float32]

_FATAL_ONLY = 4
# ^ what onnxruntime logs itself; its errors are raised


class OnnxRuntime:
    """A model in onnxruntime, on the CPU, in the precision of its file.

    Parameters
    ----------
    model
        The ONNX file: one input ``(batch, channel, y, x)``, one output ``(batch, class, y, x)``.
    threads
        How many threads share the work of one window.

    Raises
    ------
    UsageError
        Where onnxruntime is missing or cannot read the model.
    """

    def __init__(self, model: bytes, *, threads: int) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise _missing("onnxruntime", error) from error
        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        options.log_severity_level = _FATAL_ONLY
        try:
            self._session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own classes share no other base
            raise _unreadable("onnxruntime", error) from error
        self._input = self._session.get_inputs()[0].name

    def __call__(self, window: Array) -> Array:
        """Run one window.

        Parameters
        ----------
        window : ``(channel, y, x)`` float32
            Normalised inputs.

        Returns
        -------
        ``(class, y, x)`` float32

        Raises
        ------
        UsageError
            Where the model takes no such window.
        """
        try:
            result = self._session.run(None, {self._input: window[None]})
        except Exception as error:  # onnxruntime's own classes share no other base
            raise _unfit("onnxruntime", window, error) from error
        return np.asarray(result[0][0], np.float32)


class OpenVino:
    """A model in OpenVINO, on the CPU, compiled when it meets the first window of a size.

    Parameters
    ----------
    model
        The ONNX file: one input ``(batch, channel, y, x)``, one output ``(batch, class, y, x)``.
    threads
        How many threads share the work of one window.
    precision
        ``"bfloat16"`` rounds the inputs of convolutions and matrix products to 8 significant bits,
        on processors that compute with these; the others stay with float32.

    Raises
    ------
    UsageError
        Where OpenVINO is missing or cannot read the model.
    """

    def __init__(
        self,
        model: bytes,
        *,
        threads: int,
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        try:
            import openvino
        except ImportError as error:
            raise _missing("openvino", error) from error
        self._settings: dict[str, Any] = {
            # Left to itself OpenVINO takes bfloat16 wherever the processor has it.
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        self._requests: dict[tuple[int, ...], Any] = {}
        self._core = openvino.Core()
        try:
            self._model = self._core.read_model(model)
        except RuntimeError as error:
            raise _unreadable("OpenVINO", error) from error

    def _request(self, shape: tuple[int, ...]) -> Any:
        """A request for windows of one shape, compiled once: a tenth to a third faster than any."""
        if shape not in self._requests:
            self._model.reshape([1, *shape])
            compiled = self._core.compile_model(self._model, "CPU", self._settings)
            self._requests[shape] = compiled.create_infer_request()
        return self._requests[shape]

    def __call__(self, window: Array) -> Array:
        """Run one window.

        Parameters
        ----------
        window : ``(channel, y, x)`` float32
            Normalised inputs.

        Returns
        -------
        ``(class, y, x)`` float32

        Raises
        ------
        UsageError
            Where the model takes no such window.
        """
        try:
            request = self._request(window.shape)
            # Not infer(): with one thread it hides errors and gives its last answer again.
            request.start_async([np.ascontiguousarray(window[None], np.float32)])
            request.wait()
        except RuntimeError as error:
            raise _unfit("OpenVINO", window, error) from error
        return np.array(request.get_output_tensor(0).data[0], np.float32)
        # ^ a copy: the next window overwrites what OpenVINO lends


def _missing(package: str, error: ImportError) -> UsageError:
    return UsageError(
        f"{package} cannot be imported: {error}; pip install 'glacier-inventory-engine[onnx]'",
        kind="runtime-missing",
    )


def _unreadable(runtime: str, error: Exception) -> UsageError:
    return UsageError(f"{runtime} cannot read the model: {_told(error)}", kind="weights-damaged")


def _unfit(runtime: str, window: Array, error: Exception) -> UsageError:
    return UsageError(
        f"the model takes no window of {window.shape} in {runtime}: {_told(error)}",
        kind="runtime-window",
    )


def _told(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
