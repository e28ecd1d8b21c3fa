"""LiteRT, on ``model.tflite``. Its interpreter runs on the CPU."""

from __future__ import annotations

from pathlib import Path

import ai_edge_litert
import numpy as np
from numpy.typing import NDArray

from convert.agent import Agent
from convert.litert import make_policy
from convert.native_logs import without_native_logs
from runtime_check.backends import Description, Runtime, Settings, to_nhwc

TARGET = "litert"
EXTRA = "litert"
PACKAGES = ("ai_edge_litert", "flatbuffers")


def open_artefact(path: Path, agent: Agent, settings: Settings) -> Runtime:  # noqa: ARG001
    """Open a LiteRT model.

    Raises:
        UnreadableArtefact: it is damaged.
        Exception: LiteRT's own.
    """
    return run_litert(path, settings, "float32")


def run_litert(path: Path, settings: Settings, precision: str) -> Runtime:
    """Run a LiteRT model with the interpreter's default of threads."""
    with without_native_logs():
        policy = make_policy(path)
        policy(np.zeros((1, 84, 84, 4), np.uint8))  # the first answer prepares it, and logs

    def answer(obs_nchw: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        return dict(policy(to_nhwc(obs_nchw)))

    return Runtime(
        answer,
        Description("ai_edge_litert", ai_edge_litert.__version__, "cpu", precision, "XNNPACK", None, settings.batch),
    )
