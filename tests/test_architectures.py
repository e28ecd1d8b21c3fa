"""Networks of other zoos: every target that can hold one answers as the oracle does; the others refuse by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import make_observations

import convert
from convert.agents import layout
from convert.agents.agent import Agent, File
from convert.agents.architecture import Architecture, Conv, Head, Observation, list_shapes, nature_cnn, sides_of
from convert.agents.identity import Identity
from convert.agents.network import SUPPORT, Network, find_differences, from_arrays
from convert.errors import TargetError
from convert.pipeline import write_agent
from convert.targets import import_target, list_targets
from runtime_check import oracle as judge
from runtime_check.compare import Tolerance, compare_outputs, compute_scale

pytestmark = pytest.mark.slow

VALID = nature_cnn(Head("q", 1)).convs
# TensorFlow's SAME on 84, 21 and 11 pixels.
SAME = (Conv(32, 8, 4, (2, 2)), Conv(64, 4, 2, (1, 2)), Conv(64, 3, 1, (1, 1)))
ATOMS = tuple(np.linspace(-10, 10, 51, dtype=np.float32).tolist())
ARCHITECTURES = {
    "SAME padding": Architecture(Observation(), SAME, (512,), Head("q", 6)),
    "another padding": Architecture(
        Observation(), (Conv(32, 8, 4, (1, 1)), *VALID[1:]), (512,), Head("categorical", 6, ATOMS)
    ),
    "1024 hidden units": Architecture(Observation(), VALID, (1024,), Head("q", 4)),
    "two convolutions, 256 hidden units": Architecture(
        Observation(), (Conv(32, 5, 5), Conv(64, 5, 5)), (256,), Head("q", 6)
    ),
    "two hidden layers": Architecture(Observation(), VALID, (256, 128), Head("q", 6)),
    "input scale 1": Architecture(Observation(scale=1), VALID, (512,), Head("q", 6)),
    "200 quantiles": nature_cnn(Head("quantile", 6, quantiles=200)),
    "dueling": nature_cnn(Head("q", 6, streams="shared")),
    "dueling categorical": nature_cnn(Head("categorical", 6, ATOMS, streams="shared")),
    "dueling categorical, split": Architecture(
        Observation(), VALID, (1024,), Head("categorical", 6, ATOMS, streams="split")
    ),
    "dueling quantiles, split, SAME padding": Architecture(
        Observation(), SAME, (512,), Head("quantile", 6, quantiles=20, streams="split")
    ),
}
NATURE_ONLY = {"checkpoint", "cleanrl", "cleanrl-jax", "dopamine", "sb3"}
ALSO_HELD = {("sb3", "1024 hidden units"), ("sb3", "200 quantiles"), ("dopamine", "SAME padding")}
# litert-int8 is calibrated on frames of games and judged by what it plays: a random network has nothing to compare.
HELD = {name: [t.name for t in list_targets() if t.name not in {*NATURE_ONLY, "litert-int8"}] for name in ARCHITECTURES}


def _make_network(architecture: Architecture) -> Network:
    """Return a random network whose Q-values are far from each other: He-scaled weights, small biases."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, shape in list_shapes(architecture).items():
        if name != SUPPORT:
            scale = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.1
            arrays[name] = (rng.standard_normal(shape) * scale).astype(np.float32)
    return from_arrays(arrays, architecture)


def _make_oracle(network: Network) -> judge.Oracle:
    arrays = {name: array.astype(np.float64) for name, array in network.arrays.items()}
    architecture, head = network.architecture, network.head

    def dense(name: str) -> judge.Dense:
        return judge.Dense(arrays[f"{name}.kernel"], arrays[f"{name}.bias"])

    convs = tuple(
        judge.Conv(arrays[f"convs.{index}.kernel"], arrays[f"convs.{index}.bias"], conv.stride, conv.padding)
        for index, conv in enumerate(architecture.convs)
    )
    first, *value = map(dense, head.layers)
    return judge.Oracle(
        judge.Observation(scale=float(architecture.observation.scale)),
        convs,
        tuple(map(dense, architecture.hidden_layers)),
        judge.Head(head.kind, head.actions, first, value[0] if value else None, head.streams, arrays.get(SUPPORT)),
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of each architecture, converted to every target that can hold it."""
    made: dict[str, tuple[Network, Path]] = {}

    def convert_to_all(name: str) -> tuple[Network, Path]:
        if name not in made:
            network, folder = _make_network(ARCHITECTURES[name]), tmp_path_factory.mktemp("agents") / "agent"
            conversion = write_agent(network, _describe(network), folder, HELD[name])
            assert conversion.failures == {}
            made[name] = network, folder
        return made[name]

    return convert_to_all


def _describe(network: Network) -> Agent:
    return Agent(Identity(), network.architecture, File("model.gz", 1, "0" * 64))


@pytest.mark.parametrize(("name", "target"), [(name, target) for name, held in HELD.items() for target in held])
def test_a_target_answers_as_the_oracle(name, target, folders):
    network, folder = folders(name)
    agent = convert.load_agent(folder, target)
    assert agent.agent.architecture == network.architecture
    obs_nchw = make_observations(5)
    outputs = agent.run(obs_nchw if agent.axes[1] == "frame" else layout.nhwc_from_nchw(obs_nchw))
    expected = judge.compute_outputs(_make_oracle(network), obs_nchw)
    assert set(outputs) == set(network.head.outputs)
    if target == "litert-float16":
        for output, values in expected.items():
            np.testing.assert_allclose(outputs[output], values, atol=2e-3 * np.abs(values).max())
        return
    comparison = compare_outputs(outputs, expected, Tolerance(1e-5, 1e-5, compute_scale(network.arrays.get(SUPPORT))))
    assert not comparison.kinds
    for output, values in expected.items():
        np.testing.assert_allclose(outputs[output], values, atol=1e-5 * np.abs(values).max())


@pytest.mark.parametrize(("name", "target"), [(name, target) for name, held in HELD.items() for target in held])
def test_a_target_reads_back_bit_for_bit(name, target, folders):
    network, folder = folders(name)
    if target != "litert-float16":
        assert find_differences(convert.read_agent(folder, target), network) == []


@pytest.mark.parametrize(
    ("target", "name"),
    [(target, name) for target in sorted(NATURE_ONLY) for name in ARCHITECTURES if (target, name) not in ALSO_HELD],
)
def test_a_target_that_cannot_hold_a_network_refuses_it_by_name(name, target, tmp_path):
    network = _make_network(ARCHITECTURES[name])
    conversion = write_agent(network, _describe(network), tmp_path / "agent", [target])
    assert conversion.written == ()
    error = conversion.failures[target]
    assert isinstance(error, TargetError)
    assert str(error).startswith(f"model.gz: {target} holds ")
    assert "; the network is" in str(error)
    assert not (tmp_path / "agent").exists()


def test_same_padding_is_that_of_tensorflow():
    assert sides_of(ARCHITECTURES["SAME padding"]) == (21, 11, 11)
    assert list_shapes(ARCHITECTURES["SAME padding"])["hidden.kernel"] == (512, 7744)


def test_a_dueling_network_and_a_quantile_head_are_not_rounded_to_int8():
    find_obstacle = import_target("litert-int8").find_obstacle
    assert find_obstacle(ARCHITECTURES["dueling"]) == "rounds networks of one stream"
    assert find_obstacle(ARCHITECTURES["200 quantiles"]) == "rounds networks with a Q or categorical head"
    assert find_obstacle(ARCHITECTURES["SAME padding"]) is None


@pytest.mark.parametrize("target", ["litert", "litert-float16", "litert-int8"])
def test_an_axis_that_litert_does_not_hold_is_told_before_anything_is_written(target, tmp_path):
    network = _make_network(Architecture(Observation(), (Conv(12, 8, 1),), (16,), Head("q", 3)))
    agent = Agent(Identity(), network.architecture, File("model.gz", 0, "0" * 64))
    error = write_agent(network, agent, tmp_path / "agent", [target]).failures[target]
    assert isinstance(error, TargetError)
    assert str(error).startswith(f"model.gz: {target} holds axes of at most 65536 values, not of 71148; the network is")
    assert not (tmp_path / "agent").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": ()}, "number of hidden layers is 0"),
        ({"hidden": (2**14, 2**14)}, "weights, expected at most"),
        ({"convs": (Conv(32, 8, 4), Conv(64, 30, 1))}, "convolutions leave planes of"),
        ({"convs": (Conv(32, 8, 9),)}, "stride is 9, expected 1 to 8"),
        ({"convs": (Conv(32, 8, 4, (8, 0)),)}, "padding is .8, 0., expected less than the kernel"),
        ({"observation": Observation(scale=127)}, "scale is 127, expected 255 or 1"),
        ({"convs": (Conv(4000, 1, 1), Conv(1, 32, 32))}, "values in one layer, expected at most"),
        ({"head": Head("q", 19)}, "actions is 19, expected 1 to 18"),
        ({"head": Head("categorical", 6)}, "a categorical head has a support"),
        ({"head": Head("categorical", 6, (1.0, 0.0))}, "support does not increase"),
        ({"head": Head("quantile", 6)}, "a quantile head has .* quantiles"),
        ({"hidden": (511,), "head": Head("q", 6, streams="split")}, "511 hidden units cannot be split"),
        ({"head": Head("implicit", 6)}, "head is 'implicit'"),
    ],
)
def test_what_is_no_network_is_refused(change, message):
    parts = {"observation": Observation(), "convs": VALID, "hidden": (512,), "head": Head("q", 6)}
    with pytest.raises(ValueError, match=message):
        Architecture(**{**parts, **change})
