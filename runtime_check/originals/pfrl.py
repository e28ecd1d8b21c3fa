"""PFRL's DQN for Atari (``examples/atari/reproduction/dqn``): ``LargeAtariCNN`` and a linear layer, saved with torch.

``nn.Sequential(LargeAtariCNN(), init_chainer_default(nn.Linear(512, A)), DiscreteActionValueHead())``: convolutions
(32, 8, 4), (64, 4, 2), (64, 3, 1) without padding, a dense layer, ReLU after each. Pixels are divided by 255 before.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from runtime_check import torch_files
from runtime_check.oracle import Conv, Dense, Float64, Head, Observation, Oracle, Q

_STRIDES = (4, 2, 1)
_LAYERS = ("0.layers.0", "0.layers.1", "0.layers.2", "0.output", "1")
_NAMES = [f"{layer}.{part}" for layer in _LAYERS for part in ("weight", "bias")]


class LargeAtariCNN(nn.Module):
    """PFRL's network of features."""

    def __init__(self, units: int) -> None:
        """Build it with so many features."""
        super().__init__()
        convs = [nn.Conv2d(4, 32, 8, stride=4), nn.Conv2d(32, 64, 4, stride=2), nn.Conv2d(64, 64, 3, stride=1)]
        self.layers = nn.ModuleList(convs)
        self.output = nn.Linear(3136, units)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        """Return the features of frames from 0 to 1."""
        h = state
        for layer in self.layers:
            h = torch.relu(layer(h))
        return torch.relu(self.output(h.flatten(1)))


class DQN(nn.Sequential):
    """PFRL's Q-function, with the division that its agent does before."""

    def __init__(self, units: int, actions: int) -> None:
        """Build it."""
        super().__init__(LargeAtariCNN(units), nn.Linear(units, actions))

    def forward(self, obs_nchw: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``q_values`` float32[N, actions]."""
        features = self[0](obs_nchw.float() / 255)
        return {"q_values": self[1](features)}


def recognise(head: bytes, name: str) -> bool:  # noqa: ARG001 - the content tells enough
    """Tell whether a file is torch's, of either format, with PFRL's names."""
    return head.startswith((b"PK\x03\x04", b"\x80")) and b"0.layers.0.weight" in head


def read(path: Path) -> Oracle:
    """Read a model in float64.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: it is no such model; the message names all that is wrong.
    """
    weights = torch_files.to_float64(_read_state(path))

    def find(layer: str) -> tuple[Float64, Float64]:
        return weights[f"{layer}.weight"], weights[f"{layer}.bias"]

    try:
        convs = [Conv(*find(layer), stride) for layer, stride in zip(_LAYERS, _STRIDES, strict=False)]
        head = Head(Q, len(weights["1.bias"]), Dense(*find("1")))
        return Oracle(Observation(), tuple(convs), (Dense(*find("0.output")),), head)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_eager(path: Path) -> DQN:
    """Read a model as its own network in torch.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: it is no such model.
    """
    read(path)  # says what is wrong
    state = _read_state(path)
    module = DQN(len(state["0.output.bias"]), len(state["1.bias"]))
    module.load_state_dict(state, strict=True)
    return module


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    return _to_state(torch_files.read_bounded(path), path)


@lru_cache(maxsize=1)  # oracle and reference are made of the same weights
def _to_state(raw: bytes, path: Path) -> dict[str, torch.Tensor]:
    return torch_files.find_state(torch_files.load(raw, path), _NAMES, path, len(raw))
