"""Dopamine: a base folder that Dopamine's Runner resumes from, and the gin file that binds what the agent needs.

``checkpoints/ckpt.N`` is what Dopamine's JaxDQNAgent (JaxRainbowAgent for C51 and Rainbow) bundles: a pickle of plain
Python and NumPy. ``agent.gin`` binds the network, the game and the preprocessing that the agent was trained with: of
an agent of Dopamine's own these are Dopamine's. ``origin.json`` says who the agent is, so that a copy of the folder can
be trained on and converted back.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from convert.agents.agent import Agent, Record, name_actions
from convert.agents.architecture import Architecture, is_dqn_or_c51, nature_cnn
from convert.agents.games import load_games
from convert.agents.network import Float32, Network, compute_digest
from convert.agents.record import from_json, to_json
from convert.errors import ArtefactMissing, RecordError, UnreadableArtefact, UnsuitableTarget
from convert.files import numpy_pickles
from convert.files.disk import check_names, read_file, read_files, write_files
from convert.files.documents import LARGEST_DOCUMENT, read_json
from convert.formats.dopamine import (
    ORIGIN_NAME,
    PROTOCOL,
    RAINBOW,
    SAME_CONVS,
    SENTINEL,
    Bundle,
    find_latest,
    read_bundle,
)
from convert.formats.parameter_trees import from_params, support_of, to_params
from convert.targets import Trained

PATH = "dopamine"
AXES = "NHWC"
RUNTIME = "jax"
FORMAT_VERSION = 1
EXTRA = "flax"
PACKAGES = ("numpy",)
IN_ALL = True
DESCRIBES = True

GIN_NAME = "agent.gin"
STEPS_PER_ITERATION = 250_000  # Dopamine's default of Runner.training_steps
PICKLE_PROTOCOL = 4

# Of each protocol that ``agent.gin`` can bind: whether Dopamine's own environment is to repeat actions too.
_STICKY_ACTIONS = {"modern": True, "classic": False, PROTOCOL: True}


def write(network: Network, agent: Agent, path: Path) -> None:
    """Write ``checkpoints/ckpt.N`` with its sentinel, ``agent.gin`` and ``origin.json``.

    Raises:
        UnsuitableTarget: JaxRainbowAgent cannot hold the support, or ``agent.gin`` cannot bind the protocol.
    """
    _check_agent(agent)
    files = _to_texts(network, agent)
    files[_name_checkpoint(agent)] = pickle.dumps(_to_content(network, agent), PICKLE_PROTOCOL)
    write_files(path, files)


def _is_padded(architecture: Architecture) -> bool:
    """Tell whether the convolutions are those of Dopamine's own networks."""
    return architecture.convs == SAME_CONVS


def find_obstacle(architecture: Architecture) -> str | None:
    """Return why Dopamine cannot hold an architecture as it is bound in ``agent.gin``."""
    unpadded = replace(architecture, convs=nature_cnn(architecture.head).convs)
    if is_dqn_or_c51(architecture) or (_is_padded(architecture) and is_dqn_or_c51(unpadded)):
        return None
    return "holds the Nature-CNN, without padding or with Dopamine's, and a Q or categorical head"


def read(path: Path, agent: Agent) -> Network:
    """Read the online network of the latest complete checkpoint; the support comes from the agent.

    Raises:
        ArtefactMissing: there is no complete checkpoint.
        UnreadableArtefact: it is damaged, wants to run code, or holds another network.
    """
    return _to_network(*_read_latest(path), agent)


def read_trained(path: Path, agent: Agent) -> Trained:
    """Read the latest complete checkpoint, which may be of further training.

    Raises:
        ArtefactMissing: there is no complete checkpoint, or no ``origin.json``.
        RecordError: ``origin.json`` is damaged.
        UnreadableArtefact: see `read`.
    """
    _, digest = read_origin(path)
    checkpoint, bundle = _read_latest(path)
    network = _to_network(checkpoint, bundle, agent)
    return Trained(network, bundle.training_steps, compute_digest(network) != digest)


def _to_network(checkpoint: Path, bundle: Bundle, agent: Agent) -> Network:
    try:
        return from_params(bundle.online_params, agent.architecture)
    except ValueError as error:
        raise UnreadableArtefact(f"{checkpoint}: {error}") from error


def rebuild(network: Network, agent: Agent, path: Path, to: Path) -> None:
    """Write the folder anew at ``to`` with the network that was read, where all else at ``path`` is as it should be.

    Raises:
        UnreadableArtefact: the folder tells something else of the agent, or cannot be of such an agent.
    """
    try:
        _check_agent(agent)
    except UnsuitableTarget as error:
        raise UnreadableArtefact(f"{path}: {error}") from error
    texts = _to_texts(network, agent)
    files = read_files(path)
    check_names(path, files, (*texts, _name_checkpoint(agent)))
    wrong = [name for name, text in texts.items() if files[f"{path.name}/{name}"] != text]
    # Not by its bytes: other versions of NumPy give its classes other names.
    content = numpy_pickles.loads(files[f"{path.name}/{_name_checkpoint(agent)}"])
    if not _is_equal(content, _to_content(network, agent)):
        wrong.append(_name_checkpoint(agent))
    if wrong:
        raise UnreadableArtefact(
            f"{path}: {', '.join(wrong)} is not what atari-convert writes for it: convert it again"
        )
    write(network, agent, to)


def _to_content(network: Network, agent: Agent) -> dict[str, Any]:
    params = to_params(network)
    observation = network.architecture.observation
    return {
        "state": np.zeros((observation.size, observation.size, observation.frames)),
        "training_steps": agent.identity.step or 0,
        "online_params": params,
        "target_params": params,
        "logs": {},
        "current_iteration": iteration_of(agent.identity.step),
    }


def _to_texts(network: Network, agent: Agent) -> dict[str, bytes]:
    texts = {
        f"checkpoints/{SENTINEL}.{iteration_of(agent.identity.step)}": "done",
        GIN_NAME: to_gin(agent),
        ORIGIN_NAME: _to_origin(agent, network),
    }
    return {name: text.encode() for name, text in texts.items()}


def _name_checkpoint(agent: Agent) -> str:
    return f"checkpoints/ckpt.{iteration_of(agent.identity.step)}"


def _is_equal(found: Any, expected: Any) -> bool:
    """Tell whether two trees are the same, arrays bit for bit."""
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and found.keys() == expected.keys()
            and all(_is_equal(found[key], value) for key, value in expected.items())
        )
    if isinstance(expected, np.ndarray):
        return (
            isinstance(found, np.ndarray)
            and (found.dtype, found.shape) == (expected.dtype, expected.shape)
            and found.tobytes() == expected.tobytes()
        )
    return type(found) is type(expected) and bool(found == expected)


def prepare(path: Path, agent: Agent) -> Any:
    """Return the Linen module that ``agent.gin`` binds, with the online parameters of the latest checkpoint."""
    from convert.runtimes.jax import make_linen  # only acting needs JAX; writing and reading back do not

    return make_linen(agent, _read_latest(path)[1].online_params)


def iteration_of(step: int | None) -> int:
    """Return the Dopamine iteration that ends nearest to an agent step: 50,000,000 steps are ``ckpt.199``."""
    return max(0, (step or 0) // STEPS_PER_ITERATION - 1)


def read_origin(path: Path) -> tuple[Agent, str]:
    """Return who a Dopamine base folder was written for, and the digest of the weights that it began with.

    Raises:
        ArtefactMissing: the folder was not written by this tool, or copied without its ``origin.json``.
        RecordError: its ``origin.json`` is damaged.
    """
    origin = path / ORIGIN_NAME
    try:
        document = read_json(read_file(origin, LARGEST_DOCUMENT))
    except UnreadableArtefact as error:
        raise ArtefactMissing(
            f"{path}: no readable {ORIGIN_NAME}: copy it from the dopamine/ folder that atari-convert wrote"
        ) from error
    except ValueError as error:
        raise RecordError(f"{origin}: {error}: the file is damaged, convert the agent again") from error
    digest = document.pop("weights_sha256", None) if isinstance(document, dict) else None
    return from_json(json.dumps(document), str(origin)).agent, str(digest)


def _to_origin(agent: Agent, network: Network) -> str:
    """Return the agent's record without artefacts, and what tells whether the weights were trained since."""
    document = json.loads(to_json(Record(agent, {}, {}))) | {"weights_sha256": compute_digest(network)}
    return json.dumps(document, indent=2) + "\n"


def _read_latest(path: Path) -> tuple[Path, Bundle]:
    """Return the latest complete checkpoint of a base folder, and what is of use in it."""
    checkpoint = find_latest(path)
    try:
        return checkpoint, read_bundle(read_file(checkpoint))
    except ValueError as error:
        raise UnreadableArtefact(f"{checkpoint}: {error}: not opened") from error


def _check_agent(agent: Agent) -> None:
    """Raise unless Dopamine can hold the agent's support and play its protocol."""
    name, protocol, support = agent.source.path, agent.identity.protocol, support_of(agent)
    if protocol is not None and protocol not in _STICKY_ACTIONS:
        raise UnsuitableTarget(
            f"{name}: protocol {protocol!r} cannot be bound in {GIN_NAME}, expected one of "
            f"{', '.join(_STICKY_ACTIONS)}: choose other targets"
        )
    actions = name_actions(agent.identity.game, agent.head.actions)
    if protocol == PROTOCOL and actions and actions != load_games()[str(agent.identity.game)].actions:
        raise UnsuitableTarget(f"{name}: has {len(actions)} actions, more than Dopamine's own environment of its game")
    if support is not None:
        _check_support(support, name)


def _check_support(support: Float32, name: str) -> None:
    """Raise unless Dopamine, which knows the support by its ends and rebuilds it, gets the same one."""
    low, high = float(support[0]), float(support[-1])
    if low == 0 or not np.allclose(support, np.linspace(low, high, len(support)), rtol=0, atol=1e-6 * (high - low)):
        raise UnsuitableTarget(
            f"{name}: a support from {low} to {high} that is not evenly spaced, or begins at 0, has no place in "
            "Dopamine's JaxRainbowAgent"
        )


def to_gin(agent: Agent) -> str:
    """Return the text of ``agent.gin``."""
    identity = agent.identity
    iteration = iteration_of(identity.step)
    is_padded, has_own_pixels = _is_padded(agent.architecture), identity.protocol == PROTOCOL
    modules = [
        *([] if is_padded else ["convert.networks.gin"]),
        *("dopamine.discrete_domains.atari_lib", "dopamine.discrete_domains.run_experiment"),
        *(["dopamine.jax.networks"] if is_padded else []),
        *([] if has_own_pixels else ["runtime_check.dopamine_env"]),
    ]
    return _GIN.format(
        name=repr(agent.source.path),
        beside="" if is_padded and has_own_pixels else " with atari-convert[flax,check] beside it",
        imports="\n".join(f"import {module}" for module in modules),
        environment=(_GIN_OWN_PIXELS if has_own_pixels else _GIN_PIXELS).format(
            game=repr(identity.game) if identity.game else "%gin.REQUIRED",
            protocol=repr(identity.protocol) if identity.protocol else "%gin.REQUIRED",
            sticky=str(_STICKY_ACTIONS[identity.protocol]) if identity.protocol else "%gin.REQUIRED",
            actions=agent.head.actions,
        ),
        iteration=iteration,
        num_iterations=iteration + 2,
        agent=_gin_of_head(agent),
    )


def _gin_of_head(agent: Agent) -> str:
    support, is_padded = support_of(agent), _is_padded(agent.architecture)
    if support is not None:
        return _GIN_C51.format(
            network="networks.RainbowNetwork" if is_padded else "convert.NatureC51",
            atoms=len(support),
            low=float(support[0]),
            high=float(support[-1]),
            replay=_GIN_RAINBOW_REPLAY if agent.identity.algorithm == RAINBOW else _GIN_C51_REPLAY,
        )
    note = _MUNCHAUSEN_NOTE if agent.identity.algorithm == "M-DQN" else ""
    return note + _GIN_DQN.format(network="networks.NatureDQNNetwork" if is_padded else "convert.NatureDQN")


_GIN = """\
# {name}, for dopamine-rl 4.1.2{beside}.
# Train in a copy of this folder: Dopamine writes into its base folder and removes old checkpoints there.
{imports}

{environment}
# ckpt.{iteration} is resumed at iteration {iteration} + 1; at Dopamine's default of 200 a later one would end at once.
Runner.num_iterations = {num_iterations}

{agent}
# Dopamine has no defaults for these and its wheel brings no gin file that has.
ReplayBuffer.batch_size = 32
ReplayBuffer.max_capacity = 1000000
"""

_GIN_PIXELS = """\
# The pixels that the agent was trained on. Dopamine's own environment pools frames before it resizes them and shows
# others; this line in place of the next switches to it:
# Runner.create_environment_fn = @atari_lib.create_atari_environment
Runner.create_environment_fn = @dopamine_env.create_environment
dopamine_env.create_environment.game = {game}
dopamine_env.create_environment.protocol = {protocol}
dopamine_env.create_environment.num_actions = {actions}
atari_lib.create_atari_environment.game_name = {game}
atari_lib.create_atari_environment.sticky_actions = {sticky}
"""

_GIN_OWN_PIXELS = """\
# Dopamine's own environment, in which the agent was trained.
Runner.create_environment_fn = @atari_lib.create_atari_environment
atari_lib.create_atari_environment.game_name = {game}
atari_lib.create_atari_environment.sticky_actions = {sticky}
"""

_MUNCHAUSEN_NOTE = """\
# Trained with Munchausen-DQN. JaxDQNAgent acts greedily on its Q-values, and trains on with plain DQN.
"""

_GIN_DQN = """\
import dopamine.jax.agents.dqn.dqn_agent
create_agent.agent_name = 'jax_dqn'
JaxDQNAgent.network = @{network}
JaxDQNAgent.epsilon_eval = 0.001
# There is no replay buffer to reload; without this nothing would be reloaded, and nothing said.
JaxDQNAgent.allow_partial_reload = True
"""

_GIN_C51 = """\
import dopamine.jax.agents.rainbow.rainbow_agent
create_agent.agent_name = 'jax_rainbow'
JaxRainbowAgent.network = @{network}
JaxRainbowAgent.num_atoms = {atoms}
JaxRainbowAgent.vmin = {low}
JaxRainbowAgent.vmax = {high}
{replay}JaxRainbowAgent.epsilon_eval = 0.001
# There is no replay buffer to reload; without this nothing would be reloaded, and nothing said.
JaxRainbowAgent.allow_partial_reload = True
PrioritizedSamplingDistribution.max_capacity = 1000000
"""

_GIN_C51_REPLAY = """\
# C51 is Rainbow without prioritised replay.
JaxRainbowAgent.replay_scheme = 'uniform'
"""

_GIN_RAINBOW_REPLAY = """\
JaxRainbowAgent.replay_scheme = 'prioritized'
JaxRainbowAgent.update_horizon = 3
"""
