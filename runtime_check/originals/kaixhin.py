"""Kaixhin/Rainbow, its ``model.py``: noisy, dueling C51, canonical or data-efficient, in evaluation: by its means.

======================  ===========================================  ==================================
convolutions            (features, kernel, stride)                   keys
======================  ===========================================  ==================================
canonical               (32, 8, 4), (64, 4, 2), (64, 3, 1)           ``convs.0``, ``convs.2``, ``convs.4``
before release 1.4      the same, the first one with padding 1       ``conv1``, ``conv2``, ``conv3``
data-efficient          (32, 5, 5), (64, 5, 5)                       ``convs.0``, ``convs.2``
======================  ===========================================  ==================================

Two hidden layers, ``fc_h_v`` and ``fc_h_a``, then ``fc_z_v`` (atoms) and ``fc_z_a`` (actions · atoms): the logits are
v + a - mean over actions of a. The support is ``torch.linspace(-10, 10, atoms)``. Pixels are divided by 255 before.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from runtime_check import torch_files
from runtime_check.oracle import CATEGORICAL, SPLIT, Conv, Dense, Float64, Head, Observation, Oracle

_CONVS = {
    ("convs.0", "convs.2", "convs.4"): ((4, 0), (2, 0), (1, 0)),  # stride and padding
    ("conv1", "conv2", "conv3"): ((4, 1), (2, 0), (1, 0)),
    ("convs.0", "convs.2"): ((5, 0), (5, 0)),
}
_DENSE = ("fc_h_v", "fc_h_a", "fc_z_v", "fc_z_a")
_MOST_ATOMS = 512

State = dict[str, torch.Tensor]
Convs = dict[str, tuple[int, int]]


class DQN(nn.Module):
    """The network, whose noisy layers are linear layers of their means."""

    def __init__(self, convs: Convs, state: State) -> None:
        """Take the weights as they are."""
        super().__init__()
        self._convs, self._atoms = convs, len(state["fc_z_v.bias_mu"])
        for name, tensor in state.items():
            self.register_buffer(name.replace(".", "_"), tensor)
        self.register_buffer("support", torch.linspace(-10, 10, self._atoms))

    def forward(self, obs_nchw: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``q_values`` float32[N, actions] and ``logits`` float32[N, actions, atoms]."""
        x = obs_nchw.float() / 255
        for layer, (stride, padding) in self._convs.items():
            name = layer.replace(".", "_")
            kernel, bias = self.get_buffer(f"{name}_weight"), self.get_buffer(f"{name}_bias")
            x = torch.relu(nn.functional.conv2d(x, kernel, bias, stride, padding))
        x = x.flatten(1)
        value = self._multiply("fc_z_v", torch.relu(self._multiply("fc_h_v", x)))
        advantage = self._multiply("fc_z_a", torch.relu(self._multiply("fc_h_a", x)))
        value, advantage = value.view(-1, 1, self._atoms), advantage.view(len(x), -1, self._atoms)
        logits = value + advantage - advantage.mean(1, keepdim=True)
        return {"q_values": (logits.softmax(dim=2) * self.get_buffer("support")).sum(2), "logits": logits}

    def _multiply(self, layer: str, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.get_buffer(f"{layer}_weight_mu"), self.get_buffer(f"{layer}_bias_mu"))


def recognise(head: bytes, name: str) -> bool:
    """Tell whether a file is torch's, and begins with a convolution of these names, in a file named ``*.pth``."""
    is_torch = head.startswith((b"PK\x03\x04", b"\x80"))
    return is_torch and name.endswith(".pth") and (b"convs.0.weight" in head or b"conv1.weight" in head)


def read(path: Path) -> Oracle:
    """Read a model in float64.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: it is no such model; the message names all that is wrong.
    """
    convs, state = _read_state(path)
    weights = torch_files.to_float64(state)

    def find(layer: str) -> tuple[Float64, Float64]:
        return weights[f"{layer}.weight_mu"], weights[f"{layer}.bias_mu"]

    try:
        kept = [
            Conv(weights[f"{layer}.weight"], weights[f"{layer}.bias"], stride, (padding, padding))
            for layer, (stride, padding) in convs.items()
        ]
        advantage, value = find("fc_h_a"), find("fc_h_v")
        hidden = Dense(*(np.concatenate(parts) for parts in zip(advantage, value, strict=True)))
        atoms = len(weights["fc_z_v.bias_mu"])
        support = torch.linspace(-10, 10, atoms).double().numpy()
        dense = Dense(*find("fc_z_a"))
        head = Head(CATEGORICAL, len(dense.bias) // atoms, dense, Dense(*find("fc_z_v")), SPLIT, support)
        return Oracle(Observation(), tuple(kept), (hidden,), head)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_eager(path: Path) -> DQN:
    """Read a model as its own network in torch.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: it is no such model.
    """
    read(path)  # says what is wrong
    return DQN(*_read_state(path))


def _read_state(path: Path) -> tuple[Convs, State]:
    """Return the strides and paddings of the convolutions by their keys, and the weights without the noise."""
    return _to_state(torch_files.read_bounded(path), path)


@lru_cache(maxsize=1)  # oracle and reference are made of the same weights
def _to_state(raw: bytes, path: Path) -> tuple[Convs, State]:
    document = torch_files.load(raw, path)
    keys = {str(key) for key in document} if isinstance(document, dict) else set()
    layers = next((layers for layers in _CONVS if f"{layers[-1]}.weight" in keys), ("convs.0", "convs.2"))
    names = [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    names += [f"{layer}.{part}" for layer in _DENSE for part in ("weight_mu", "bias_mu")]
    state = torch_files.find_state(document, names, path, len(raw), lambda name: name.endswith(("_sigma", "_epsilon")))
    if state["fc_h_a.bias_mu"].shape != state["fc_h_v.bias_mu"].shape:
        raise ValueError(f"{path}: its two hidden layers differ in size")
    if not 2 <= len(state["fc_z_v.bias_mu"]) <= _MOST_ATOMS:
        raise ValueError(f"{path}: its value has {len(state['fc_z_v.bias_mu'])} atoms, expected 2 to {_MOST_ATOMS}")
    return dict(zip(layers, _CONVS[layers], strict=True)), state
