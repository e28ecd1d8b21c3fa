"""LiteRT, for ``.tflite`` files. Its interpreter runs on the CPU, whatever device is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ai_edge_litert
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from convert.frameworks.native_logs import without_native_logs
from convert.runtimes import Description, Runtime, Settings

EXTRA = "litert"
PACKAGES = ("ai_edge_litert",)

# By the type of the weights in the file, the smallest first.
_PRECISIONS = {
    np.int8: "int8 weights and activations, float32 head",
    np.float16: "float16 weights, float32 arithmetic",
    np.float32: "float32",
}


def choose_device(settings: Settings) -> str:  # noqa: ARG001
    """Return the CPU."""
    return "cpu"


def run(artefact: Path, device: str, settings: Settings) -> Runtime:
    """Run a LiteRT model with the interpreter's default of threads.

    Raises:
        Exception: LiteRT's own.
    """
    with without_native_logs():
        interpreter = Interpreter(model_content=artefact.read_bytes())
        runner: Any = interpreter.get_signature_runner()
        shape = runner.get_input_details()["observation"]["shape"]
        runner(observation=np.zeros(shape, np.uint8))  # the first answer prepares it, and logs
    found = {tensor["dtype"] for tensor in interpreter.get_tensor_details()}
    precision = next(text for dtype, text in _PRECISIONS.items() if dtype in found)

    def answer(observation: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        return dict(runner(observation=observation))

    description = Description(
        "ai_edge_litert", ai_edge_litert.__version__, device, precision, "XNNPACK", None, settings.batch
    )
    return Runtime(answer, description)
