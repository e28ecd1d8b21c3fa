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

import h5py
import numpy as np

from convert.agents.agent import Agent, HeadSpec
from convert.agents.network import (
    FRAMES,
    HEIGHT,
    NATURE_HIDDEN,
    NATURE_KERNELS,
    NATURE_STRIDES,
    WIDTH,
    CategoricalHead,
    Float32,
    Network,
)
from convert.errors import UnreadableArtefact
from convert.files.archives import build_archive, read_archive
from convert.files.disk import read_file
from convert.files.documents import read_json, show
from convert.formats.parameter_trees import from_params, support_of, to_params
from convert.formats.templates import largest_file, make_zeros, nature_form
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

_NAMES = {"Conv_0": "conv1", "Conv_1": "conv2", "Conv_2": "conv3", "Dense_0": "hidden", "Dense_1": "head"}
# Keras numbers the layers of each class in its weights file.
_GROUPS = {"Conv_0": "conv2d", "Conv_1": "conv2d_1", "Conv_2": "conv2d_2", "Dense_0": "dense", "Dense_1": "dense_1"}
_SUPPORT_GROUP = "dense_2"
_MISSING = object()
_MOST_COPIES = 4  # of the weights: Keras saves the moments of its optimiser beside those that were trained


def write(network: Network, agent: Agent, path: Path) -> None:
    """Write the model. Keras' archive is written anew without its dates and object ids, so that bytes are stable."""
    model = make_model(agent.head)
    for name, layer in to_params(network)["params"].items():
        model.get_layer(_NAMES[name]).set_weights([layer["kernel"], layer["bias"]])
    support = support_of(agent)
    if support is not None:
        model.get_layer("expectation").set_weights([support[:, None]])
    model.save(path)
    path.write_bytes(_normalise(path.read_bytes()))


def read(path: Path, agent: Agent) -> Network:
    """Read the weights back, and hold the architecture against ours. The model is not built from the file.

    How it was compiled for training is passed over.

    Raises:
        UnreadableArtefact: the file is damaged, or of another network.
    """
    config, stored = _open(path, agent)
    ours = json.loads(_describe_model(agent.head))
    if foreign := _find_differences(_without_ids(config), _without_ids(ours), "config"):
        raise _not_ours(path, foreign[0])
    try:
        weights = _read_weights(stored, make_zeros(nature_form(agent.head.actions, agent.head.atoms)))
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, AttributeError, OverflowError) as error:
        raise UnreadableArtefact(f"{path}: not the weights of such an agent ({error}): convert it again") from error
    support = np.ascontiguousarray(weights[_SUPPORT_GROUP][0][:, 0]) if _SUPPORT_GROUP in weights else None
    tree = {name: dict(zip(("kernel", "bias"), weights[group], strict=True)) for name, group in _GROUPS.items()}
    return from_params({"params": tree}, support)


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
    data = read_file(path, _MOST_COPIES * largest_file(agent.head))
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
def _describe_model(head: HeadSpec) -> str:
    """Return the config of a head's model as JSON. Building a model costs a tenth of a second, and leaves something."""
    return str(make_model(head).to_json())


def make_model(head: HeadSpec) -> Any:
    """Return the model of a head, with weights that are still to be set."""
    actions, atoms = head.actions, head.atoms
    observation = keras.Input((HEIGHT, WIDTH, FRAMES), dtype="uint8", name="observation")
    features = layers.Rescaling(1 / 255, name="scale")(observation)
    for index, ((outputs, _, *size), stride) in enumerate(zip(NATURE_KERNELS, NATURE_STRIDES, strict=True), start=1):
        features = layers.Conv2D(outputs, size, stride, activation="relu", name=f"conv{index}")(features)
    features = layers.Dense(NATURE_HIDDEN[0], activation="relu", name="hidden")(
        layers.Flatten(name="flatten")(features)
    )
    if atoms is None:
        return keras.Model(observation, {"q_values": layers.Dense(actions, name="head")(features)}, name="nature_dqn")
    logits = layers.Reshape((actions, atoms), name="logits")(layers.Dense(actions * atoms, name="head")(features))
    probabilities = layers.Softmax(name="probabilities")(logits)
    expectation = layers.Dense(1, use_bias=False, name="expectation")(probabilities)
    q_values = layers.Reshape((actions,), name="q_values")(expectation)
    return keras.Model(observation, {"q_values": q_values, "logits": logits}, name="nature_c51")


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


def _read_weights(data: bytes, zeros: Network) -> dict[str, list[Float32]]:
    """Return the weights by group: float32 arrays of the shapes that a network of zeros has, stored in the file."""
    shapes = {
        _GROUPS[name]: [layer["kernel"].shape, layer["bias"].shape]
        for name, layer in to_params(zeros)["params"].items()
    }
    if isinstance(zeros.head, CategoricalHead):
        shapes[_SUPPORT_GROUP] = [(zeros.head.atoms, 1)]
    with h5py.File(io.BytesIO(data)) as file:
        return {
            group: [_read_dataset(file, f"layers/{group}/vars/{index}", shape) for index, shape in enumerate(expected)]
            for group, expected in shapes.items()
        }


def _read_dataset(file: Any, name: str, shape: tuple[int, ...]) -> Float32:
    """Return a dataset that lies in the file as it is: links, filters and other files' values are not followed."""
    parts = name.split("/")
    for depth in range(1, len(parts) + 1):
        link = file.get("/".join(parts[:depth]), getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{name} is not there, or a link")  # noqa: TRY004
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or (dataset.shape, dataset.dtype) != (shape, np.dtype("<f4")):
        raise ValueError(f"{name} is {show(str(dataset))}, expected float32{list(shape)}")
    if dataset.chunks or dataset.external or dataset.is_virtual or dataset.id.get_offset() is None:
        raise ValueError(f"{name} is not stored in one piece")
    return np.ascontiguousarray(dataset[()])


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
