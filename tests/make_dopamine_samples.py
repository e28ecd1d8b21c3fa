"""Write the samples of Dopamine's checkpoints into ``tests/data/zoos``, in the environment of ``nox -s dopamine``.

    python tests/make_dopamine_samples.py

Dopamine's own Runner trains each agent on Pong for a few steps and writes its base folder. Of the checkpoint, every
large block of weights is then replaced by a repeated pattern, so that it compresses to a few KB.
"""

from __future__ import annotations

import lzma
import pickletools
import tempfile
from pathlib import Path

import gin
import numpy as np
from dopamine.discrete_domains import run_experiment

SAMPLES = Path(__file__).parent / "data/zoos"
NAMES = ("dqn", "full_rainbow")
SMALL = 4096  # bytes that a block may have and stay as it is
GIN = """
import dopamine.discrete_domains.atari_lib
import dopamine.discrete_domains.run_experiment
import dopamine.jax.agents.{module}.{module}_agent
create_agent.agent_name = '{name}'
atari_lib.create_atari_environment.game_name = 'Pong'
atari_lib.create_atari_environment.sticky_actions = True
create_runner.schedule = 'continuous_train'
Runner.num_iterations = 1
Runner.training_steps = 60
Runner.max_steps_per_episode = 60
ReplayBuffer.max_capacity = 200
ReplayBuffer.batch_size = 4
PrioritizedSamplingDistribution.max_capacity = 200
"""
OF_AGENT = """
{agent}.min_replay_history = 20
{agent}.target_update_period = 8
{agent}.seed = 5
"""
# The class whose parameters these are.
CLASSES = {"dqn": "JaxDQNAgent", "rainbow": "JaxRainbowAgent", "quantile": "JaxQuantileAgent"}
CLASSES |= {
    "full_rainbow": "JaxDQNAgent",
    "implicit_quantile": "JaxImplicitQuantileAgent",
}  # whose parameters these are


def train(module: str, folder: Path) -> Path:
    """Let Dopamine's Runner train an agent in a base folder, and return the checkpoint that it wrote."""
    gin.clear_config()
    name = module if module == "full_rainbow" else f"jax_{module}"
    text = GIN.format(module=module, name=name) + OF_AGENT.format(agent=CLASSES[module])
    gin.parse_config(text, skip_unknown=True)
    run_experiment.create_runner(str(folder)).run_experiment()
    return folder / "checkpoints/ckpt.0"


def thin(data: bytes) -> bytes:
    """Return a pickle with a repeated pattern of random float32 values in place of every large block of weights."""
    content = bytearray(data)
    pattern = (np.random.default_rng(0).standard_normal(4099) * 0.02).astype("<f4").tobytes()
    for opcode, argument, position in pickletools.genops(data):
        if opcode.name == "BINBYTES" and len(argument) > SMALL and any(argument):
            start = position + 5  # after the instruction and the length
            content[start : start + len(argument)] = (pattern * (len(argument) // len(pattern) + 1))[: len(argument)]
    return bytes(content)


def main() -> None:
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            data = thin(train(name, Path(folder)).read_bytes())
        (SAMPLES / f"dopamine_{name}_ckpt.0.xz").write_bytes(lzma.compress(data, preset=9))


if __name__ == "__main__":
    main()
