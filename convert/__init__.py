"""Convert the pretrained Atari agents of 2022 to other formats, and load them.

import convert

convert.convert_checkpoint("model_50000000.gz", "pong", ["onnx"])
agent = convert.load_agent("pong", "onnx")
q_values = agent(observations)  # uint8[N, 4, 84, 84] to float32[N, actions]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convert.agents.agent import Agent, Record
    from convert.agents.architecture import Architecture
    from convert.agents.identity import Identity
    from convert.agents.network import Network
    from convert.errors import AtariConvertError
    from convert.loading import LoadedAgent, load_agent
    from convert.networks.stacking import stack_params
    from convert.pipeline import Conversion, convert_checkpoint, read_agent, read_checkpoint
    from convert.proofs import Proof, read_proof
    from convert.sources import read_record

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "Architecture",
    "AtariConvertError",
    "Conversion",
    "Identity",
    "LoadedAgent",
    "Network",
    "Proof",
    "Record",
    "convert_checkpoint",
    "load_agent",
    "read_agent",
    "read_checkpoint",
    "read_proof",
    "read_record",
    "stack_params",
]

_MODULES = {
    "Agent": "agents.agent",
    "Architecture": "agents.architecture",
    "AtariConvertError": "errors",
    "Conversion": "pipeline",
    "Identity": "agents.identity",
    "LoadedAgent": "loading",
    "Network": "agents.network",
    "Proof": "proofs",
    "Record": "agents.agent",
    "convert_checkpoint": "pipeline",
    "load_agent": "loading",
    "read_agent": "pipeline",
    "read_checkpoint": "pipeline",
    "read_proof": "proofs",
    "read_record": "sources",
    "stack_params": "networks.stacking",
}


def __getattr__(name: str) -> Any:
    """Import late: the command answers ``--help`` before NumPy would be loaded."""
    if name not in _MODULES:
        raise AttributeError(f"module 'convert' has no attribute {name!r}")
    return getattr(importlib.import_module(f"convert.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List what the package offers, loaded or not, for ``dir``, ``help`` and completion."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
