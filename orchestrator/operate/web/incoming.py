"""What a browser or a program sends us, as the rules of the guard look at it."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import parse_qsl, unquote_plus

from orchestrator.settings.hosts import HostPort

_TLS = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
_ENCODED_AT_MOST = 4


@dataclass(frozen=True, kw_only=True)
class Incoming:
    """One request, or the opening of one WebSocket.

    Attributes:
        is_websocket: it opens a WebSocket.
        method: as sent; a WebSocket's is GET.
        path: decoded.
        query: what follows the question mark, as sent.
        scheme: `http` or `https`, as the connection to us is; what a proxy says of it is not believed.
        headers: name in lower case → all values, in their order.
        local_address: our own address, on which it came in.
    """

    is_websocket: bool = False
    method: str = "GET"
    path: str = "/"
    query: str = ""
    scheme: str = "http"
    headers: Mapping[str, Sequence[str]]
    local_address: str = "127.0.0.1"

    @classmethod
    def of(cls, scope: Mapping[str, Any]) -> Self:
        """Read an ASGI scope."""
        return cls(
            is_websocket=scope["type"] == "websocket",
            method=scope.get("method", "GET"),
            path=scope["path"],
            query=scope["query_string"].decode("latin-1"),
            scheme=_TLS[scope["scheme"]],
            headers=headers_of(scope["headers"]),
            local_address=str((scope.get("server") or ("",))[0]),
        )

    def values(self, name: str) -> Sequence[str]:
        """All values of a header."""
        return self.headers.get(name, ())

    def value(self, name: str) -> str | None:
        """The first value of a header."""
        return next(iter(self.values(name)), None)

    @property
    def host(self) -> HostPort | None:
        """The Host header; None when it is missing, there are several, or it is malformed."""
        values = self.values("host")
        return HostPort.parse(values[0]) if len(values) == 1 else None

    @property
    def normal_path(self) -> str:
        """The path as the most lenient of routers would read it; only for rules that refuse."""
        path = posixpath.normpath("/" + self.path.replace("\\", "/").strip().lstrip("/"))
        return path.rstrip().casefold()

    def parameter_names(self) -> set[str]:
        """The names in the query, however they are spelled; only for rules that refuse."""
        parts = self.query.replace(";", "&").split("&")
        return {_decoded(part.partition("=")[0]).strip().casefold() for part in parts if part}

    def parameters(self) -> list[tuple[str, str]]:
        """The names and values in the query, as Starlette reads them."""
        return parse_qsl(self.query, keep_blank_values=True)

    @property
    def media_type(self) -> str:
        """The Content-Type without its parameters; empty when it is missing or there are several."""
        values = self.values("content-type")
        return values[0].partition(";")[0].strip().casefold() if len(values) == 1 else ""


def headers_of(pairs: Iterable[tuple[bytes, bytes]]) -> Mapping[str, Sequence[str]]:
    """Name in lower case → all values."""
    headers: dict[str, list[str]] = {}
    for name, value in pairs:
        headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return headers


def _decoded(text: str) -> str:
    """Decode percent-encoding, also where it was done several times over."""
    for _ in range(_ENCODED_AT_MOST):
        text = unquote_plus(text)
    return text
