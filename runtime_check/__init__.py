"""Prove by replay that converted agents act like the checkpoints that they came from.

import runtime_check

result = runtime_check.check_agent("converted/DQN_modern/Pong/0/model_328492", "RELEASE")
assert result.agrees
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime_check.check.options import Listeners, Options
    from runtime_check.check.pipeline import check_agent
    from runtime_check.check.results import AgentResult, BackendResult

__all__ = ["AgentResult", "BackendResult", "Listeners", "Options", "check_agent"]

_MODULES = {
    "AgentResult": "check.results",
    "BackendResult": "check.results",
    "Listeners": "check.options",
    "Options": "check.options",
    "check_agent": "check.pipeline",
}


def __getattr__(name: str) -> Any:
    """Import late: the command answers ``--help`` before NumPy would be loaded."""
    if name not in _MODULES:
        raise AttributeError(f"module 'runtime_check' has no attribute {name!r}")
    return getattr(importlib.import_module(f"runtime_check.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List what the package offers, loaded or not, for ``dir``, ``help`` and completion."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
