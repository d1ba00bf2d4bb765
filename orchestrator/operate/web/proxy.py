"""What a trusted proxy says of a request: its scheme, its host, where it comes from, and from whom."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import Scope

from orchestrator.operate.web.incoming import headers_of
from orchestrator.operate.web.rules import Refusal
from orchestrator.settings.hosts import HostPort
from orchestrator.settings.people import TrustedProxy

LONGEST_IDENTITY = 256
_PEER = re.compile(r"\[(?P<bracketed>[^\]]+)\](:[0-9]+)?|(?P<v4>[0-9.]+):[0-9]+|(?P<bare>[0-9A-Fa-f.:%\w]+)", re.ASCII)
_SCHEMES = {"http": {"http": "http", "https": "https"}, "websocket": {"http": "ws", "https": "wss"}}


@dataclass(frozen=True, kw_only=True)
class Proxied:
    """A request as it is outside of the proxy, or as it came in where no proxy of ours has sent it.

    Attributes:
        scope: ASGI's, without the header that says who it is.
        identity: what that header says; None: nothing, or somebody else has sent it.
        refusal: why the request cannot be understood.
    """

    scope: Scope
    identity: str | None = None
    refusal: Refusal | None = None


def through_proxy(scope: Scope, proxy: TrustedProxy | None) -> Proxied:
    """Read what the proxy says; from anybody else it counts for nothing."""
    if proxy is None:
        return Proxied(scope=scope)
    headers = headers_of(scope["headers"])
    named = headers.get(proxy.header, ()) if proxy.header else ()
    kept = [(name, value) for name, value in scope["headers"] if name.decode("latin-1").lower() != proxy.header]
    peer = str((scope.get("client") or ("",))[0])
    if not proxy.holds(peer):
        return Proxied(scope={**scope, "headers": kept})
    changed = {**scope, "headers": kept}
    scheme = _SCHEMES[scope["type"]].get(_last(headers.get("x-forwarded-proto", ())).lower())
    if scheme:
        changed["scheme"] = scheme
    host = _last(headers.get("x-forwarded-host", ()))
    if HostPort.parse(host):
        changed["headers"] = [(name, value) for name, value in kept if name.lower() != b"host"]
        changed["headers"].append((b"host", host.encode("latin-1")))
    changed["client"] = (_client(headers.get("x-forwarded-for", ()), proxy) or peer, 0)
    if len(named) > 1:
        return Proxied(scope=changed, refusal=Refusal(400, "Refused: the proxy says twice who sent this."))
    identity = named[0].encode("latin-1").decode("utf-8", "replace").strip() if named else ""
    if len(identity) > LONGEST_IDENTITY or not identity.isprintable():
        return Proxied(scope=changed, refusal=Refusal(400, "Refused: what the proxy says who sent this is no name."))
    return Proxied(scope=changed, identity=identity or None)


def _last(values: Sequence[str]) -> str:
    """What the proxy next to us has written: it stands last."""
    return values[-1].rpartition(",")[2].strip() if values else ""


def _client(values: Sequence[str], proxy: TrustedProxy) -> str | None:
    """The last address that is not of a proxy of ours: what stands before it anybody may have written."""
    for text in reversed(",".join(values).split(",")):
        address = _address(text)
        if address is None:
            return None
        if not proxy.holds(address):
            return address
    return None


def _address(text: str) -> str | None:
    """The IP address in `192.0.2.1`, `192.0.2.1:5678`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:99`."""
    found = _PEER.fullmatch(text.strip().strip('"'))
    address = found and (found["bracketed"] or found["v4"] or found["bare"])
    try:
        return str(ipaddress.ip_address(address or ""))
    except ValueError:
        return None
