"""An answer, bounded in time and size, however it is framed and however slowly it trickles in."""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from types import MappingProxyType
from typing import Any

import requests
import urllib3
import urllib3.connection

LARGEST_ANSWER = 64 * 2**20
"""In bytes: of an answer as it is sent, and of its body as it is unpacked."""


LARGEST_DOWNLOAD = 2**40
"""Likewise, of a file that is passed on piece by piece; who takes it knows how large it should be."""

SILENCE_SECONDS = 60.0
"""How long a download may pause between two pieces."""


class TooLargeError(Exception):
    """Neither an OSError nor an HTTPException, so that no library in between takes it for a broken connection.

    Attributes:
        limit: what it is larger than, in bytes.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(f"more than {limit} bytes")
        self.limit = limit


class _BoundedReader(io.RawIOBase):
    """What a socket receives for one answer, until the answer has taken too long or is too large.

    A socket's own timeout bounds the silence between two bytes only. This one bounds the whole answer, in any
    framing: headers, chunk sizes, body and trailers all pass through here.
    """

    limit = LARGEST_ANSWER
    silence_seconds = float("inf")

    def __init__(self, sock: socket.socket, raw: io.RawIOBase) -> None:
        self._socket = sock
        self._raw = raw
        self._deadline = time.monotonic() + (sock.gettimeout() or 0.0)
        self._left = self.limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("timed out")
        self._socket.settimeout(min(seconds, self.silence_seconds))
        count: int | None = self._raw.readinto(buffer)
        self._left -= count or 0
        if self._left < 0:
            raise TooLargeError(self.limit)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _DownloadReader(_BoundedReader):
    limit = LARGEST_DOWNLOAD
    silence_seconds = SILENCE_SECONDS


class _BoundedResponse(http.client.HTTPResponse):
    """Takes the read timeout, which the socket has by now, for that of the whole answer."""

    reader: type[_BoundedReader] = _BoundedReader

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        raw = self.fp.detach()
        self.fp = io.BufferedReader(self.reader(sock, raw))


class _DownloadResponse(_BoundedResponse):
    reader = _DownloadReader


class _HttpConnection(urllib3.connection.HTTPConnection):
    response_class = _BoundedResponse


class _HttpsConnection(urllib3.connection.HTTPSConnection):
    response_class = _BoundedResponse

    def request(self, *args: Any, **options: Any) -> None:
        """Let a server that has closed the connection be heard: it may have said why, such as a missing certificate."""
        try:
            super().request(*args, **options)
        except ssl.SSLEOFError as error:
            raise BrokenPipeError from error  # for which urllib3 reads on


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


class _HttpDownload(_HttpConnection):
    response_class = _DownloadResponse


class _HttpsDownload(_HttpsConnection):
    response_class = _DownloadResponse


class _HttpDownloadPool(_HttpPool):
    ConnectionCls = _HttpDownload


class _HttpsDownloadPool(_HttpsPool):
    ConnectionCls = _HttpsDownload


class Session(requests.Session):
    """Follows no redirect."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Follow none: even when told not to, requests reads the whole body of a redirect, and parses its target."""


class BoundedAdapter(requests.adapters.HTTPAdapter):
    """Makes connections, a proxy's too, whose answers are bounded."""

    pools = MappingProxyType({"http": _HttpPool, "https": _HttpsPool})

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = dict(self.pools)

    def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*args, **options)
        manager.pool_classes_by_scheme = dict(self.pools)
        return manager


class DownloadAdapter(BoundedAdapter):
    """Makes connections whose answers may be as large as a file, and take as long as their read timeout says."""

    pools = MappingProxyType({"http": _HttpDownloadPool, "https": _HttpsDownloadPool})


def whole_body(response: requests.Response, *, limit: int) -> bytes:
    """The body, unpacked.

    Raises:
        TooLargeError: it is larger than `limit`, once unpacked.
    """
    body = bytearray()
    for chunk in response.iter_content(2**16):
        body += chunk
        if len(body) > limit:
            raise TooLargeError(limit)
    return bytes(body)
