"""Wrong attempts are slowed by name and network; nobody is locked out, and memory is bounded."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from orchestrator.operate.web.attempts import Attempts, WaitingRoom, network_of
from orchestrator_tests.operate.web.test_login import Clock


def test_who_comes_from_elsewhere_or_is_somebody_else_is_not_slowed() -> None:
    clock = Clock()
    attempts = Attempts(now=clock, sleep=clock.sleep)
    for _ in range(8):
        assert asyncio.run(attempts.failed("ada", "192.0.2.0/24"))
    assert clock.slept[-1] == Attempts.LONGEST_SECONDS
    for name, network in (("ada", "198.51.100.0/24"), ("vic", "192.0.2.0/24")):
        assert asyncio.run(attempts.failed(name, network))
        assert clock.slept[-1] == Attempts.FIRST_SECONDS


def test_the_case_of_a_name_makes_no_new_one() -> None:
    clock = Clock()
    attempts = Attempts(now=clock, sleep=clock.sleep)
    for name in ("ada", "ADA", "Ada"):
        asyncio.run(attempts.failed(name, "n"))
    assert clock.slept == [0.25, 0.5, 1.0]


def test_a_right_password_forgets_the_wrong_ones() -> None:
    clock = Clock()
    attempts = Attempts(now=clock, sleep=clock.sleep)
    for _ in range(4):
        asyncio.run(attempts.failed("ada", "n"))
    attempts.succeeded("ada", "n")
    asyncio.run(attempts.failed("ada", "n"))
    assert clock.slept[-1] == Attempts.FIRST_SECONDS


def test_attempts_of_one_name_from_one_network_take_turns_and_only_so_many_wait() -> None:
    async def storm() -> tuple[int, int, bool]:
        attempts, now, most, granted = Attempts(), 0, 0, 0
        go_on = asyncio.Event()

        async def attempt() -> bool:
            nonlocal now, most, granted
            async with attempts.turn("ada", "n") as is_next:
                if is_next:
                    now += 1
                    most = max(most, now)
                    granted += 1
                    await go_on.wait()
                    now -= 1
                return is_next

        tasks = [asyncio.create_task(attempt()) for _ in range(40)]
        await asyncio.sleep(0)
        async with attempts.turn("ada", "elsewhere") as is_next:
            elsewhere = is_next
        go_on.set()
        await asyncio.gather(*tasks)
        return most, granted, elsewhere

    assert asyncio.run(storm()) == (1, Attempts.MOST_WAITING_EACH, True)


def test_memory_is_bounded_whatever_names_and_networks_there_are() -> None:
    clock = Clock()
    attempts = Attempts(now=clock, sleep=clock.sleep)

    async def many() -> None:
        for number in range(Attempts.MOST_RECORDS + 500):
            await attempts.failed(f"{number}" + "x" * 10_000, f"{number}")

    asyncio.run(many())
    assert len(attempts._records) == Attempts.MOST_RECORDS
    assert max(len(name) for name, _ in attempts._records) <= 64


def test_only_so_many_wait_for_their_hash_and_one_network_never_takes_all_places() -> None:
    room = WaitingRoom()
    with ExitStack() as held:
        flood = [held.enter_context(room.place("192.0.2.0/24")) for _ in range(500)]
        assert sum(flood) == WaitingRoom.MOST_EACH < WaitingRoom.MOST
        with room.place("198.51.100.0/24") as has_place:
            assert has_place
        everybody = [held.enter_context(room.place(f"n{number}")) for number in range(500)]
        assert sum(everybody) == WaitingRoom.MOST - WaitingRoom.MOST_EACH
    assert not room._waiting
    with room.place("192.0.2.0/24") as has_place:
        assert has_place


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("::ffff:192.0.2.77", "192.0.2.0/24"),
        ("2001:db8:1:2:3::4", "2001:db8:1::/56"),
        ("somebody", "somebody"),
    ],
)
def test_the_network_of_an_address(address: str, network: str) -> None:
    assert network_of(address) == network
