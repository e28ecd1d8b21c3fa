"""What a head answers, in JAX: for the modules of Linen and NNX."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from convert.agents.architecture import Head


def to_outputs(rows: Sequence[jax.Array], head: Head, support: jax.Array | None) -> dict[str, jax.Array]:
    """Return what a head answers.

    Args:
        rows: of each of its layers, float32[..., rows], those of one action beside each other.
        head: what they are.
        support: float32[atoms] of a categorical head.
    """
    outputs = rows[0]
    if head.streams != "single":
        advantages = outputs.reshape((*outputs.shape[:-1], head.actions, head.width))
        outputs = rows[1][..., None, :] + advantages - advantages.mean(-2, keepdims=True)
        outputs = outputs.reshape((*outputs.shape[:-2], -1))
    if head.kind == "q":
        return {"q_values": outputs}
    outputs = outputs.reshape((*outputs.shape[:-1], head.actions, head.width))
    if head.kind == "quantile":
        return {"q_values": outputs.mean(-1), "quantiles": outputs}
    return {"q_values": jnp.sum(jax.nn.softmax(outputs) * jnp.asarray(support), axis=-1), "logits": outputs}
