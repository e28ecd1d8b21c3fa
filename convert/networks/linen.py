"""The agents' networks as Flax Linen modules, with the parameter tree and call conventions of Dopamine's own.

``params/{Conv_0,Conv_1,Conv_2,Dense_0,Dense_1}/{kernel,bias}``. Unlike Dopamine's networks these do not pad
their convolutions, as the agents of the release do not: the first dense layer takes 3136 features, not 7744.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from convert.agents.network import NATURE_HIDDEN, NATURE_KERNELS, NATURE_STRIDES


class QOutput(NamedTuple):
    """q_values: float32[..., actions]."""

    q_values: jax.Array


class CategoricalOutput(NamedTuple):
    """q_values: float32[..., actions]; logits and probabilities: float32[..., actions, atoms]."""

    q_values: jax.Array
    logits: jax.Array
    probabilities: jax.Array


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
        features = _nature_features(x, self.inputs_preprocessed)
        return QOutput(nn.Dense(self.num_actions)(features))


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
        features = _nature_features(x, self.inputs_preprocessed)
        logits = nn.Dense(self.num_actions * self.num_atoms)(features)
        logits = logits.reshape((*logits.shape[:-1], self.num_actions, self.num_atoms))
        probabilities = nn.softmax(logits)
        return CategoricalOutput(jnp.sum(support * probabilities, axis=-1), logits, probabilities)


def _nature_features(x: jax.Array, inputs_preprocessed: bool) -> jax.Array:
    """Return float32[..., 512]. Called inside ``nn.compact``, so that its layers belong to the caller's tree."""
    if not inputs_preprocessed:
        x = x.astype(jnp.float32) / 255.0
    for (features, _, height, width), stride in zip(NATURE_KERNELS, NATURE_STRIDES, strict=True):
        x = nn.relu(nn.Conv(features, (height, width), strides=(stride, stride), padding="VALID")(x))
    return nn.relu(nn.Dense(NATURE_HIDDEN[0])(x.reshape((*x.shape[:-3], -1))))
