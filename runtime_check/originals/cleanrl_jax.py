"""CleanRL's ``dqn_atari_jax.py`` and ``c51_atari_jax.py``: parameters of Flax in msgpack.

Kernels are [height, width, in, out] and [in, out], the first dense one of planes flattened in H,W,C order; input is
divided by 255, no padding. That of C51 is in ``model_weights``; its support is computed from ``args``. It answers with
probabilities, whose logits are those of the last layer.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from runtime_check import torch_files
from runtime_check.oracle import CATEGORICAL, Conv, Dense, Float64, Head, Observation, Oracle, Q

_CONVS = {"Conv_0": 4, "Conv_1": 2, "Conv_2": 1}  # strides
_LAYERS = (*_CONVS, "Dense_0", "Dense_1")
_MOST_ATOMS = 512
_BOUNDS = {"max_array_len": 8, "max_map_len": 32, "max_str_len": 200, "max_bin_len": 0}

Weights = dict[str, NDArray[np.float32]]


class QNetwork(nn.Module):
    """The network of both scripts in torch, which flattens as they do."""

    def __init__(self, weights: Weights, support: torch.Tensor | None) -> None:
        """Take the parameters as they are, by ``Conv_0/kernel`` and so on."""
        super().__init__()
        self.register_buffer("support", support)
        for name, weight in weights.items():
            self.register_buffer(name.replace("/", "_"), torch.from_numpy(weight.copy()))

    def forward(self, obs_nchw: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``q_values`` float32[N, actions], and for C51 ``logits`` float32[N, actions, atoms]."""
        x = obs_nchw / 255.0
        for layer, stride in _CONVS.items():
            kernel = self.get_buffer(f"{layer}_kernel").permute(3, 2, 0, 1)
            x = torch.relu(nn.functional.conv2d(x, kernel, self.get_buffer(f"{layer}_bias"), stride))
        x = x.permute(0, 2, 3, 1).flatten(1)
        x = torch.relu(x @ self.get_buffer("Dense_0_kernel") + self.get_buffer("Dense_0_bias"))
        outputs = x @ self.get_buffer("Dense_1_kernel") + self.get_buffer("Dense_1_bias")
        if self.support is None:
            return {"q_values": outputs}
        support = self.get_buffer("support")
        logits = outputs.view(len(outputs), -1, len(support))
        return {"q_values": (logits.softmax(-1) * support).sum(-1), "logits": logits}


def recognise(head: bytes, name: str) -> bool:
    """Tell whether a file is msgpack of ``model_weights``, or, by CleanRL's file name, of ``params``."""
    if head.startswith((b"\x82\xadmodel_weights", b"\x82\xa4args")):
        return True
    return head.startswith(b"\x81\xa6params") and name.endswith(".cleanrl_model")


def read(path: Path) -> Oracle:
    """Read a model in float64.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: it is no such model; the message names all that is wrong.
    """
    weights, support = _read_weights(path)
    wide = {name: weight.astype(np.float64) for name, weight in weights.items()}
    try:
        convs = [
            Conv(wide[f"{layer}/kernel"].transpose(3, 2, 0, 1), wide[f"{layer}/bias"], stride)
            for layer, stride in _CONVS.items()
        ]
        hidden = Dense(_put_channels_first(wide["Dense_0/kernel"], len(convs[-1].bias)), wide["Dense_0/bias"])
        dense, atoms = Dense(wide["Dense_1/kernel"].T, wide["Dense_1/bias"]), 1 if support is None else len(support)
        head = Head(Q if support is None else CATEGORICAL, len(dense.bias) // atoms, dense, support=support)
        return Oracle(Observation(), tuple(convs), (hidden,), head)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_eager(path: Path) -> QNetwork:
    """Read a model as a network in torch.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: it is no such model.
    """
    read(path)  # says what is wrong
    weights, support = _read_weights(path)
    return QNetwork(weights, None if support is None else torch.from_numpy(support.astype(np.float32)))


def _put_channels_first(kernel: Float64, channels: int) -> Float64:
    """Return the kernel [H · W · C, out] of a dense layer as [out, C · H · W]."""
    side = math.isqrt(len(kernel) // channels)
    return kernel.reshape(side, side, channels, -1).transpose(3, 2, 0, 1).reshape(kernel.shape[1], -1)


def _read_weights(path: Path) -> tuple[Weights, Float64 | None]:
    """Return the parameters by ``Conv_0/kernel`` and so on, and the support where there are arguments."""
    return _to_weights(torch_files.read_bounded(path), path)


@lru_cache(maxsize=1)  # oracle and reference are made of the same weights
def _to_weights(raw: bytes, path: Path) -> tuple[Weights, Float64 | None]:
    tree, support = _unpack(raw, path), None
    if "model_weights" in tree:
        support = _find_support(tree.get("args"), path)
        tree = tree["model_weights"]
    layers = tree.get("params") if isinstance(tree, dict) else None
    if not isinstance(layers, dict) or set(layers) != set(_LAYERS):
        found = ", ".join(map(torch_files.quote, list(layers)[:6])) if isinstance(layers, dict) else "nothing"
        raise ValueError(f"{path}: its parameters are {found}, expected {', '.join(_LAYERS)}")
    weights: dict[str, Any] = {}
    problems = []
    for layer in _LAYERS:
        for part, axes in (("kernel", 4 if layer in _CONVS else 2), ("bias", 1)):
            value: Any = layers[layer].get(part) if isinstance(layers[layer], dict) else None
            is_weight = isinstance(value, np.ndarray) and value.dtype == np.float32 and value.ndim == axes
            if not is_weight or not value.size or not np.isfinite(value).all():
                problems.append(f"{layer}/{part} is no finite float32 array of {axes} axes")
            weights[f"{layer}/{part}"] = value
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}")
    return weights, support


def _find_support(args: Any, path: Path) -> Float64:
    told: dict[str, Any] = args if isinstance(args, dict) else {}
    values: list[Any] = [told.get(key) for key in ("n_atoms", "v_min", "v_max")]
    atoms, low, high = values
    is_range = all(type(value) in (int, float) and abs(value) < 2**24 for value in (low, high))
    if type(atoms) is not int or not 2 <= atoms <= _MOST_ATOMS or not is_range:
        raise ValueError(f"{path}: its args tell no support by n_atoms, v_min and v_max")
    return np.linspace(low, high, atoms).astype(np.float32).astype(np.float64)


def _unpack(raw: bytes, path: Path) -> dict[str, Any]:
    import msgpack  # only here: no other agent needs it

    dicts = 0

    def count(tree: dict[str, Any]) -> dict[str, Any]:
        nonlocal dicts
        dicts += 1
        if dicts > 64:
            raise ValueError("it holds more than 64 dicts")
        return tree

    try:
        tree = msgpack.unpackb(raw, object_hook=count, ext_hook=_to_array, strict_map_key=True, **_BOUNDS)
    except Exception as error:  # msgpack raises ValueError and classes of its own for damaged bytes
        raise ValueError(f"{path}: not parameters in msgpack ({torch_files.quote(error)})") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: holds a {type(tree).__name__}, expected a dict")  # noqa: TRY004
    return tree


def _to_array(code: int, data: bytes) -> NDArray[Any]:
    """Return an array: Flax' extension 1 holds its shape, the name of its dtype and its bytes in C order."""
    import msgpack

    shape, dtype, content = msgpack.unpackb(data, max_array_len=8, max_map_len=0, max_str_len=20, max_ext_len=0)
    if code != 1 or dtype != "float32":
        raise ValueError("it holds something besides float32 arrays")
    return np.frombuffer(content, np.float32).reshape(shape)
