"""Names on the command line: lists separated by commas, and other names that people have for targets."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

# What people write, and the targets they may mean, the likeliest first.
_OTHER_NAMES = {
    "jax": ("flax", "nnx", "orbax"),
    "linen": ("flax",),
    "msgpack": ("flax",),
    "params": ("flax",),
    "tf": ("tensorflow",),
    "tf2": ("tensorflow",),
    "savedmodel": ("tensorflow",),
    "saved-model": ("tensorflow",),
    "h5": ("keras",),
    "tflite": ("litert",),
    "lite": ("litert",),
    "tensorflow-lite": ("litert",),
    "tf-lite": ("litert",),
    "ai-edge-litert": ("litert",),
    "float16": ("litert-float16",),
    "fp16": ("litert-float16",),
    "tflite-float16": ("litert-float16",),
    "int8": ("litert-int8",),
    "tflite-int8": ("litert-int8",),
    "ort": ("onnx",),
    "onnxruntime": ("onnx",),
    "onnx-runtime": ("onnx",),
    "pytorch": ("torch",),
    "pt": ("torch",),
    "pt2": ("torch",),
    "pth": ("torch",),
    "torchscript": ("torch",),
    "hf": ("safetensors",),
    "huggingface": ("safetensors",),
    "hugging-face": ("safetensors",),
    "hub": ("safetensors",),
    "google-dopamine": ("dopamine",),
    "gz": ("checkpoint",),
    "release": ("checkpoint",),
}


def split_names(values: Iterable[str]) -> tuple[str, ...]:
    """Return the names in the values of a repeatable option, each once: ``("a,b", "c")`` holds a, b and c."""
    names = (name.strip() for value in values for name in value.split(","))
    return tuple(dict.fromkeys(name for name in names if name))


def split_formats(values: Iterable[str]) -> tuple[str, ...]:
    """Return the targets or backends in the values of a repeatable option, each in its canonical form."""
    words = (word for value in values for word in value.split())
    return tuple(dict.fromkeys(normalise_name(name) for name in split_names(words)))


def normalise_name(name: str) -> str:
    """Return the name of a target or backend in its canonical form: in lower case, with dashes."""
    return name.strip().lower().replace("_", "-")


def find_meant(name: str, known: Iterable[str]) -> list[str]:
    """Return the targets that people may mean by a name, or else the closest name that is known, if any is close."""
    return list(_OTHER_NAMES.get(normalise_name(name), ())) or difflib.get_close_matches(
        normalise_name(name), list(known), n=1, cutoff=0.7
    )


def format_suggestion(meant: Sequence[str]) -> str:
    """Return ``did you mean …? `` for a message; an empty text where nothing is known."""
    if not meant:
        return ""
    also = f" (or {', '.join(meant[1:])})" if meant[1:] else ""
    return f"did you mean {meant[0]}{also}? "


def to_printable(text: str) -> str:
    """Return a text on one line, with escapes in place of what a terminal would obey: the names of files are free."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
