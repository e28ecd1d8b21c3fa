"""The agents' network as a PyTorch module, with clean names for its state dict."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from convert.agents.agent import HeadSpec
from convert.agents.network import NATURE_HIDDEN, NATURE_KERNELS, NATURE_STRIDES


class NatureCNN(nn.Module):
    """The Nature-CNN, with a Q head, or with a categorical one (C51) when it is given a number of atoms.

    Call it on uint8[N, 4, 84, 84], oldest frame first, 0–255.
    """

    support: torch.Tensor

    def __init__(self, num_actions: int, num_atoms: int | None = None) -> None:
        super().__init__()
        (out1, in1, size1, _), (out2, in2, size2, _), (out3, in3, size3, _) = NATURE_KERNELS
        self.conv1 = nn.Conv2d(in1, out1, size1, NATURE_STRIDES[0])
        self.conv2 = nn.Conv2d(in2, out2, size2, NATURE_STRIDES[1])
        self.conv3 = nn.Conv2d(in3, out3, size3, NATURE_STRIDES[2])
        self.hidden = nn.Linear(NATURE_HIDDEN[1], NATURE_HIDDEN[0])
        self.head = nn.Linear(NATURE_HIDDEN[0], num_actions * (num_atoms or 1))
        self.num_actions, self.num_atoms = num_actions, num_atoms
        if num_atoms is not None:
            self.register_buffer("support", torch.zeros(num_atoms))

    def forward(self, observation: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``q_values`` float32[N, actions], and for C51 ``logits`` float32[N, actions, atoms]."""
        features = observation.float() / 255
        for conv in (self.conv1, self.conv2, self.conv3):
            features = torch.relu(conv(features))
        outputs = self.head(torch.relu(self.hidden(features.flatten(1))))
        if self.num_atoms is None:
            return {"q_values": outputs}
        logits = outputs.unflatten(1, (self.num_actions, self.num_atoms))
        return {"q_values": (logits.softmax(-1) * self.support).sum(-1), "logits": logits}


def load_module(head: HeadSpec, state: Mapping[str, torch.Tensor]) -> NatureCNN:
    """Return the module of a head with the weights of a state dict, which has to fit."""
    module = NatureCNN(head.actions, head.atoms).eval()
    module.load_state_dict(state)
    return module
