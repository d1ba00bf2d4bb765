"""Jobs of which nothing but a number has to be known, packed: Dagster keeps the cursor of every tick, for days.

A branch takes four bytes or so in place of its name, its numbers and their names: 5,000 of them 25 kB in place of 400.
A job is known by four bytes of a digest. Of two that share them, the discovery keeps both by name.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from typing import Annotated, NamedTuple

from pydantic import BeforeValidator, PlainSerializer

LARGEST_PACKED = 2**40


class VanishedJob(NamedTuple):
    """A job that Jenkins shows no more.

    Attributes:
        digest: of its name.
        code: what was known of it.
        latest: the latest timestamp of any job when it was seen last.
    """

    digest: int
    code: int
    latest: int


def job_digest(job: str) -> int:
    """Four bytes that stand for a job's full name."""
    return int.from_bytes(hashlib.sha256(job.encode(errors="surrogatepass")).digest()[:4])


def _pack(numbers: Iterator[int]) -> str:
    """Numbers, small ones in few bytes: seven bits a byte, the eighth says that more follow."""
    packed = bytearray()
    for number in numbers:
        while number > 0x7F:
            packed.append(number & 0x7F | 0x80)
            number >>= 7
        packed.append(number)
    return base64.b85encode(bytes(packed)).decode()


def _unpack(text: object) -> list[int]:
    if not isinstance(text, str):
        raise ValueError("is no text")
    numbers: list[int] = []
    number = shift = 0
    for byte in base64.b85decode(text):
        number |= (byte & 0x7F) << shift
        shift += 7
        if number > LARGEST_PACKED * 1000:
            raise ValueError("holds too large a number")
        if not byte & 0x80:
            numbers.append(number)
            number = shift = 0
    if shift:
        raise ValueError("ends too early")
    return numbers


def _packed_table(jobs: Mapping[int, int]) -> str:
    def numbers() -> Iterator[int]:
        before = 0
        for digest in sorted(jobs):
            yield digest - before
            yield jobs[digest]
            before = digest

    return _pack(numbers())


def _table(value: object) -> object:
    if isinstance(value, Mapping):
        return value
    numbers = _unpack(value)
    table: dict[int, int] = {}
    digest = 0
    for step, code in zip(numbers[::2], numbers[1::2], strict=True):
        digest += step
        table[digest] = code
    return table


def _packed_vanished(jobs: tuple[VanishedJob, ...]) -> str:
    def numbers() -> Iterator[int]:
        before = jobs[0].latest if jobs else 0
        yield before
        for job in jobs:
            yield from (job.digest, job.code, max(0, before - job.latest))
            before = min(before, job.latest)

    return _pack(numbers()) if jobs else ""


def _vanished(value: object) -> object:
    if isinstance(value, tuple):
        return value
    first, *numbers = _unpack(value) or [0]
    jobs: list[VanishedJob] = []
    for digest, code, step in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True):
        first -= step
        jobs.append(VanishedJob(digest, code, first))
    return tuple(jobs)


SettledJobs = Annotated[Mapping[int, int], BeforeValidator(_table), PlainSerializer(_packed_table)]
"""Digest of a job → what is known of it; as text in JSON."""

VanishedJobs = Annotated[tuple[VanishedJob, ...], BeforeValidator(_vanished), PlainSerializer(_packed_vanished)]
"""Those that vanished, the latest first; as text in JSON."""
