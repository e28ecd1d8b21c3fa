"""Coverage-guided fuzzing, with atheris, of everything that reads files of strangers.

    python tests/fuzz.py READER [--crashes FOLDER] [-- options of libFuzzer]
    python tests/fuzz.py all --seconds 180 [--crashes FOLDER]

An input is a few named parts, such as the files of an artefact or the entries of an archive, without their weights:
a mark stands for each of them. So mutations hit headers, JSON, opcodes and directories, checksums and compression are
put around afterwards, and an input stays small. A finding is an exception that no caller expects, a refusal that is
not one short line, a process that grows beyond 1500 MiB, an input that takes 20 seconds, or code that runs.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import os
import pickletools
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import atheris

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

OURS = ["convert", "runtime_check"]

with atheris.instrument_imports(include=OURS):
    import convert.artefacts
    import convert.files.archives
    import convert.files.documents
    import convert.files.numpy_pickles
    import convert.files.torch_files
    import convert.formats.atari_agents
    import convert.loading
    import convert.sources
    import runtime_check.originals
    from convert.agents.agent import RECORD_NAME, Agent
    from convert.agents.record import from_json, read_record, to_json
    from convert.errors import AtariConvertError
    from convert.runtimes import Settings
    from convert.targets import find_target, import_target, list_targets

LARGEST_MEMORY = 1500  # MiB
SLOWEST = 20  # seconds for one input
LONGEST_MESSAGE = 600

Parts = dict[str, bytes]  # by path; "!" leads into an archive, and "!gz" wraps a part in gzip

_MARK = re.compile(rb"\xf5W(.)\xfa", re.DOTALL)
_NUMBERS = (0, 1, 2, 3, 7, 127, 128, 255, 256, 2**15, 2**16, 2**24, 2**28, 2**31 - 1, 2**31, 2**32 - 1, 2**48, 2**63)
_TEXTS = (
    *(b"-1", b"0", b"1e999", b"NaN", b"null", b"true", b"[]", b"{}", b'""', b'"\\n"', b"99999999999999999999"),
    *(b"[" * 2000, b"9" * 5000, b'"' + b"x" * 3000 + b'"', b"os\nsystem\n", b"torch._utils\n_rebuild_tensor_v2\n"),
)


@dataclass(frozen=True)
class Reader:
    """What is fuzzed: inputs to begin with, and what reads one. run: is given the parts, and an empty folder."""

    seeds: Callable[[Path], list[Parts]]
    run: Callable[[Parts, Path], None]
    errors: tuple[type[Exception], ...] = (AtariConvertError,)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz what reads files of strangers.")
    parser.add_argument("reader", choices=["all", *READERS])
    parser.add_argument("--seconds", type=int, default=180, help="for all readers together")
    parser.add_argument("--crashes", type=Path, default=Path("crashes"), help="where inputs of findings are kept")
    parser.add_argument("--seeds", type=Path, help="agents that were converted to every target")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    ours, options = sys.argv[1:end], sys.argv[end + 1 :]
    arguments = parser.parse_args(ours)
    with tempfile.TemporaryDirectory(prefix="atari-fuzz-") as folder:
        seeds = arguments.seeds or _convert_seeds(Path(folder, "seeds"))
        if arguments.reader == "all":
            sys.exit(_fuzz_all(seeds, arguments.seconds, arguments.crashes))
        _fuzz(arguments.reader, seeds, Path(folder), arguments.crashes, options)


def _fuzz_all(seeds: Path, seconds: int, crashes: Path) -> int:
    """Fuzz each reader in a process of its own, print a table, and return the exit code."""
    crashes.mkdir(parents=True, exist_ok=True)
    rows, found = [], 0
    for name in READERS:
        time = max(seconds // len(READERS), 1)
        command = [sys.executable, __file__, name, "--seeds", str(seeds), "--crashes", str(crashes)]
        command += ["--", f"-max_total_time={time}", "-print_final_stats=1"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        executions = re.findall(r"stat::number_of_executed_units: *(\d+)", done.stderr)
        edges = re.findall(r"\bcov: (\d+)", done.stderr)
        kept = re.findall(r"Test unit written to (\S+)", done.stderr)
        rows.append((name, executions[-1:] or ["?"], edges[-1:] or ["?"], "none" if done.returncode == 0 else "FOUND"))
        if done.returncode:
            found += 1
            output = crashes / f"{name}.txt"
            output.write_text(done.stdout + done.stderr)
            print(f"{name}: {' '.join(kept) or 'no input was kept'}, its output is in {output}", flush=True)
    print(f"{'reader':<18}{'executions':>12}{'edges':>8}  findings")
    for name, executions, edges, finding in rows:
        print(f"{name:<18}{executions[0]:>12}{edges[0]:>8}  {finding}")
    return 1 if found else 0


def _fuzz(name: str, seeds: Path, folder: Path, crashes: Path, options: list[str]) -> None:
    """Fuzz one reader; libFuzzer ends the process."""
    reader, weights = READERS[name], _Weights()
    if name.startswith("target-"):
        with atheris.instrument_imports(include=OURS):
            import_target(name.removeprefix("target-"))
    corpus, work = folder / "corpus", folder / "work"
    corpus.mkdir()
    crashes.mkdir(parents=True, exist_ok=True)
    for index, parts in enumerate(reader.seeds(seeds)):
        encoded = _encode({path: weights.take_out(content, path) for path, content in parts.items()})
        (corpus / str(index)).write_bytes(encoded)
        _run(reader, weights, work, encoded)  # what is imported or traced late is not to be measured
    _watch(work)

    def test(data: bytes) -> None:
        _run(reader, weights, work, data)

    limits = [f"-rss_limit_mb={LARGEST_MEMORY}", f"-timeout={SLOWEST}", "-max_len=262144"]
    prefix = f"-artifact_prefix={crashes}/{name}-"
    # An input named after -- is run alone: that reproduces a finding.
    places = [] if any(not option.startswith("-") for option in options) else [str(corpus)]
    atheris.Setup([sys.argv[0], *limits, prefix, *options, *places], test, custom_mutator=_mutate)
    atheris.Fuzz()


def _run(reader: Reader, weights: _Weights, work: Path, data: bytes) -> None:
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    parts = _wrap({path: weights.put_back(content) for path, content in _decode(data).items()})
    try:
        reader.run(parts, work)
    except reader.errors as error:
        message = str(error)
        if isinstance(error, AtariConvertError) and (not message.isprintable() or len(message) > LONGEST_MESSAGE):
            raise AssertionError(f"a message of {len(message)} characters: {message!r:.2000}") from error


def _watch(work: Path) -> None:
    """End the process where an input has run something, or written outside of temporary folders."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        is_code = event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect")
        is_writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        path = str(arguments[0]) if is_writing else ""
        if is_code or (is_writing and not path.startswith((tempfile.gettempdir(), "/dev/", str(work)))):
            print(f"an input caused {event} {arguments!r:.500}", file=sys.stderr, flush=True)
            os.abort()

    sys.addaudithook(hook)


class _Weights:
    """Long runs of bytes that tell a reader nothing, each in the place of a mark."""

    def __init__(self) -> None:
        self._taken: list[bytes] = []

    def take_out(self, content: bytes, path: str) -> bytes:
        """Return the content with marks in place of its weights."""
        for start, end in reversed(list(_find_weights(content, path))):
            self._taken.append(content[start:end])
            content = content[:start] + b"\xf5W" + bytes([len(self._taken) - 1]) + b"\xfa" + content[end:]
        return content

    def put_back(self, content: bytes) -> bytes:
        left = 2**24  # a mark that was copied many times would be a large file, and no finding

        def replace(match: re.Match[bytes]) -> bytes:
            nonlocal left
            weights = self._taken[match[1][0]] if match[1][0] < len(self._taken) else b""
            left -= len(weights)
            return weights if left >= 0 else b""

        return _MARK.sub(replace, content)


def _find_weights(content: bytes, path: str) -> Iterator[tuple[int, int]]:
    """Yield where blocks of 64 bytes are as mixed as weights, or all zeros, for 512 bytes and more."""
    if len(content) < 4096 or path.endswith((".json", ".md", ".gin", ".pb")):
        return
    import numpy as np

    size = 64
    blocks = np.frombuffer(content[: len(content) // size * size], np.uint8).reshape(-1, size)
    ordered = np.sort(blocks, axis=1)
    distinct = (np.diff(ordered, axis=1) != 0).sum(axis=1) + 1
    is_mixed = (distinct > 40) & ((blocks > 126).mean(axis=1) > 0.2)
    dense = np.concatenate([[False], is_mixed | ~blocks.any(axis=1), [False]])
    edges = np.flatnonzero(np.diff(dense.astype(int)))
    merged: list[list[int]] = []
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        if merged and start - merged[-1][1] <= 8:
            merged[-1][1] = int(end)
        else:
            merged.append([int(start), int(end)])
    yield from ((start * size, end * size) for start, end in merged if end - start >= 8)


def _encode(parts: Mapping[str, bytes]) -> bytes:
    return b"".join(
        struct.pack("<HI", len(path.encode()), len(content)) + path.encode() + content
        for path, content in parts.items()
    )


def _decode(data: bytes) -> Parts:
    parts, position = {}, 0
    while position + 6 <= len(data):
        name_size, size = struct.unpack_from("<HI", data, position)
        start = position + 6 + name_size
        parts[data[position + 6 : start].decode("utf-8", "replace")] = data[start : start + size]
        position = start + size
    return parts


def _wrap(parts: Parts) -> Parts:
    """Return files: entries as archives, and what is to be compressed compressed."""
    wrapped: Parts = {}
    archives: dict[str, Parts] = {}
    for path, content in parts.items():
        outer, separator, inner = path.partition("!")
        if not separator:
            wrapped[path] = content
        elif inner == "gz":
            wrapped[outer] = gzip.compress(content, 0)
        else:
            archives.setdefault(outer, {})[inner] = content
    for path, entries in archives.items():
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive, contextlib.suppress(ValueError, struct.error):
            for name, content in entries.items():
                archive.writestr(zipfile.ZipInfo(name or "?"), content)
        outer, _, inner = path.partition("?")
        wrapped[outer] = gzip.compress(buffer.getvalue(), 0) if inner == "gz" else buffer.getvalue()
    return wrapped


def _mutate(data: bytes, largest: int, seed: int) -> bytes:
    """Mutate one part of an input and leave the others as they are."""
    chance, parts = random.Random(seed), _decode(data)
    if not parts or chance.random() < 0.01:
        return bytes(atheris.Mutate(data, largest))
    path = chance.choice(list(parts))
    content = bytearray(parts[path])
    way = chance.randrange(8)
    places = [match.span() for match in re.finditer(rb'-?\d+(\.\d+)?|"[^"]{0,80}"|null|true|false', content)]
    at = chance.randrange(len(content) + 1)
    if way < 3:
        content = bytearray(atheris.Mutate(bytes(content), max(largest // 2, 4096)))
    elif way == 3 and places:
        start, end = chance.choice(places)
        content[start:end] = chance.choice(_TEXTS)
    elif way == 4:
        size = chance.choice((1, 2, 4, 8))
        content[at : at + size] = (chance.choice(_NUMBERS) % 256**size).to_bytes(size, chance.choice(("little", "big")))
    elif way == 5:
        end = min(len(content), at + chance.randrange(1, 64))
        content[at:at] = content[at:end] * chance.choice((1, 2, 50))
    elif way == 6:
        opcodes = [chance.choice(pickletools.opcodes).code.encode("latin-1") for _ in range(chance.randrange(1, 5))]
        content[at:at] = b"".join(opcodes)
    elif way == 7 and chance.random() < 0.2:
        del parts[path]
        parts[path + chance.choice(("", "x", "\n", "/a"))] = bytes(content)
        return _encode(parts)[:largest]
    parts[path] = bytes(content)
    return _encode(parts)[:largest]


def _convert_seeds(folder: Path) -> Path:
    """Convert an agent of each kind of head to every target, in a process of its own."""
    from builders import make_state, save_checkpoint

    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    for family, atoms, unheld in (("DQN_modern", None, ()), ("C51_classic", 5, ("sb3",))):
        source = save_checkpoint(folder / "release" / family / "Pong/0/model_250000.gz", make_state(3, atoms))
        targets = ",".join(target.name for target in list_targets() if target.name not in unheld)
        command = [sys.executable, "-m", "convert", str(source), "--to", targets, "--out", str(folder / "agents")]
        subprocess.run(command, check=True, capture_output=True, env=environment)
    return folder


def _agent_folders(seeds: Path) -> list[Path]:
    return sorted(path.parent for path in (seeds / "agents").rglob(RECORD_NAME))


def _open_entries(path: str, data: bytes) -> Parts:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {f"{path}!{name}": archive.read(name) for name in archive.namelist()}


def _checkpoint_seeds(seeds: Path) -> list[Parts]:
    """Checkpoints as archives with sound checksums, as they are, and in the format before archives."""
    import torch
    from builders import make_state

    inputs: list[Parts] = []
    for path in sorted((seeds / "release").rglob("*.gz")):
        raw = gzip.decompress(path.read_bytes())
        inputs += [_open_entries("model.gz?gz", raw), {"model.gz!gz": raw}]
    buffer = io.BytesIO()
    torch.save({"estimator_state": make_state(3)}, buffer, _use_new_zipfile_serialization=False)
    return [*inputs, {"model.gz!gz": buffer.getvalue()}, {"model.gz": gzip.compress(b"x" * 100)}]


def _read_checkpoint(parts: Parts, folder: Path) -> None:  # noqa: ARG001
    convert.formats.atari_agents.read(parts.get("model.gz", b""), "model.gz")


def _judge_checkpoint(parts: Parts, folder: Path) -> None:
    (folder / "model.gz").write_bytes(parts.get("model.gz", b""))
    runtime_check.originals.read_oracle(folder / "model.gz")


def _zoo_seeds(*names: str) -> Callable[[Path], list[Parts]]:
    """Return what gives files of other zoos: as they are, and with the entries of their archives by themselves."""

    def make(seeds: Path) -> list[Parts]:  # noqa: ARG001
        from builders import save_sample

        inputs: list[Parts] = []
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                data = save_sample(name, Path(folder)).read_bytes()
            inputs.append({name: data})
            if data.startswith(b"PK"):
                entries = _open_entries(name, data)
                inputs.append(entries)
        return inputs

    return make


def _read_zoo(name: str, parts: Parts, folder: Path) -> None:
    """Read a file with its source, and then with the judge's reader: what the one refuses, the other may read."""
    place = folder / next((path for path in parts if path == name), name)
    place.write_bytes(parts.get(name, b""))
    with contextlib.suppress(ValueError):
        runtime_check.originals.find_original(place).read(place)
    convert.sources.read_file(place.read_bytes(), place.name)


def _torch_seeds(seeds: Path) -> list[Parts]:
    inputs: list[Parts] = []
    for folder in _agent_folders(seeds):
        data = (folder / "torch/state_dict.pt").read_bytes()
        inputs += [_open_entries("x", data), {"x": data}]
    return inputs


def _pickle_seeds(seeds: Path) -> list[Parts]:
    return [
        {"x": next((folder / "dopamine/checkpoints").glob("ckpt.*")).read_bytes()} for folder in _agent_folders(seeds)
    ]


def _archive_seeds(seeds: Path) -> list[Parts]:
    folder = _agent_folders(seeds)[0]
    return [{"x": (folder / name).read_bytes()} for name in ("model.keras", "torch/model.pt2", "torch/state_dict.pt")]


def _record_seeds(seeds: Path) -> list[Parts]:
    return [{"x.json": (folder / RECORD_NAME).read_bytes()} for folder in _agent_folders(seeds)]


def _read_record(parts: Parts, folder: Path) -> None:
    (folder / RECORD_NAME).write_bytes(parts.get("x.json", b""))
    record = read_record(folder)
    from_json(to_json(record), "agent.json")


def _call(function: Callable[[bytes], Any]) -> Callable[[Parts, Path], None]:
    def run(parts: Parts, folder: Path) -> None:  # noqa: ARG001
        function(next(iter(parts.values()), b""))

    return run


def _target_seeds(target: str, seeds: Path) -> list[Parts]:
    """Artefacts as they are, and with the entries of their archives by themselves."""
    inputs: list[Parts] = []
    for folder in _agent_folders(seeds):
        top = folder / find_target(target).path
        if not top.exists():  # of an agent that the target cannot hold
            continue
        files = [top] if top.is_file() else sorted(path for path in top.rglob("*") if path.is_file())
        parts = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        record = {RECORD_NAME: to_json(replace(read_record(folder), artifacts={})).encode()}
        inputs.append(parts | record)
        opened: Parts = {}
        for path, data in parts.items():
            if path.endswith(".gz"):
                opened |= _open_entries(f"{path}?gz", gzip.decompress(data))
            else:
                opened |= _open_entries(path, data) if data.startswith(b"PK") else {path: data}
        if opened != parts:
            inputs.append(opened | record)
    return inputs


def _open_target(target: str, parts: Parts, folder: Path) -> None:
    module, path = import_target(target), folder / find_target(target).path
    agent = _agent_of(parts)
    for name, content in parts.items():
        with contextlib.suppress(OSError, ValueError):  # what no file system holds
            file = folder / name
            if file.resolve().is_relative_to(folder.resolve()):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
    # What is refused is refused by the reader; only what it takes is worth writing anew.
    if not find_target(target).is_quantized:
        module.read(path, agent)
    if find_target(target).runtime == "litert":  # the one that is quick enough to be asked
        convert.loading.open_artefact(target, path, agent, Settings()).runtime.answer(_observation())
    else:
        with convert.artefacts.open_screened(target, path, agent):
            pass


def _agent_of(parts: Parts) -> Agent:
    text = parts.get(RECORD_NAME, b"").decode("utf-8", "replace")
    return from_json(text, RECORD_NAME).agent


def _observation() -> Any:
    import numpy as np

    return np.zeros((1, 84, 84, 4), np.uint8)


_Values = (AtariConvertError, ValueError)

READERS = {
    "checkpoint": Reader(_checkpoint_seeds, _read_checkpoint),
    "oracle": Reader(_checkpoint_seeds, _judge_checkpoint, _Values),
    "torch-files": Reader(_torch_seeds, _call(convert.files.torch_files.read), _Values),
    "numpy-pickles": Reader(_pickle_seeds, _call(convert.files.numpy_pickles.loads), _Values),
    "archives": Reader(_archive_seeds, _call(convert.files.archives.read_archive), _Values),
    "json": Reader(_record_seeds, _call(convert.files.documents.read_json), _Values),
    "record": Reader(_record_seeds, _read_record),
    **{
        f"source-{name.partition('_v1')[0].partition('.')[0]}": Reader(_zoo_seeds(name), partial(_read_zoo, name))
        for name in (
            "sb3_dqn_v1.6.2_small.zip",
            "sb3_qrdqn_v1.6.2_small.zip",
            "cleanrl_c51_atari.cleanrl_model",
            "cleanrl_c51_atari_jax.cleanrl_model",
            "pfrl_dqn_model.pt",
            "pfrl_rainbow_model.pt",
            "kaixhin_data_efficient_model.pth",
            "dopamine_dqn_ckpt.0",
            "dopamine_full_rainbow_ckpt.0",
        )
    },
    **{
        f"target-{target.name}": Reader(partial(_target_seeds, target.name), partial(_open_target, target.name))
        for target in list_targets()
    },
}

if __name__ == "__main__":
    main()
