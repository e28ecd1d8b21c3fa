"""LiteRT, on ``model_float16.tflite``. Its interpreter runs on the CPU."""

from __future__ import annotations

from pathlib import Path

from convert.agent import Agent
from runtime_check.backends import Runtime, Settings
from runtime_check.backends.litert import run_litert

TARGET = "litert-float16"
EXTRA = "litert"
PACKAGES = ("ai_edge_litert", "flatbuffers")
# Weights keep 11 bits: 2**-11 each, and the errors of a product add up. On the trained agents 0.2 % of the largest
# Q-value was the most that was measured, and no other action.
BOUND = {"atol": 5e-4, "rtol": 5e-3, "agreement": 0.99}


def open_artefact(path: Path, agent: Agent, settings: Settings) -> Runtime:  # noqa: ARG001
    """Open a LiteRT model of rounded weights.

    Raises:
        UnreadableArtefact: it is damaged.
        Exception: LiteRT's own.
    """
    return run_litert(path, settings, "float16 weights, float32 arithmetic")
