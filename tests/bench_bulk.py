"""Measure bulk conversion against its floor and against what a user would write: ``nox -s bench -- bulk``.

The floor is what no converter can do without: inflate each checkpoint with the fastest well-kept library, hash it,
write as many bytes as the artefacts have, and hash those. Each measurement is a process of its own, the rounds of all
go in turn, and the medians are compared: a computer that others use as well slows all alike.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from convert.bulk.engines.processes import MALLOC

TARGETS = {
    "onnx": ("onnx",),
    "flax": ("flax",),
    "tensorflow": ("tensorflow",),
    "all three": ("onnx", "flax", "tensorflow"),
}
AIMS = {"onnx": 0.75, "flax": 0.7, "tensorflow": 0.55, "all three": 0.6}
BY_HAND = {"onnx, dynamo": 4, "onnx, TorchScript": 10, "flax to_bytes": 20, "keras export": 5}  # files of each
ACTIONS, ATOMS, DIFFERENT = 18, 51, 20


def make_release(root: Path, count: int) -> None:
    """Write agents, half DQN and half C51, as hard links to a few files; weights as a trained agent's compress."""
    from builders import make_state, save_checkpoint

    files = [
        save_checkpoint(root / f"{index}.gz", make_state(ACTIONS, ATOMS if index % 2 else None, seed=index))
        for index in range(min(DIFFERENT, count))
    ]
    for index in range(count):
        path = root / ("C51_classic" if index % 2 else "DQN_modern") / "Seaquest/0" / f"model_{index}.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(files[index % len(files)], path)
    for file in files:
        file.unlink()


def measure(name: str, root: Path, out: Path, jobs: int) -> dict[str, float]:
    """Run one measurement: an agent's cost in seconds on the clock and of processors, the start-up, a worker's peak."""
    kind, _, what = name.partition(": ")
    done = {"floor": run_floor, "tool": run_tool, "again": run_tool, "by hand": run_by_hand}[kind](
        what, root, out, jobs
    )
    started = time.perf_counter()
    marks = [(time.perf_counter() - started, _processor_time()) for _ in done]
    warm = marks[min(2 * jobs, len(marks) // 2) - 1]  # frameworks are loaded, graphs are built
    count = len(marks) - min(2 * jobs, len(marks) // 2)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN if kind in ("floor", "tool") else resource.RUSAGE_SELF).ru_maxrss
    wall, processor = ((last - first) / count for first, last in zip(warm, marks[-1], strict=True))
    return {"wall": wall, "cpu": processor, "start": warm[0], "peak": peak * 1024}


def _processor_time() -> float:
    """Return the seconds that this process and its workers have computed."""
    own = f"/proc/{os.getpid()}"
    children = [pid for task in Path(own, "task").iterdir() for pid in (task / "children").read_text().split()]
    ticks = 0
    for process in (own, *(f"/proc/{pid}" for pid in children)):
        fields = Path(process, "stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def run_tool(what: str, root: Path, out: Path, jobs: int) -> Iterable[object]:
    from convert.bulk import run as bulk
    from convert.bulk.engines import processes
    from convert.bulk.selection import find_jobs

    for outcome in bulk.run(find_jobs([root], out), bulk.Work(TARGETS[what]), engine=processes.make_engine(jobs)):
        assert outcome.error is None, outcome.error
        yield outcome


def run_floor(what: str, root: Path, out: Path, jobs: int) -> Iterator[object]:
    from convert.bulk import run as bulk
    from convert.bulk.selection import find_jobs

    sizes = {}
    for head in ("C51_classic", "DQN_modern"):
        sample = find_jobs([root / head], out / "sample")[:1]
        (outcome,) = bulk.run(sample, bulk.Work(TARGETS[what]))
        sizes[head] = [file.size for artifact in outcome.record.artifacts.values() for file in artifact.files]
    paths = sorted(root.rglob("*.gz"))
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        yield from pool.map(partial(floor, out, sizes), paths)


def floor(out: Path, sizes: dict[str, list[int]], path: Path) -> str:
    import deflate

    data = path.read_bytes()
    raw = deflate.gzip_decompress(data)
    digest = hashlib.sha256(data)
    folder = out / path.parts[-4] / path.stem
    folder.mkdir(parents=True)
    for index, size in enumerate(sizes[path.parts[-4]]):
        pieces = [memoryview(raw)[:size], bytes(max(0, size - len(raw)))]
        with (folder / str(index)).open("wb") as file:
            file.writelines(pieces)
        for piece in pieces:
            digest.update(piece)
    return digest.hexdigest()


def run_by_hand(what: str, root: Path, out: Path, jobs: int) -> Iterator[object]:
    """Do what a user would write, in one process: it is many times slower, and needs no help to be so."""
    del jobs
    out.mkdir(parents=True)
    convert = {"onnx, dynamo": _onnx, "onnx, TorchScript": _onnx, "flax to_bytes": _flax, "keras export": _keras}[what]
    for index, path in enumerate(sorted((root / "DQN_modern").rglob("*.gz"))[: BY_HAND[what]]):
        convert(_load(path), out / str(index), what)
        yield path


def _load(path: Path):
    import torch

    with gzip.open(path) as file:
        state = torch.load(file, map_location="cpu", weights_only=True)["estimator_state"]
    return {name.removeprefix("_AtariNet__"): tensor for name, tensor in state.items()}


def _onnx(state, path: Path, what: str) -> None:
    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(
                *(nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU()),
                *(nn.Conv2d(64, 64, 3), nn.ReLU()),
            )
            self.head = nn.Sequential(nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, ACTIONS))

        def forward(self, observation):
            return self.head(self.features(observation.float() / 255).flatten(1))

    network = Network()
    network.load_state_dict(state)
    network.eval()
    example = (torch.zeros(2, 4, 84, 84, dtype=torch.uint8),)
    names = {"input_names": ["observation"], "output_names": ["q_values"]}
    if what == "onnx, dynamo":
        shapes = {"observation": {0: torch.export.Dim("batch")}}
        torch.onnx.export(network, example, f"{path}.onnx", dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
    else:
        axes = {"observation": {0: "batch"}}
        torch.onnx.export(network, example, f"{path}.onnx", dynamo=False, dynamic_axes=axes, **names)


def _hwc(state):
    kernels = [state[f"features.{index}.weight"].numpy().transpose(2, 3, 1, 0) for index in (0, 2, 4)]
    hidden = state["head.0.weight"].numpy().reshape(512, 64, 7, 7).transpose(2, 3, 1, 0).reshape(3136, 512)
    biases = [state[f"{name}.bias"].numpy() for name in ("features.0", "features.2", "features.4", "head.0", "head.2")]
    return list(zip([*kernels, hidden, state["head.2.weight"].numpy().T], biases, strict=True))


def _flax(state, path: Path, what: str) -> None:
    from flax import serialization

    del what
    names = ("Conv_0", "Conv_1", "Conv_2", "Dense_0", "Dense_1")
    params = {name: {"kernel": kernel, "bias": bias} for name, (kernel, bias) in zip(names, _hwc(state), strict=True)}
    path.with_suffix(".msgpack").write_bytes(serialization.to_bytes({"params": params}))


def _keras(state, path: Path, what: str) -> None:
    import keras

    del what
    layers = keras.layers
    observation = keras.Input((84, 84, 4), dtype="uint8")
    x = layers.Rescaling(1 / 255)(observation)
    for filters, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
        x = layers.Conv2D(filters, size, stride, activation="relu")(x)
    x = layers.Dense(512, activation="relu")(layers.Flatten()(x))
    model = keras.Model(observation, layers.Dense(ACTIONS)(x))
    model.set_weights([array for pair in _hwc(state) for array in pair])
    model.export(str(path), verbose=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write, about 30 MB for each agent")
    parser.add_argument("--one", nargs=3, metavar=("NAME", "ROOT", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, root, out = options.one
        print(json.dumps(measure(name, Path(root), Path(out), options.jobs)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        print_report(run_all(Path(folder), options), options)


def run_all(folder: Path, options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    make_release(folder / "release", options.agents)
    results: dict[str, list[dict[str, float]]] = {}
    for round_ in range(options.rounds):
        for what in TARGETS:
            out = folder / "out"
            for name in (f"floor: {what}", f"tool: {what}", f"again: {what}"):
                if not name.startswith("again"):
                    shutil.rmtree(out, ignore_errors=True)
                results.setdefault(name, []).append(run_one(name, folder, out, options.jobs))
        shutil.rmtree(out)
        for what in BY_HAND if round_ == 0 else ():
            results[f"by hand: {what}"] = [run_one(f"by hand: {what}", folder, folder / what, 1)]
    few = folder / "few"
    make_release(few / "release", max(10, options.agents // 10))
    for what in TARGETS:
        results[f"few: {what}"] = [run_one(f"tool: {what}", few, few / what, options.jobs)]
    return results


def run_one(name: str, folder: Path, out: Path, jobs: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--jobs", str(jobs), "--one", name, str(folder / "release"), str(out)]
    # The floor and what users write get the memory settings of the tool's workers as well.
    environment = os.environ | MALLOC | {"PYTHONPATH": str(Path(__file__).parents[1]), "TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{name}:\n{result.stdout}{result.stderr}")
    print(f"  {name}: {result.stdout.splitlines()[-1]}", file=sys.stderr)
    answer: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return answer


def print_report(results: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> None:
    def median(name: str, key: str) -> float:
        return statistics.median(row[key] for row in results[name])

    def ratio(what: str, key: str) -> float:
        pairs = zip(results[f"floor: {what}"], results[f"tool: {what}"], strict=True)
        return statistics.median(low[key] / high[key] for low, high in pairs)

    few = max(10, options.agents // 10)
    print(
        f"{options.agents} agents, {options.jobs} worker processes, medians of {options.rounds} rounds; {_machine()}\n"
    )
    print("| | floor, CPU | atari-convert, CPU | of the floor, CPU (clock) | aim | agents/s | start-up | peak |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for what in TARGETS:
        peak, early = (max(row["peak"] for row in results[f"{kind}: {what}"]) / 1e6 for kind in ("tool", "few"))
        print(
            f"| {what} | {median(f'floor: {what}', 'cpu') * 1e3:.1f} ms "
            f"| {median(f'tool: {what}', 'cpu') * 1e3:.1f} ms "
            f"| {ratio(what, 'cpu'):.2f} ({ratio(what, 'wall'):.2f}) | {AIMS[what]} "
            f"| {1 / median(f'tool: {what}', 'wall'):.1f} | {median(f'tool: {what}', 'start'):.1f} s "
            f"| {peak:.0f} MB ({early:.0f} after {few}) |"
        )
    print("\n| all is current | CPU | times cheaper |")
    print("|---|---:|---:|")
    for what in TARGETS:
        again = median(f"again: {what}", "wall")
        print(f"| {what} | {again * 1e3:.2f} ms | {median(f'tool: {what}', 'cpu') / again:.0f} |")
    print("\n| by hand, CPU | an agent | times as much as atari-convert |")
    print("|---|---:|---:|")
    for what in BY_HAND:
        target = {"flax to_bytes": "flax", "keras export": "tensorflow"}.get(what, "onnx")
        seconds = median(f"by hand: {what}", "cpu")
        print(f"| {what} | {seconds * 1e3:.0f} ms | {seconds / median(f'tool: {target}', 'cpu'):.1f} |")
    minutes = {what: 25_500 * median(f"tool: {what}", "wall") / 60 for what in TARGETS}
    print("\n25,500 agents would take " + ", ".join(f"{value:.0f} min ({what})" for what, value in minutes.items()))


def _machine() -> str:
    cpu = next(
        (line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?"
    )
    return f"{os.cpu_count()} × {cpu}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
