"""What a file is, told from its first bytes: for the message about a file that is no checkpoint of the release.

Nothing is unpickled, inflated or parsed further than the names that stand in front.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePosixPath

HEAD_SIZE = 64 * 2**10  # bytes: as much of a file as a description needs

_ZIP_ENTRY = b"PK\x03\x04"

# What a file begins with, and what it then is.
_SIGNATURES = (
    (b"\x1f\x8b", "a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\x00", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, such as Keras weights"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer, not the file itself (fetch it with git lfs pull)",
    ),
    (b"version https://hawser.github.com/spec/", "a Git LFS pointer, not the file itself (fetch it with git lfs pull)"),
)


def describe_content(head: bytes, name: str) -> str:
    """Return what a file is, such as ``a Stable-Baselines3 model (zip)``.

    Args:
        head: its first bytes; more than `HEAD_SIZE` of them are not looked at.
        name: its name, path or URL. It only refines what the content tells, and speaks where the content says nothing.
    """
    if not head:
        return "an empty file"
    for start, description in _SIGNATURES:
        if head.startswith(start):
            return description
    path = PurePosixPath(name.partition("?")[0].lower())
    for describe in _DESCRIBERS:
        if description := describe(head[:HEAD_SIZE], path):
            return description
    return f"a file of an unknown format (it begins with {head[:8].hex(' ')})"


def _describe_zip(head: bytes, path: PurePosixPath) -> str:
    if head.startswith(b"PK\x05\x06"):
        return "an empty zip archive"
    if not head.startswith(_ZIP_ENTRY):
        return ""
    names = list_zip_entries(head)
    leaves = {entry.rpartition("/")[2] for entry in names}
    if {"policy.pth", "pytorch_variables.pth"} & leaves or (names[:1] == ["data"] and b'"policy_class"' in head):
        return "a Stable-Baselines3 model (zip)"
    if "data.pkl" in leaves:
        return _name_torch(head, path)
    if path.suffix == ".pt2" or {"constants.pkl", "archive_format"} & leaves:
        return "a PyTorch program (TorchScript or torch.export)"
    if {"config.json", "metadata.json", "model.weights.h5"} & leaves:
        return "a Keras model"
    if any(entry.endswith(".npy") for entry in names):
        return "a NumPy archive (npz)"
    inside = f" with {', '.join(names[:3])}{' …' if len(names) > 3 else ''}" if names else ""
    return f"a zip archive{inside}"


def list_zip_entries(head: bytes) -> list[str]:
    """Return the names of a zip's entries whose headers stand in its first bytes, the first one in any case."""
    names = []
    for match in re.finditer(re.escape(_ZIP_ENTRY), head):
        start = match.start()
        size = int.from_bytes(head[start + 26 : start + 28], "little")
        name = head[start + 30 : start + 30 + size]
        if 0 < size <= 255 and len(name) == size and name.isascii() and name.decode().isprintable():
            names.append(name.decode())
    return names


def _name_torch(head: bytes, path: PurePosixPath) -> str:
    if b"estimator_state" in head[:4096]:
        return "an uncompressed checkpoint of the release (gzip it)"
    if path.suffix == ".cleanrl_model" or b"model_weights" in head[:1024]:
        return "a CleanRL model (PyTorch)"
    return "a PyTorch checkpoint (zip)"


def _describe_torch_legacy(head: bytes, _path: PurePosixPath) -> str:
    magic = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
    return "a PyTorch checkpoint of the format before 1.6" if magic in head[:32] else ""


def _describe_pickle(head: bytes, path: PurePosixPath) -> str:
    if len(head) < 2 or head[0] != 0x80 or not 2 <= head[1] <= 5:
        return ""
    return "a Dopamine checkpoint (pickle)" if path.stem == "ckpt" or b"online_params" in head else "a pickle"


def _describe_safetensors(head: bytes, _path: PurePosixPath) -> str:
    return "a safetensors file" if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 2**30 else ""


def _describe_tflite(head: bytes, _path: PurePosixPath) -> str:
    return "a LiteRT (TensorFlow Lite) model" if head[4:8] == b"TFL3" else ""


def _describe_msgpack(head: bytes, path: PurePosixPath) -> str:
    """Describe Flax parameters: a msgpack map (0x80 to 0x8f) whose first key is a short text (0xa0 to 0xbf)."""
    if len(head) < 3 or not (0x81 <= head[0] <= 0x8F and 0xA1 <= head[1] <= 0xBF):
        return ""
    key = head[2 : 2 + head[1] - 0xA0]
    if not (key.isascii() and key.decode().isprintable()):
        return ""
    is_cleanrl = path.suffix == ".cleanrl_model" or key == b"model_weights"
    return "a CleanRL model (JAX)" if is_cleanrl else "Flax parameters (msgpack)"


def _describe_protobuf(head: bytes, path: PurePosixPath) -> str:
    """Describe models in protobuf: ONNX begins with its IR version (field 1), which a producer or graph follows."""
    if path.suffix == ".pb" or head.startswith(b"\x08\x01\x12"):
        return "a TensorFlow graph (protobuf)"
    return "an ONNX model" if head[0] == 0x08 and head[2:3] in (b"\x12", b"\x3a", b"\x42") else ""


def _describe_tar(head: bytes, _path: PurePosixPath) -> str:
    return "a tar archive (unpack it)" if head[257:262] == b"ustar" else ""


def _describe_text(head: bytes, path: PurePosixPath) -> str:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(head) - error.start > 3:  # else the last character is cut
            return ""
        text = head[: error.start].decode("utf-8")
    if not all(character.isprintable() or character.isspace() for character in text):
        return ""
    start = text.lstrip().lower()
    if start.startswith(("<!doctype", "<html", "<?xml")):
        return "a web page or XML, perhaps the answer of a server in place of the file"
    if start.startswith(("{", "[")):
        return "a JSON text"
    hint = " (to convert the paths listed in it, use --files-from)" if path.suffix in ("", ".txt", ".lst") else ""
    return f"a text file{hint}"


_DESCRIBERS: tuple[Callable[[bytes, PurePosixPath], str], ...] = (
    _describe_zip,
    _describe_torch_legacy,
    _describe_pickle,
    _describe_safetensors,
    _describe_tflite,
    _describe_msgpack,
    _describe_protobuf,
    _describe_tar,
    _describe_text,
)
