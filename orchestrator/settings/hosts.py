"""Hosts and origins as HTTP writes them, read strictly: whatever can be read in two ways is read in none."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

DEFAULT_PORTS = {"http": 80, "https": 443}

_AUTHORITY = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?))(?::([0-9]{1,5}))?", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_LONGEST_NAME = 253


@dataclass(frozen=True)
class HostPort:
    """What a Host header says.

    Attributes:
        name: in lower case; an IP address in its shortest form, without brackets.
        port: None when it is not written.
    """

    name: str
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> HostPort | None:
        """Read `name`, `name:port`, `127.0.0.1:port` or `[::1]:port`; None: it is none of these."""
        found = _AUTHORITY.fullmatch(text.lower())
        if not found or not text.isascii() or "\n" in text:
            return None
        address, name, digits = found.groups()
        port = int(digits) if digits else None
        if port is not None and not 0 < port < 65536:
            return None
        name = _ip_address(address) if address else _plain_name(name)
        return cls(name, port) if name else None


@dataclass(frozen=True)
class Origin:
    """Scheme, host and port of a page; the port is never left out."""

    scheme: str
    name: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Origin | None:
        """Read an Origin header; None for `null` and for whatever has more or less than an origin has."""
        scheme, separator, authority = text.partition("://")
        scheme = scheme.lower()
        host = HostPort.parse(authority) if separator and scheme in DEFAULT_PORTS else None
        return cls.of(scheme, host) if host else None

    @classmethod
    def of(cls, scheme: str, host: HostPort) -> Origin:
        """The origin of a page that was asked for at that host."""
        return cls(scheme, host.name, host.port or DEFAULT_PORTS[scheme])


def is_loopback(name: str) -> bool:
    """Whether only this machine reaches that host: `localhost`, 127.0.0.0/8 or ::1."""
    if name.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback if address.version == 4 else address == ipaddress.IPv6Address("::1")


def is_ip_address(name: str) -> bool:
    """Whether it is a number, which no name server can lead elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _ip_address(text: str) -> str | None:
    try:
        return ipaddress.IPv6Address(text).compressed
    except ValueError:
        return None


def _plain_name(text: str) -> str | None:
    """A DNS name, or an IPv4 address in its one usual spelling: not 127.1, not 0x7f000001, not 2130706433."""
    labels = text.split(".")
    if len(text) > _LONGEST_NAME or not all(0 < len(label) < 64 for label in labels):
        return None
    if not _NUMBER.fullmatch(labels[-1]):
        return text
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        return None
