"""Sources and outputs at URLs: real servers of S3, of Google Storage and of HTTP that fails as networks do, memory."""

from __future__ import annotations

import hashlib
import http.server
import json
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import boto3
import pytest
import torch
from builders import AGENTS, make_state, save_checkpoint
from bulk_release import COUNT, run
from click.testing import CliRunner
from fsspec.registry import _registry
from gcp_storage_emulator.server import create_server
from moto.server import ThreadedMotoServer

from convert.agents.agent import UNFINISHED_NAME
from convert.bulk import run as bulk
from convert.bulk.selection import find_jobs
from convert.cli import main
from convert.errors import (
    MissingExtra,
    OutputExists,
    SelectionError,
    Unreachable,
    UnreadableCheckpoint,
    UnwritableOutput,
)
from convert.store import storage

pytestmark = pytest.mark.slow

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(endpoint, monkeypatch):
    """A client of an S3 server with an empty bucket."""
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    _forget_systems()
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    yield client
    for item in client.list_objects_v2(Bucket="bucket").get("Contents", ()):
        client.delete_object(Bucket="bucket", Key=item["Key"])
    client.close()
    _forget_systems()


def _forget_systems() -> None:
    """fsspec keeps a file system for each set of options, with the environment that it met."""
    storage._open_system.cache_clear()
    for protocol in ("s3", "gs", "http", "memory"):
        storage._find_class(protocol).clear_instance_cache()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(storage, "WAITS", (0.01,) * len(storage.WAITS))


def _upload(client, folder: Path, prefix: str) -> None:
    for path in folder.rglob("*.gz"):
        client.upload_file(str(path), "bucket", f"{prefix}/{path.relative_to(folder).as_posix()}")


def _hashes(client, prefix: str) -> dict[str, str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=prefix)
    keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
    bodies = {key: client.get_object(Bucket="bucket", Key=key)["Body"].read() for key in keys}
    return {key.removeprefix(f"{prefix}/"): hashlib.sha256(body).hexdigest() for key, body in bodies.items()}


def _statuses(jobs, *targets: str, **options: bool) -> list[str]:
    return [outcome.status for outcome in bulk.run(jobs, bulk.Work(targets, **options))]


def test_from_s3_to_s3_as_from_disk_to_disk(s3, release, expected, monkeypatch):
    _upload(s3, release, "atari")
    jobs = find_jobs(["s3://bucket/atari/"], "s3://bucket/out")
    assert [job.size for job in jobs] == [path.stat().st_size for path in sorted(release.rglob("*.gz"))]
    assert find_jobs(["s3://bucket/atari/**/model_*.gz"], "s3://bucket/out") == jobs
    assert _statuses(jobs, "onnx") == ["converted"] * COUNT
    assert _hashes(s3, "out") == expected
    with monkeypatch.context() as patch:
        patch.setattr(bulk, "convert_job", pytest.fail)
        assert _statuses(find_jobs(["s3://bucket/atari"], "s3://bucket/out"), "onnx") == ["current"] * COUNT
    s3.delete_object(Bucket="bucket", Key=f"out/{jobs[1].path.removesuffix('.gz')}/model.onnx")
    assert sorted(_statuses(jobs, "onnx")) == ["converted"] + ["current"] * (COUNT - 1)
    assert _hashes(s3, "out") == expected


def test_workers_write_to_s3(s3, release, expected, tmp_path):
    result = run(release, "--to", "onnx", "-o", "s3://bucket/two", "-j", 2)
    assert f"{COUNT} converted, 0 current, 0 failed" in result.stdout
    assert _hashes(s3, "two") == expected
    result = run(release, "--to", "onnx", "-o", "s3://bucket/two", "--dry-run", XDG_CACHE_HOME=str(tmp_path))
    assert f"0 to convert, {COUNT} current" in result.stdout


def test_a_public_bucket_needs_no_credentials(s3, release, tmp_path, monkeypatch):
    key = "atari/DQN_modern/Pong/0/model_1.gz"
    s3.upload_file(str(next(release.rglob("*.gz"))), "bucket", key, ExtraArgs={"ACL": "public-read"})
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    _forget_systems()
    with pytest.raises(SelectionError, match=r"s3://bucket/atari: cannot be listed .*--anonymous reads public buckets"):
        find_jobs(["s3://bucket/atari"], tmp_path)
    jobs = find_jobs(["s3://bucket/atari"], tmp_path / "out", anonymous=True)
    assert [job.source for job in jobs] == [f"s3://bucket/{key}"]
    assert storage.read_source(jobs[0].source, anonymous=True)[0] == next(release.rglob("*.gz")).read_bytes()


@pytest.fixture
def gs(monkeypatch):
    """A file system on a Google Storage server with an empty bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    _forget_systems()
    with create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket"):
        yield storage._open("gs://bucket", anonymous=True)[0]
    _forget_systems()


@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")  # of gcsfs' own requests
def test_from_gs_to_gs_as_from_disk_to_disk(gs, release, expected, capfd):
    for path in release.rglob("*.gz"):
        gs.pipe_file(f"bucket/atari/{path.relative_to(release).as_posix()}", path.read_bytes())
    jobs = find_jobs(["gs://bucket/atari"], "gs://bucket/out", anonymous=True)
    assert [job.size for job in jobs] == [path.stat().st_size for path in sorted(release.rglob("*.gz"))]
    assert find_jobs(["gs://bucket/atari/**/model_*.gz"], "gs://bucket/out", anonymous=True) == jobs
    assert _statuses(jobs, "onnx", anonymous=True) == ["converted"] * COUNT
    sent = {name.removeprefix("bucket/out/"): gs.cat_file(name) for name in gs.find("bucket/out")}
    assert {name: hashlib.sha256(data).hexdigest() for name, data in sent.items()} == expected
    assert _statuses(jobs, "onnx", anonymous=True) == ["current"] * COUNT
    assert "Could not determine bucket type" not in capfd.readouterr().err


def test_another_target_is_merged_and_another_source_replaces_all(s3, release, tmp_path):
    jobs = find_jobs([release], "s3://bucket/merged")[:1]
    assert _statuses(jobs, "onnx") == ["converted"]
    assert _statuses(jobs, "flax") == ["converted"]
    here = find_jobs([release], tmp_path)[:1]
    assert _statuses(here, "onnx", "flax") == ["converted"]
    folder = jobs[0].path.removesuffix(".gz")
    expected = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / folder).iterdir()}
    assert _hashes(s3, f"merged/{folder}") == expected
    other = save_checkpoint(tmp_path / "other" / jobs[0].path, make_state(18, 51, seed=50))
    assert _statuses(find_jobs([other], "s3://bucket/merged"), "onnx") == ["converted"]
    changed = _hashes(s3, f"merged/{folder}")
    assert changed.keys() == expected.keys()
    assert all(changed[name] != expected[name] for name in expected)


def test_what_a_kill_left_at_a_url_is_sent_again(s3, release, tmp_path, monkeypatch):
    """A run that dies at any of its requests is gone on with."""
    (job,) = find_jobs([release], "s3://bucket/kill")[:1]
    write = storage.write_bytes
    for survived in range(4):
        monkeypatch.setattr(storage, "write_bytes", partial(_write_until, write, [survived]))
        with pytest.raises(KeyboardInterrupt):
            bulk.convert_job(bulk.Work(("onnx", "flax"), overwrite=survived > 1), job)
        monkeypatch.setattr(storage, "write_bytes", write)
        names = {name.rpartition("/")[2] for name in _hashes(s3, "kill")}
        assert (UNFINISHED_NAME in names) == (survived > 0)
        assert bulk.convert_job(bulk.Work(("onnx",)), job).error is None
        assert {name.rpartition("/")[2] for name in _hashes(s3, "kill")} >= {"agent.json", "model.onnx"}
        assert UNFINISHED_NAME not in {name.rpartition("/")[2] for name in _hashes(s3, "kill")}
    assert _statuses([job], "onnx", "flax", check_hashes=True)
    here = find_jobs([release], tmp_path)[:1]
    assert _statuses(here, "onnx", "flax") == ["converted"]
    folder = Path(here[0].folder)
    for name, digest in _hashes(s3, "kill").items():
        assert digest == hashlib.sha256((folder / Path(name).name).read_bytes()).hexdigest()


def _write_until(write, left: list[int], url: str, data: bytes) -> None:
    if not left[0]:
        raise KeyboardInterrupt
    left[0] -= 1
    write(url, data)


def test_a_target_that_fails_takes_no_other_down_at_a_url_either(s3, tmp_path):
    source = save_checkpoint(tmp_path / "C51_classic/Breakout/0/model_5.gz", make_state(4, 51))
    (job,) = find_jobs([source], "s3://bucket/partial")
    both = bulk.Work(("dopamine", "flax"))
    assert bulk.convert_job(both, job).error is None
    uneven = make_state(4, 51)
    uneven["_AtariNet__support"] = torch.linspace(0, 20, 51)  # which Dopamine cannot hold
    save_checkpoint(source, uneven)
    for written in (("flax",), ()):
        (job,) = find_jobs([source], "s3://bucket/partial")
        outcome = bulk.convert_job(both, job)
        assert (outcome.status, outcome.written, outcome.seen) == ("failed", written, None)
        assert "model_5.gz: could not write dopamine, " in str(outcome.error)
        # What was there of the former agent is gone.
        assert {name.rpartition("/")[2] for name in _hashes(s3, "partial")} == {"agent.json", "params.msgpack"}
    assert bulk.convert_job(bulk.Work(("flax",)), job).status == "current"


@pytest.mark.parametrize("lie", ["action_meanings", "notes", "layout", "huge"])
def test_a_record_at_a_url_that_lies_is_sent_again(lie, s3, release):
    (job, *_) = find_jobs([release], f"s3://bucket/lie-{lie}")
    assert bulk.convert_job(bulk.Work(("flax",)), job).status == "converted"
    before = _hashes(s3, f"lie-{lie}")
    key = f"lie-{lie}/{job.path.removesuffix('.gz')}/agent.json"
    document = json.loads(s3.get_object(Bucket="bucket", Key=key)["Body"].read())
    document |= {lie: list(reversed(document["action_meanings"]))} if lie != "layout" else {}
    text = json.dumps(document, indent=None if lie == "layout" else 2, ensure_ascii=False) + "\n"
    s3.put_object(Bucket="bucket", Key=key, Body=(" " * 2**21 + text if lie == "huge" else text).encode())
    assert [outcome.status for outcome in bulk.rehearse([job], bulk.Work(("flax",)))] == (
        ["failed"] if lie == "huge" else ["converted"]
    )
    outcome = bulk.convert_job(bulk.Work(("flax",)), job)
    if lie == "huge":  # nobody knows whose it is
        assert "its agent.json is damaged or not ours" in str(outcome.error)
    else:
        assert outcome.status == "converted"
        assert _hashes(s3, f"lie-{lie}") == before


def test_what_is_not_ours_is_left_alone(s3, release):
    (job,) = find_jobs([release], "s3://bucket/foreign")[:1]
    s3.put_object(Bucket="bucket", Key=f"foreign/{job.path.removesuffix('.gz')}/notes.txt", Body=b"mine")
    outcome = bulk.convert_job(bulk.Work(("onnx",)), job)
    assert isinstance(outcome.error, OutputExists)
    assert "holds notes.txt and no agent.json: nothing was touched" in str(outcome.error)
    assert len(_hashes(s3, "foreign")) == 1
    s3.put_object(Bucket="bucket", Key=f"foreign/{job.path.removesuffix('.gz')}/agent.json", Body=b"{}")
    outcome = bulk.convert_job(bulk.Work(("onnx",)), job)
    assert "holds agent.json, notes.txt; its agent.json is damaged or not ours" in str(outcome.error)


@pytest.mark.parametrize("with_journal", [True, False])
def test_a_file_at_a_url_that_differs_from_its_record_is_sent_again(s3, release, with_journal, tmp_path, monkeypatch):
    jobs = find_jobs([release], "s3://bucket/damaged")[:2]
    assert _statuses(jobs, "flax") == ["converted", "converted"]
    before = _hashes(s3, "damaged")
    key = f"damaged/{jobs[0].path.removesuffix('.gz')}/params.msgpack"
    body = bytearray(s3.get_object(Bucket="bucket", Key=key)["Body"].read())
    body[-1] ^= 1
    s3.put_object(Bucket="bucket", Key=key, Body=bytes(body))
    if not with_journal:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert sorted(_statuses(jobs, "flax")) == ["converted", "current"]
    assert _hashes(s3, "damaged") == before


def test_an_output_at_a_url_needs_no_cache_folder(release, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    jobs = find_jobs([release], f"local://{tmp_path}/out")[:2]
    assert _statuses(jobs, "onnx") == ["converted", "converted"]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    outcomes = list(bulk.run(jobs, bulk.Work(("onnx",), overwrite=True)))
    assert [str(outcome.error) for outcome in outcomes] == [
        f"{tmp_path}/gone: cannot be written (No such file or directory): agents are made on this computer first, and "
        "XDG_CACHE_HOME or TMPDIR can name another place"
    ] * 2


@pytest.mark.usefixtures("s3")
def test_an_output_that_cannot_be_reached_is_a_failure_of_each_agent(release, monkeypatch):
    jobs = find_jobs([release], "s3://bucket/gone")[:2]
    assert _statuses(jobs, "onnx") == ["converted", "converted"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    _forget_systems()
    assert _statuses(jobs, "onnx") == ["failed", "failed"]


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_is_not_there_is_a_failure(release):
    (job,) = find_jobs([release], "s3://nobucket/out")[:1]
    outcome = bulk.convert_job(bulk.Work(("onnx",)), job)
    assert isinstance(outcome.error, UnwritableOutput)
    assert "s3://nobucket/out" in str(outcome.error)


class _Faulty(http.server.SimpleHTTPRequestHandler):
    """Serves files, after the faults that are listed for a path."""

    faults: dict[str, list[str]]

    def do_GET(self) -> None:
        faults = self.faults.get(self.path.rpartition("/")[2], [])
        fault = faults.pop(0) if faults else None
        if fault == "reset":
            self.connection.close()
        elif fault == "truncate":
            path = self.translate_path(self.path)
            data = Path(path).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
        elif fault:
            self.send_error(int(fault))
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, ValueError):  # "reset" closed it
            self.close_connection = True


@pytest.fixture
def faulty(release) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """The URL of an HTTP server of the release, and the faults that it is to have by file name."""
    faults: dict[str, list[str]] = {}
    handler = type("Handler", (_Faulty,), {"faults": faults})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(release))) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", faults
        server.shutdown()
        thread.join()


def test_faults_of_the_network_are_tried_again(faulty, release, expected, tmp_path):
    url, faults = faulty
    names = [path.relative_to(release).as_posix() for path in sorted(release.rglob("*.gz"))]
    for name, fault in zip(
        names, (["503"], ["reset"], ["truncate"], ["500", "reset", "truncate", "429"]), strict=False
    ):
        faults[name.rpartition("/")[2]] = fault
    listed = [f"{url}/{name}" for name in names]
    jobs = find_jobs([], tmp_path, listed=listed)
    assert _statuses(jobs, "onnx") == ["converted"] * COUNT
    assert not any(faults.values())
    found = {
        path.relative_to(tmp_path).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    assert found == expected


def test_faults_of_the_network_change_no_verdict_of_a_check(faulty, release, tmp_path, monkeypatch):
    from runtime_check.cli import main as check

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url, faults = faulty
    names = [path.name for path in sorted(release.rglob("*.gz"))]
    run(release, "--to", "onnx", "-o", tmp_path / "out")
    faults |= dict(zip(names, (["503"], ["reset"], ["truncate", "429"], ["503"] * 100), strict=False))
    result = CliRunner().invoke(check, [str(tmp_path / "out"), "--source", url, "--max-steps", "2"])
    assert f"{COUNT - 1} agents agree, 0 disagree, 1 could not be checked" in result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("not checked")]
    assert names[3].removesuffix(".gz") in line
    assert "tried 5 times" in line
    faults.clear()
    result = CliRunner().invoke(check, [str(tmp_path / "out"), "--source", url, "--max-steps", "2"])
    assert f"{COUNT} agents agree" in result.output


def test_a_folder_of_a_web_server_is_searched(faulty, release, tmp_path):
    url, _ = faulty
    jobs = find_jobs([url], tmp_path)
    assert [job.path for job in jobs] == [
        path.relative_to(release).as_posix() for path in sorted(release.rglob("*.gz"))
    ]
    result = run(url, "--to", "onnx", "-o", tmp_path, "--dry-run")
    told = f"{COUNT} to convert, 0 current, 0 failed; 0 B to read, not counting {COUNT} of unknown size"
    assert told in result.stdout
    assert f"{url}/nothing: cannot be listed (not found)" in run(f"{url}/nothing", "--to", "onnx", code=2).stderr


def test_a_folder_is_listed_in_spite_of_faults_of_the_network(faulty, tmp_path):
    url, faults = faulty
    faults[""] = ["503", "reset", "500"]  # of a folder's page
    assert len(find_jobs([url], tmp_path)) == COUNT
    faults["DQN_modern"] = faults[""] = ["503"] * 100
    with pytest.raises(Unreachable, match=r"cannot be listed \(503.*, tried 5 times\)"):
        find_jobs([url], tmp_path)
    (job,) = find_jobs([], tmp_path, listed=[f"{url}/DQN_modern"])
    (outcome,) = bulk.run([job], bulk.Work(("onnx",)))
    assert "DQN_modern: cannot be read (503" in str(outcome.error)
    result = CliRunner().invoke(main, [url, "--to", "onnx", "-o", str(tmp_path)])
    assert (result.exit_code, result.stderr[:7]) == (1, "failed:")


def test_a_page_of_very_many_links_is_refused(tmp_path):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            page = "".join(f'<a href="model_{number}.gz">' for number in range(int(self.path[1:]))).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        assert len(find_jobs([f"{url}/1000"], tmp_path)) == 1000
        began = time.monotonic()
        result = run(f"{url}/500000", "--to", "onnx", "-o", tmp_path, "--dry-run", code=2)
        assert time.monotonic() - began < 30
    finally:
        server.shutdown()
        server.server_close()
    hint = "name the folders below it, or list the files with --files-from"
    message = f"{url}/500000: cannot be listed (its page has over 100,000 links: {hint})"
    assert result.stderr.splitlines()[-1] == f"Error: {message}"


def test_a_server_that_needs_more_than_a_name_is_asked_with_what_the_url_says(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(Unreachable, match=rf"ftp://me:word@127.0.0.1:{port}: cannot be reached .*refused"):
        find_jobs([f"ftp://me:word@127.0.0.1:{port}/agents"], tmp_path)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("503", r"503.*tried 5 times"),
        ("reset", "tried 5 times"),
        ("404", r"model_\d+\.gz: cannot be read \(not found\)"),
        ("403", "403"),
    ],
)
def test_a_fault_that_stays_is_that_files_failure(fault, message, faulty, release):
    url, faults = faulty
    name = next(release.rglob("*.gz")).relative_to(release).as_posix()
    faults[name.rpartition("/")[2]] = [fault] * 20
    with pytest.raises(UnreadableCheckpoint, match=message) as caught:
        storage.read_source(f"{url}/{name}")
    assert ("tried" in str(caught.value)) == (fault in ("503", "reset"))
    served = 20 - len(faults[name.rpartition("/")[2]])
    assert served == 1 if fault in ("403", "404") else served >= 5  # aiohttp itself goes on after a reset


def test_a_store_is_asked_for_no_more_than_the_bound(s3, monkeypatch):
    monkeypatch.setattr(storage, "LARGEST", 999)
    for size in (0, 999, 1000):
        s3.put_object(Bucket="bucket", Key="large/model_1.gz", Body=bytes(size))
        if size <= 999:
            assert len(storage.read_source("s3://bucket/large/model_1.gz")[0]) == size
    with pytest.raises(UnreadableCheckpoint, match=r"cannot be read \(has 1000 bytes, expected at most 999\)"):
        storage.read_source("s3://bucket/large/model_1.gz")
    with pytest.raises(UnwritableOutput, match=r"cannot be read \(has 1000 bytes, expected at most 999\)"):
        storage.read_bytes("s3://bucket/large/model_1.gz")


def test_a_source_that_says_it_is_far_too_large_is_not_read(monkeypatch):
    _forget_systems()
    storage.write_bytes("memory://large/model_1.gz", bytes(1000))
    monkeypatch.setattr(storage, "LARGEST", 999)
    with pytest.raises(UnreadableCheckpoint, match=r"cannot be read \(has 1000 bytes, expected at most 999\)"):
        storage.read_source("memory://large/model_1.gz")


def test_memory_is_an_output_like_any_other(release, expected):
    _forget_systems()
    jobs = find_jobs([release], "memory://out")
    assert _statuses(jobs, "onnx") == ["converted"] * COUNT
    assert _statuses(jobs, "onnx") == ["current"] * COUNT
    files = storage.list_files("memory://out")
    assert {path: hashlib.sha256(storage.read_bytes(f"memory://out/{path}")).hexdigest() for path in files} == expected
    result = CliRunner().invoke(main, [str(release), "--to", "onnx", "-o", "memory://out", "-j", "2"])
    assert result.exit_code == 2
    assert "memory:// works within one process only" in result.stderr


def test_a_missing_library_names_its_extra(monkeypatch):
    storage._open_system.cache_clear()
    for protocol, package, extra in (("s3", "s3fs", "s3"), ("gs", "gcsfs.core", "gcs")):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(_registry, protocol, raising=False)
        with pytest.raises(MissingExtra, match=rf"pip install 'atari-convert\[{extra}\]'"):
            find_jobs([f"{protocol}://bucket/atari"], "out")
    with pytest.raises(SelectionError, match="expected a path, gs://, s3:// or https://"):
        find_jobs(["nonsense://bucket"], "out")


def test_agents_in_s3_are_checked_there_and_keep_their_proof(s3, tmp_path, monkeypatch):
    """Agents and checkpoints in a bucket: fetched one by one, nothing left here, passed over the next time."""
    from runtime_check.cli import main as check

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    (tmp_path / "temp").mkdir()
    _upload(s3, AGENTS, "atari")
    assert _statuses(find_jobs(["s3://bucket/atari"], "s3://bucket/out"), "onnx") == ["converted"] * 2
    arguments = ["s3://bucket/out/", "--source", "s3://bucket/atari", "--max-steps", "3"]

    def run_check(*options: str, code: int = 0) -> str:
        result = CliRunner().invoke(check, [*arguments, *options])
        assert result.exit_code == code, result.output
        return result.output

    report = tmp_path / "report"
    text = run_check("--report", str(report))
    assert "2 agents agree" in text
    assert "s3://bucket/out/DQN_modern/Pong/0/model_328492" in text
    assert str(tmp_path / "temp") not in text + (report / "check.json").read_text("utf-8")
    proofs = {key: digest for key, digest in _hashes(s3, "out").items() if key.endswith("proof.json")}
    assert len(proofs) == 2
    assert "2 of them known from an earlier run" in run_check()
    assert "1 to check, 1 known" in run_check("--dry-run", "--game", "Pong", "--again").replace("0 known", "1 known")
    # An artefact that is replaced with other weights, with a record that says so.
    key = "out/DQN_modern/Pong/0/model_328492/model.onnx"
    data = bytearray(s3.get_object(Bucket="bucket", Key=key)["Body"].read())
    data[-5] ^= 1
    s3.put_object(Bucket="bucket", Key=key, Body=bytes(data))
    text = run_check(code=1)
    assert "1 agent agrees, 1 disagree, 0 could not be checked; 1 of them known" in text
    assert "checksum" in text
    assert {key: _hashes(s3, "out")[key] for key in proofs} == proofs
    result = CliRunner().invoke(check, ["report", "s3://bucket/out"])
    assert result.exit_code == 2
    assert "not about the agent and the files that are there" in result.output
    s3.delete_object(Bucket="bucket", Key="atari/DQN_modern/Pong/0/model_328492.gz")
    assert "s3://bucket/atari/DQN_modern/Pong/0/model_328492.gz: cannot be read (not found)" in run_check(code=2)
    assert list((tmp_path / "temp").iterdir()) == []


def test_a_check_of_a_bucket_works_in_processes_and_on_local_agents(s3, tmp_path, monkeypatch):
    from runtime_check.cli import main as check

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _upload(s3, AGENTS, "atari")
    run(AGENTS, "--to", "onnx", "-o", tmp_path / "out")
    arguments = [str(tmp_path / "out"), "--source", "s3://bucket/atari", "--max-steps", "3", "-j", "2"]
    result = CliRunner().invoke(check, arguments)
    assert (result.exit_code, "2 agents agree" in result.output) == (0, True), result.output
    assert "2 of them known" in CliRunner().invoke(check, arguments).output
    assert len(list((tmp_path / "out").rglob("proof.json"))) == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no agent.json in it or below"),
        ({"agent.json": b"{"}, "not JSON"),
        ({"agent.json": b"{}", "..\\x": b"1"}, "backslashes"),
    ],
)
def test_what_a_bucket_holds_is_not_trusted(files, message, s3, tmp_path, monkeypatch):
    from runtime_check.cli import main as check

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    s3.put_object(Bucket="bucket", Key="bad/other.txt", Body=b"1")
    for name, data in files.items():
        s3.put_object(Bucket="bucket", Key=f"bad/agent/{name}", Body=data)
    result = CliRunner().invoke(check, ["s3://bucket/bad", "--source", str(AGENTS)])
    assert result.exit_code == 2
    assert message in result.output
