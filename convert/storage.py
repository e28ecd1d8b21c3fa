"""Files by path or URL. What is at a URL is reached through fsspec, which is imported when the first URL is."""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from convert.errors import MissingExtra, SelectionError, Unreachable, UnreadableCheckpoint, UnwritableOutput

Result = TypeVar("Result")
Level = tuple[str, list[str], list[str]]

WAITS = (0.5, 1.0, 2.0, 4.0)  # seconds before each further try of a request that failed

LARGEST_SOURCE = 256 * 2**20  # bytes

_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3", "http": "http", "https": "http"}
_ANONYMOUS: dict[str, dict[str, Any]] = {
    "gs": {"token": "anon"},
    "gcs": {"token": "anon"},
    "s3": {"anon": True},
    "s3a": {"anon": True},
}
# What another try cannot mend. fsspec's backends promise no common class for a fault of the network.
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


def walk_links(top: str | Path, on_error: Callable[[OSError], None] | None = None) -> Iterator[Level]:
    """Yield the folders and file names in a local folder, then in each folder below, as `os.walk` does.

    Links are followed, and every folder is entered once, by the first of its names in their order.
    """
    entered = set()
    for folder, folders, names in os.walk(str(top), onerror=on_error, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders.sort()
        yield folder, folders, names


def path_of(name: str) -> str:
    """Return a source as people write its path: of an http URL without its query, and without %-escapes."""
    if not name.startswith(("http://", "https://")):
        return name
    parts = urlsplit(name)
    return f"{parts.scheme}://{parts.netloc}{unquote(parts.path)}"


def spell(url: str, *, anonymous: bool = False) -> str:
    """Return a URL as its file system spells it, and with it what is found below.

    Raises:
        MissingExtra: its library is not installed.
        SelectionError: its library does not take it.
    """
    system, path = _open(url, anonymous)
    return str(system.unstrip_protocol(path))


def walk(url: str, *, anonymous: bool = False) -> Iterator[tuple[dict[str, str], dict[str, Found]]]:
    """Yield the folders and files in a folder at a URL, then in each folder below, as `os.walk` does.

    Both are by name; a folder that the caller removes is passed over.

    Raises:
        SelectionError: the URL cannot be listed.
        Unreachable: the network failed five times.
    """
    system, top = _open(url, anonymous)
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        infos = _search(url, partial(system.ls, folder, detail=True))
        # A store lists the folder's own empty object with its content, a web server perhaps the folder above.
        below = {_base_name(info): info for info in infos if info["name"].strip("/") != folder.strip("/")}
        folders = {
            name: info["name"] for name, info in below.items() if info["type"] == "directory" and name.strip(".")
        }
        yield folders, {name: _to_found(system, info) for name, info in below.items() if info["type"] == "file"}
        waiting += folders.values()


def _base_name(info: Mapping[str, Any]) -> str:
    return str(info["name"]).rstrip("/").rpartition("/")[2]


def find_matches(url: str, *, anonymous: bool = False) -> list[Found]:
    """Return the files that match a URL with ``*``, ``?`` or ``[…]`` in its path, sorted.

    Raises:
        SelectionError: the URL cannot be listed.
        Unreachable: the network failed five times.
    """
    system, path = _open(url, anonymous)
    matches = _search(url, partial(system.glob, path, detail=True))
    return [_to_found(system, info) for _, info in sorted(matches.items()) if info["type"] == "file"]


def _search(url: str, request: Callable[[], Result]) -> Result:
    try:
        return _retry(request)
    except Exception as error:  # see _PERMANENT
        kind = SelectionError if _is_permanent(error) else Unreachable
        raise kind(f"{url}: cannot be listed ({_explain(error)})") from error


def read_source(name: str, *, anonymous: bool = False) -> tuple[bytes, str | None]:
    """Return a source's content, and the stamp that this content had.

    Raises:
        UnreadableCheckpoint: it is missing, a folder, may not be read, changes under the reader's hands, or the
            network failed five times.
    """
    return _read_url(name, anonymous) if is_url(name) else _read_local(name)


def find_stamp(name: str, *, anonymous: bool = False) -> str | None:
    """Return what tells a file's present content from an earlier one without reading it; None where nothing does."""
    if not is_url(name):
        try:
            return _stamp_of(os.stat(name))
        except OSError:
            return None
    system, path = _open(name, anonymous)
    try:
        return _to_found(system, _retry(lambda: system.info(path))).stamp
    except Exception:  # noqa: BLE001  see _PERMANENT; reading it will tell what is wrong
        return None


def list_files(url: str) -> dict[str, Found]:
    """Return the files below a URL by their relative paths; none where there is nothing.

    Raises:
        UnwritableOutput: the URL cannot be listed.
    """
    system, path = _open(url, anonymous=False)
    try:
        infos = _retry(lambda: system.find(path, detail=True))
    except FileNotFoundError:
        return {}
    except Exception as error:  # see _PERMANENT
        raise UnwritableOutput(f"{url}: cannot be listed ({describe(error)})") from error
    prefix = path.rstrip("/") + "/"
    return {name.removeprefix(prefix): _to_found(system, info) for name, info in infos.items()}


def read_bytes(url: str) -> bytes:
    """Return an output's content.

    Raises:
        UnwritableOutput: it cannot be read.
    """
    system, path = _open(url, anonymous=False)
    try:
        return bytes(_retry(lambda: system.cat_file(path)))
    except Exception as error:  # see _PERMANENT
        raise UnwritableOutput(f"{url}: cannot be read ({describe(error)})") from error


def write_bytes(url: str, data: bytes) -> None:
    """Write a file at a URL in one piece; stores show the old content until the new one is complete.

    Raises:
        UnwritableOutput: it cannot be written.
    """
    system, path = _open(url, anonymous=False)
    try:
        if url.partition("://")[0] not in _EXTRAS:  # a store has no folders, and would be given a new bucket
            system.makedirs(os.path.dirname(path), exist_ok=True)
        _retry(lambda: system.pipe_file(path, data))
    except Exception as error:  # see _PERMANENT
        raise UnwritableOutput(f"{url}: cannot be written ({describe(error)})") from error


def remove(url: str) -> None:
    """Remove a file at a URL.

    Raises:
        UnwritableOutput: it cannot be removed.
    """
    system, path = _open(url, anonymous=False)
    try:
        _retry(lambda: system.rm_file(path))
    except FileNotFoundError:
        return
    except Exception as error:  # see _PERMANENT
        raise UnwritableOutput(f"{url}: cannot be removed ({describe(error)})") from error


def describe(error: BaseException) -> str:
    """Return an error's own words on one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def _read_local(path: str) -> tuple[bytes, str]:
    for _ in range(3):
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its other end
                raise UnreadableCheckpoint(f"{path}: not a regular file, expected a gzipped checkpoint")
            if status.st_size > LARGEST_SOURCE:
                raise UnreadableCheckpoint(f"{path}: has {status.st_size} bytes, expected about 6,500,000")
            with open(path, "rb") as file:
                before = os.fstat(file.fileno())
                data = file.read()
                after = os.fstat(file.fileno())
        except OSError as error:
            raise UnreadableCheckpoint(f"{path}: cannot be read ({error.strerror}), expected a file") from error
        if _stamp_of(before) == _stamp_of(after) and len(data) == after.st_size:
            return data, _stamp_of(after)
    raise UnreadableCheckpoint(f"{path}: changes while it is read: convert it when it is complete")


def _read_url(url: str, anonymous: bool) -> tuple[bytes, str | None]:
    system, path = _open(url, anonymous)
    for _ in range(3):
        try:
            data, stamp = _fetch(system, path)
        except Exception as error:  # see _PERMANENT
            raise UnreadableCheckpoint(f"{url}: cannot be read ({_explain(error)})") from error
        if data is not None:
            return data, stamp
    raise UnreadableCheckpoint(f"{url}: changes while it is read: convert it when it is complete")


def _fetch(system: Any, path: str) -> tuple[bytes | None, str | None]:
    """Return a file's content, none where it has changed meanwhile, and its stamp."""
    before = _retry(lambda: system.info(path))
    size, stamp = before.get("size"), _to_found(system, before).stamp
    if size is not None and size > LARGEST_SOURCE:
        raise ValueError(f"has {size} bytes, expected about 6,500,000")
    data = bytes(_retry(lambda: system.cat_file(path)))
    after = _retry(lambda: system.info(path))
    is_same = size in (None, len(data)) and _to_found(system, after).stamp == stamp
    return (data if is_same else None), stamp


def _stamp_of(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def _explain(error: Exception) -> str:
    """Return why a request for a source failed in the end."""
    if isinstance(error, FileNotFoundError):  # which says the path alone
        return "not found"
    if _lacks_credentials(error):
        return f"{describe(error)}: --anonymous reads public buckets"
    return describe(error) if _is_permanent(error) else f"{describe(error)}, tried {len(WAITS) + 1} times"


def _to_found(system: Any, info: dict[str, Any]) -> Found:
    stamp = next((str(info[key]) for key in _STAMPS if info.get(key)), None)
    size = info.get("size") or 0
    return Found(system.unstrip_protocol(info["name"]), size, None if stamp is None else f"{size}-{stamp}")


def _retry(request: Callable[[], Result]) -> Result:
    for wait in WAITS:
        try:
            return request()
        except Exception as error:  # see _PERMANENT
            if _is_permanent(error):
                raise
        time.sleep(wait)
    return request()


def _is_permanent(error: Exception) -> bool:
    status = getattr(error, "status", None)
    if isinstance(status, int):  # of an HTTP answer
        return 400 <= status < 500 and status not in (408, 429)
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
        return system(use_listings_cache=False, **of_host, **options)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        how = f"pip install 'atari-convert[{extra}]'" if extra else f"install what fsspec needs for it ({error})"
        raise MissingExtra(f"{protocol}://{host} needs a library that is not installed: {how}") from error
    except OSError as error:
        raise Unreachable(f"{protocol}://{host}: cannot be reached ({describe(error)})") from error
    except (ValueError, TypeError) as error:
        raise SelectionError(f"{protocol}://{host}: {error}, expected a path, gs://, s3:// or https://") from error


def _find_class(protocol: str) -> Any:
    if protocol in ("gs", "gcs"):
        # The class that gcsfs registers asks a second service for the kind of the bucket before each request, with
        # credentials that an anonymous user has not, and warns each time. The one beneath it does not.
        from gcsfs.core import GCSFileSystem

        # It logs the traceback of what it raises; whoever wants to see that configures logging.
        logging.getLogger("gcsfs").addHandler(logging.NullHandler())
        return GCSFileSystem
    import fsspec

    return fsspec.get_filesystem_class(protocol)


def _open(url: str, anonymous: bool) -> tuple[Any, str]:
    """Return the file system of a URL, and the path that this file system knows it by."""
    protocol, _, rest = url.partition("://")
    system = _open_system(protocol, rest.split("/")[0], anonymous)
    return system, system._strip_protocol(url)
