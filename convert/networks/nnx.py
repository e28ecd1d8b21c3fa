"""The agents' network as a Flax NNX module, as new Flax code is written."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from convert.agents.network import NATURE_HIDDEN, NATURE_KERNELS, NATURE_STRIDES


class NatureCNN(nnx.Module):
    """The Nature-CNN, with a Q head, or with a categorical one (C51) when it is given a number of atoms.

    Call it on uint8[..., 84, 84, 4], oldest frame first, 0–255: one observation or any batch of them.
    """

    def __init__(self, num_actions: int, num_atoms: int | None = None, *, rngs: nnx.Rngs) -> None:
        self.num_actions, self.num_atoms = num_actions, num_atoms
        self.conv1, self.conv2, self.conv3 = (
            nnx.Conv(inputs, outputs, (height, width), stride, padding="VALID", rngs=rngs)
            for (outputs, inputs, height, width), stride in zip(NATURE_KERNELS, NATURE_STRIDES, strict=True)
        )
        self.hidden = nnx.Linear(NATURE_HIDDEN[1], NATURE_HIDDEN[0], rngs=rngs)
        self.head = nnx.Linear(NATURE_HIDDEN[0], num_actions * (num_atoms or 1), rngs=rngs)
        if num_atoms is not None:
            self.support = nnx.Variable(jnp.zeros(num_atoms))

    def __call__(self, observation: jax.Array) -> dict[str, jax.Array]:
        """Return ``q_values`` float32[..., actions], and for C51 ``logits`` float32[..., actions, atoms]."""
        features = observation.astype(jnp.float32) / 255.0
        for conv in (self.conv1, self.conv2, self.conv3):
            features = nnx.relu(conv(features))
        features = features.reshape((*features.shape[:-3], -1))
        outputs = self.head(nnx.relu(self.hidden(features)))
        if self.num_atoms is None:
            return {"q_values": outputs}
        logits = outputs.reshape((*outputs.shape[:-1], self.num_actions, self.num_atoms))
        return {"q_values": jnp.sum(nnx.softmax(logits) * self.support.get_value(), axis=-1), "logits": logits}
