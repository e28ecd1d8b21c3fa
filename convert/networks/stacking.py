"""Many agents as one: parameters stacked for ``jax.vmap`` over agents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convert.agents.architecture import describe
from convert.agents.network import Network
from convert.errors import InvalidArgument
from convert.formats.parameter_trees import Params, to_params


def stack_params(networks: Sequence[Network]) -> Params:
    """Stack the parameters of agents of one architecture, such as the 51 checkpoints of a training run.

    With them ``jax.vmap(lambda params: network_def.apply(params, observations).q_values)(stacked)`` gives
    float32[agents, observations, actions].

    Args:
        networks: from ``convert.read_agent`` or ``convert.read_checkpoint``.

    Returns:
        Linen's tree (see `convert.formats.parameter_trees`), each leaf float32 with a first axis over the agents.

    Raises:
        InvalidArgument: there are none, or one has another architecture or support.
    """
    if not networks:
        raise InvalidArgument("no networks to stack, expected at least one")
    for index, network in enumerate(networks):
        if not isinstance(network, Network):
            raise InvalidArgument(
                f"agent {index} is of type {type(network).__name__}, expected a network of convert.read_agent or "
                "convert.read_checkpoint"
            )
    expected = networks[0].architecture
    for index, network in enumerate(networks):
        found = network.architecture
        if found != expected:
            raise InvalidArgument(
                f"agent {index} has another architecture than agent 0: {describe(found)}, expected {describe(expected)}"
                + (" and the same support" if expected.head.support else "")
            )
    trees = [to_params(network)["params"] for network in networks]
    return {
        "params": {
            layer: {leaf: np.stack([tree[layer][leaf] for tree in trees]) for leaf in leaves}
            for layer, leaves in trees[0].items()
        }
    }
