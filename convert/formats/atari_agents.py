"""The file format of "Pretrained Atari Agents" (2022): gzip of ``torch.save({"estimator_state": state_dict, …})``.

The source that reads the release and the target that writes its format share this module. Nothing in a file is
trusted: it inflates within a bound, and its pickle may build tensors and nothing else.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import deflate
import numpy as np

from convert.agents.architecture import (
    LARGEST_ACTIONS,
    LARGEST_ATOMS,
    Architecture,
    Head,
    list_shapes,
    make_head,
    nature_cnn,
)
from convert.agents.games import load_games
from convert.agents.identity import Identity
from convert.agents.network import Float32, Network, check_network, from_arrays, name_array
from convert.errors import UnreadableCheckpoint, UnsupportedArchitecture, WeightMismatch
from convert.files import torch_files
from convert.files.bounds import LARGEST
from convert.files.documents import join, show
from convert.files.pickles import PickleRefused
from convert.files.recognition import HEAD_SIZE, describe_content
from convert.formats.state_dicts import LOSSY, find_tensor_problem, is_float32

STATE_KEY = "estimator_state"
SUPPORT_KEY = "_AtariNet__support"
# Python's name mangling of the release's class is part of its keys.
KEYS = {
    **{
        f"_AtariNet__features.{2 * index}.{torch_name}": f"convs.{index}.{name}"
        for index in range(3)
        for torch_name, name in (("weight", "kernel"), ("bias", "bias"))
    },
    "_AtariNet__head.0.weight": "hidden.kernel",
    "_AtariNet__head.0.bias": "hidden.bias",
    "_AtariNet__head.2.weight": "head.kernel",
    "_AtariNet__head.2.bias": "head.bias",
    SUPPORT_KEY: "head.support",
}

ZOO = "atari-agents"


@dataclass(frozen=True)
class Family:
    """A family of the release: its folder, the algorithm that trained it, the protocol it was trained under."""

    name: str
    algorithm: str
    protocol: str


FAMILIES = {
    family.name: family
    for family in (
        Family("DQN_modern", "DQN", "modern"),
        Family("MDQN_modern", "M-DQN", "modern"),
        Family("C51_classic", "C51", "classic"),
        Family("DQN_classic_adam", "DQN", "classic"),
    )
}
_FAMILY_NAMES: dict[tuple[str | None, str | None], str] = {
    (family.algorithm, family.protocol): family.name for family in FAMILIES.values()
}

_HEADER = re.compile(rb"\x1f\x8b\x08[\x00-\x1f]")
_TORCH_STARTS = (b"PK\x03\x04", b"\x80")  # of torch.save: a zip archive, or before torch 1.6 a pickle
_MEBIBYTES = LARGEST // 2**20


def make_identity(family: str, game: str, seed: int | None = None, step: int | None = None) -> Identity:
    """Return the identity of an agent of the release."""
    known = FAMILIES[family]
    # Thousands of agents share a few names.
    return Identity(ZOO, known.algorithm, load_games()[game].name, known.protocol, seed, step)


def find_family(identity: Identity) -> str | None:
    """Return the family that an algorithm and a protocol of the release make; None for an agent of another zoo."""
    return _FAMILY_NAMES.get((identity.algorithm, identity.protocol)) if identity.zoo == ZOO else None


def locate(identity: Identity) -> str | None:
    """Return an agent's path in the release, ``FAMILY/Game/seed/model_STEP.gz``; None where that is not known."""
    family = find_family(identity)
    if family is None or not identity.is_complete:
        return None
    return f"{family}/{identity.game}/{identity.seed}/model_{identity.step}.gz"


def read(data: bytes, name: str) -> Network:
    """Read the bytes of a checkpoint file.

    Args:
        data: the gzip file's content.
        name: how messages call it, such as its path.

    Raises:
        UnreadableCheckpoint: not a gzip, truncated, too large when inflated, not a torch checkpoint, or its
            pickle wants to run code.
        WeightMismatch: weights are missing, unexpected, of a dtype that float32 cannot hold, or not finite.
        UnsupportedArchitecture: its layers are not those of the release.
    """
    raw = inflate(data, name)
    state = _load_state(raw, name)
    arrays = _to_arrays(state, name)
    try:
        network = from_arrays(arrays, _find_architecture({key: array.shape for key, array in arrays.items()}))
    except ValueError as error:
        raise WeightMismatch(f"{name}: {error}: the file is damaged, take another copy") from error
    check_network(network, name)
    return network


def inflate(data: bytes, name: str) -> bytes:
    """Return the content of a gzip file of at most `LARGEST` bytes inflated, whose checksum is right.

    Raises:
        UnreadableCheckpoint: it is empty, not a gzip, damaged, truncated, or larger.
    """
    if not data:
        raise UnreadableCheckpoint(f"{name}: the file is empty, expected a gzipped checkpoint: take another copy")
    if not data.startswith(b"\x1f\x8b"):
        found = describe_content(data[:HEAD_SIZE], name)
        raise UnreadableCheckpoint(f"{name}: {found}, expected a gzipped checkpoint of this release")
    return _inflate_at_once(data) or _inflate_or_explain(data, name)


def _inflate_at_once(data: bytes) -> bytes | None:
    """Inflate a whole and sound file with libdeflate, twice as fast as zlib; None for any other."""
    # A second stream may have the same checksum and size as the first: where one could begin, zlib tells where the
    # first one ends. By chance that is so in one file of twenty.
    if len(data) < 18 or _HEADER.search(data, 1):  # less than a header and a trailer
        return None
    checksum, size = struct.unpack("<II", data[-8:])
    if size > LARGEST:
        return None
    try:
        raw = bytes(deflate.gzip_decompress(data))
    except (deflate.DeflateError, ValueError):
        return None
    # libdeflate stops after the first stream; only where the file ends there too, its end describes that stream.
    return raw if (deflate.crc32(raw), len(raw)) == (checksum, size) else None


def _inflate_or_explain(data: bytes, name: str) -> bytes:
    inflater = zlib.decompressobj(wbits=31)
    try:
        raw = inflater.decompress(data, LARGEST)
    except zlib.error as error:
        raise UnreadableCheckpoint(f"{name}: damaged gzip ({error}): take another copy") from error
    if len(raw) == LARGEST and not inflater.eof:
        raise UnreadableCheckpoint(f"{name}: inflates to over {_MEBIBYTES} MiB, expected about 7 MB: not a checkpoint")
    if not inflater.eof:
        raise UnreadableCheckpoint(f"{name}: truncated after {len(data)} bytes: take another copy")
    if inflater.unused_data:
        raise UnreadableCheckpoint(f"{name}: {len(inflater.unused_data)} bytes after the end of the gzip stream")
    return raw


def _load_state(raw: bytes, name: str) -> dict[Any, Any]:
    try:
        checkpoint = torch_files.read(raw)
    except PickleRefused as error:
        raise UnreadableCheckpoint(f"{name}: refused: its pickle {error}") from error
    except ValueError as error:
        if raw.startswith(_TORCH_STARTS):
            raise UnreadableCheckpoint(f"{name}: not a PyTorch checkpoint ({error}): take another copy") from error
        found = describe_content(raw[:HEAD_SIZE], name)
        raise UnreadableCheckpoint(f"{name}: a gzip of {found}: not a PyTorch checkpoint of this release") from error
    if isinstance(checkpoint, dict) and STATE_KEY not in checkpoint and KEYS.keys() & checkpoint.keys():
        how = f"torch.save({{{STATE_KEY!r}: state_dict}}, file), then gzip the file"
        raise UnreadableCheckpoint(
            f"{name}: holds a bare state dict, expected it below {STATE_KEY!r}: save it with {how}"
        )
    if not isinstance(checkpoint, dict) or STATE_KEY not in checkpoint:
        found = _list_names(checkpoint) if isinstance(checkpoint, dict) else f"a {type(checkpoint).__name__}"
        raise UnreadableCheckpoint(f"{name}: holds {found}, expected {STATE_KEY!r}: not a checkpoint of this release")
    state = checkpoint[STATE_KEY]
    if not isinstance(state, dict):
        raise UnreadableCheckpoint(f"{name}: {STATE_KEY} is a {type(state).__name__}, expected a state dict")
    return state


def _to_arrays(state: dict[Any, Any], name: str) -> dict[str, Float32]:
    problems = [f"no {key}" for key in KEYS if key not in state and key != SUPPORT_KEY]
    problems += [f"unexpected {show(key)}" for key in state if key not in KEYS]
    tensors = {}
    for key in KEYS.keys() & state.keys():
        problem = find_tensor_problem(state[key])
        if problem:
            problems.append(f"{key} {problem}")
        else:
            tensors[key] = state[key]
    shape_problems = _find_shape_problems({KEYS[key]: tensor.shape for key, tensor in tensors.items()})
    if not problems and not shape_problems:
        arrays = {key: tensor.to_numpy() for key, tensor in tensors.items()}
        problems = [f"{key} {LOSSY}" for key, array in arrays.items() if not is_float32(array)]
    if problems:
        raise WeightMismatch(f"{name}: {join(sorted(problems) + shape_problems)}: not a state dict of this release")
    if shape_problems:
        raise UnsupportedArchitecture(f"{name}: {join(shape_problems)}: not a Nature-CNN of this release")
    return {KEYS[key]: array.astype(np.float32, copy=False) for key, array in arrays.items()}


def _find_architecture(shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
    """Return the architecture that shapes tell, whose head has been looked at."""
    (atoms,) = shapes.get("head.support", (None,))
    return nature_cnn(make_head(shapes["head.bias"][0] // (atoms or 1), atoms))


def _find_shape_problems(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return how the shapes of arrays differ from the release's; arrays that are not there are passed over.

    The number of actions is free up to that of ALE, and so is, within reason, the number of atoms of a support, of
    which the head is a multiple.
    """
    expected = list_shapes(nature_cnn(Head("q", 1)))
    trunk = {key: shape for key, shape in expected.items() if not key.startswith("head")}
    problems = [
        f"{name_array(key)} is {shapes[key]}, expected {shape}"
        for key, shape in trunk.items()
        if key in shapes and shapes[key] != shape
    ]
    return problems + _find_head_problems(shapes, expected["head.kernel"][1])


def _find_head_problems(shapes: Mapping[str, tuple[int, ...]], hidden: int) -> list[str]:
    kernel, bias, support = (shapes.get(f"head.{part}") for part in ("kernel", "bias", "support"))
    if kernel is not None and (len(kernel) != 2 or kernel[0] < 1 or kernel[1] != hidden):
        return [f"head is {kernel}, expected (actions, {hidden}) or (actions x atoms, {hidden})"]
    problems = []
    if kernel is not None and bias is not None and bias != kernel[:1]:
        problems.append(f"bias of the head is {bias}, expected {kernel[:1]}")
    if support is not None and (len(support) != 1 or not 2 <= support[0] <= LARGEST_ATOMS):
        return [*problems, f"support is {support}, expected one row of 2 to {LARGEST_ATOMS} atoms"]
    atoms = 1 if support is None else support[0]
    if kernel is not None and kernel[0] % atoms:
        problems.append(f"head has {kernel[0]} rows, expected a multiple of the {atoms} atoms of its support")
    elif kernel is not None and kernel[0] // atoms > LARGEST_ACTIONS:
        of = "without a support" if support is None else f"with {atoms} atoms each"
        problems.append(f"head has {kernel[0] // atoms} actions {of}, expected at most {LARGEST_ACTIONS}")
    return problems


def _list_names(checkpoint: dict[Any, Any]) -> str:
    names = [repr(show(key)) for key in list(checkpoint)[:6]]
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "") if names else "nothing"
