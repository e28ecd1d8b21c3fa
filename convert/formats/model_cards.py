"""The model card that goes beside the weights on the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from convert.agents.agent import Agent
from convert.agents.architecture import Architecture, Head
from convert.formats.atari_agents import ZOO, find_family


@dataclass(frozen=True)
class Returns:
    """Measured returns of one agent: unclipped, of whole episodes under its own protocol.

    epsilon: the probability of a random action in place of the agent's own.
    """

    mean: float
    std: float
    episodes: int
    epsilon: float


def to_model_card(agent: Agent, returns: Returns | None = None) -> str:
    """Return a model card: YAML metadata, then Markdown. A ``model-index`` only where a return was measured."""
    identity, observation = agent.identity, agent.architecture.observation
    game = identity.game or "an Atari game"
    who = f"{identity.algorithm or 'value-based'} agent on {game}"
    metadata = ["library_name: atari-convert", "tags:", *(f"- {tag}" for tag in _tags(agent))]
    metadata += ["pipeline_tag: reinforcement-learning"]
    if returns is not None:
        metadata += _model_index(agent, returns)
    played = (
        f"Mean return {returns.mean:.2f} ± {returns.std:.2f} over {returns.episodes} episodes "
        f"(ε = {returns.epsilon:g}, protocol `{identity.protocol}`, unclipped rewards).\n\n"
        if returns
        else ""
    )
    return _CARD.format(
        metadata="\n".join(metadata),
        who=who,
        played=played,
        family=find_family(identity) or _name_zoo(agent) or "unknown family",
        seed=_or_unknown(identity.seed),
        step=_or_unknown(identity.step),
        protocol=identity.protocol or "unknown",
        actions=", ".join(agent.action_meanings or ()) or f"{agent.head.actions}, of unknown meaning",
        outputs=_format_outputs(agent.head),
        frames=observation.frames,
        size=observation.size,
        scaled=f"; divided by {observation.scale} before the first convolution" if observation.scale != 1 else "",
        layers=_format_layers(agent.architecture),
        origin=_tell_origin(agent),
    )


def _format_layers(architecture: Architecture) -> str:
    convs = architecture.convs
    padding = "without padding"
    if any(any(conv.padding) for conv in convs):
        padding = "padded (before, after) by " + ", ".join(str(conv.padding) for conv in convs)
    sizes = ", ".join(f"{conv.kernel}×{conv.kernel} stride {conv.stride}" for conv in convs)
    dense = ", ".join(f"dense {units}" for units in architecture.hidden)
    streams = {"single": "head", "shared": "advantage and value", "split": "advantage and value, of one half each"}
    return f"convolutions {sizes}, {padding}; {dense}; {streams[architecture.head.streams]}"


def _format_outputs(head: Head) -> str:
    return {
        "q": "Q-values",
        "categorical": f"{head.atoms} logits for each action, over `support`",
        "quantile": f"{head.quantiles} quantiles for each action, whose mean is its Q-value",
    }[head.kind]


def read_returns(card: str) -> Returns | None:
    """Return the returns that a card tells; None where it tells none."""
    match = _PLAYED.search(card)
    return Returns(float(match[1]), float(match[2]), int(match[3]), float(match[4])) if match else None


def _tell_origin(agent: Agent) -> str:
    zoo = _name_zoo(agent)
    kind = f"of {zoo}" if zoo else 'in the format of the release "Pretrained Atari Agents" (2022)'
    if agent.derived_from:
        return (
            f"Trained on by others, from a checkpoint {kind}; sha256 of that checkpoint: `{agent.derived_from.sha256}`."
        )
    return (
        f"From a checkpoint {kind}. Converted by atari-convert without a change to any weight; sha256 of the "
        f"checkpoint: `{agent.source.sha256}`."
    )


def _name_zoo(agent: Agent) -> str | None:
    """Return the zoo of an agent that is not of the release; None for one that is, or whose zoo is not known."""
    zoo = agent.identity.zoo
    return None if zoo in (None, ZOO) else f"zoo `{zoo}`"


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
    r"^Mean return (-?\d{1,9}\.\d\d) ± (\d{1,9}\.\d\d) over (\d{1,9}) episodes "
    r"\(ε = (\d(?:\.\d{1,9})?(?:e-\d\d)?),",
    re.ASCII | re.MULTILINE,
)

_CARD = """\
---
{metadata}
---

# {who}

{played}{family}, seed {seed}, agent step {step}, protocol `{protocol}`. {origin}

- Input: uint8[N, {frames}, {size}, {size}], grayscale, oldest frame first, 0–255{scaled}.
- Network: {layers}. ReLU between.
- Output: {outputs}. Actions in order: {actions}.
- Weights: PyTorch's order (convolutions out, in, height, width; dense out, in), float32.

```python
from safetensors.numpy import load_file

weights = load_file("model.safetensors")  # or safetensors.torch, safetensors.flax
```
"""
