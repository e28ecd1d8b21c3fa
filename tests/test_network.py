"""Web servers that fail, lie, stall and flood, on loopback; what a user sees, and how much memory it takes."""

from __future__ import annotations

import gzip
import http.server
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from builders import PONG
from bulk_release import run

from convert.bulk import run as bulk
from convert.bulk.selection import find_jobs
from convert.errors import SelectionError, Unreachable, UnreadableCheckpoint
from convert.store import storage

pytestmark = pytest.mark.slow

BOUND = 128 * 2**20
CHUNK = bytes(2**20)
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


class _Server(http.server.ThreadingHTTPServer):
    """Answers each request, HEAD as GET, with what stands for its path, first what stands first; else 404."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[str] = []
        self.times: list[float] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """The client hung up, as it should."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        self.server.times.append(time.monotonic())
        answers = self.server.answers.get(path, [_status(404)])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        answer(self)
        self.close_connection = True

    def end_headers(self) -> None:
        self.send_header("Connection", "close")
        super().end_headers()

    do_HEAD = do_GET  # noqa: N815  the name that http.server calls

    def log_message(self, *_: object) -> None:
        pass


def _status(code: int, **headers: str) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def _body(data: bytes, length: bool = True, **headers: str) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        if length:
            handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(data)

    return answer


def _flood(**headers: str) -> Answer:
    """Answer without end."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        while handler.command == "GET":
            handler.wfile.write(CHUNK)

    return answer


def _chunked_flood(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    while handler.command == "GET":
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK))


def _bomb(handler: http.server.BaseHTTPRequestHandler) -> None:
    """Answer with 4 MB that inflate to 4 GB."""
    _body(gzip.compress(CHUNK, 9) * 4096, Content_Encoding="gzip", Content_Type="text/html")(handler)


def _drip(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    while handler.command == "GET":
        handler.wfile.write(b"x")
        time.sleep(0.1)


def _garbage(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")


@pytest.fixture
def server() -> Iterator[_Server]:
    storage._open_system.cache_clear()
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def _short_waits(monkeypatch):
    monkeypatch.setattr(storage, "WAITS", (0.01,) * len(storage.WAITS))


def _limited(statement: str) -> str:
    """Run a statement in a process of its own; return what it raised, with the largest memory it had at its end."""
    code = f"""
import re
from convert.bulk import selection
from convert.store import storage
storage.WAITS = (0.01,) * 4
try:
    print({statement})
except Exception as error:
    print(error)
# Not ru_maxrss, which on Linux counts the process that started this one too.
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    told, memory = result.stdout.strip().rsplit("\n", 1)
    assert int(memory) < 1.5 * 2**20, f"{memory} kB"
    return told


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (_flood(), "has more than 134217728 bytes"),
        (_flood(Content_Length=str(2**40)), f"has {2**40} bytes"),
        (_flood(Content_Encoding="gzip"), "has more than 134217728 bytes"),
        (_chunked_flood, "has more than 134217728 bytes"),
    ],
)
def test_a_source_without_end_stays_within_the_bound(server, answer, told):
    server.answers["/model_1.gz"] = [answer]
    url = f"{server.url}/model_1.gz"
    assert _limited(f"len(storage.read_source({url!r})[0])") == (
        f"{url}: cannot be read ({told}, expected at most 134217728)"
    )
    assert server.asked == ["GET /model_1.gz"]  # once: another try is no better


def test_a_source_that_lies_about_its_length_stays_within_the_bound(server):
    server.answers["/model_1.gz"] = [_flood(Content_Length="100")]
    told = _limited(f"len(storage.read_source('{server.url}/model_1.gz')[0])")
    assert told == "100" or "cannot be read (the server's answer is not valid HTTP" in told


def test_what_is_labelled_as_compressed_is_not_inflated(server):
    server.answers["/model_1.gz"] = [_bomb]
    told = _limited(f"len(storage.read_source('{server.url}/model_1.gz')[0])")
    assert int(told) == len(gzip.compress(CHUNK, 9)) * 4096
    data = PONG.read_bytes()
    for encoding in ("gzip", "br", "nonsense", "deflate, gzip"):
        server.answers["/model_1.gz"] = [_body(data, Content_Encoding=encoding)]
        assert storage.read_source(f"{server.url}/model_1.gz")[0] == data


@pytest.mark.parametrize("answer", [_flood(), _flood(Content_Type="text/html"), _chunked_flood])
def test_a_listing_without_end_stays_within_the_bound(server, answer):
    for path in ("/atari", "/atari/"):
        server.answers[path] = [answer]
    for source in (f"{server.url}/atari", f"{server.url}/atari/*.gz", f"{server.url}/*/model_*.gz"):
        server.answers["/"] = [_body(b'<a href="atari/">', Content_Type="text/html")]
        told = _limited(f"selection.find_jobs([{source!r}], 'out')")
        assert "/atari" in told
        assert "cannot be listed (has more than 16777216 bytes, expected at most 16777216)" in told


def test_a_listing_is_not_inflated(server):
    server.answers["/atari"] = [_bomb]
    assert "no checkpoint found" in _limited(f"selection.find_jobs(['{server.url}/atari'], 'out')")


@pytest.mark.parametrize(
    "page", [b"<a " * 5_000_000, b"href " * 3_000_000, b'href="' * 2_500_000, b"<a\t" + b" " * 15_000_000]
)
def test_a_page_that_is_made_to_be_slow_is_searched_at_once(server, page):
    server.answers["/atari"] = [_body(page, Content_Type="text/html")]
    started = time.monotonic()
    assert "no checkpoint found" in _limited(f"selection.find_jobs(['{server.url}/atari'], 'out')")
    assert time.monotonic() - started < 60


def test_folders_without_end_are_told(server, tmp_path):
    page = _body(b'<a href="deeper/">', Content_Type="text/html")
    server.answers = {f"/a{'/deeper' * depth}{slash}": [page] for depth in range(50) for slash in ("", "/")}
    with pytest.raises(
        SelectionError, match=r"/a: more than 20 levels of folders below it, perhaps a link in a circle"
    ):
        find_jobs([f"{server.url}/a"], tmp_path)
    assert len(server.asked) < 30


def test_links_of_every_form_are_found(server, tmp_path):
    page = f"""<A class="x" HREF = "model_1.gz">one</A> <a href='/atari/model_2.gz'>two</a>
        <a href="{server.url}/atari/model_3.gz#top">three</a> <a href="model_%204.gz">four</a>
        <a href="{server.url.replace("http", "https")}/atari/model_5.gz">five</a> <a href="a&amp;b/">six</a>
        <a href="?C=M;O=A">sort</a> <a href="../">up</a> <a href="/">top</a> <a href="http://[">none</a>
        <a href="https://elsewhere.example/atari/model_6.gz">elsewhere</a> <a href="javascript:model_7.gz">none</a>
        <a href="x/model_8.gz">deeper</a> <a href="y/model_8.gz">deeper</a>"""
    server.answers["/atari"] = [_status(301, Location="/atari/")]
    server.answers["/atari/"] = [_body(page.encode(), Content_Type="text/html; charset=utf-8")]
    server.answers["/atari/a&b/"] = [_body(b'<a href="model_9.gz">', Content_Type="text/html")]
    names = {job.source.removeprefix(f"{server.url}/atari/") for job in find_jobs([f"{server.url}/atari"], tmp_path)}
    assert names == {
        *("model_1.gz", "model_2.gz", "model_3.gz", "model_%204.gz", "model_5.gz"),
        *("x/model_8.gz", "y/model_8.gz", "a&b/model_9.gz"),
    }


@pytest.mark.usefixtures("_short_waits")
@pytest.mark.parametrize(
    ("answer", "told", "tries"),
    [
        (_status(500), "500 Internal Server Error, tried 5 times", 5),
        (_status(503), "503 Service Unavailable, tried 5 times", 5),
        (_status(429), "429 Too Many Requests, tried 5 times", 5),
        (_status(599), "HTTP status 599, tried 5 times", 5),
        (_garbage, "the server's answer is not valid HTTP, tried 5 times", 5),
        (_status(403), "403 Forbidden", 1),
        (_status(404), "not found", 1),
        (_status(410), "not found", 1),
        (_status(501), "501 Not Implemented", 1),
        (_status(302, Location="file:///etc/passwd"), "redirects to file:///etc/passwd, expected http or https", 1),
        (_status(302, Location="ftp://127.0.0.1/x"), "redirects to ftp://127.0.0.1/x, expected http or https", 1),
        (_status(302, Location="/model_1.gz"), "redirects more than 5 times", 5),
    ],
)
def test_the_real_reason_is_told_and_only_what_may_pass_is_tried_again(server, answer, told, tries, tmp_path):
    """By HEAD too, which is what fsspec asks first."""
    server.answers["/model_1.gz"] = [answer]
    url = f"{server.url}/model_1.gz"
    with pytest.raises(UnreadableCheckpoint, match=rf"^{re.escape(url)}: cannot be read \({re.escape(told)}\)$"):
        storage.read_source(url)
    assert server.asked == ["GET /model_1.gz"] * tries
    server.answers["/model_1.gz"] = [answer, answer, _body(PONG.read_bytes())]
    if "tried" in told:
        assert storage.read_source(url)[0] == PONG.read_bytes()
        server.answers["/atari"] = [answer, answer, _body(b'<a href="model_1.gz">', Content_Type="text/html")]
        assert len(find_jobs([f"{server.url}/atari"], tmp_path)) == 1


@pytest.mark.usefixtures("_short_waits")
def test_a_folder_that_cannot_be_listed_is_no_empty_folder(server, tmp_path):
    server.answers["/atari/"] = server.answers["/atari"] = [_body(b'<a href="Pong/">', Content_Type="text/html")]
    server.answers["/atari/Pong/"] = [_status(500)]
    for source in ("atari", "atari/*/model_*.gz", "atari/**"):
        with pytest.raises(Unreachable, match=r"/atari/Pong/: cannot be listed \(500 Internal.*, tried 5 times\)"):
            find_jobs([f"{server.url}/{source}"], tmp_path)


@pytest.mark.usefixtures("_short_waits")
def test_a_server_that_is_not_there_is_told_as_such(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UnreadableCheckpoint, match=r"cannot be read \(connection refused, tried 5 times\)"):
        storage.read_source(f"{url}/model_1.gz")
    with pytest.raises(Unreachable, match=r"cannot be listed \(connection refused, tried 5 times\)"):
        find_jobs([url], tmp_path)
    with pytest.raises(UnreadableCheckpoint, match=r"cannot be read \(host not found \(.*\), tried 5 times\)"):
        storage.read_source("http://nowhere.invalid/model_1.gz")


@pytest.mark.usefixtures("_short_waits")
def test_a_server_says_when_to_come_back(server, monkeypatch):
    url = f"{server.url}/model_1.gz"
    for wait in ("2", format_datetime(datetime.now(UTC) + timedelta(seconds=5), usegmt=True)):
        server.answers["/model_1.gz"] = [_status(429, Retry_After=wait), _body(b"x")]
        server.times.clear()
        assert storage.read_source(url)[0] == b"x"
        assert 0.5 < server.times[1] - server.times[0] < 4
    monkeypatch.setattr(storage, "LONGEST_WAIT", 0.1)
    for wait in ("86400", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT", "soon", "-5", "Mon, 99 Foo 2020", ""):
        server.answers["/model_1.gz"] = [_status(503, Retry_After=wait), _body(b"x")]
        server.times.clear()
        assert storage.read_source(url)[0] == b"x"
        assert server.times[1] - server.times[0] < 1


@pytest.mark.usefixtures("_short_waits")
def test_a_server_that_drips_is_left_in_the_end(server, monkeypatch):
    monkeypatch.setattr(storage, "PATIENCE", 2.0)
    server.answers["/model_1.gz"] = [_drip]
    started = time.monotonic()
    with pytest.raises(UnreadableCheckpoint, match=r"cannot be read \(no answer within 2 s\)"):
        storage.read_source(f"{server.url}/model_1.gz")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "answer",
    [
        _body(PONG.read_bytes(), ETag='"one"'),
        _body(PONG.read_bytes(), Last_Modified="Wed, 21 Oct 2015 07:28:00 GMT"),
        _body(PONG.read_bytes(), ETag='"one"', Last_Modified="Wed, 21 Oct 2015 07:28:00 GMT", Content_Encoding="gzip"),
        _body(PONG.read_bytes(), length=False, ETag='"one"'),
    ],
)
def test_a_download_is_one_request_with_the_stamp_that_a_later_run_finds(server, answer):
    server.answers["/model_1.gz"] = [answer]
    url = f"{server.url}/model_1.gz"
    data, stamp = storage.read_source(url)
    assert data == PONG.read_bytes()
    assert server.asked == ["GET /model_1.gz"]
    assert stamp == storage.find_stamp(url) is not None


def test_a_server_that_answers_no_head_is_asked_otherwise(server):
    def only_get(handler: http.server.BaseHTTPRequestHandler) -> None:
        (_body(b"x", ETag='"one"') if handler.command == "GET" else _status(403))(handler)

    server.answers["/model_1.gz"] = [only_get]
    url = f"{server.url}/model_1.gz"
    assert storage.find_stamp(url) == storage.read_source(url)[1] == '1-"one"'


def test_a_bad_server_costs_a_run_its_own_file_only(server, tmp_path):
    server.answers["/Pong/model_1.gz"] = [_body(PONG.read_bytes())]
    server.answers["/Pong/model_2.gz"] = [_flood()]
    listed = tmp_path / "list"
    listed.write_text(f"{server.url}/Pong/model_1.gz\n{server.url}/Pong/model_2.gz\n{server.url}/Pong/model_3.gz\n")
    result = run("--files-from", listed, "--to", "onnx", "-o", tmp_path / "out", code=1)
    assert "1 converted, 0 current, 2 failed" in result.stdout
    assert "model_2.gz: cannot be read (has more than 134217728 bytes" in result.stderr
    assert "model_3.gz: cannot be read (not found)" in result.stderr


def test_a_redirect_to_another_server_is_followed(server, tmp_path):
    with _Server() as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        other.answers["/store/abc"] = [_body(PONG.read_bytes())]
        server.answers["/Pong/model_1.gz"] = [_status(302, Location=f"{other.url}/store/abc")]
        (job,) = find_jobs([f"{server.url}/Pong/model_1.gz"], tmp_path)
        assert bulk.convert_job(bulk.Work(("onnx",)), job).status == "converted"
        other.shutdown()
        thread.join()
