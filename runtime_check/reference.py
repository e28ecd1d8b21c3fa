"""The original checkpoint in torch, as its authors run it: the reference that acts in a shadow replay."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from convert.agents.agent import Agent
from convert.runtimes import Runtime, Settings
from convert.runtimes.torch import choose_device, run
from runtime_check.originals.atari_agents import read_state_dict


class AtariNet(nn.Module):
    """The network of the release, with the names of its weights: Python's mangling puts ``_AtariNet`` before them."""

    def __init__(self, actions: int, support: torch.Tensor | None) -> None:
        """Build it for a Q head, or with a support for a categorical one."""
        super().__init__()
        atoms = 1 if support is None else len(support)
        self.__features = nn.Sequential(
            nn.Conv2d(4, 32, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=1),
            nn.ReLU(),
        )
        self.__head = nn.Sequential(nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, actions * atoms))
        if support is not None:
            self.register_buffer("_AtariNet__support", support)
        self._support = support is not None

    def forward(self, obs_nchw: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``q_values`` float32[N, actions], and for C51 ``logits`` float32[N, actions, atoms]."""
        outputs = self.__head(self.__features(obs_nchw.float() / 255).flatten(1))
        if not self._support:
            return {"q_values": outputs}
        support = self.get_buffer("_AtariNet__support")
        logits = outputs.unflatten(1, (-1, len(support)))
        return {"q_values": (logits.softmax(-1) * support).sum(-1), "logits": logits}


def open_checkpoint(path: Path, agent: Agent, settings: Settings) -> Runtime:
    """Open a checkpoint of the release.

    Raises:
        RuntimeUnavailable: a GPU was asked for, and torch sees none.
        OSError: the file cannot be read.
        ValueError: it is not a checkpoint.
        RuntimeError: its weights are not those of the release's network.
    """
    device = choose_device(settings)
    state = read_state_dict(path)
    model = AtariNet(agent.head.actions, state.get("_AtariNet__support"))
    model.load_state_dict(state, strict=True)
    return run(model, device, settings)
