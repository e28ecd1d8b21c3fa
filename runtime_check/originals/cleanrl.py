"""CleanRL's ``dqn_atari.py`` and ``c51_atari.py``: state dicts of ``QNetwork``, saved with torch.

The network is ``nn.Sequential``: convolutions at 0, 2 and 4, dense layers at 7 and 9, input divided by 255. That of C51
is in ``model_weights``, with the support as the buffer ``atoms``; its outputs are viewed as (actions, atoms).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from runtime_check import torch_files
from runtime_check.oracle import CATEGORICAL, Conv, Dense, Float64, Head, Observation, Oracle, Q

_STRIDES = {0: 4, 2: 2, 4: 1}  # by the number of the layer
_NAMES = [f"network.{layer}.{part}" for layer in (*_STRIDES, 7, 9) for part in ("weight", "bias")]


class QNetwork(nn.Module):
    """The network of both scripts, with the names of its weights."""

    def __init__(self, units: int, rows: int, atoms: torch.Tensor | None) -> None:
        """Build it: ``units`` of the hidden layer, ``rows`` of the head, the support for C51."""
        super().__init__()
        self.network = nn.Sequential(
            *(nn.Conv2d(4, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()),
            *(nn.Conv2d(64, 64, 3, stride=1), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(3136, units), nn.ReLU(), nn.Linear(units, rows)),
        )
        self.register_buffer("atoms", atoms)

    def forward(self, obs_nchw: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``q_values`` float32[N, actions], and for C51 ``logits`` float32[N, actions, atoms]."""
        outputs = self.network(obs_nchw / 255.0)
        if self.atoms is None:
            return {"q_values": outputs}
        logits = outputs.view(len(outputs), -1, len(self.get_buffer("atoms")))
        return {"q_values": (torch.softmax(logits, dim=2) * self.get_buffer("atoms")).sum(2), "logits": logits}


def recognise(head: bytes, name: str) -> bool:  # noqa: ARG001 - the content tells enough
    """Tell whether a file is torch's, with a network of CleanRL's names."""
    return head.startswith(b"PK\x03\x04") and b"data.pkl" in head[:128] and b"network.0." in head


def read(path: Path) -> Oracle:
    """Read a model in float64.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: it is no such model; the message names all that is wrong.
    """
    weights = torch_files.to_float64(_read_state(path))

    def find(layer: int) -> tuple[Float64, Float64]:
        return weights[f"network.{layer}.weight"], weights[f"network.{layer}.bias"]

    try:
        convs = [Conv(*find(layer), stride) for layer, stride in _STRIDES.items()]
        dense, support = Dense(*find(9)), weights.get("atoms")
        atoms = 1 if support is None else len(support)
        head = Head(Q if support is None else CATEGORICAL, len(dense.bias) // atoms, dense, support=support)
        return Oracle(Observation(), tuple(convs), (Dense(*find(7)),), head)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_eager(path: Path) -> QNetwork:
    """Read a model as its own network in torch.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: it is no such model.
    """
    read(path)  # says what is wrong
    state = _read_state(path)
    module = QNetwork(len(state["network.7.bias"]), len(state["network.9.bias"]), state.get("atoms"))
    module.load_state_dict(state, strict=True)
    return module


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    return _to_state(torch_files.read_bounded(path), path)


@lru_cache(maxsize=1)  # oracle and reference are made of the same weights
def _to_state(raw: bytes, path: Path) -> dict[str, torch.Tensor]:
    document = torch_files.load(raw, path)
    if isinstance(document, dict) and "model_weights" in document:
        document = document["model_weights"]
    has_atoms = isinstance(document, dict) and "atoms" in document
    state = torch_files.find_state(document, [*_NAMES, *(["atoms"] if has_atoms else [])], path, len(raw))
    if has_atoms and state["atoms"].dim() != 1:
        raise ValueError(f"{path}: its atoms have {state['atoms'].dim()} axes, expected 1")
    return state
