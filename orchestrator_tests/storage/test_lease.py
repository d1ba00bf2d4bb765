"""Who of several may run the daemon: one at a time, and the next one when that one is gone, however it went."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as db

from orchestrator.errors import SettingsError
from orchestrator.storage.address import PostgresAddress
from orchestrator.storage.lease import LEASE, HomeLock, LeasePolicy, PostgresLease, await_lease, require_free
from orchestrator_sandbox.proxy import TcpRelay
from orchestrator_tests.support.postgres import Postgres
from orchestrator_tests.support.waiting import until

QUICK = LeasePolicy(renew=0.3, trusted=1, expires=2, poll=0.1)


class Lost(Exception):
    """What a holder does that has lost it, in place of its end."""


def _lose() -> None:
    raise Lost


@pytest.fixture(autouse=True)
def _no_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DAGSTER_POSTGRES_URL", raising=False)
    monkeypatch.chdir(tmp_path)


def test_who_stands_by_takes_over_within_thirty_seconds() -> None:
    assert LEASE.expires + LEASE.poll < 30
    assert LEASE.renew < LEASE.trusted < LEASE.expires  # who was not heard of for so long does nothing any more


def test_a_home_has_one_holder_until_that_one_lets_go(tmp_path: Path) -> None:
    first, second = HomeLock(tmp_path), HomeLock(tmp_path)
    assert first.take() is None
    assert second.take() == f"process {os.getpid()} runs Dagster's daemon in {tmp_path}"
    with pytest.raises(SettingsError, match=r"cannot restore now: process .* stop every `serve` first"):
        require_free(tmp_path, "restore")
    first.release()
    require_free(tmp_path, "restore")
    assert second.take() is None


def test_a_killed_holder_s_home_is_taken_over(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from orchestrator.storage.lease import HomeLock\n"
        "lock = HomeLock(pathlib.Path('.')); print(lock.take(), flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "None\n"
        lines: list[str] = []
        waiting = threading.Thread(
            target=await_lease, args=(HomeLock(tmp_path),), kwargs={"say": lines.append, "policy": QUICK}
        )
        waiting.start()
        until(lambda: lines)
        assert lines[0].startswith(f"Standing by: process {holder.pid} runs Dagster's daemon")
        holder.send_signal(signal.SIGKILL)
        waiting.join(60)
    assert lines[1:] == ["Taking over: the one that ran Dagster's daemon has ended"]


OpenLease = Callable[..., PostgresLease]


@pytest.fixture
def open_lease(postgres: Postgres) -> OpenLease:
    """Another process's lease on the same database: each has an engine of its own."""
    database = postgres.new_database()

    def open_it(number: int, port: int | None = None) -> PostgresLease:
        address = PostgresAddress.parse(f"{postgres.url(database, port=port)}?application_name=p{number}")
        return PostgresLease(address, QUICK)

    return open_it


@pytest.mark.services
def test_a_holder_that_renews_keeps_it_and_one_that_does_not_loses_it(open_lease: OpenLease) -> None:
    first, second = open_lease(1), open_lease(2)
    assert first.take() is None
    first.keep(_lose)
    deadline = time.monotonic() + 2 * QUICK.expires
    while time.monotonic() < deadline:
        assert "runs Dagster's daemon" in str(second.take())
    first._over.set()  # as if it were killed
    until(lambda: second.take() is None)
    with pytest.raises(Lost):
        first._shared.engine.connect()


@pytest.mark.services
def test_one_that_lets_go_is_followed_at_once(open_lease: OpenLease) -> None:
    first, second = open_lease(1), open_lease(2)
    assert first.take() is None
    first.release()
    assert second.take() is None
    assert first.take() is not None


@pytest.mark.services
def test_of_many_that_want_it_one_gets_it(open_lease: OpenLease) -> None:
    leases = [open_lease(number) for number in range(8)]
    answers: list[str | None] = []
    threads = [threading.Thread(target=lambda lease=lease: answers.append(lease.take())) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.count(None) == 1


@pytest.mark.services
def test_an_outage_costs_a_holder_nothing_when_nobody_else_could_take_it(
    postgres: Postgres, open_lease: OpenLease
) -> None:
    with TcpRelay(postgres.port) as relay:
        first = open_lease(1, relay.port)
        assert first.take() is None
        first.keep(_lose)
        relay.close()
        threading.Event().wait(2 * QUICK.expires)  # an outage lasts, there is nothing to await
        relay.open()

        def works() -> bool:
            try:
                with first._shared.engine.connect() as connection:
                    return bool(connection.execute(db.text("SELECT true")).scalar())
            except db.exc.DBAPIError:
                return False

        until(works)
        assert open_lease(2).take() is not None
        first.release()


@pytest.mark.services
def test_a_holder_that_was_cut_off_does_nothing_more_when_another_has_taken_over(
    postgres: Postgres, open_lease: OpenLease
) -> None:
    with TcpRelay(postgres.port) as relay:
        first, second = open_lease(1, relay.port), open_lease(2)
        assert first.take() is None
        first._on_loss = _lose
        first._shared.guard = first._look
        relay.close()
        until(lambda: second.take() is None)
        relay.open()
        with pytest.raises(Lost):
            first._shared.engine.connect()
