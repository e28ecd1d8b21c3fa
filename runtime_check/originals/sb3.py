"""Stable-Baselines3's DQN and sb3-contrib's QR-DQN with CnnPolicy: the zip of ``save``, or its ``policy.pth`` alone.

``common/torch_layers.py`` (NatureCNN), ``dqn/policies.py`` and ``sb3_contrib/qrdqn/policies.py``: observations are
divided by 255, convolutions (32, 8, 4), (64, 4, 2) and (64, 3, 1) without padding, a dense layer, and a head without a
hidden layer. QR-DQN views its outputs as (quantiles, actions), and Q is the mean over the first.

``data`` is JSON: ``n_quantiles``, the observations' shape and the policy's options are looked at, and no pickle in it
is read. Of an unpacked zip, ``data`` stands beside ``policy.pth``.
"""

from __future__ import annotations

import json
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from runtime_check import torch_files
from runtime_check.oracle import QUANTILE, Conv, Dense, Float64, Head, Observation, Oracle, Q

_LARGEST_DATA = 16 * 2**20  # bytes
_NETS = ("q_net", "quantile_net")  # DQN's and QR-DQN's
_STRIDES = {0: 4, 2: 2, 4: 1}  # by the number of the layer


class CnnPolicy(nn.Module):
    """The online network of DQN's or QR-DQN's policy, with the names of its weights."""

    def __init__(self, net: str, units: int, rows: int, quantiles: int | None) -> None:
        """Build it: ``units`` of the features, ``rows`` of the head."""
        super().__init__()
        extractor = nn.Module()
        extractor.cnn = nn.Sequential(
            *(nn.Conv2d(4, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()),
            *(nn.Conv2d(64, 64, 3, stride=1), nn.ReLU(), nn.Flatten()),
        )
        extractor.linear = nn.Sequential(nn.Linear(3136, units), nn.ReLU())
        network = nn.Module()
        network.features_extractor = extractor
        network.add_module(net, nn.Sequential(nn.Linear(units, rows)))
        self.add_module(net, network)
        self._net, self._quantiles = net, quantiles

    def forward(self, obs_nchw: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``q_values`` float32[N, actions], and for QR-DQN ``quantiles`` float32[N, actions, quantiles]."""
        network = self.get_submodule(self._net)
        extractor = network.get_submodule("features_extractor")
        features = extractor.get_submodule("linear")(extractor.get_submodule("cnn")(obs_nchw.float() / 255.0))
        outputs = network.get_submodule(self._net)(features)
        if self._quantiles is None:
            return {"q_values": outputs}
        quantiles = outputs.view(len(outputs), self._quantiles, -1)
        return {"q_values": quantiles.mean(dim=1), "quantiles": quantiles.transpose(1, 2).contiguous()}


def recognise(head: bytes, name: str) -> bool:
    """Tell whether a file is such a zip, whose first entry is ``data``, or its ``policy.pth``."""
    if not head.startswith(b"PK\x03\x04"):
        return False
    is_policy = Path(name).name == "policy.pth" and b"features_extractor" in head
    return is_policy or (head[26:28] == b"\x04\x00" and head[30:34] == b"data" and b'"policy_class"' in head)


def read(path: Path) -> Oracle:
    """Read the online network in float64.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: it is no such zip, or of another network; the message names all that is wrong.
    """
    net, quantiles, state = _read_state(path)
    weights = torch_files.to_float64(state)

    def find(layer: str) -> tuple[Float64, Float64]:
        return weights[f"{net}.{layer}.weight"], weights[f"{net}.{layer}.bias"]

    try:
        kernel, bias = find(f"{net}.0")
        if quantiles is not None:
            kernel, bias = (_put_actions_first(rows, quantiles) for rows in (kernel, bias))
        head = Head(Q if quantiles is None else QUANTILE, len(bias) // (quantiles or 1), Dense(kernel, bias))
        convs = [Conv(*find(f"features_extractor.cnn.{layer}"), stride) for layer, stride in _STRIDES.items()]
        return Oracle(Observation(), tuple(convs), (Dense(*find("features_extractor.linear.0")),), head)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_eager(path: Path) -> CnnPolicy:
    """Read the online network as its own module in torch.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: it is no such zip, or of another network.
    """
    read(path)  # says what is wrong
    net, quantiles, state = _read_state(path)
    units, rows = (len(state[f"{net}.{layer}.0.bias"]) for layer in ("features_extractor.linear", net))
    module = CnnPolicy(net, units, rows, quantiles)
    module.load_state_dict(state, strict=True)
    return module


def _read_state(path: Path) -> tuple[str, int | None, dict[str, torch.Tensor]]:
    """Return the name of the network, its number of quantiles, and its weights by name."""
    return _to_state(*_read_parts(path), path)


@lru_cache(maxsize=1)  # oracle and reference are made of the same weights
def _to_state(data: bytes, policy: bytes, path: Path) -> tuple[str, int | None, dict[str, torch.Tensor]]:
    about = _read_about(data, path)
    document = torch_files.load(policy, path)
    roots = {str(name).partition(".")[0] for name in document} if isinstance(document, dict) else set()
    net = next((net for net in _NETS if net in roots), None)
    if net is None:
        found = ", ".join(map(torch_files.quote, sorted(roots)[:5]))
        raise ValueError(f"{path}: holds {found or 'nothing'}, expected {' or '.join(_NETS)}")
    layers = [*(f"features_extractor.cnn.{layer}" for layer in _STRIDES), "features_extractor.linear.0", f"{net}.0"]
    names = [f"{net}.{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    target = f"{net}_target."
    state = torch_files.find_state(document, names, path, len(policy), lambda name: name.startswith(target))
    quantiles = about.get("n_quantiles") if net == "quantile_net" else None
    rows = len(state[f"{net}.{net}.0.bias"])
    if net == "quantile_net" and (type(quantiles) is not int or quantiles < 1 or rows % quantiles):
        raise ValueError(f"{path}: its head has {rows} rows, for {torch_files.quote(quantiles)} quantiles")
    return net, quantiles, state


def _read_parts(path: Path) -> tuple[bytes, bytes]:
    raw = torch_files.read_bounded(path)
    if path.name == "policy.pth":
        return torch_files.read_bounded(path.with_name("data")), raw
    try:
        entries = torch_files.read_entries(raw)
        return entries["data"], entries["policy.pth"]
    except (zipfile.BadZipFile, KeyError, OSError, RuntimeError, NotImplementedError, EOFError, ValueError) as error:
        reason = str(error).replace("\n", " ")
        raise ValueError(f"{path}: not a zip of Stable-Baselines3 ({torch_files.quote(reason)})") from error


def _read_about(data: bytes, path: Path) -> dict[str, Any]:
    """Return the attributes of the algorithm, of which observations and options have to be the usual ones."""
    try:
        about = json.loads(data) if len(data) <= _LARGEST_DATA else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its data is not JSON") from error
    if not isinstance(about, dict):
        raise ValueError(f"{path}: its data is no JSON object of at most {_LARGEST_DATA} bytes")  # noqa: TRY004
    space, options = about.get("observation_space"), about.get("policy_kwargs")
    shape = space.get("_shape") if isinstance(space, dict) else None
    if shape != [4, 84, 84]:
        raise ValueError(f"{path}: observations of shape {torch_files.quote(shape)}, expected [4, 84, 84]")
    if isinstance(options, dict) and options.get("normalize_images", True) is not True:
        raise ValueError(f"{path}: its observations are not divided by 255")
    return about


def _put_actions_first(rows: Float64, quantiles: int) -> Float64:
    """Return rows [quantiles · actions, …] as [actions · quantiles, …]."""
    grouped = rows.reshape(quantiles, -1, *rows.shape[1:])
    return np.swapaxes(grouped, 0, 1).reshape(rows.shape)
