"""Files by path or URL. URLs are read and written through fsspec, which is imported with the first one."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from convert.errors import MissingExtra, SelectionError, Unreachable, UnreadableCheckpoint, UnwritableOutput
from convert.files.bounds import LARGEST

Result = TypeVar("Result")
Level = tuple[str, list[str], list[str]]

WAITS = (0.5, 1.0, 2.0, 4.0)  # seconds before each further try of a request that failed
LONGEST_WAIT = 60.0  # seconds, where a server asks for more
PATIENCE = 300.0  # seconds for a request (27 MB at 100 kB/s), and for how long one that failed is tried again
_DEEPEST = 20  # folders below the one that was named
_MOST_FOLDERS = 100_000

_DEEPEST_HERE = 100  # local folders below each other
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3", "http": "http", "https": "http"}
_STORES = ("gs", "gcs", "s3", "s3a")
_ANONYMOUS: dict[str, dict[str, Any]] = {
    "gs": {"token": "anon"},
    "gcs": {"token": "anon"},
    "s3": {"anon": True},
    "s3a": {"anon": True},
}
# Errors that a retry cannot fix. fsspec's backends have no common class for errors of the network.
_PERMANENT = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError),
    *(NotImplementedError, ImportError, TypeError, ValueError),
)
_STAMPS = ("ETag", "etag", "md5Hash", "generation", "Content-MD5", "LastModified", "Last-Modified", "mtime", "created")


@dataclass(frozen=True, slots=True)
class Found:
    """A file that was found: its path or URL, its size (0: not told), its stamp (None: not told, or local)."""

    name: str
    size: int = 0
    stamp: str | None = None


def is_url(name: str) -> bool:
    """Tell a URL from a local path."""
    return "://" in name


def normalise(name: str) -> str:
    """Return a local path for ``file://``, a URL without a slash at its end, and anything else as it is."""
    name = name.removeprefix("file://")
    protocol, separator, rest = name.partition("://")
    return protocol + separator + rest.rstrip("/") if separator else name


def join(base: str, path: str) -> str:
    """Return the place of a relative path, ``/`` between its parts, below a folder or URL."""
    return f"{base}/{path}" if is_url(base) else str(Path(base, path))


def join_path(base: str, path: str) -> str:
    """Return the place of a relative path, perhaps a stranger's, below a folder or URL; see `find_path_problem`.

    An http server would take ``?`` for a query, and ``%2e%2e`` for the folder above.
    """
    is_web = base.startswith(("http://", "https://"))
    return join(base, quote(path) if is_web else path)


def walk_links(top: str | Path, on_error: Callable[[OSError], None] | None = None) -> Iterator[Level]:
    """Yield the folders and file names in a local folder, then in each folder below, as `os.walk` does.

    Links are followed. Every folder is entered once, by the first of its names. Folders more than a hundred levels
    deep are not entered.
    """
    entered = set()
    base = str(top).count(os.sep)
    for folder, folders, names in os.walk(str(top), onerror=on_error, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        if folder.count(os.sep) - base >= _DEEPEST_HERE:
            folders.clear()
        entered.add((status.st_dev, status.st_ino))
        folders.sort()
        yield folder, folders, names


def path_of(name: str) -> str:
    """Return a source's path as people write it: an http URL without its query and its %-escapes."""
    if not name.startswith(("http://", "https://")):
        return name
    parts = urlsplit(name)
    return f"{parts.scheme}://{parts.netloc}{unquote(parts.path)}"


def canonical_url(url: str, *, anonymous: bool = False) -> str:
    """Return a URL in the form that its file system gives to what is found below.

    Raises:
        MissingExtra: its library is not installed.
        SelectionError: its library does not take it.
    """
    system, path = _open(url, anonymous)
    return str(system.unstrip_protocol(path))


def walk(url: str, *, anonymous: bool = False) -> Iterator[tuple[str, dict[str, str], dict[str, Found]]]:
    """Yield the folders and files in a folder at a URL, then in each folder below, as `os.walk` does.

    Each folder comes with its path below the URL, which is empty for the first. What is in it is listed by name, or by
    path where a web page links deeper. A folder that the caller removes is not entered.

    Raises:
        SelectionError: the URL cannot be listed, or the folders have no end.
        Unreachable: the network failed after every retry.
    """
    system, top = _open(url, anonymous)
    waiting = [("", top)]
    seen = 0
    while waiting:
        place, folder = waiting.pop()
        seen += 1
        if seen > _MOST_FOLDERS or place.count("/") >= _DEEPEST:
            limit = f"{_MOST_FOLDERS:,} folders" if seen > _MOST_FOLDERS else f"{_DEEPEST} levels of folders"
            raise SelectionError(f"{url}: more than {limit} below it, perhaps a link in a circle: name a folder below")
        below = {_find_place(folder, info): info for info in _list(system, folder)}
        folders = {
            name: info["name"] for name, info in below.items() if info["type"] == "directory" and name.strip("./")
        }
        yield place, folders, {name: _to_found(system, info) for name, info in below.items() if info["type"] == "file"}
        waiting += [(f"{place}/{name}".lstrip("/"), path) for name, path in folders.items()]


def _list(system: Any, folder: str) -> list[dict[str, Any]]:
    try:
        infos = _call(system, "ls", folder, detail=True)
    except Exception as error:  # see _PERMANENT
        kind = SelectionError if _is_permanent(error) else Unreachable
        raise kind(f"{system.unstrip_protocol(folder)}: cannot be listed ({_format_failure(error)})") from error
    # A store lists the folder's own empty object with its content.
    return [info for info in infos if info["name"].strip("/") != folder.strip("/")]


def _find_place(folder: str, info: Mapping[str, Any]) -> str:
    return str(info["name"]).strip("/").removeprefix(folder.strip("/")).strip("/")


def find_matches(base: str, pattern: str, *, anonymous: bool = False) -> list[Found]:
    """Return the files below a URL whose path matches a pattern with ``*``, ``**``, ``?`` or ``[…]``, sorted.

    fsspec's own glob would skip folders that cannot be listed.

    Raises:
        SelectionError: the URL cannot be listed, or the pattern is not valid.
        Unreachable: the network failed after every retry.
    """
    from fsspec.utils import glob_translate

    try:
        matches = re.compile(glob_translate(pattern)).match
    except ValueError as error:
        raise SelectionError(f"{join(base.rstrip('/'), pattern)}: not a valid pattern ({error})") from error
    parts = pattern.split("/")
    found = []
    for place, folders, files in walk(base, anonymous=anonymous):
        level = len(place.split("/")) if place else 0
        if "**" not in parts[: level + 1]:
            for name in list(folders):
                if level + 1 >= len(parts) or ("/" not in name and not fnmatchcase(name, parts[level])):
                    del folders[name]
        found += [file for name, file in files.items() if matches(f"{place}/{name}".lstrip("/"))]
    return sorted(found, key=lambda file: file.name)


def read_source(name: str, *, anonymous: bool = False) -> tuple[bytes, str | None]:
    """Return a source's content, and the stamp of that content.

    Raises:
        UnreadableCheckpoint: it is missing, a folder, not allowed to be read or changed while it is read, or the
            network failed after every retry.
    """
    return _read_url(name, anonymous) if is_url(name) else _read_local(name)


def read_head(name: str, size: int, *, anonymous: bool = False) -> bytes:
    """Return the first bytes of a source, ``size`` of them or all of a shorter one.

    Raises:
        OSError: it is missing, no regular file, or cannot be read.
    """
    if not is_url(name):
        if not stat.S_ISREG(os.stat(name).st_mode):  # opening a pipe would wait for its other end
            raise OSError(f"{name}: not a regular file")
        with open(name, "rb") as file:
            return file.read(size)
    system, path = _open(name, anonymous)
    try:
        return bytes(_call(system, "cat_file", path, start=0, end=size))
    except Exception as error:  # see _PERMANENT
        raise OSError(f"{name}: cannot be read ({_format_failure(error)})") from error


def find_stamp(name: str, *, anonymous: bool = False) -> str | None:
    """Return a text that changes with a file's content, without reading the file; None where there is none."""
    if not is_url(name):
        try:
            return _to_stamp(os.stat(name))
        except OSError:
            return None
    system, path = _open(name, anonymous)
    try:
        return _to_found(system, _call(system, "info", path)).stamp
    except Exception:  # noqa: BLE001  see _PERMANENT; reading it will raise
        return None


def list_files(url: str) -> dict[str, Found]:
    """Return the files below a URL by their relative paths; none where there is nothing.

    Raises:
        UnwritableOutput: the URL cannot be listed.
    """
    if url.partition("://")[0] not in _STORES:
        return _list_by_folder(url)
    system, path = _open(url, anonymous=False)
    try:
        infos = _call(system, "find", path, detail=True)  # one request for a whole store
    except FileNotFoundError:
        return {}
    except Exception as error:  # see _PERMANENT
        raise UnwritableOutput(f"{url}: cannot be listed ({_format_failure(error)})") from error
    prefix = path.rstrip("/") + "/"
    return {name.removeprefix(prefix): _to_found(system, info) for name, info in infos.items()}


def _list_by_folder(url: str) -> dict[str, Found]:
    """Return the files below a URL, folder by folder. fsspec's ``find`` would skip folders that cannot be listed."""
    try:
        levels = list(walk(url))
    except (SelectionError, Unreachable) as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return {}
        raise UnwritableOutput(str(error)) from error
    return {f"{place}/{name}".lstrip("/"): file for place, _, files in levels for name, file in files.items()}


def read_bytes(url: str) -> bytes:
    """Return an output's content.

    Raises:
        UnwritableOutput: it cannot be read.
    """
    system, path = _open(url, anonymous=False)
    try:
        return _read_bounded(system, path)
    except Exception as error:  # see _PERMANENT
        raise UnwritableOutput(f"{url}: cannot be read ({_format_failure(error)})") from error


def write_bytes(url: str, data: bytes) -> None:
    """Write a file at a URL in one piece; stores show the old content until the new one is complete.

    Raises:
        UnwritableOutput: it cannot be written.
    """
    system, path = _open(url, anonymous=False)
    try:
        if url.partition("://")[0] not in _EXTRAS:  # a store has no folders, and would be given a new bucket
            system.makedirs(os.path.dirname(path), exist_ok=True)
        _call(system, "pipe_file", path, data)
    except Exception as error:  # see _PERMANENT
        raise UnwritableOutput(f"{url}: cannot be written ({_format_failure(error)})") from error


def remove(url: str) -> None:
    """Remove a file at a URL.

    Raises:
        UnwritableOutput: it cannot be removed.
    """
    system, path = _open(url, anonymous=False)
    try:
        _call(system, "rm_file", path)
    except FileNotFoundError:
        return
    except Exception as error:  # see _PERMANENT
        raise UnwritableOutput(f"{url}: cannot be removed ({_format_failure(error)})") from error


def format_error(error: BaseException) -> str:
    """Return an error's message on one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def _read_local(path: str) -> tuple[bytes, str]:
    for _ in range(3):
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its other end
                raise UnreadableCheckpoint(f"{path}: not a regular file, expected a gzipped checkpoint")
            if status.st_size > LARGEST:
                raise UnreadableCheckpoint(f"{path}: has {status.st_size} bytes, expected at most {LARGEST}")
            with open(path, "rb") as file:
                before = os.fstat(file.fileno())
                data = file.read(LARGEST + 1)
                after = os.fstat(file.fileno())
        except OSError as error:
            raise UnreadableCheckpoint(f"{path}: cannot be read ({error.strerror}), expected a file") from error
        if _to_stamp(before) == _to_stamp(after) and len(data) == after.st_size:
            return data, _to_stamp(after)
    raise UnreadableCheckpoint(f"{path}: changes while it is read: convert it when it is complete")


def _read_url(url: str, anonymous: bool) -> tuple[bytes, str | None]:
    system, path = _open(url, anonymous)
    for _ in range(3):
        try:
            data, stamp = _fetch(system, path)
        except Exception as error:  # see _PERMANENT
            raise UnreadableCheckpoint(f"{url}: cannot be read ({_format_failure(error)})") from error
        if data is not None:
            return data, stamp
    raise UnreadableCheckpoint(f"{url}: changes while it is read: convert it when it is complete")


def _fetch(system: Any, path: str) -> tuple[bytes | None, str | None]:
    """Return a file's content, or None if it has changed meanwhile, and its stamp."""
    if path.startswith(("http://", "https://")):  # one response has both
        data, info = _call(system, "fetch", path)
        return data, _to_found(system, info).stamp
    before = _call(system, "info", path)
    stamp = _to_found(system, before).stamp
    data = _read_bounded(system, path, before.get("size"))
    after = _call(system, "info", path)
    is_same = before.get("size") in (None, len(data)) and _to_found(system, after).stamp == stamp
    return (data if is_same else None), stamp


def _read_bounded(system: Any, path: str, size: int | None = None) -> bytes:
    """Return a file's content. No more than `LARGEST` bytes are read, whatever size it claims."""
    if size is None or size <= LARGEST:
        # Stores refuse a range of an empty file.
        data = bytes(_call(system, "cat_file", path, start=0, end=LARGEST + 1)) if size != 0 else b""
        size = len(data)
    if size > LARGEST:
        raise ValueError(f"has {size} bytes, expected at most {LARGEST}")
    return data


def _to_stamp(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def _format_failure(error: Exception) -> str:
    """Return why a request failed in the end, and how often it was tried."""
    if isinstance(error, FileNotFoundError):  # its message is only the path
        return "not found"
    if _lacks_credentials(error):
        return f"{format_error(error)}: --anonymous reads public buckets"
    reason = f"no answer within {PATIENCE:.0f} s" if type(error).__name__ == "FSTimeoutError" else format_error(error)
    return ", ".join([reason, *getattr(error, "__notes__", ())])


def _to_found(system: Any, info: dict[str, Any]) -> Found:
    stamp = next((str(info[key]) for key in _STAMPS if info.get(key)), None)
    size = info.get("size") or 0
    return Found(system.unstrip_protocol(info["name"]), size, None if stamp is None else f"{size}-{stamp}")


def _call(system: Any, method: str, *arguments: Any, **options: Any) -> Any:
    """Call a method of a file system with a time limit for each request, and retry where that may help."""
    if system.async_impl:  # fsspec can end it then, however slowly the server answers
        options["timeout"] = PATIENCE
    return _retry(partial(getattr(system, method), *arguments, **options))


def _retry(request: Callable[[], Result]) -> Result:
    """Return what a request returns. Retry it where that may help, a few times and within a time limit."""
    begun = time.monotonic()
    for tried, pause in enumerate((*WAITS, None), 1):
        try:
            return request()
        except Exception as error:  # see _PERMANENT
            if _is_permanent(error):
                raise
            pause = None if pause is None else max(pause, min(getattr(error, "wait", 0.0), LONGEST_WAIT))
            if pause is None or time.monotonic() + pause - begun > PATIENCE:
                if tried > 1:
                    error.add_note(f"tried {tried} times")
                raise
        time.sleep(pause)
    raise AssertionError


def _is_permanent(error: Exception) -> bool:
    if (is_permanent := getattr(error, "is_permanent", None)) is not None:  # of convert.store.web
        return bool(is_permanent)
    out_of_space = getattr(error, "errno", None) == errno.ENOSPC
    return isinstance(error, _PERMANENT) or out_of_space or _lacks_credentials(error)


def _lacks_credentials(error: Exception) -> bool:
    return type(error).__name__ == "NoCredentialsError"  # of botocore, which only the extra s3 brings


@cache
def _open_system(protocol: str, host: str, anonymous: bool) -> Any:
    options = _ANONYMOUS.get(protocol, {}) if anonymous else {}
    try:
        system = _find_class(protocol)
        of_host = system._get_kwargs_from_urls(f"{protocol}://{host}/")
        opened = system(use_listings_cache=False, **of_host, **options)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        how = f"pip install 'atari-convert[{extra}]'" if extra else f"install what fsspec needs for it ({error})"
        raise MissingExtra(f"{protocol}://{host} needs a library that is not installed: {how}") from error
    except OSError as error:
        raise Unreachable(f"{protocol}://{host}: cannot be reached ({format_error(error)})") from error
    except (ValueError, TypeError) as error:
        raise SelectionError(f"{protocol}://{host}: {error}, expected a path, gs://, s3:// or https://") from error
    if protocol in ("gs", "gcs"):
        from convert.store.web import BoundedResponse

        opened.session_kwargs = {**opened.session_kwargs, "response_class": BoundedResponse}
    return opened


def _find_class(protocol: str) -> Any:
    if protocol in ("gs", "gcs"):
        # The class that gcsfs registers asks a second service for the kind of the bucket before each request, with
        # credentials that an anonymous user does not have, and warns each time. Its base class does not.
        from gcsfs.core import GCSFileSystem

        # It logs the traceback of every error that it raises. Users who want to see them configure logging.
        logging.getLogger("gcsfs").addHandler(logging.NullHandler())
        return GCSFileSystem
    if protocol in ("http", "https"):
        from convert.store.web import WebFileSystem

        return WebFileSystem
    import fsspec

    return fsspec.get_filesystem_class(protocol)


def _open(url: str, anonymous: bool) -> tuple[Any, str]:
    """Return the file system of a URL, and the path that this file system knows it by."""
    protocol, _, rest = url.partition("://")
    system = _open_system(protocol, rest.split("/")[0], anonymous)
    return system, system._strip_protocol(url)
