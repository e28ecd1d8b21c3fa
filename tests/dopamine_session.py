"""Dopamine itself takes the agents: run by ``nox -s dopamine``, in an environment where dopamine-rl is installed."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import gin
import jax
import numpy as np
import pytest
import torch
from builders import AGENTS, BREAKOUT, PONG, make_state, save_checkpoint
from dopamine.discrete_domains import atari_lib, run_experiment
from dopamine.jax import networks
from dopamine.jax.agents.dqn.dqn_agent import JaxDQNAgent
from dopamine.jax.agents.rainbow.rainbow_agent import JaxRainbowAgent
from flax.errors import ScopeParamShapeError
from make_dopamine_samples import train

import convert
from convert.agents.identity import Identity
from convert.errors import UnreadableCheckpoint
from convert.formats.atari_agents import FAMILIES, locate
from convert.formats.parameter_trees import to_params
from runtime_check.dopamine_env import ReleaseEnvironment
from runtime_check.oracle import compute_q_values
from runtime_check.originals import find_original, read_oracle
from runtime_check.protocols import PROTOCOLS, Episode

DOCS = Path(__file__).parent.parent / "docs" / "dopamine.md"
GREEDY = ("JaxDQNAgent.epsilon_eval = 0.0", "JaxRainbowAgent.epsilon_eval = 0.0")
# Float32 against float64, and for C51 a support that Dopamine computes anew; over max|Q| of the observation.
TOLERANCE = 1e-5
DOPAMINE_PONG = Identity("dopamine", None, "Pong", "dopamine")


@pytest.fixture(scope="module", params=[PONG, BREAKOUT], ids=["pong", "breakout"])
def source(request):
    return request.param


@pytest.fixture(scope="module")
def folder(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("agent")
    convert.convert_checkpoint(source, folder, ["dopamine"])
    return folder


@pytest.fixture
def base(folder, tmp_path):
    return shutil.copytree(folder / "dopamine", tmp_path / "base")


@pytest.fixture(autouse=True)
def _gin():
    gin.clear_config()
    yield
    gin.clear_config()


def make_runner(base, *bindings):
    # Bindings of the agent that is not there would be unknown to gin.
    text = (base / "agent.gin").read_text("utf-8")
    known = [binding for binding in bindings if not binding.startswith("Jax") or binding.split(".")[0] in text]
    run_experiment.load_gin_configs([str(base / "agent.gin")], known)
    return run_experiment.create_runner(str(base))


def list_checkpoints(base):
    return sorted(int(path.suffix[1:]) for path in (base / "checkpoints").glob("ckpt.*"))


def test_the_runner_resumes_with_our_weights(base, source):
    runner = make_runner(base)
    agent = runner._agent
    assert isinstance(agent, JaxDQNAgent if source == PONG else JaxRainbowAgent)
    assert agent.training_steps == int(source.stem.removeprefix("model_"))
    assert runner._start_iteration == 1
    assert runner._num_iterations > runner._start_iteration
    expected = to_params(convert.read_checkpoint(source))
    for found in (agent.online_params, agent.target_network_params):
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    data = runner._checkpointer.load_checkpoint(0)
    assert agent.unbundle(runner._checkpoint_dir, 0, data) is True


def test_an_evaluation_episode_chooses_the_oracles_actions(base, source):
    """A whole episode of Dopamine's Runner; the observations are those of the protocol, pixel for pixel."""
    # Without a random action the Breakout agent ends few episodes; the one of this seed it does.
    seed = 0 if source == PONG else 7
    runner = make_runner(base, *GREEDY, f"dopamine_env.create_environment.seed = {seed}")
    agent, environment = runner._agent, runner._environment
    assert isinstance(environment, ReleaseEnvironment)
    agent.eval_mode = True
    # One array: small ones between Dopamine's large and short-lived ones would scatter over gigabytes.
    states, actions = np.empty((runner._max_steps_per_episode, 84, 84, 4), np.uint8), []

    def watch(method):
        def watched(*arguments):
            action = method(*arguments)
            states[len(actions)] = agent.state
            actions.append(int(action))
            return action

        return watched

    agent.begin_episode, agent.step = watch(agent.begin_episode), watch(agent.step)
    steps, episode_return = runner._run_one_episode()
    assert environment.game_over
    assert steps == len(actions) > 100

    oracle = read_oracle(source)
    protocol = PROTOCOLS[FAMILIES[source.parts[-4]].protocol]
    episode = Episode(source.parts[-3], protocol, seed, oracle.actions)
    replayed_return = 0.0
    for state_hwc, action in zip(states[:steps], actions, strict=True):
        np.testing.assert_array_equal(state_hwc, episode.observation.transpose(1, 2, 0))
        replayed_return += episode.step(action)
    assert episode.game_over
    assert replayed_return == episode_return
    for start in range(0, steps, 256):
        obs_nchw = states[start : min(start + 256, steps)].transpose(0, 3, 1, 2)
        q_values = compute_q_values(oracle, obs_nchw)
        chosen = np.take_along_axis(q_values, np.array(actions[start : start + 256])[:, None], axis=1)
        assert ((q_values.max(1) - chosen[:, 0]) / np.abs(q_values).max(1)).max() <= TOLERANCE


def test_q_values_are_the_oracles(base, source):
    runner = make_runner(base)
    agent = runner._agent
    obs_nchw = np.random.default_rng(0).integers(0, 256, (5, 4, 84, 84), dtype=np.uint8)
    arguments = () if source == PONG else (agent._support,)
    found = [
        agent.network_def.apply(agent.online_params, obs.transpose(1, 2, 0), *arguments).q_values for obs in obs_nchw
    ]
    expected = compute_q_values(read_oracle(source), obs_nchw)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def test_a_training_iteration_changes_the_weights_and_writes_the_next_checkpoint(base, source, tmp_path):
    training = ("min_replay_history = 40", "update_period = 4")
    runner = make_runner(
        base,
        *(f"{agent}.{binding}" for agent in ("JaxDQNAgent", "JaxRainbowAgent") for binding in training),
        *("Runner.training_steps = 200", "Runner.evaluation_steps = 1", "Runner.max_steps_per_episode = 200"),
    )
    runner.run_experiment()
    assert list_checkpoints(base) == [0, 1]
    before, after = convert.read_checkpoint(source), convert.read_agent(base)
    assert (after.arrays["hidden.kernel"] != before.arrays["hidden.kernel"]).any()
    # And from there to PyTorch: the release's own format, with the trained weights.
    conversion = convert.convert_checkpoint(base, tmp_path / "back", ["checkpoint"])
    agent = conversion.record.agent
    assert agent.identity.step == int(source.stem.removeprefix("model_")) + 200
    assert agent.derived_from.path == source.relative_to(AGENTS).as_posix()
    back = convert.read_checkpoint(conversion.folder / "checkpoint" / str(locate(agent.identity)))
    trained = jax.tree.map(np.asarray, runner._agent.online_params)
    jax.tree.map(np.testing.assert_array_equal, to_params(back), trained)


@pytest.mark.parametrize(("family", "actions"), [(name, 18) for name in FAMILIES])
def test_every_family_is_resumed_where_dopamine_would_stop(family, actions, tmp_path):
    """At ckpt.199 Dopamine's default of 200 iterations would end the run at once and say nothing."""
    atoms = 51 if FAMILIES[family].algorithm == "C51" else None
    source = save_checkpoint(tmp_path / family / "Seaquest/0/model_50000000.gz", make_state(actions, atoms))
    convert.convert_checkpoint(source, tmp_path / "out", ["dopamine"])
    runner = make_runner(tmp_path / "out" / "dopamine")
    assert (runner._start_iteration, runner._num_iterations) == (200, 201)
    assert runner._agent.training_steps == 50_000_000
    assert runner._agent.num_actions == actions


def test_dopamines_own_network_shows_itself_only_when_it_is_called(folder, source, tmp_path):
    """What docs/dopamine.md warns of: unbundle is content, and the first forward pass is not."""
    base = shutil.copytree(folder / "dopamine", tmp_path / "base")
    text = (base / "agent.gin").read_text("utf-8")
    stock = "@networks.NatureDQNNetwork" if source == PONG else "@networks.RainbowNetwork"
    (base / "agent.gin").write_text(re.sub(r"@convert\.\w+", stock, text), "utf-8")
    runner = make_runner(base)
    assert isinstance(runner._agent.network_def, networks.NatureDQNNetwork | networks.RainbowNetwork)
    assert runner._start_iteration == 1
    with pytest.raises(ScopeParamShapeError, match=r"\(7744, 512\), but .* \(3136, 512\)"):
        runner._agent.begin_episode(runner._environment.reset())


def test_one_line_switches_to_dopamines_own_environment(base):
    runner = make_runner(base, "Runner.create_environment_fn = @atari_lib.create_atari_environment")
    assert isinstance(runner._environment, atari_lib.AtariPreprocessing)
    runner._agent.eval_mode = True
    assert int(runner._agent.begin_episode(runner._environment.reset())) in range(runner._agent.num_actions)


def read_commands():
    return re.findall(r"```bash\n(.*?)```", DOCS.read_text("utf-8"), flags=re.DOTALL)


def place_agent(folder, source, root):
    """Put an agent where the documents have it."""
    place = root / "converted" / source.relative_to(AGENTS).parent
    place.mkdir(parents=True)
    shutil.copytree(folder, place / source.stem)


# The documents show Pong.
only_pong = pytest.mark.parametrize("source", [PONG], ids=["pong"], indirect=True)


@only_pong
@pytest.mark.parametrize("index", [1, 2], ids=["evaluate", "train"])
def test_the_documented_command_runs(index, folder, source, tmp_path):
    place_agent(folder, source, tmp_path)
    short = "Runner.training_steps = 60", "Runner.evaluation_steps = 60", "Runner.max_steps_per_episode = 60"
    command = read_commands()[index].strip()
    # Later bindings win: an evaluation still trains nothing.
    if "Runner.training_steps = 0" in command:
        short = short[1:]
    command += "".join(f" --gin_bindings '{binding}'" for binding in short)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-ec", command],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "will start from iteration 1" in done.stderr
    assert "Eval/NumEpisodes = 1" in done.stderr + done.stdout
    (base,) = (path for path in tmp_path.iterdir() if path.name != "converted")
    assert list_checkpoints(base) == [0, 1]


@only_pong
def test_the_documented_lines_give_network_and_params(folder, source, tmp_path, monkeypatch):
    place_agent(folder, source, tmp_path)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), flags=re.DOTALL)
    obs_nchw = np.random.default_rng(0).integers(0, 256, (3, 4, 84, 84), dtype=np.uint8)
    names = {"observations": obs_nchw.transpose(0, 2, 3, 1)}
    exec(code, names)
    expected = compute_q_values(read_oracle(source), obs_nchw)
    np.testing.assert_allclose(names["q_values"], expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


OWN = ["dqn", "rainbow", "quantile", "full_rainbow"]


@pytest.fixture(scope="module", params=OWN)
def own(request, tmp_path_factory):
    """A base folder that Dopamine trained one of its own agents in, with its network and its parameters."""
    gin.clear_config()
    base = tmp_path_factory.mktemp(request.param)
    train(request.param, base)
    return request.param, base


def answer_as_dopamine(kind, params, obs_nchw):
    """Return the Q-values of Dopamine's own network, of one observation at a time."""
    support = np.linspace(-10, 10, 51).astype(np.float32)
    network, arguments = {
        "dqn": (networks.NatureDQNNetwork(6), ()),
        "rainbow": (networks.RainbowNetwork(6, 51), (support,)),
        "quantile": (networks.QuantileNetwork(6, 200), ()),
        "full_rainbow": (networks.FullRainbowNetwork(6, 51), (support, True)),
    }[kind]
    apply = jax.jit(lambda observation: network.apply(params, observation, *arguments).q_values)
    return np.array([apply(observation) for observation in obs_nchw.transpose(0, 2, 3, 1)])


def test_an_agent_that_dopamine_trained_answers_as_in_dopamine(own, tmp_path):
    kind, base = own
    checkpoint = base / "checkpoints/ckpt.0"
    obs_nchw = np.random.default_rng(0).integers(0, 256, (8, 4, 84, 84), dtype=np.uint8)
    params = pickle.loads(checkpoint.read_bytes())["online_params"]
    expected = answer_as_dopamine(kind, params, obs_nchw)
    assert expected.std() > 20 * TOLERANCE
    tolerance = TOLERANCE  # what these agents answer is small, and a mean over a support from -10 to 10
    judged = compute_q_values(read_oracle(checkpoint), obs_nchw)
    np.testing.assert_allclose(judged, expected, rtol=0, atol=tolerance)
    eager = find_original(checkpoint).read_eager(checkpoint)(torch.from_numpy(obs_nchw))["q_values"].numpy()
    np.testing.assert_allclose(eager, expected, rtol=0, atol=tolerance)
    for place in (checkpoint, base):
        out = tmp_path / place.name
        agent = convert.convert_checkpoint(place, out, ["flax"], identity=DOPAMINE_PONG).record.agent
        assert agent.identity.step == 60
        answers = convert.load_agent(out, "flax")(obs_nchw.transpose(0, 2, 3, 1))
        np.testing.assert_allclose(answers, expected, rtol=0, atol=tolerance)


def test_an_agent_of_dopamines_own_goes_on_in_dopamine_and_comes_back(own, tmp_path):
    kind, base = own
    if kind not in ("dqn", "rainbow"):
        pytest.skip("the target holds these two")
    convert.convert_checkpoint(base, tmp_path / "out", ["dopamine"], identity=DOPAMINE_PONG)
    copy = shutil.copytree(tmp_path / "out/dopamine", tmp_path / "copy")
    assert "import convert" not in (copy / "agent.gin").read_text("utf-8")
    agents = ("JaxDQNAgent", "JaxRainbowAgent")
    runner = make_runner(
        copy,
        *(f"{agent}.min_replay_history = 40" for agent in agents),
        *("Runner.training_steps = 100", "Runner.evaluation_steps = 1", "Runner.max_steps_per_episode = 100"),
    )
    assert isinstance(runner._environment, atari_lib.AtariPreprocessing)
    assert runner._agent.training_steps == 60
    before = convert.read_agent(base)
    resumed = to_params(before)
    jax.tree.map(np.testing.assert_array_equal, runner._agent.online_params, resumed)
    runner.run_experiment()
    after = convert.read_agent(copy)
    assert (after.arrays["hidden.kernel"] != before.arrays["hidden.kernel"]).any()
    agent = convert.convert_checkpoint(copy, tmp_path / "back", ["flax"]).record.agent
    assert (agent.identity.step, agent.identity.zoo) == (160, "dopamine")
    obs_nchw = np.random.default_rng(1).integers(0, 256, (4, 4, 84, 84), dtype=np.uint8)
    expected = answer_as_dopamine(kind, runner._agent.online_params, obs_nchw)
    answers = convert.load_agent(tmp_path / "back", "flax")(obs_nchw.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(answers, expected, rtol=0, atol=TOLERANCE)


def test_implicit_quantiles_are_refused_by_name(tmp_path):
    checkpoint = train("implicit_quantile", tmp_path)
    with pytest.raises(UnreadableCheckpoint, match=r"ckpt\.0: a Dopamine agent of implicit quantiles \(IQN\)"):
        convert.read_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="implicit quantiles"):
        read_oracle(checkpoint)
