"""The release "Pretrained Atari Agents" (2022), read with torch: a gzip of ``torch.save({"estimator_state": …})``.

The network is the Nature-CNN: convolutions (32, 4, 8, 8) with stride 4, (64, 32, 4, 4) with 2 and (64, 64, 3, 3) with
1, no padding; hidden 512; a head of A rows, or of A · atoms rows with a support.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from runtime_check import torch_files
from runtime_check.oracle import CATEGORICAL, Conv, Dense, Head, Observation, Oracle, Q

LARGEST_CHECKPOINT = 64 * 2**20  # bytes, inflated; one of the release has about 9 MB, the largest possible 55 MB

_LARGEST_WEIGHT = 2**23  # values; a head of 18 actions and 512 atoms has 4.7 million
_STRIDES = {0: 4, 2: 2, 4: 1}  # by the number of the layer
_SHAPES = {
    "_AtariNet__features.0.weight": (32, 4, 8, 8),
    "_AtariNet__features.0.bias": (32,),
    "_AtariNet__features.2.weight": (64, 32, 4, 4),
    "_AtariNet__features.2.bias": (64,),
    "_AtariNet__features.4.weight": (64, 64, 3, 3),
    "_AtariNet__features.4.bias": (64,),
    "_AtariNet__head.0.weight": (512, 3136),
    "_AtariNet__head.0.bias": (512,),
}
_HEAD_WEIGHT, _HEAD_BIAS, _SUPPORT = "_AtariNet__head.2.weight", "_AtariNet__head.2.bias", "_AtariNet__support"
_NAMES = (*_SHAPES, _HEAD_WEIGHT, _HEAD_BIAS, _SUPPORT)


class AtariNet(nn.Module):
    """The network of the release, with the names of its weights: Python's mangling puts ``_AtariNet`` before them."""

    def __init__(self, actions: int, support: torch.Tensor | None) -> None:
        """Build it for a Q head, or with a support for a categorical one."""
        super().__init__()
        atoms = 1 if support is None else len(support)
        self.__features = nn.Sequential(
            nn.Conv2d(4, 32, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=1),
            nn.ReLU(),
        )
        self.__head = nn.Sequential(nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, actions * atoms))
        if support is not None:
            self.register_buffer("_AtariNet__support", support)
        self._support = support is not None

    def forward(self, obs_nchw: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``q_values`` float32[N, actions], and for C51 ``logits`` float32[N, actions, atoms]."""
        outputs = self.__head(self.__features(obs_nchw.float() / 255).flatten(1))
        if not self._support:
            return {"q_values": outputs}
        support = self.get_buffer("_AtariNet__support")
        logits = outputs.unflatten(1, (-1, len(support)))
        return {"q_values": (logits.softmax(-1) * support).sum(-1), "logits": logits}


def recognise(head: bytes, name: str) -> bool:  # noqa: ARG001 - the content tells enough
    """Tell whether a file is a gzip."""
    return head.startswith(b"\x1f\x8b")


def read(path: Path) -> Oracle:
    """Read a checkpoint of the release in float64.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: it is not a checkpoint of this network; the message names every weight that is off.
    """
    return _to_oracle(read_state_dict(path), path)


def read_eager(path: Path) -> AtariNet:
    """Read a checkpoint of the release as its own network in torch.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: it is not a checkpoint of this network.
    """
    state = read_state_dict(path)
    actions = _to_oracle(state, path).actions
    with torch.device("meta"):  # no random weights: those of the file come
        model = AtariNet(actions, state.get(_SUPPORT))
    model.to_empty(device="cpu").load_state_dict(state, strict=True)
    return model


def _to_oracle(state: dict[str, torch.Tensor], path: Path) -> Oracle:
    problems = _find_problems({name: tuple(tensor.shape) for name, tensor in state.items()})
    # Tensors of any number and size may share a storage, and would each become an array.
    known = [name for name in _NAMES if name in state and state[name].numel() <= _LARGEST_WEIGHT]
    arrays = {name: state[name].to(torch.float64).numpy() for name in known}
    problems += [f"{name} is not finite" for name, array in arrays.items() if not np.isfinite(array).all()]
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(f"{path}: {'; '.join(problems[:10])}{more}")
    convs = (
        Conv(arrays[f"_AtariNet__features.{layer}.weight"], arrays[f"_AtariNet__features.{layer}.bias"], stride)
        for layer, stride in _STRIDES.items()
    )
    hidden = Dense(arrays["_AtariNet__head.0.weight"], arrays["_AtariNet__head.0.bias"])
    dense, support = Dense(arrays[_HEAD_WEIGHT], arrays[_HEAD_BIAS]), arrays.get(_SUPPORT)
    atoms = 1 if support is None else len(support)
    head = Head(Q if support is None else CATEGORICAL, len(dense.bias) // atoms, dense, support=support)
    return Oracle(Observation(), tuple(convs), (hidden,), head)


def _find_problems(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    expected: dict[str, tuple[int, ...]] = dict(_SHAPES)
    head_bias, support = shapes.get(_HEAD_BIAS), shapes.get(_SUPPORT)
    rows = head_bias[0] if head_bias is not None and len(head_bias) == 1 else -1
    expected |= {_HEAD_WEIGHT: (rows, 512), _HEAD_BIAS: (rows,)}
    problems = [f"{name} is missing" for name in expected if name not in shapes]
    problems += [f"{ascii(name)[1:-1][:80]} is unexpected" for name in shapes if name not in _NAMES]
    problems += [
        f"{name} is {shapes[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    if support is not None and (len(support) != 1 or not support[0] or rows % support[0]):
        problems.append(f"{_SUPPORT} is {support}, the head has {rows} rows")
    if rows == 0:
        problems.append("the head has no actions")
    return problems


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read the weights of a checkpoint of the release.

    The last one is kept: the oracle and the reference are made of the same weights. They are not to be changed.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: it is not such a checkpoint, inflates to more than 64 MiB, or wants to run code.
    """
    with path.open("rb") as file:
        return _to_state(file.read(LARGEST_CHECKPOINT + 1), path)


@lru_cache(maxsize=1)
def _to_state(data: bytes, path: Path) -> dict[str, torch.Tensor]:
    raw = _inflate(data, path)
    size = len(raw)
    document = torch_files.load(raw, path)
    state = document.get("estimator_state") if isinstance(document, dict) else None
    if not isinstance(state, dict) or not all(torch_files.is_plain(value, size) for value in state.values()):
        raise ValueError(f"{path}: no 'estimator_state' that maps names to plain tensors")
    return {str(name): tensor.detach() for name, tensor in state.items()}


def _inflate(data: bytes, path: Path) -> bytes:
    inflater = zlib.decompressobj(wbits=31)
    try:
        raw = inflater.decompress(data, LARGEST_CHECKPOINT)
    except zlib.error as error:
        raise ValueError(f"{path}: not a complete gzip file ({error})") from error
    if len(data) > LARGEST_CHECKPOINT or (len(raw) == LARGEST_CHECKPOINT and not inflater.eof):
        raise ValueError(
            f"{path}: inflates to more than {LARGEST_CHECKPOINT // 2**20} MiB, a checkpoint has about 9 MB"
        )
    if not inflater.eof:
        raise ValueError(f"{path}: not a complete gzip file (it ends early)")
    if inflater.unused_data:
        raise ValueError(f"{path}: has {len(inflater.unused_data)} bytes after the end of its gzip stream")
    return raw
