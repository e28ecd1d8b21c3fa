"""LiteRT, on ``model_int8.tflite``. Its interpreter runs on the CPU."""

from __future__ import annotations

from pathlib import Path

from convert.agent import Agent
from runtime_check.backends import Runtime, Settings
from runtime_check.backends.litert import run_litert

TARGET = "litert-int8"
EXTRA = "litert"
PACKAGES = ("ai_edge_litert", "flatbuffers")
# Errors depend on the agent and its game; what is asked of the file is that it nearly always acts as its checkpoint.
# On the trained agents 92 % to 97 % of the actions were equal.
BOUND = {"atol": 0.5, "rtol": 0.25, "agreement": 0.85}


def open_artefact(path: Path, agent: Agent, settings: Settings) -> Runtime:  # noqa: ARG001
    """Open a LiteRT model of rounded weights.

    Raises:
        UnreadableArtefact: it is damaged.
        Exception: LiteRT's own.
    """
    return run_litert(path, settings, "int8 weights and activations, float32 head")
