"""HTTP on fsspec's file system: bounds, clear errors, and which statuses are worth a retry.

fsspec reads responses of any length, inflates what a server labels as compressed, and reports every failure as "not
found". Here the bytes of a body are counted as they arrive, whatever its headers claim, and nothing is inflated: a
``.gz`` that a server labels ``Content-Encoding: gzip`` arrives as it is.
"""

from __future__ import annotations

import html
import http
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
from fsspec.asyn import sync_wrapper
from fsspec.implementations.http import HTTPFileSystem

from convert.files.bounds import LARGEST

LARGEST_PAGE = 16 * 2**20  # bytes of a folder's listing
MOST_LINKS = 100_000  # of a page; a folder of the release has a few hundred entries

_TIMEOUT = aiohttp.ClientTimeout(sock_connect=30, sock_read=60)  # seconds; `convert.store.storage` bounds the whole
_REDIRECTS = 5
_CHUNK = 2**16
_TRY_AGAIN = (408, 425, 429)  # 4xx that a retry may help
_NEVER_AGAIN = (501, 505)  # 5xx that a retry cannot help
_PAGES = ("text/html", "application/xhtml+xml", "")
# Both quantifiers are bounded, so that no page can make the search slow.
_LINK = re.compile(r"""\bhref\s{0,9}=\s{0,9}(["'])([^"'<>]{1,2000})\1""", re.IGNORECASE)
_STAMPS = ("ETag", "Content-MD5", "Last-Modified")


class RequestFailed(Exception):
    """An HTTP request that failed.

    is_permanent: a retry cannot help. wait: the seconds that the server wants to pass before a retry.
    """

    def __init__(self, reason: str, *, is_permanent: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.is_permanent = is_permanent
        self.wait = wait


class BoundedResponse(aiohttp.ClientResponse):
    """A response whose body is counted while it is read."""

    async def read(self) -> bytes:
        """Return the body.

        Raises:
            RequestFailed: it is larger than an agent can be.
        """
        if self._body is None:
            self._body = await read_body(self, LARGEST)
        return self._body


async def read_body(response: aiohttp.ClientResponse, bound: int) -> bytes:
    """Return the body of a response.

    Raises:
        RequestFailed: it has more than ``bound`` bytes.
    """
    if (length := response.content_length) is not None and length > bound:
        raise RequestFailed(f"has {length} bytes, expected at most {bound}", is_permanent=True)
    body = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK):
        body += chunk
        if len(body) > bound:
            response.close()
            raise RequestFailed(f"has more than {bound} bytes, expected at most {bound}", is_permanent=True)
    return bytes(body)


class WebFileSystem(HTTPFileSystem):  # type: ignore[misc]  # fsspec has no types
    """fsspec's file system for http and https. Every method that this project calls is overridden."""

    def __init__(self, *args: Any, client_kwargs: Mapping[str, Any] | None = None, **options: Any) -> None:
        """Take what `HTTPFileSystem` takes."""
        ours = {"timeout": _TIMEOUT, **(client_kwargs or {}), "auto_decompress": False}
        super().__init__(*args, client_kwargs=ours, **options)

    async def _fetch(self, url: str) -> tuple[bytes, dict[str, Any]]:
        async with self._request("GET", url) as response:
            return await read_body(response, LARGEST), _to_info(url, response)

    fetch = sync_wrapper(_fetch)

    async def _cat_file(self, url: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return (await self._fetch(url))[0][start:end]

    async def _info(self, url: str, **_: Any) -> dict[str, Any]:
        """Return what a file's headers say. Some servers answer HEAD with less than GET, some only GET."""
        try:
            async with self._request("HEAD", url) as response:
                info = _to_info(url, response)
            if info["size"] is not None:
                return info
        except FileNotFoundError:
            pass
        except RequestFailed as error:
            if not error.is_permanent:
                raise
        async with self._request("GET", url) as response:
            return _to_info(url, response)

    async def _ls(self, url: str, detail: bool = True, **_: Any) -> list[Any]:
        """Return what the page of a folder links to below the folder."""
        async with self._request("GET", url) as response:
            is_page = response.headers.get("Content-Type", "").partition(";")[0].strip().lower() in _PAGES
            page = await read_body(response, LARGEST_PAGE) if is_page else b""
            answered = str(response.url.with_query(None).with_fragment(None))
        names = sorted(_find_links(page.decode(errors="replace"), url, answered))
        if not detail:
            return names
        return [{"name": name, "size": None, "type": "directory" if name.endswith("/") else "file"} for name in names]

    ls = sync_wrapper(_ls)  # otherwise the inherited one is called

    async def _pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        if mode != "overwrite":
            raise NotImplementedError
        async with self._request("PUT", path, data=value):
            pass

    @asynccontextmanager
    async def _request(self, method: str, url: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request and give the response, whose body has not been read.

        Raises:
            FileNotFoundError: the server does not have it.
            RequestFailed: anything else went wrong before the end of the block.
        """
        options = self.kwargs | options
        options["headers"] = {**options.get("headers", {}), "Accept-Encoding": "identity"}
        session = await self.set_session()
        try:
            async with session.request(
                method, self.encode_url(url), allow_redirects=True, max_redirects=_REDIRECTS, **options
            ) as response:
                _check_status(response, url)
                yield response
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise _to_failure(error) from error


def _check_status(response: aiohttp.ClientResponse, url: str) -> None:
    status = response.status
    if status in (404, 410):
        raise FileNotFoundError(url)
    if status >= 400:
        is_permanent = status in _NEVER_AGAIN or (status < 500 and status not in _TRY_AGAIN)
        wait = _read_wait(response.headers.get("Retry-After", ""))
        raise RequestFailed(_format_status(status), is_permanent=is_permanent, wait=wait)


def _format_status(status: int) -> str:
    try:
        return f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP status {status}"


def _read_wait(text: str) -> float:
    """Return the seconds that a ``Retry-After`` asks for, which is a number or a date; 0 where it is neither."""
    if text.strip().isdecimal():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return 0.0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _to_failure(error: Exception) -> RequestFailed:  # noqa: C901  a table
    match error:
        case aiohttp.TooManyRedirects():
            return RequestFailed(f"redirects more than {_REDIRECTS} times", is_permanent=True)
        case aiohttp.NonHttpUrlRedirectClientError() | aiohttp.InvalidUrlRedirectClientError():
            return RequestFailed(f"redirects to {error}, expected http or https", is_permanent=True)
        case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError():
            return RequestFailed(f"not a valid URL ({error})", is_permanent=True)
        case aiohttp.ClientSSLError():
            return RequestFailed(f"no secure connection ({error})", is_permanent=True)
        case aiohttp.ClientResponseError():
            return RequestFailed("the server's answer is not valid HTTP")
        case aiohttp.ConnectionTimeoutError():
            return RequestFailed(f"no connection within {_TIMEOUT.sock_connect:.0f} s")
        case aiohttp.SocketTimeoutError():
            return RequestFailed(f"no data for {_TIMEOUT.sock_read:.0f} s")
        case aiohttp.ClientConnectorError() if error.os_error.errno and error.os_error.errno > 0:
            return RequestFailed(os.strerror(error.os_error.errno).lower())
        case aiohttp.ClientConnectorError():
            return RequestFailed(f"host not found ({error.os_error.strerror or error.os_error})")
        case aiohttp.ClientError() | OSError():
            return RequestFailed("the connection ended before the answer was complete")
        case _:
            return RequestFailed(str(error), is_permanent=True)


def _to_info(url: str, response: aiohttp.ClientResponse) -> dict[str, Any]:
    stamps = {name: response.headers[name] for name in _STAMPS if response.headers.get(name)}
    return {"name": url, "type": "file", "size": response.content_length, **stamps}


def _find_links(page: str, url: str, answered: str) -> set[str]:
    """Return the URLs below ``url`` that a page links to.

    Args:
        page: HTML.
        url: the folder that was asked for.
        answered: where the server answered, perhaps after a redirect. Its links are relative to that.

    Raises:
        RequestFailed: it has more than `MOST_LINKS` links.
    """
    texts: set[str] = set()
    for match in _LINK.finditer(page):
        texts.add(match[2])
        if len(texts) > MOST_LINKS:
            hint = "name the folders below it, or list the files with --files-from"
            raise RequestFailed(f"its page has over {MOST_LINKS:,} links: {hint}", is_permanent=True)
    base = answered.rstrip("/") + "/"
    top = url.partition("?")[0].rstrip("/") + "/"
    found = set()
    for text in texts:
        try:
            link = urlsplit(urljoin(base, html.unescape(text).strip()))
        except ValueError:  # no URL at all
            continue
        # A page may call the server http or https, whichever it was asked by.
        place, separator, path = link._replace(scheme="", fragment="").geturl().partition(_remove_scheme(base))
        if link.scheme in ("http", "https") and separator and not place and path and not path.startswith("?"):
            found.add(top + path)
    return found


def _remove_scheme(url: str) -> str:
    return urlsplit(url)._replace(scheme="").geturl()
