"""Templates: what they fill is what the format's library serialises, and what they extract is what was filled in."""

from __future__ import annotations

import numpy as np
import pytest
from builders import make_state, to_network
from flax import serialization
from hypothesis import given
from hypothesis import strategies as st

from convert.agents.agent import Agent, File
from convert.agents.identity import Identity
from convert.formats import templates as template
from convert.formats.parameter_trees import to_params
from convert.targets import flax, onnx

HEADS = [(1, None), (6, None), (18, 51)]


def _agent(network):
    return Agent(Identity(), network.architecture, File("model_1.gz", 1, "0" * 64))


@pytest.mark.parametrize(("actions", "atoms"), HEADS)
def test_the_files_are_what_their_libraries_write(actions, atoms, tmp_path):
    network = to_network(make_state(actions, atoms))
    agent = _agent(network)
    flax.write(network, agent, tmp_path / "params.msgpack")
    assert (tmp_path / "params.msgpack").read_bytes() == serialization.msgpack_serialize(to_params(network))
    onnx.write(network, agent, tmp_path / "model.onnx")
    model = onnx._build_model(network)
    onnx.helper.set_model_props(model, onnx._metadata(agent))
    assert (tmp_path / "model.onnx").read_bytes() == model.SerializeToString(deterministic=True)


def _serialize(values):
    return b"begin" + values["a"].tobytes() + b"" + values["b"].tobytes() + b"end"


@given(st.integers(1, 5), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.binary(max_size=5))
def test_what_is_filled_in_is_extracted(rows, shape, end):
    shapes = {"b": (rows,), "a": tuple(shape)}
    made = template.make_template(_serialize, shapes)
    values = {name: np.random.default_rng(7).normal(size=size).astype(np.float32) for name, size in shapes.items()}
    data = b"".join(template.fill(made, values)) + end
    assert data == _serialize(values) + end
    found = template.extract(made, data, end)
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in values.items()
    }


def test_any_other_byte_between_the_arrays_is_noticed():
    shapes = {"a": (3,), "b": (2, 2)}
    made = template.make_template(_serialize, shapes)
    values = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    data = _serialize(values) + b"tail"
    fixed = [*range(5), *range(len(data) - 7, len(data))]
    for position in fixed:
        damaged = bytearray(data)
        damaged[position] ^= 1
        assert template.extract(made, bytes(damaged), b"tail") is None
    for length in range(len(data)):
        assert template.extract(made, data[:length], b"tail") is None
    assert template.extract(made, data + b"x", b"tail") is None


def test_a_small_array_is_not_looked_for_in_a_large_one():
    shapes = {"a": (1,), "b": (2_000_000,)}
    marks = template._make_marks(shapes, seed=0)
    marks["b"][7] = marks["a"][0]
    data = marks["b"].tobytes() + b"then" + marks["a"].tobytes()
    assert sorted(template._find_places(data, marks)) == [(0, "b"), (8_000_004, "a")]


def test_what_is_no_template_is_refused():
    with pytest.raises(ValueError, match="not the arrays between fixed parts"):
        template.make_template(lambda values: values["a"].tobytes()[::-1], {"a": (3,)})
    with pytest.raises(ValueError, match="not the arrays between fixed parts"):
        template.make_template(lambda values: values["a"].tobytes() + str(values["a"][0]).encode(), {"a": (3,)})
