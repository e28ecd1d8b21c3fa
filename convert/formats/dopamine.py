"""Checkpoints of Dopamine's JAX agents: the pickle ``ckpt.N``, alone or in a base folder.

=====================  ==========================  ============================================================
network                layers                      head
=====================  ==========================  ============================================================
``NatureDQN``          ``Conv_0-2, Dense_0-1``     actions
``Rainbow``            the same                    actions × 51 atoms: C51 and Rainbow
``Quantile``           the same                    actions × 200 quantiles, those of one action beside each other
``FullRainbow``        ``Conv_0-2,                 an advantage (1) and a value (2) on one hidden layer (0);
                       NoisyNetwork_0-2`` or       ``Dense_1`` or ``NoisyNetwork_1`` alone where it is not dueling
                       ``Dense_0-2``
``ImplicitQuantile``   ``Conv_0-2, Dense_0-2``     not read: it draws fractions at random
=====================  ==========================  ============================================================

All pad their convolutions as TensorFlow's SAME does. Three spellings of the parameters are in use: Linen's, below
``params``; the same in FrozenDicts; and that of ``flax.nn`` (until February 2021), without ``params`` and with one
count for all layers: ``Conv_2, Dense_3``. Noisy layers hold ``kernel_mu`` and ``bias_mu``, the means that Dopamine
evaluates with, and how large the noise is. The support is not in the file: it is Dopamine's default, -10 to 10.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.agents.architecture import LARGEST_ACTIONS, LARGEST_ATOMS, Architecture, Conv, Head, Observation
from convert.agents.identity import Identity, to_number
from convert.agents.network import Network, check_network
from convert.errors import ArtefactMissing, UnreadableCheckpoint, UnsupportedArchitecture
from convert.files import numpy_pickles
from convert.files.documents import show
from convert.formats.parameter_trees import from_params

ZOO = "dopamine"
PROTOCOL = "dopamine"
SENTINEL = "sentinel_checkpoint_complete"
ORIGIN_NAME = "origin.json"  # of a base folder that atari-convert wrote: who the agent is

DQN, C51, RAINBOW, QR_DQN, IQN = "DQN", "C51", "Rainbow", "QR-DQN", "IQN"

SAME_CONVS = (Conv(32, 8, 4, (2, 2)), Conv(64, 4, 2, (1, 2)), Conv(64, 3, 1, (1, 1)))

_SUPPORTED = f"supported: {DQN}, {C51}, {RAINBOW}, quantile ({QR_DQN}), full Rainbow"
_ATOMS, _QUANTILES = 51, 200  # Dopamine's defaults, which no two numbers of actions confuse
_HIGHEST = 10.0
_FEATURES = 7744  # 64 planes of 11 × 11, where convolutions are padded; else 3136
_UNPADDED_FEATURES = 3136
_LAYER = re.compile(r"(Conv|Dense|NoisyNetwork)_(\d{1,3})", re.ASCII)
_NOISY_PARTS = {"kernel_mu": "kernel", "bias_mu": "bias", "kernel_sigma": None, "bias_sigma": None}

Layer = Mapping[Any, Any]


@dataclass(frozen=True, eq=False)
class Bundle:
    """What is of use in a checkpoint: the parameters of the online network, and the agent steps trained."""

    training_steps: int
    online_params: Any


def read(data: bytes, name: str) -> tuple[Network, Identity]:
    """Read a ``ckpt.N``: the network, and what it tells of who the agent is.

    C51 and Rainbow have one network: the algorithm of a categorical head without noise and streams is not told.

    Raises:
        UnreadableCheckpoint: it is damaged, wants to run code, or holds another agent than those that are read.
        UnsupportedArchitecture: its network is not one of Dopamine's for Atari.
        WeightMismatch: a weight is not finite.
    """
    try:
        bundle = read_bundle(data)
    except ValueError as error:
        raise UnreadableCheckpoint(f"{name}: {error}: take another copy, or one of a JAX agent") from error
    network, is_full = _read_network(bundle.online_params, name)
    check_network(network, name)
    algorithm = RAINBOW if is_full else {"q": DQN, "quantile": QR_DQN}.get(network.head.kind)
    return network, Identity(ZOO, algorithm, None, PROTOCOL, None, bundle.training_steps)


def read_bundle(data: bytes) -> Bundle:
    """Return what is of use in a checkpoint.

    Raises:
        ValueError: it is damaged, wants to run code, or is no checkpoint of Dopamine's JAX agents.
    """
    content = numpy_pickles.loads(data)
    steps = to_number(content.get("training_steps")) if isinstance(content, Mapping) else None
    if steps is None or "online_params" not in content:
        raise ValueError("no online_params and training_steps: not a checkpoint of Dopamine's JAX agents")
    return Bundle(steps, content["online_params"])


def find_latest(folder: Path) -> Path:
    """Return the latest complete checkpoint of a base folder.

    Raises:
        ArtefactMissing: there is none.
    """
    pattern = re.compile(rf"{SENTINEL}\.(\d+)", re.ASCII)
    matches = (pattern.fullmatch(entry.name) for entry in (folder / "checkpoints").glob(f"{SENTINEL}.*"))
    iterations = [int(match[1]) for match in matches if match and _checkpoint(folder, int(match[1])).is_file()]
    if not iterations:
        raise ArtefactMissing(f"{folder}: no checkpoints/ckpt.N with its {SENTINEL}.N: not a base folder of Dopamine")
    return _checkpoint(folder, max(iterations))


def _checkpoint(folder: Path, iteration: int) -> Path:
    return folder / "checkpoints" / f"ckpt.{iteration}"


def _read_network(params: Any, name: str) -> tuple[Network, bool]:
    """Return the network, and whether only JaxFullRainbowAgent has such a one."""
    convs, dense, is_noisy = _list_layers(params, name)
    if len(dense) == 3 and _shape_of(dense[0])[1:] == _shape_of(dense[1])[:1] == (_FEATURES,):
        raise UnreadableCheckpoint(
            f"{name}: a Dopamine agent of implicit quantiles ({IQN}), which answers with fractions drawn at random; "
            f"{_SUPPORTED}"
        )
    if _shape_of(dense[0])[:1] == (_UNPADDED_FEATURES,):
        raise UnsupportedArchitecture(
            f"{name}: its convolutions are not padded, so it is none of Dopamine's own agents: name the base folder "
            f"that atari-convert wrote, with its {ORIGIN_NAME}"
        )
    units, rows, *of_value = (_count_outputs(layer, name) for layer in dense)
    try:
        architecture = Architecture(Observation(), SAME_CONVS, (units,), _make_head(rows, *of_value))
        tree = {f"Conv_{index}": layer for index, layer in enumerate(convs)}
        tree |= {f"Dense_{index}": layer for index, layer in enumerate(dense)}
        return from_params({"params": tree}, architecture), is_noisy or bool(of_value)
    except ValueError as error:
        raise UnsupportedArchitecture(f"{name}: {error}: not a network of Dopamine for Atari") from error


def _make_head(rows: int, value_rows: int | None = None) -> Head:
    """Return the head of so many rows; where there is a value stream, its rows are those of an action."""
    if value_rows is None:
        widths = (width for width in (_ATOMS, _QUANTILES) if rows > LARGEST_ACTIONS and rows % width == 0)
        streams, width = "single", next(widths, 1)
    else:
        streams, width = "shared", value_rows
    if rows % width or width > LARGEST_ATOMS:
        raise ValueError(f"its advantage has {rows} rows and its value {width}")
    if width == 1:
        return Head("q", rows, streams=streams)
    if streams == "single" and width == _QUANTILES:
        return Head("quantile", rows // width, quantiles=width)
    return Head("categorical", rows // width, _space_atoms(width), streams=streams)


def _space_atoms(count: int) -> tuple[float, ...]:
    """Return the support. Dopamine's is computed by JAX, whose versions differ in the last bits: these are nearest."""
    return tuple(np.linspace(-_HIGHEST, _HIGHEST, count).astype(np.float32).tolist())


def _list_layers(params: Any, name: str) -> tuple[list[Layer], list[Layer], bool]:
    """Return the convolutions, the dense layers, each by its ``kernel`` and ``bias``, and whether those are noisy."""
    layers = params["params"] if isinstance(params, dict) and params.keys() == {"params"} else params
    if not isinstance(layers, dict):
        raise UnreadableCheckpoint(f"{name}: its online_params are a {type(layers).__name__}, expected a dict")
    matches = [_LAYER.fullmatch(key) if isinstance(key, str) else None for key in layers]
    found: dict[str, list[Layer]] = {"Conv": [], "Dense": [], "NoisyNetwork": []}
    for match in sorted(filter(None, matches), key=lambda match: int(match[2])):
        found[match[1]].append(_to_layer(layers[match[0]], match[0], name))
    dense = found["Dense"] or found["NoisyNetwork"]
    is_mixed = bool(found["Dense"] and found["NoisyNetwork"])
    if None in matches or is_mixed or len(found["Conv"]) != len(SAME_CONVS) or len(dense) not in (2, 3):
        keys = ", ".join(show(key) for key in list(layers)[:6]) or "none"
        raise UnsupportedArchitecture(
            f"{name}: has the layers {keys}{' …' if len(layers) > 6 else ''}, expected those of an agent of Dopamine "
            f"for Atari; {_SUPPORTED}"
        )
    return found["Conv"], dense, bool(found["NoisyNetwork"])


def _to_layer(parts: Any, layer: str, name: str) -> Layer:
    """Return the parts of a layer, of a noisy one the means by the names of a dense one's parts."""
    if not isinstance(parts, dict):
        raise UnsupportedArchitecture(f"{name}: {layer} is a {type(parts).__name__}, expected a dict")
    if not layer.startswith("NoisyNetwork"):
        return parts
    if parts.keys() != _NOISY_PARTS.keys():
        found = ", ".join(show(key) for key in list(parts)[:6])
        raise UnsupportedArchitecture(f"{name}: {layer} has {found}, expected {', '.join(_NOISY_PARTS)}")
    return {part: parts[key] for key, part in _NOISY_PARTS.items() if part}


def _shape_of(layer: Layer) -> tuple[int, ...]:
    kernel = layer.get("kernel")
    return kernel.shape if isinstance(kernel, np.ndarray) else ()


def _count_outputs(layer: Layer, name: str) -> int:
    bias = layer.get("bias")
    if not isinstance(bias, np.ndarray) or bias.ndim != 1 or not bias.size:
        raise UnsupportedArchitecture(f"{name}: a dense layer has no bias of one axis: not a network of Dopamine")
    return len(bias)
