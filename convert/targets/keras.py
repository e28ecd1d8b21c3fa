"""Keras: a functional Keras 3 model, which ``keras.models.load_model`` opens without custom code.

It runs on the TensorFlow and the JAX backend of Keras. The support of a C51 agent is the kernel of a last dense
layer without bias, over the probabilities of the atoms.
"""

from __future__ import annotations

import io
import json
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py  # noqa: F401 - named in PACKAGES, and Keras needs it

from convert.agents.agent import Agent
from convert.agents.architecture import Architecture, Conv, Head, erase_support
from convert.agents.network import SUPPORT, Float32, Network
from convert.errors import UnreadableArtefact
from convert.files import hdf5
from convert.files.archives import build_archive, read_archive
from convert.files.disk import read_file
from convert.files.documents import read_json, show
from convert.formats.flat_names import name_layer
from convert.formats.parameter_trees import from_params, list_layers, list_leaf_shapes, to_params
from convert.formats.templates import largest_file
from convert.frameworks.quiet_tensorflow import tf  # noqa: F401 - the default backend

import keras  # isort: skip - after TensorFlow's quiet start
from keras import layers  # isort: skip

PATH = "model.keras"
AXES = "NHWC"
RUNTIME = "keras"
FORMAT_VERSION = 1
EXTRA = "keras"
PACKAGES = ("keras", "h5py", "tensorflow")
IN_ALL = True

CONFIG_NAME, METADATA_NAME, WEIGHTS_NAME = "config.json", "metadata.json", "model.weights.h5"

_MODEL_NAMES = {"q": "nature_dqn", "categorical": "nature_c51", "quantile": "quantile_dqn"}
_MISSING = object()
_MOST_COPIES = 4  # of the weights: Keras saves the moments of its optimiser beside those that were trained


def write(network: Network, agent: Agent, path: Path) -> None:
    """Write the model. Keras' archive is written anew without its dates and object ids, so that bytes are stable."""
    model = make_model(agent.architecture)
    names = list_layers(agent.architecture)
    for name, layer in to_params(network)["params"].items():
        model.get_layer(name_layer(names[name])).set_weights([layer["kernel"], layer["bias"]])
    if SUPPORT in network.arrays:
        model.get_layer("expectation").set_weights([network.arrays[SUPPORT][:, None]])
    model.save(path)
    path.write_bytes(_normalise(path.read_bytes()))


def read(path: Path, agent: Agent) -> Network:
    """Read the weights back, and hold the architecture against ours. The model is not built from the file.

    How it was compiled for training is passed over.

    Raises:
        UnreadableArtefact: the file is damaged, or of another network.
    """
    config, stored = _open(path, agent)
    architecture = erase_support(agent.architecture)
    ours = json.loads(_describe_model(architecture))
    if foreign := _find_differences(_without_ids(config), _without_ids(ours), "config"):
        raise _not_ours(path, foreign[0])
    try:
        weights = _read_weights(stored, architecture)
    except ValueError as error:
        raise UnreadableArtefact(f"{path}: not the weights of such an agent ({error}): convert it again") from error
    support = weights.pop(SUPPORT, None)
    tree = {name: dict(zip(("kernel", "bias"), arrays, strict=True)) for name, arrays in weights.items()}
    values = None if support is None else support[0][:, 0].copy()
    try:
        return from_params({"params": tree}, agent.architecture, values)
    except ValueError as error:
        raise UnreadableArtefact(f"{path}: {error}: convert it again") from error


def rebuild(network: Network, agent: Agent, path: Path, to: Path) -> None:
    """Write the model anew at ``to``, with the network that was read at ``path``.

    Raises:
        UnreadableArtefact: the model is compiled, which names classes for Keras to load.
    """
    config, _ = _open(path, agent)
    if config.get("compile_config"):
        raise UnreadableArtefact(
            f"{path}: is compiled for training, which no such agent needs: convert the agent again"
        )
    write(network, agent, to)


def _open(path: Path, agent: Agent) -> tuple[Any, bytes]:
    """Return a model's config and the file of its weights, of an archive that holds nothing else."""
    data = read_file(path, _MOST_COPIES * largest_file(agent.architecture))
    try:
        entries = read_archive(data)
        config, stored = read_json(entries[CONFIG_NAME]), entries[WEIGHTS_NAME]
    except (ValueError, KeyError) as error:
        raise UnreadableArtefact(f"{path}: not a Keras model of such an agent ({error}): convert it again") from error
    for name in entries:
        if name not in (CONFIG_NAME, METADATA_NAME, WEIGHTS_NAME):
            raise _not_ours(path, f"the file {name}")
    return config, stored


def _not_ours(path: Path, what: str) -> UnreadableArtefact:
    return UnreadableArtefact(
        f"{path}: not a Keras model of such an agent (has {show(what)}, which none has): convert it again"
    )


@lru_cache(maxsize=64)
def _describe_model(architecture: Architecture) -> str:
    """Return the config of a model as JSON. Building a model costs a tenth of a second, and leaves something."""
    return str(make_model(architecture).to_json())


def make_model(architecture: Architecture) -> Any:
    """Return the model of an architecture, with weights that are still to be set."""
    head, shape = architecture.head, architecture.observation
    observation = keras.Input((shape.size, shape.size, shape.frames), dtype="uint8", name="observation")
    features = layers.Rescaling(1 / shape.scale, name="scale")(observation)
    for index, conv in enumerate(architecture.convs, start=1):
        features = _pad(features, conv, index)
        size = [conv.kernel, conv.kernel]
        features = layers.Conv2D(conv.features, size, conv.stride, activation="relu", name=f"conv{index}")(features)
    features = layers.Flatten(name="flatten")(features)
    for units, layer in zip(architecture.hidden, architecture.hidden_layers, strict=True):
        features = layers.Dense(units, activation="relu", name=name_layer(layer))(features)
    return keras.Model(observation, to_outputs(features, head), name=_MODEL_NAMES[head.kind])


def to_outputs(features: Any, head: Head) -> dict[str, Any]:
    """Return what a head answers to the features of the last hidden layer."""
    if head.streams == "single":
        rows = layers.Dense(head.actions * head.width, name="head")(features)
    else:
        rows = _join_streams(features, head)
    if head.kind == "q":
        return {"q_values": rows}
    grid = layers.Reshape((head.actions, head.width), name=head.outputs[1])(rows)
    if head.kind == "quantile":
        mean = layers.GlobalAveragePooling1D(data_format="channels_first", name="q_values")(grid)
        return {"q_values": mean, "quantiles": grid}
    probabilities = layers.Softmax(name="probabilities")(grid)
    expectation = layers.Dense(1, use_bias=False, name="expectation")(probabilities)
    return {"q_values": layers.Reshape((head.actions,), name="q_values")(expectation), "logits": grid}


def _join_streams(features: Any, head: Head) -> Any:
    """Return ``value + advantage - mean(advantage)``, with layers that every version of Keras 3 knows."""
    advantage = layers.Dense(head.actions * head.width, name="advantage")
    value = layers.Dense(head.width, name="value")
    parts = [features, features]
    if head.streams == "split":
        half = features.shape[-1] // 2
        column = layers.Reshape((2 * half, 1), name="streams")(features)
        parts = [
            layers.Flatten(name="advantage_features")(layers.Cropping1D((0, half), name="first_half")(column)),
            layers.Flatten(name="value_features")(layers.Cropping1D((half, 0), name="second_half")(column)),
        ]
    advantages = layers.Reshape((head.actions, head.width), name="advantages")(advantage(parts[0]))
    mean = layers.GlobalAveragePooling1D(name="advantage_mean")(advantages)
    rest = layers.Subtract(name="value_without_mean")([value(parts[1]), mean])
    every = layers.RepeatVector(head.actions, name="value_of_each")(rest)
    return layers.Flatten(name="rows")(layers.Add(name="dueling")([every, advantages]))


def _pad(features: Any, conv: Conv, index: int) -> Any:
    if not any(conv.padding):
        return features
    return layers.ZeroPadding2D((conv.padding, conv.padding), name=f"pad{index}")(features)


def _normalise(archive: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(archive)) as source:
        files = {name: source.read(name) for name in (METADATA_NAME, CONFIG_NAME, WEIGHTS_NAME)}
    files[METADATA_NAME] = json.dumps({"keras_version": keras.__version__}).encode()
    files[CONFIG_NAME] = json.dumps(_without_ids(json.loads(files[CONFIG_NAME]))).encode()
    return build_archive(files)


def _without_ids(value: Any) -> Any:
    """Return a config without the memory addresses by which Keras marks shared objects."""
    if isinstance(value, dict):
        return {key: _without_ids(item) for key, item in value.items() if key != "shared_object_id"}
    return [_without_ids(item) for item in value] if isinstance(value, list) else value


def _read_weights(data: bytes, architecture: Architecture) -> dict[str, list[Float32]]:
    """Return kernel and bias of each layer by its name in a Linen tree, and the support, stored in the file."""
    shapes = list_leaf_shapes(architecture)
    groups = {
        name: (_name_group(name), [shapes[f"{name}/kernel"], shapes[f"{name}/bias"]])
        for name in list_layers(architecture)
    }
    if architecture.head.atoms is not None:
        dense = sum(name.startswith("Dense") for name in groups)
        groups[SUPPORT] = (_name_group(f"Dense_{dense}"), [(architecture.head.atoms, 1)])
    places = {
        name: {f"layers/{group}/vars/{index}": shape for index, shape in enumerate(expected)}
        for name, (group, expected) in groups.items()
    }
    arrays = hdf5.read_arrays(data, {place: shape for each in places.values() for place, shape in each.items()})
    return {name: [arrays[place] for place in each] for name, each in places.items()}


def _name_group(name: str) -> str:
    """Return the name of a layer in the weights file, where Keras numbers the layers of each class."""
    kind, _, number = name.partition("_")
    return {"Conv": "conv2d", "Dense": "dense"}[kind] + (f"_{number}" if number != "0" else "")


def _find_differences(found: Any, expected: Any, place: str) -> list[str]:
    """Return what a config says that ours does not. It may say less: other versions of Keras know other settings."""
    if isinstance(found, dict) and isinstance(expected, dict):
        if found.get("class_name", expected.get("class_name")) != expected.get("class_name"):
            return [f"the class {show(found['class_name'])} in {place}"]
        pairs = ((key, value) for key, value in found.items() if key != "compile_config")
        inner = [_find_differences(value, expected.get(key, _MISSING), f"{place}.{key}") for key, value in pairs]
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        pairs_of = zip(found, expected, strict=True)
        inner = [_find_differences(a, b, f"{place}[{index}]") for index, (a, b) in enumerate(pairs_of)]
    else:
        is_same = type(found) is type(expected) and found == expected
        return [] if is_same else [f"{show(repr(found))} as {place}"]
    return [difference for differences in inner for difference in differences]
