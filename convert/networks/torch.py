"""The agents' network as a PyTorch module, with clean names for its state dict."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from convert.agents.architecture import Architecture, Conv, Head, list_shapes, make_head, nature_cnn
from convert.agents.network import Network
from convert.formats.flat_names import name_layer, to_named


class AgentNetwork(nn.Module):
    """The network of an architecture.

    Call it on uint8[N, frames, size, size], oldest frame first, 0–255.
    """

    support: torch.Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        shapes = list_shapes(architecture)
        for index, conv in enumerate(architecture.convs):
            outputs, inputs, size, _ = shapes[f"convs.{index}.kernel"]
            self.add_module(f"conv{index + 1}", nn.Conv2d(inputs, outputs, size, conv.stride))
        for layer in (*architecture.hidden_layers, *architecture.head.layers):
            outputs, inputs = shapes[f"{layer}.kernel"]
            self.add_module(name_layer(layer), nn.Linear(inputs, outputs))
        if architecture.head.support is not None:
            self.register_buffer("support", torch.tensor(architecture.head.support))

    def forward(self, observation: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``q_values`` float32[N, actions], and ``logits`` or ``quantiles`` float32[N, actions, …]."""
        features = observation.float() / self.architecture.observation.scale
        for index, conv in enumerate(self.architecture.convs):
            features = torch.relu(self.get_submodule(f"conv{index + 1}")(_pad(features, conv)))
        features = features.flatten(1)
        for layer in self.architecture.hidden_layers:
            features = torch.relu(self.get_submodule(name_layer(layer))(features))
        return self._answer(features)

    def _answer(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        head = self.architecture.head
        parts = features.chunk(2, 1) if head.streams == "split" else (features, features)
        rows = [self.get_submodule(layer)(part) for layer, part in zip(head.layers, parts, strict=False)]
        return to_outputs(rows, head, getattr(self, "support", None))


class NatureCNN(AgentNetwork):
    """The Nature-CNN, with a Q head, or with a categorical one (C51) when it is given a number of atoms.

    Call it on uint8[N, 4, 84, 84], oldest frame first, 0–255. The values of the support come with the state dict.
    """

    def __init__(self, num_actions: int, num_atoms: int | None = None) -> None:
        super().__init__(nature_cnn(make_head(num_actions, num_atoms)))


def to_outputs(rows: list[torch.Tensor], head: Head, support: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Return what a head answers.

    Args:
        rows: of each of its layers, float32[N, …], those of one action beside each other.
        head: what they are.
        support: float32[atoms] of a categorical head.
    """
    outputs = rows[0]
    if head.streams != "single":
        advantages = outputs.reshape(-1, head.actions, head.width)
        outputs = (rows[1].unsqueeze(1) + advantages - advantages.mean(1, keepdim=True)).flatten(1)
    if head.kind == "q":
        return {"q_values": outputs}
    outputs = outputs.unflatten(1, (head.actions, head.width))  # type: ignore[no-untyped-call]
    if head.kind == "quantile":
        return {"q_values": outputs.mean(-1), "quantiles": outputs}
    return {"q_values": (outputs.softmax(-1) * support).sum(-1), "logits": outputs}


def to_state_dict(network: Network) -> dict[str, torch.Tensor]:
    """Return the weights of a network under the names of its module."""
    return {name: torch.from_numpy(array.copy()) for name, array in to_named(network).items()}


def load_module(architecture: Architecture, state: Mapping[str, torch.Tensor]) -> AgentNetwork:
    """Return the module of an architecture with the weights of a state dict, which has to fit."""
    module = AgentNetwork(architecture).eval()
    module.load_state_dict(state)
    return module


def _pad(features: torch.Tensor, conv: Conv) -> torch.Tensor:
    before, after = conv.padding
    return nn.functional.pad(features, (before, after, before, after)) if before or after else features
