"""PFRL's DQN and Rainbow for Atari (``examples/atari/reproduction``), saved with torch.

DQN: ``nn.Sequential(LargeAtariCNN(), init_chainer_default(nn.Linear(512, A)), DiscreteActionValueHead())``:
convolutions (32, 8, 4), (64, 4, 2), (64, 3, 1) without padding, a dense layer, ReLU after each.

Rainbow: ``DistributionalDuelingDQN(A, 51, -10, 10)`` with factorised noise: the same convolutions, ``main_stream`` of
1024 units, whose first half goes to ``a_stream`` (actions · atoms) and the other to ``v_stream`` (atoms). The logits
are v + a - mean over actions of a. Of noisy layers, ``mu`` is the mean. Pixels are divided by 255 before.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from runtime_check import torch_files
from runtime_check.oracle import CATEGORICAL, SPLIT, Conv, Dense, Float64, Head, Observation, Oracle, Q

_STRIDES = (4, 2, 1)
_DQN = ("0.layers.0", "0.layers.1", "0.layers.2", "0.output", "1")
_RAINBOW = (
    *("conv_layers.0", "conv_layers.1", "conv_layers.2"),
    *("main_stream.mu", "a_stream.mu", "v_stream.mu"),
)
_MOST_ATOMS = 512


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


class DistributionalDuelingDQN(nn.Module):
    """PFRL's network of Rainbow, whose noisy layers are linear layers of their means."""

    def __init__(self, units: int, actions: int, atoms: int) -> None:
        """Build it."""
        super().__init__()
        self.conv_layers = nn.ModuleList(
            [nn.Conv2d(4, 32, 8, stride=4), nn.Conv2d(32, 64, 4, stride=2), nn.Conv2d(64, 64, 3, stride=1)]
        )
        self.main_stream = nn.ModuleDict({"mu": nn.Linear(3136, units)})
        self.a_stream = nn.ModuleDict({"mu": nn.Linear(units // 2, actions * atoms)})
        self.v_stream = nn.ModuleDict({"mu": nn.Linear(units // 2, atoms)})
        self.register_buffer("z_values", torch.linspace(-10, 10, atoms), persistent=False)

    def forward(self, obs_nchw: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``q_values`` float32[N, actions] and ``logits`` float32[N, actions, atoms]."""
        h, z_values = obs_nchw.float() / 255, self.get_buffer("z_values")
        for layer in self.conv_layers:
            h = torch.relu(layer(h))
        h_a, h_v = torch.relu(self.main_stream["mu"](h.flatten(1))).chunk(2, dim=1)
        advantage = self.a_stream["mu"](h_a).view(len(h), -1, len(z_values))
        value = self.v_stream["mu"](h_v).view(len(h), 1, len(z_values))
        logits = advantage - advantage.mean(1, keepdim=True) + value
        return {"q_values": (logits.softmax(2) * z_values).sum(2), "logits": logits}


def recognise(head: bytes, name: str) -> bool:  # noqa: ARG001 - the content tells enough
    """Tell whether a file is torch's, of either format, with PFRL's names."""
    return head.startswith((b"PK\x03\x04", b"\x80")) and (
        b"0.layers.0.weight" in head or b"conv_layers.0.weight" in head
    )


def read(path: Path) -> Oracle:
    """Read a model in float64.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: it is no such model; the message names all that is wrong.
    """
    layers, state = _read_state(path)
    weights = torch_files.to_float64(state)

    def find(layer: str) -> tuple[Float64, Float64]:
        return weights[f"{layer}.weight"], weights[f"{layer}.bias"]

    try:
        convs = [Conv(*find(layer), stride) for layer, stride in zip(layers, _STRIDES, strict=False)]
        if layers == _DQN:
            head, hidden = Head(Q, len(weights["1.bias"]), Dense(*find("1"))), find("0.output")
        else:
            advantage, value, hidden = Dense(*find("a_stream.mu")), Dense(*find("v_stream.mu")), find("main_stream.mu")
            atoms = len(value.bias)
            support = torch.linspace(-10, 10, atoms).double().numpy()
            head = Head(CATEGORICAL, len(advantage.bias) // atoms, advantage, value, SPLIT, support)
        return Oracle(Observation(), tuple(convs), (Dense(*hidden),), head)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_eager(path: Path) -> nn.Module:
    """Read a model as its own network in torch.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: it is no such model.
    """
    read(path)  # says what is wrong
    layers, state = _read_state(path)
    module: nn.Module
    if layers == _DQN:
        module = DQN(len(state["0.output.bias"]), len(state["1.bias"]))
    else:
        atoms = len(state["v_stream.mu.bias"])
        actions = len(state["a_stream.mu.bias"]) // atoms
        module = DistributionalDuelingDQN(len(state["main_stream.mu.bias"]), actions, atoms)
    module.load_state_dict(state, strict=True)
    return module


def _read_state(path: Path) -> tuple[tuple[str, ...], dict[str, torch.Tensor]]:
    """Return the names of the layers, and the weights without the noise."""
    return _to_state(torch_files.read_bounded(path), path)


@lru_cache(maxsize=1)  # oracle and reference are made of the same weights
def _to_state(raw: bytes, path: Path) -> tuple[tuple[str, ...], dict[str, torch.Tensor]]:
    document = torch_files.load(raw, path)
    is_rainbow = isinstance(document, dict) and "main_stream.mu.weight" in document
    layers = _RAINBOW if is_rainbow else _DQN
    names = [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    sigmas = {name.replace(".mu.", ".sigma.") for name in names if ".mu." in name}
    state = torch_files.find_state(document, names, path, len(raw), lambda name: name in sigmas)
    if is_rainbow and not 2 <= len(state["v_stream.mu.bias"]) <= _MOST_ATOMS:
        atoms = len(state["v_stream.mu.bias"])
        raise ValueError(f"{path}: its value has {atoms} atoms, expected 2 to {_MOST_ATOMS}")
    return layers, state
