"""The agents' network as a Flax NNX module, as new Flax code is written."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from convert.agents.architecture import Architecture, list_shapes, make_head, nature_cnn
from convert.formats.flat_names import name_layer
from convert.networks.jax_heads import to_outputs


class AgentNetwork(nnx.Module):
    """The network of an architecture.

    Call it on uint8[..., size, size, frames], oldest frame first, 0–255: one observation or any batch of them.
    """

    def __init__(self, architecture: Architecture, *, rngs: nnx.Rngs) -> None:
        self.architecture = architecture
        shapes = list_shapes(architecture)
        for index, conv in enumerate(architecture.convs):
            outputs, inputs, *size = shapes[f"convs.{index}.kernel"]
            layer = nnx.Conv(inputs, outputs, size, conv.stride, padding=[conv.padding] * 2, rngs=rngs)
            setattr(self, f"conv{index + 1}", layer)
        for name in (*architecture.hidden_layers, *architecture.head.layers):
            outputs, inputs = shapes[f"{name}.kernel"]
            setattr(self, name_layer(name), nnx.Linear(inputs, outputs, rngs=rngs))
        if architecture.head.support is not None:
            self.support = nnx.Variable(jnp.array(architecture.head.support))

    def __call__(self, observation: jax.Array) -> dict[str, jax.Array]:
        """Return ``q_values`` float32[..., actions], and ``logits`` or ``quantiles`` float32[..., actions, …]."""
        architecture, head = self.architecture, self.architecture.head
        features = observation.astype(jnp.float32) / architecture.observation.scale
        for index in range(len(architecture.convs)):
            features = nnx.relu(getattr(self, f"conv{index + 1}")(features))
        features = features.reshape((*features.shape[:-3], -1))
        for name in architecture.hidden_layers:
            features = nnx.relu(getattr(self, name_layer(name))(features))
        parts = jnp.split(features, 2, -1) if head.streams == "split" else [features] * 2
        rows = [getattr(self, name)(part) for name, part in zip(head.layers, parts, strict=False)]
        return to_outputs(rows, head, self.support.get_value() if head.support is not None else None)


class NatureCNN(AgentNetwork):
    """The Nature-CNN, with a Q head, or with a categorical one (C51) when it is given a number of atoms.

    Call it on uint8[..., 84, 84, 4], oldest frame first, 0–255: one observation or any batch of them. The values of
    the support come with the state.
    """

    def __init__(self, num_actions: int, num_atoms: int | None = None, *, rngs: nnx.Rngs) -> None:
        super().__init__(nature_cnn(make_head(num_actions, num_atoms)), rngs=rngs)
