"""The model card that goes beside the weights on the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from convert.agents.agent import Agent
from convert.formats.atari_agents import find_family


@dataclass(frozen=True)
class Returns:
    """Measured returns of one agent: unclipped, of whole episodes under its own protocol."""

    mean: float
    std: float
    episodes: int


def to_model_card(agent: Agent, returns: Returns | None = None) -> str:
    """Return a model card: YAML metadata, then Markdown. A ``model-index`` only where a return was measured."""
    identity = agent.identity
    game = identity.game or "an Atari game"
    who = f"{identity.algorithm or 'value-based'} agent on {game}"
    metadata = ["library_name: atari-convert", "tags:", *(f"- {tag}" for tag in _tags(agent))]
    metadata += ["pipeline_tag: reinforcement-learning"]
    if returns is not None:
        metadata += _model_index(agent, returns)
    played = (
        f"Mean return {returns.mean:.2f} ± {returns.std:.2f} over {returns.episodes} episodes (protocol "
        f"`{identity.protocol}`, unclipped rewards).\n\n"
        if returns
        else ""
    )
    outputs = "Q-values" if agent.head.kind == "q" else f"{agent.head.atoms} logits for each action, over `support`"
    return _CARD.format(
        metadata="\n".join(metadata),
        who=who,
        played=played,
        family=find_family(identity) or "unknown family",
        seed=_or_unknown(identity.seed),
        step=_or_unknown(identity.step),
        protocol=identity.protocol or "unknown",
        actions=", ".join(agent.action_meanings or ()) or f"{agent.head.actions}, of unknown meaning",
        outputs=outputs,
        origin=_tell_origin(agent),
    )


def read_returns(card: str) -> Returns | None:
    """Return the returns that a card tells; None where it tells none."""
    match = _PLAYED.search(card)
    return Returns(float(match[1]), float(match[2]), int(match[3])) if match else None


def _tell_origin(agent: Agent) -> str:
    if agent.derived_from:
        return (
            'Trained on by others, from a checkpoint in the format of the release "Pretrained Atari Agents" (2022); '
            f"sha256 of that checkpoint: `{agent.derived_from.sha256}`."
        )
    return (
        'From a checkpoint in the format of the release "Pretrained Atari Agents" (2022). Converted by atari-convert '
        f"without a change to any weight; sha256 of the checkpoint: `{agent.source.sha256}`."
    )


def _tags(agent: Agent) -> Sequence[str]:
    game, algorithm = agent.identity.game, agent.identity.algorithm
    return ["reinforcement-learning", "atari", *(name.lower() for name in (algorithm, game) if name), "safetensors"]


def _model_index(agent: Agent, returns: Returns) -> list[str]:
    game = agent.identity.game
    return [
        "model-index:",
        f"- name: {agent.identity.algorithm or 'agent'}",
        "  results:",
        "  - task:",
        "      type: reinforcement-learning",
        "      name: reinforcement-learning",
        "    dataset:",
        f"      name: ALE/{game}-v5",
        f"      type: ALE/{game}-v5",
        "    metrics:",
        "    - type: mean_reward",
        f'      value: "{returns.mean:.2f} +/- {returns.std:.2f}"',
        "      name: mean_reward",
    ]


def _or_unknown(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


_PLAYED = re.compile(
    r"^Mean return (-?\d{1,9}\.\d\d) ± (\d{1,9}\.\d\d) over (\d{1,9}) episodes", re.ASCII | re.MULTILINE
)

_CARD = """\
---
{metadata}
---

# {who}

{played}{family}, seed {seed}, agent step {step}, protocol `{protocol}`. {origin}

- Input: uint8[N, 4, 84, 84], grayscale, oldest frame first, 0–255; divided by 255 before the first convolution.
- Network: convolutions 8×8 stride 4, 4×4 stride 2, 3×3 stride 1, without padding; dense 512; head. ReLU between.
- Output: {outputs}. Actions in order: {actions}.
- Weights: PyTorch's order (convolutions out, in, height, width; dense out, in), float32.

```python
from safetensors.numpy import load_file

weights = load_file("model.safetensors")  # or safetensors.torch, safetensors.flax
```
"""
