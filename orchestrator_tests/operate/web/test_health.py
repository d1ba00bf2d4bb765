"""`/health/ready`: everybody learns whether we are, and what is not; admins why."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import dagster as dg
import pytest

from orchestrator.operate.web.caller import Caller, Role
from orchestrator.operate.web.dagster_view import DagsterView, SensorView
from orchestrator.operate.web.health import HealthPage, missing_parts
from orchestrator.operate.web.refreshed import CachePolicy, Refreshed
from orchestrator_tests.support.dagster_internals import EmptyWorkspaceTarget, WorkspaceProcessContext
from orchestrator_tests.support.ui import TOKEN, Ui, served
from orchestrator_tests.support.waiting import until

NOW = 1_800_000_000.0
PATIENT = CachePolicy(fresh=5, wait=30, stale=60)


class Seen(DagsterView):
    """A Dagster that is as the test says."""

    def __init__(self, **changes: Any) -> None:
        self._locations: Mapping[str, str | None] = changes.get("locations", {"orchestrator": None})
        self._beats: Mapping[str, float | None] = changes.get("beats", {"SENSOR": NOW - 5, "BACKFILL": NOW - 59})
        self._sensors = changes.get("sensors", [sensor("janitor", interval=60, ticked_at=NOW - 170)])
        self._error = changes.get("error")
        self.reads = 0

    def locations(self) -> Mapping[str, str | None]:
        return self._locations

    def heartbeats(self) -> Mapping[str, float | None]:
        self.reads += 1
        if self._error:
            raise self._error
        return self._beats

    def sensors(self) -> Iterator[SensorView]:
        yield from self._sensors


def sensor(name: str, **changes: Any) -> SensorView:
    return SensorView(**{"is_on": True, "interval": 15, "ticked_at": NOW - 1, "cursor": None, "name": name, **changes})


def missing(**changes: Any) -> list[str]:
    return [part.component for part in missing_parts(Seen(**changes), NOW)]


def test_all_is_well() -> None:
    assert missing() == []


@pytest.mark.parametrize(
    ("changes", "component"),
    [
        ({"error": OSError("postgresql://orch:hunter2@db/x is away")}, "database"),
        ({"locations": {}}, "code location"),
        ({"locations": {"orchestrator": "ImportError: no module named churn"}}, "code location"),
        ({"beats": {"SENSOR": NOW - 61}}, "daemon SENSOR"),
        ({"beats": {"BACKFILL": None}}, "daemon BACKFILL"),
        ({"sensors": [sensor("janitor", interval=60, ticked_at=NOW - 181)]}, "sensor of the janitor"),
        ({"sensors": [sensor("secret-project_jenkins_sensor", ticked_at=None)]}, "sensor of a pipeline"),
        ({"sensors": [sensor("churn_jenkins_sensor", ticked_at=NOW - 76)]}, "sensor of a pipeline"),
    ],
)
def test_each_part_that_is_missing_is_named(changes: dict[str, Any], component: str) -> None:
    assert missing(**changes) == [component]


def test_a_sensor_that_is_switched_off_is_not_waited_for() -> None:
    assert missing(sensors=[sensor("churn_jenkins_sensor", is_on=False, ticked_at=None)]) == []


def test_a_tick_that_waits_for_jenkins_as_long_as_it_may_is_not_missing() -> None:
    assert missing(sensors=[sensor("churn_jenkins_sensor", ticked_at=NOW - 70)]) == []


class Page(NamedTuple):
    status: int
    content: dict[str, Any]


def asked(page: HealthPage, caller: Caller | None = None) -> Page:
    answer = asyncio.run(page.answer(caller))
    return Page(answer.status_code, json.loads(bytes(answer.body)))


def test_strangers_learn_which_component_and_admins_why() -> None:
    page = HealthPage(Seen(error=OSError("postgresql://db.internal is away")), policy=PATIENT, now=lambda: NOW)
    for caller in (None, Caller("vic", Role.VIEWER), Caller("lou", Role.LAUNCHER)):
        assert asked(page, caller) == (503, {"status": "not ready", "missing": ["database"]})
    details = asked(page, Caller("ada", Role.ADMIN)).content["details"]
    assert details == ["database: it cannot be read: OSError: postgresql://db.internal is away"]


def test_however_many_ask_the_database_is_asked_once() -> None:
    seen = Seen()
    page = HealthPage(seen, policy=PATIENT, now=lambda: NOW)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: asked(page), range(40)))
    assert set(map(str, answers)) == {str(Page(200, {"status": "ready"}))}
    assert seen.reads == 1


def test_a_database_that_hangs_costs_the_answer_and_no_more() -> None:
    released = threading.Event()

    class Hanging(Seen):
        def heartbeats(self) -> Mapping[str, float | None]:
            released.wait()
            return super().heartbeats()

    page = HealthPage(Hanging(), policy=CachePolicy(fresh=5, wait=0.05, stale=60), now=lambda: NOW)
    assert asked(page) == (503, {"status": "not ready", "missing": ["database"]})
    assert asked(page).status == 503
    released.set()
    until(lambda: asked(page).status == 200)


def test_what_cannot_be_computed_leaves_the_last_value_until_it_is_too_old() -> None:
    clock = [0.0]
    answers = iter(["first"])
    value = Refreshed(
        lambda: next(answers), name="test", policy=CachePolicy(fresh=1, wait=30, stale=10), clock=lambda: clock[0]
    )
    assert asyncio.run(value.value()) == "first"
    clock[0] = 5
    assert asyncio.run(value.value()) == "first"  # StopIteration, which is logged
    clock[0] = 10
    assert asyncio.run(value.value()) is None


def test_the_dagster_that_is_installed_has_what_we_read() -> None:
    with (
        dg.instance_for_test() as instance,
        WorkspaceProcessContext(instance, EmptyWorkspaceTarget(), version="test") as context,
    ):
        view = DagsterView(context)
        assert {"SENSOR", "BACKFILL", "SCHEDULER"} <= set(view.heartbeats())
        assert set(view.heartbeats().values()) == {None}
        assert (dict(view.locations()), list(view.sensors())) == ({}, [])
    assert "instigator_type" in inspect.signature(instance.all_instigator_state).parameters


# ---- Served


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    with served(
        tmp_path_factory.mktemp("ui"), roles=["viewer", "admin"], UI_TOKEN=TOKEN, UI_HOSTS="orch.example"
    ) as ui:
        yield ui


@pytest.mark.services
def test_a_served_orchestrator_becomes_ready_whoever_asks(ui: Ui) -> None:
    until(lambda: ui.send("GET", "/health/ready").status == 200, seconds=120)
    answer = ui.send("GET", "/health/ready")
    assert json.loads(answer.text) == {"status": "ready"}
    assert answer.headers["cache-control"] == "no-store"
    assert ui.send("HEAD", "/health/ready").status == 200
    # Whoever checks a container asks for its address; a page that gets here by its own name is refused.
    assert ui.send("GET", "/health/ready", host="10.1.2.3:3000").status == 200
    assert ui.send("GET", "/health/ready", host="orch.example").status == 200
    assert ui.send("GET", "/health/ready", host="evil.example").status == 421
    assert ui.send("POST", "/health/ready", body="").status == 401
    assert ui.send("GET", "/health/ready", ("Authorization", "Bearer no-token-of-anybody")).status == 401
    assert ui.send("GET", "/health/ready", ui.bearer("viewer")).status == 200


@pytest.mark.matrix
def test_a_daemon_that_stands_still_is_named(ui: Ui) -> None:
    until(lambda: ui.send("GET", "/health/ready").status == 200, seconds=120)
    (daemon,) = [
        process
        for process in ui.command.process.children(recursive=True)
        if "orchestrator.operate.daemon" in process.cmdline()
    ]
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        until(lambda: ui.send("GET", "/health/ready").status == 503, seconds=150, every=1)
        answer = ui.send("GET", "/health/ready")
        assert "daemon SENSOR" in json.loads(answer.text)["missing"]
        assert "details" not in json.loads(answer.text)
        assert "heartbeat was" in ui.send("GET", "/health/ready", ui.bearer("admin")).text
        assert "heartbeat" not in ui.send("GET", "/health/ready", ui.bearer("viewer")).text
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    until(lambda: ui.send("GET", "/health/ready").status == 200, seconds=120, every=1)
