"""The agents' networks as Flax Linen modules, with the parameter tree and call conventions of Dopamine's own.

``params/{Conv_0,Conv_1,Conv_2,Dense_0,Dense_1}/{kernel,bias}``. Unlike Dopamine's networks `NatureDQN` and `NatureC51`
do not pad their convolutions, as the agents of the release do not: the first dense layer takes 3136 features, not 7744.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from convert.agents.architecture import Architecture, list_shapes, make_head, nature_cnn
from convert.networks.jax_heads import to_outputs


class QOutput(NamedTuple):
    """q_values: float32[..., actions]."""

    q_values: jax.Array


class CategoricalOutput(NamedTuple):
    """q_values: float32[..., actions]; logits and probabilities: float32[..., actions, atoms]."""

    q_values: jax.Array
    logits: jax.Array
    probabilities: jax.Array


class AgentNetwork(nn.Module):
    """The network of an architecture, of any kind of head.

    Call it on uint8[..., size, size, frames], oldest frame first, 0–255: one observation or any batch of them; and for
    a categorical head on its support, float32[atoms].
    """

    architecture: Architecture

    @nn.compact
    def __call__(self, x: jax.Array, support: jax.Array | None = None) -> dict[str, jax.Array]:
        """Return ``q_values`` float32[..., actions], and ``logits`` or ``quantiles`` float32[..., actions, …]."""
        rows = _compute_rows(x.astype(jnp.float32) / self.architecture.observation.scale, self.architecture)
        return to_outputs(rows, self.architecture.head, support)


class NatureDQN(nn.Module):
    """The Nature-CNN with a Q head (DQN and Munchausen-DQN).

    Call it on uint8[..., 84, 84, 4], oldest frame first, 0–255: one observation or any batch of them. With
    ``inputs_preprocessed`` it takes float32 that is already divided by 255.
    """

    num_actions: int
    inputs_preprocessed: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> QOutput:
        """Return the Q-values of each action."""
        architecture = nature_cnn(make_head(self.num_actions))
        x = x if self.inputs_preprocessed else x.astype(jnp.float32) / architecture.observation.scale
        return QOutput(**to_outputs(_compute_rows(x, architecture), architecture.head, None))


class NatureC51(nn.Module):
    """The Nature-CNN with a categorical head (C51, Bellemare et al. 2017). Called like `NatureDQN`, and with a support.

    ``support``: float32[atoms], the one in ``agent.json``: ``jnp.linspace`` differs from it in the last bits.
    """

    num_actions: int
    num_atoms: int
    inputs_preprocessed: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, support: jax.Array) -> CategoricalOutput:
        """Return each action's logits and probabilities over the atoms, and their mean."""
        architecture = nature_cnn(make_head(self.num_actions, self.num_atoms))
        x = x if self.inputs_preprocessed else x.astype(jnp.float32) / architecture.observation.scale
        outputs = to_outputs(_compute_rows(x, architecture), architecture.head, support)
        return CategoricalOutput(outputs["q_values"], outputs["logits"], nn.softmax(outputs["logits"]))


def _compute_rows(x: jax.Array, architecture: Architecture) -> list[jax.Array]:
    """Return the rows of each layer of the head. Called inside ``nn.compact``: the layers are the caller's."""
    for conv in architecture.convs:
        layer = nn.Conv(conv.features, (conv.kernel,) * 2, (conv.stride,) * 2, padding=[conv.padding] * 2)
        x = nn.relu(layer(x))
    x = x.reshape((*x.shape[:-3], -1))
    for units in architecture.hidden:
        x = nn.relu(nn.Dense(units)(x))
    head, shapes = architecture.head, list_shapes(architecture)
    parts = jnp.split(x, 2, -1) if head.streams == "split" else [x] * 2
    return [nn.Dense(shapes[f"{name}.kernel"][0])(part) for name, part in zip(head.layers, parts, strict=False)]
