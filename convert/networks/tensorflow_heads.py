"""What a head answers, in TensorFlow: for SavedModels and LiteRT files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convert.agents.architecture import Head
from convert.frameworks.quiet_tensorflow import tf


def to_outputs(rows: Sequence[Any], head: Head, support: Any) -> dict[str, Any]:
    """Return what a head answers.

    Args:
        rows: of each of its layers, float32[N, …], those of one action beside each other.
        head: what they are.
        support: float32[atoms] of a categorical head.
    """
    outputs = rows[0]
    if head.streams != "single":
        advantages = tf.reshape(outputs, [-1, head.actions, head.width])
        values = tf.reshape(rows[1], [-1, 1, head.width])
        outputs = values + advantages - tf.reduce_mean(advantages, axis=1, keepdims=True)
        outputs = tf.reshape(outputs, [-1, head.actions * head.width])
    if head.kind == "q":
        return {"q_values": outputs}
    outputs = tf.reshape(outputs, [-1, head.actions, head.width])
    if head.kind == "quantile":
        return {"q_values": tf.reduce_mean(outputs, axis=-1), "quantiles": outputs}
    return {"q_values": tf.reduce_sum(tf.nn.softmax(outputs) * support, axis=-1), "logits": outputs}
