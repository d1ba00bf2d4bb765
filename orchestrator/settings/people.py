"""Who may log in with somebody else's word for it: allow-lists, and the proxy that is believed."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from orchestrator.settings.hosts import is_loopback

ROLES = ("viewer", "launcher", "admin")
EVERYBODY = "*"
EXACT = "sub:"
"""Before a provider's own ID of somebody, of which each letter's case counts."""

_NOT_AN_IDENTITY = ("host", "cookie", "authorization", "origin", "connection", "forwarded", "x-forwarded-for")
_SEPARATOR = re.compile(r"\s*[:=@\s]\s*")
_HEADER = re.compile(r"[A-Za-z0-9-]+", re.ASCII)


@dataclass(frozen=True)
class AllowList:
    """Pattern → role, such as `alice@example.com=admin`, `*@example.com=viewer`, `bob=launcher`, `sub:17=viewer`."""

    entries: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, words: Iterable[str]) -> Self:
        """Read `pattern=role` words.

        Raises:
            ValueError: one of them is none.
        """
        return cls(tuple(_entry(word) for word in words))

    def role_of(self, identities: Iterable[str]) -> str | None:
        """The role of who is known by these; None: nobody allows him. A name comes before a domain, that before `*`."""
        known = [folded(identity) for identity in identities]
        for matches in (_is_same, _is_of_domain, _is_everybody):
            for pattern, role in self.entries:
                if any(matches(pattern, identity) for identity in known):
                    return role
        return None

    def names(self, identity: str) -> bool:
        """Whether an entry is of this identity alone."""
        return any(_is_same(pattern, folded(identity)) for pattern, _ in self.entries)


@dataclass(frozen=True)
class TrustedProxy:
    """A proxy before us that may say from where a request comes, and from whom.

    Attributes:
        header: which says who it is; None: it only says from where.
        networks: of the proxy, as CIDR.
    """

    header: str | None
    networks: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `X-Forwarded-User 10.0.0.0/8,fd00::/8`, or the networks alone.

        Raises:
            ValueError: it is neither.
        """
        name: str | None = None
        rest = text.strip()
        found = _HEADER.match(rest)
        if found and (separator := _SEPARATOR.match(rest, found.end())) and not _is_network(rest.split(",")[0]):
            name, rest = found[0], rest[separator.end() :]
            if name.lower() in _NOT_AN_IDENTITY:
                raise ValueError(f"the header {name} does not say who somebody is; name one such as X-Forwarded-User")
        networks = [part.strip() for part in rest.split(",") if part.strip()]
        if not networks:
            raise ValueError("it names no network; write for example X-Forwarded-User 10.0.0.5/32")
        for network in networks:
            if not _is_network(network):
                raise ValueError(f"{network!r} is no network; write for example X-Forwarded-User 10.0.0.5/32")
            if ipaddress.ip_network(network).prefixlen == 0:
                raise ValueError(f"{network} is everybody, who could then be anybody; name the proxy's own address")
        return cls(name.lower() if name else None, tuple(networks))

    def holds(self, address: str) -> bool:
        """Whether the proxy has that address."""
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        ip = getattr(ip, "ipv4_mapped", None) or ip
        return any(ip in ipaddress.ip_network(network) for network in self.networks)


def folded(identity: str) -> str:
    """The spelling that counts. Letters that are not ASCII are left alone, because some fold into ASCII ones."""
    is_exact = identity[: len(EXACT)].lower() == EXACT  # else `SUB:17`, as a name, would become the ID `sub:17`
    return identity if is_exact or not identity.isascii() else identity.lower()


def issuer_fault(issuer: str) -> str | None:
    """What is wrong with an OIDC provider's address; None: nothing."""
    found = re.fullmatch(r"(https?)://(\[[0-9a-f:]+\]|[^/?#@:\s]+)(:[0-9]+)?(/[^?#\s]*)?", issuer, re.IGNORECASE)
    if not found:
        return "it is no address such as https://accounts.example.com"
    if found[1].lower() == "http" and not is_loopback(found[2].strip("[]")):
        return "it is not reached by https, so that anybody on the way could say who somebody is"
    return None


def _entry(word: str) -> tuple[str, str]:
    pattern, separator, role = (part.strip() for part in word.rpartition("="))
    if not separator or not pattern:
        raise ValueError(f"{word!r} has no role; write for example alice@example.com=admin")
    if role not in ROLES:
        raise ValueError(f"{role!r} is no role; write viewer, launcher or admin")
    stars = pattern.count("*")
    if stars and pattern != EVERYBODY and not (stars == 1 and re.fullmatch(r"\*@[^@*\s]+", pattern)):
        raise ValueError(f"{pattern!r} has its * where none may be; write *@example.com, or * for everybody")
    if pattern.lower().startswith(EXACT) and not pattern.startswith(EXACT):
        raise ValueError(f"{pattern!r} is neither a name nor an ID; write {EXACT} in lower case")
    return folded(pattern), role


def _is_same(pattern: str, identity: str) -> bool:
    return pattern == identity and pattern != EVERYBODY and not pattern.startswith("*@")


def _is_of_domain(pattern: str, identity: str) -> bool:
    local, _, domain = identity.partition("@")
    plain = bool(local and domain) and not identity.startswith(EXACT) and "@" not in domain
    return plain and pattern == f"*@{domain}"


def _is_everybody(pattern: str, identity: str) -> bool:
    return pattern == EVERYBODY and bool(identity)


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text.strip())
    except ValueError:
        return False
    return True
