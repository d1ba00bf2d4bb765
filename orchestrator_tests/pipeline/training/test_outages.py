"""AWS and MLflow may be away, overloaded or mad in any step that asks them: the build is trained all the same.

That it may last a minute, the constants say; that it is ridden out, the calls that were refused meanwhile.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import urllib3.util.connection as urllib3_connection

from orchestrator.pipeline.training import lease
from orchestrator.resources import retry
from orchestrator.resources.mlflow import Mlflow
from orchestrator.resources.ssh import Ssh
from orchestrator.settings.groups import MachineSettings, MlflowSettings, SshSettings
from orchestrator_sandbox.proxy import HTML_PAGE, PAGE, REFUSED, FaultyProxy, HitCount, ProxyFault, Request
from orchestrator_tests.support import attempts
from orchestrator_tests.support.attempts import ThisRun, World, gone, provisioned
from orchestrator_tests.support.gate import PASS_IN_SHELL, Gate

pytestmark = pytest.mark.services

A_MINUTE = 60.0
REFUSALS = 2

THROTTLED = (
    "<Response><Errors><Error><Code>RequestLimitExceeded</Code><Message>Too fast</Message></Error></Errors>"
    "<RequestID>r</RequestID></Response>"
)
MADNESS = {
    "a proxy's page": HTML_PAGE,
    "a bad gateway": ProxyFault(status=502, body=PAGE),
    "throttled": ProxyFault(status=503, body=THROTTLED, content_type="text/xml"),
}


@pytest.fixture
def mlflow_proxy(world: World, mlflow_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> FaultyProxy:
    """On our way to MLflow, not on the instance's; and we are as patient with it as at our users'."""
    monkeypatch.setitem(world.environment, "MLFLOW_TRACKING_URI_ON_INSTANCE", world.mlflow_server.url)
    monkeypatch.setattr(attempts, "Mlflow", lambda settings, **_: Mlflow(settings))
    return mlflow_proxy


class FirstOfEachKind:
    """Fits the first request for each action of EC2, and for each endpoint of MLflow.

    Attributes:
        seen: these actions and endpoints.
    """

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def __call__(self, request: Request) -> bool:
        action = parse_qs(request.body.decode(errors="replace")).get("Action", [""])[0]
        kind = action or request.path.partition("?")[0].rpartition("/mlflow/")[2]
        if kind in self.seen:
            return False
        self.seen.add(kind)
        return True


class Outage:
    """Nobody listens at a proxy's port, until enough connections were refused there.

    Attributes:
        refused: how many connections were.
    """

    def __init__(self, proxy: FaultyProxy, *, enough: int) -> None:
        self.refused = 0
        self._enough = enough
        self._away = ExitStack()
        self._away.enter_context(proxy.faulty(REFUSED))

    def refuse(self) -> None:
        """Another connection was refused."""
        self.refused += 1
        if self.refused == self._enough:
            self.end()

    def end(self) -> None:
        """Listen again."""
        self._away.close()


class Outages:
    """Makes outages, and tells the latest one at each port of the connections that are refused there."""

    def __init__(self) -> None:
        self._latest: dict[int, Outage] = {}

    def begin(self, proxy: FaultyProxy, *, enough: int) -> Outage:
        """An outage from now on."""
        port = urlsplit(proxy.url).port
        assert port is not None
        self._latest[port] = Outage(proxy, enough=enough)
        return self._latest[port]

    def refused(self, port: int) -> None:
        """A connection to this port was refused."""
        if outage := self._latest.get(port):
            outage.refuse()


@pytest.fixture
def outages(monkeypatch: pytest.MonkeyPatch) -> Outages:
    """Outages that see which of our connections are refused: boto3 and requests make theirs in one place."""
    outages = Outages()
    connect = urllib3_connection.create_connection

    def watched(address: tuple[str, int], *args: Any, **options: Any) -> socket.socket:
        try:
            return connect(address, *args, **options)
        except ConnectionRefusedError:
            outages.refused(address[1])
            raise

    monkeypatch.setattr(urllib3_connection, "create_connection", watched)
    return outages


class Breakable(Ssh):
    """A connection that a test can break."""

    _behind: Gate | None = None

    def break_off(self, *, behind: Gate) -> None:
        """Break it now; when it is there again, the gate is opened."""
        self._behind = behind
        self._hang_up()

    def connect(self, *, deadline_seconds: float | None = None) -> None:
        super().connect(deadline_seconds=deadline_seconds)
        if self._behind:
            self._behind.open()


def test_whoever_is_asked_is_waited_for_longer_than_a_minute() -> None:
    assert retry.EC2.total_seconds > A_MINUTE
    assert retry.MLFLOW.total_seconds > A_MINUTE
    assert MlflowSettings.model_fields["patience_minutes"].default * 60 > A_MINUTE
    assert retry.JENKINS_FOR_A_RUN.total_seconds > A_MINUTE
    assert MachineSettings.model_fields["ready_minutes"].default * 60 > A_MINUTE
    assert retry.REMOTE_FOLLOWING.total_seconds > A_MINUTE


def test_an_outage_of_a_minute_does_not_make_a_live_attempt_look_dead() -> None:
    one_try = retry.EC2_ONE_TRY.connect_seconds + retry.EC2_ONE_TRY.answer_seconds
    last_before, first_after = 0.0, A_MINUTE + lease.RENEW_SECONDS + one_try
    assert first_after - last_before < lease.LEASE.total_seconds()


@pytest.mark.parametrize("kind", MADNESS)
def test_a_build_is_trained_though_every_call_fails_at_first(
    kind: str, world: World, aws_proxy: FaultyProxy, mlflow_proxy: FaultyProxy
) -> None:
    number = 401 + list(MADNESS).index(kind)
    applies = FirstOfEachKind()
    answer = MADNESS[kind]
    with aws_proxy.faulty(answer, times=20, applies=applies), mlflow_proxy.faulty(answer, times=20, applies=applies):
        attempt = world.attempt(
            number, run=ThisRun(f"run-{number}"), settings=world.script("quick", "#!/bin/sh\nexit 0\n")
        )
        attempt.check()
        instance = provisioned(attempt)
        assert attempt.train() == instance.mlflow_run
        attempt.terminate()
        finished = attempt.finished()
        assert finished.run.status == "FINISHED"
        assert finished.run.id == instance.mlflow_run
        assert gone(world, instance.id)
        tags = {"dagster_run_id": f"run-{number}"}
        runs = list(world.mlflow.find_runs(world.environment["MLFLOW_EXPERIMENT_ID"], tags=tags))
        assert len(runs) == 1
        attempt.close()
    assert applies.seen >= {"DescribeInstances", "RunInstances", "TerminateInstances"}
    assert applies.seen >= {"experiments/get", "runs/create", "runs/log-batch", "runs/update", "runs/get"}


def test_nobody_listening_at_the_beginning_of_any_step_only_delays_it(
    world: World, aws_proxy: FaultyProxy, mlflow_proxy: FaultyProxy, outages: Outages
) -> None:
    attempt = world.attempt(411, run=ThisRun("run-411"), settings=world.script("quick", "#!/bin/sh\nexit 0\n"))
    refused: dict[str, set[str]] = {}
    for step in (attempt.check, attempt.provision, attempt.train, attempt.terminate, attempt.finished):
        away = {
            "AWS": outages.begin(aws_proxy, enough=REFUSALS),
            "MLflow": outages.begin(mlflow_proxy, enough=REFUSALS),
        }
        step()
        for outage in away.values():
            outage.end()
        assert {outage.refused for outage in away.values()} <= {0, REFUSALS}, "it lasted until it was ridden out"
        refused[step.__name__] = {service for service, outage in away.items() if outage.refused}
    assert refused == {
        "check": {"MLflow"},
        "provision": {"AWS", "MLflow"},
        "train": set(),  # asks them when the connection to the instance breaks: see below
        "terminate": {"AWS", "MLflow"},
        "finished": {"MLflow"},
    }
    assert attempt.finished().run.status == "FINISHED"
    assert world.ec2.find(pipeline="tiny", partition="411") is None
    attempt.close()


def test_a_connection_that_breaks_while_aws_is_away_does_not_end_the_training(
    world: World, aws_proxy: FaultyProxy, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections: list[Breakable] = []
    away = ExitStack()
    hits: list[HitCount] = []

    def connect(settings: SshSettings, *, address: str, host_key: str | None) -> Ssh:
        connections.append(Breakable(settings, address=address, host_key=host_key))
        return connections[-1]

    def break_it(_: str) -> None:
        if not hits:
            hits.append(away.enter_context(aws_proxy.faulty(REFUSED)))
            connections[-1].break_off(behind=gate)

    monkeypatch.setattr(attempts, "Ssh", connect)
    program = world.script("gated", f"#!/bin/sh\nGATE={gate}\necho begun\n{PASS_IN_SHELL}\n")
    attempt = world.attempt(412, run=ThisRun("run-412"), settings=program, write=break_it)
    instance = provisioned(attempt)
    with away:
        assert attempt.train() == instance.mlflow_run
    assert [count.count for count in hits] == [1], "AWS was asked in vain"
    assert len(connections) == 1, "the instance was not taken for lost"
    usage = attempt.terminate()
    assert usage is not None
    assert usage.instance_id == instance.id
    attempt.close()


def test_a_loss_of_the_instance_while_mlflow_is_away_ends_in_another_training(
    world: World, mlflow_proxy: FaultyProxy, outages: Outages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "Ssh", partial(Ssh, policy=replace(retry.SSH, total_seconds=0.5)))
    attempt = world.attempt(421, run=ThisRun("run-421"), settings=world.script("quick", "#!/bin/sh\nexit 0\n"))
    first = provisioned(attempt)
    world.ec2_server.terminate_from_outside(first.id)
    away = outages.begin(mlflow_proxy, enough=REFUSALS)
    trained = attempt.train()
    assert away.refused == REFUSALS
    assert trained != first.mlflow_run
    assert world.mlflow.run(first.mlflow_run).status == "KILLED"
    attempt.terminate()
    assert attempt.finished().run.id == trained
    attempt.close()
