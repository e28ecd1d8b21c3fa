"""CleanRL's dqn_atari_jax and c51_atari_jax: Flax parameters in a .cleanrl_model."""

from __future__ import annotations

from typing import Any

import numpy as np

from convert.agents.architecture import with_support
from convert.agents.network import check_network
from convert.errors import UnreadableCheckpoint, UnsupportedArchitecture
from convert.formats import cleanrl, msgpack_trees
from convert.formats.parameter_trees import from_params
from convert.sources import Checkpoint

EXPECTED = "a model of CleanRL"
PATTERNS = ("*.cleanrl_model",)
EXAMPLE = "PongNoFrameskip-v4-dqn_atari_jax-seed1/dqn_atari_jax.cleanrl_model"
PACKAGES = ("msgpack",)
EXTRA = "flax"


def recognise(head: bytes, name: str) -> bool:
    """Recognise ``model_weights`` and ``args``, in any order, or in a file of CleanRL's name the parameters alone."""
    if head.startswith((b"\x82\xadmodel_weights", b"\x82\xa4args")):
        return True
    return head.startswith(b"\x81\xa6params") and name.partition("?")[0].endswith(".cleanrl_model")


def read(data: bytes, name: str) -> Checkpoint:
    """Read a model. That of C51 tells the game, the seed and the step, that of DQN nothing but the weights.

    Raises:
        UnreadableCheckpoint: it is damaged, or of another script.
        UnsupportedArchitecture: its network is not that of these scripts.
        WeightMismatch: a weight is not finite.
    """
    try:
        tree = msgpack_trees.unpack(data)
    except ValueError as error:
        raise UnreadableCheckpoint(f"{name}: not a model of CleanRL ({error}): take another copy") from error
    args: Any = None
    if isinstance(tree, dict) and tree.keys() == {cleanrl.WEIGHTS, cleanrl.ARGS}:
        tree, args = tree[cleanrl.WEIGHTS], tree[cleanrl.ARGS]
        if not isinstance(args, dict):
            raise UnreadableCheckpoint(f"{name}: its args are a {type(args).__name__}, expected a dict")
    support = None if args is None else cleanrl.read_support(args, name)
    rows, units = (_count_units(tree, layer, name) for layer in ("Dense_1", "Dense_0"))
    architecture = cleanrl.find_architecture(rows, units, None if support is None else len(support), name)
    try:
        if support is not None:
            architecture = with_support(architecture, tuple(support.tolist()))
        network = from_params(tree, architecture)
    except ValueError as error:
        raise UnsupportedArchitecture(f"{name}: {error}: not a network of CleanRL") from error
    check_network(network, name)
    return Checkpoint(network, cleanrl.to_identity(network.head, args or {}))


def _count_units(tree: Any, layer: str, name: str) -> int:
    layers = tree.get("params") if isinstance(tree, dict) else None
    if isinstance(layers, dict) and any(str(key).startswith("ConvSequence_") for key in layers):
        raise UnreadableCheckpoint(f"{name}: an IMPALA network of CleanRL's qdagger_dqn_atari_jax_impalacnn")
    parts = layers.get(layer) if isinstance(layers, dict) else None
    bias = parts.get("bias") if isinstance(parts, dict) else None
    if not isinstance(bias, np.ndarray) or bias.ndim != 1:
        raise UnsupportedArchitecture(f"{name}: no params/{layer}/bias of one axis: not a network of CleanRL")
    return len(bias)
