"""Slows down who tries passwords and tokens; locks nobody out."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

LONGEST_NAME = 64
NETWORK_BITS = {4: 24, 6: 56}
"""What one subscriber or company usually has of addresses."""


@dataclass
class _Record:
    """What is known of one name from one network."""

    failures: int = 0
    last: float = 0.0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


class Attempts:
    """Counts wrong attempts by name and network: each is answered later than the one before.

    Attempts for the same name from the same network take turns, so that many at once are no quicker. Whoever comes
    from another network is not delayed by them, and a right token is not delayed at all.

    Args:
        now: a monotonic clock.
        sleep: waits.
    """

    FIRST_SECONDS = 0.25
    LONGEST_SECONDS = 5.0
    FORGOTTEN_AFTER_SECONDS = 300.0
    MOST_WAITING = 50
    MOST_WAITING_EACH = 5
    MOST_RECORDS = 4096

    def __init__(
        self,
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._now = now
        self._sleep = sleep
        self._records: OrderedDict[tuple[str, str], _Record] = OrderedDict()
        self._waiting = 0

    async def failed(self, name: str = "", network: str = "") -> bool:
        """Wait after a wrong attempt, longer with each; False, at once: too many wait already."""
        if self._waiting >= self.MOST_WAITING:
            return False
        record = self._record(name, network)
        if self._now() - record.last > self.FORGOTTEN_AFTER_SECONDS:
            record.failures = 0
        record.last = self._now()
        seconds = min(self.FIRST_SECONDS * 2 ** min(record.failures, 10), self.LONGEST_SECONDS)
        record.failures += 1
        self._waiting += 1
        try:
            await self._sleep(seconds)
        finally:
            self._waiting -= 1
        return True

    def succeeded(self, name: str, network: str) -> None:
        """Forget the wrong attempts of this name from this network."""
        record = self._records.get(_key(name, network))
        if record:
            record.failures = 0

    @asynccontextmanager
    async def turn(self, name: str, network: str) -> AsyncIterator[bool]:
        """Let one attempt at a time of this name from this network go on; False: too many wait already."""
        record = self._record(name, network)
        if record.waiting >= self.MOST_WAITING_EACH:
            yield False
            return
        record.waiting += 1
        try:
            async with record.turn:
                yield True
        finally:
            record.waiting -= 1

    def _record(self, name: str, network: str) -> _Record:
        key = _key(name, network)
        record = self._records.setdefault(key, _Record())
        self._records.move_to_end(key)
        if len(self._records) > self.MOST_RECORDS:
            idle = next((known for known, record in self._records.items() if not record.waiting), None)
            if idle and idle != key:
                del self._records[idle]
        return record


class WaitingRoom:
    """Holds those whose password is to be verified: only so many, and only a part of them from one network.

    So a flood of many names waits in its own places, is answered at once beyond them, and leaves room to everybody
    else.
    """

    MOST = 24
    MOST_EACH = 6

    def __init__(self) -> None:
        self._waiting: Counter[str] = Counter()

    @contextmanager
    def place(self, network: str) -> Iterator[bool]:
        """Take a place until the end of the block; False, at once: there is none."""
        if self._waiting.total() >= self.MOST or self._waiting[network] >= self.MOST_EACH:
            yield False
            return
        self._waiting[network] += 1
        try:
            yield True
        finally:
            self._waiting[network] -= 1
            self._waiting += Counter()  # forget who has none


def _key(name: str, network: str) -> tuple[str, str]:
    return name[:LONGEST_NAME].casefold(), network


def network_of(address: str) -> str:
    """The network that an address is of; other texts stand for themselves."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return str(ipaddress.ip_network(f"{ip}/{NETWORK_BITS[ip.version]}", strict=False))
