"""Faults, really done: processes killed, servers taken away, connections cut, machines terminated."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from urllib.parse import parse_qs

import tenacity

from orchestrator.errors import DagsterDown, SandboxError
from orchestrator.names import Step
from orchestrator_sandbox.chaos.attempts import AttemptsApi, DagsterAttempt
from orchestrator_sandbox.chaos.lab import FaultLab
from orchestrator_sandbox.chaos.plan import FaultKind, PlannedFault
from orchestrator_sandbox.chaos.service_manager import kill
from orchestrator_sandbox.ec2.api import AwsFault
from orchestrator_sandbox.proxy import (
    HOLD_SECONDS,
    HTML_PAGE,
    OUTAGE_SECONDS,
    REFUSED,
    SLOW,
    FaultyProxy,
    HitCount,
    ProxyFault,
    Request,
)

OUTAGES: dict[FaultKind, ProxyFault] = {
    FaultKind.AWS_DOWN: REFUSED,
    FaultKind.JENKINS_DOWN: REFUSED,
    FaultKind.JENKINS_SLOW: SLOW,
    FaultKind.JENKINS_HTML: HTML_PAGE,
    FaultKind.MLFLOW_DOWN: REFUSED,
    FaultKind.MLFLOW_RESTARTED: REFUSED,
    FaultKind.MLFLOW_SLOW: SLOW,
    FaultKind.MLFLOW_HTML: HTML_PAGE,
}
"""The kinds that last for some time, and what clients of the server meet then."""

AWS_ERRORS = {
    FaultKind.AWS_ERRORS: AwsFault("InternalError", status=500),
    FaultKind.AWS_THROTTLING: AwsFault("RequestLimitExceeded", status=503),
    FaultKind.AWS_NO_CAPACITY: AwsFault("InsufficientInstanceCapacity", status=500),
}

JENKINS = (FaultKind.JENKINS_DOWN, FaultKind.JENKINS_SLOW, FaultKind.JENKINS_HTML)
INSTANCE_SECONDS = 5.0
RESTART_SECONDS = 60.0
"""Within this time Dagster's webserver is back after it was killed."""
MLFLOW_RESTART_SECONDS = 25.0
"""What a restart of MLflow takes on a busy machine."""


class FaultMissed(Exception):
    """There was nothing, or nothing left, that this fault could harm; the text says what."""


@dataclass(frozen=True)
class FaultDuration:
    """How long a fault lasts.

    Attributes:
        least_seconds: the shortest time.
        most_seconds: the longest time; after the shortest one it ends as soon as it has met enough requests.
        enough_hits: how many requests are enough.
        ends_with_run: it ends when the build's run does, at the latest.
    """

    least_seconds: float = 0
    most_seconds: float = 0
    enough_hits: int = 1
    ends_with_run: bool = False


class FaultInjector:
    """Does the faults.

    Args:
        lab: what is harmed.
    """

    def __init__(self, lab: FaultLab) -> None:
        self._lab = lab
        self._mlflow = threading.Lock()

    def held(self, fault: PlannedFault, partition: str) -> AbstractContextManager[None]:
        """Hold up a phase that is too short to be met otherwise, for as long as the context lasts."""
        phase = fault.phase
        if phase == Step.RESOLVE and fault.kind in JENKINS:  # it is asked before MLflow is
            return self._lab.jenkins.held(lambda request: f"/{partition}/" in request.path)
        if phase == Step.RESOLVE:
            return self._lab.mlflow.held(lambda request: request.path.partition("?")[0].endswith("/experiments/get"))
        if phase == Step.TERMINATE:
            return self._lab.aws.held(lambda request: _action(request) == "TerminateInstances")
        if phase == Step.RECORD:
            return self._lab.mlflow.held(lambda request: "/metrics/get-history" in request.path)
        return nullcontext()

    def start(self, fault: PlannedFault, *, attempt: DagsterAttempt | None) -> AbstractContextManager[HitCount]:
        """Do a fault; what lasts, lasts as long as the returned context, which counts the requests that meet it.

        Args:
            fault: what to do.
            attempt: the attempt that is meant; None when there is none yet.

        Raises:
            FaultMissed: there is nothing to do it to.
        """
        match fault.kind:
            case FaultKind.WORKER_KILLED:
                self._kill_worker(_required(attempt))
            case FaultKind.DAEMON_KILLED:
                _require_killed(kill(self._lab.processes.daemon()), otherwise="the daemon is just being started")
            case FaultKind.CODE_SERVER_KILLED:
                _require_killed(
                    kill(self._lab.processes.code_servers()), otherwise="the code server is just being started"
                )
            case FaultKind.EVERYTHING_KILLED:
                kill(self._lab.processes.everything())
            case FaultKind.SSH_CUT:
                self._on_instance(attempt, self._lab.stack.ec2.cut_connections)
            case FaultKind.SSHD_AWAY:
                self._on_instance(attempt, lambda id: self._lab.stack.ec2.refuse_connections(id, seconds=fault.seconds))
            case FaultKind.TRAFFIC_SWALLOWED:
                self._on_instance(attempt, lambda id: self._lab.stack.ec2.swallow_traffic(id, seconds=fault.seconds))
            case FaultKind.INSTANCE_TERMINATED:
                self._on_instance(attempt, self._lab.stack.ec2.terminate_from_outside)
            case FaultKind.AWS_ERRORS | FaultKind.AWS_THROTTLING | FaultKind.AWS_NO_CAPACITY:
                return self._lab.aws.faulty(_aws_answer(fault.kind), times=_calls(fault), applies=_target(fault.kind))
            case FaultKind.CANCELLED:
                self._cancel(_required(attempt))
            case FaultKind.TRAINING_FAILS:
                pass  # the ledger has told the training before it began
            case _:
                return self._outage(fault)
        return nullcontext(HitCount(count=1))

    def duration(self, fault: PlannedFault) -> FaultDuration:
        """How long a fault may last now.

        Raises:
            FaultMissed: the server has just been away for as long as its clients must bear.
        """
        if fault.kind in AWS_ERRORS:
            return FaultDuration(most_seconds=OUTAGE_SECONDS, enough_hits=_calls(fault), ends_with_run=True)
        if fault.kind not in OUTAGES:
            return FaultDuration()
        bearable = self._proxy(fault).bearable_seconds()
        if fault.kind is FaultKind.MLFLOW_RESTARTED:
            bearable -= MLFLOW_RESTART_SECONDS
        if bearable < 1:
            raise FaultMissed("the server has just been away for a minute")
        return FaultDuration(least_seconds=min(fault.seconds, bearable), most_seconds=bearable)

    def _proxy(self, fault: PlannedFault) -> FaultyProxy:
        proxies = {"AWS": self._lab.aws, "Jenkins": self._lab.jenkins, "MLflow": self._lab.mlflow}
        return proxies[fault.kind.partition(" ")[0]]

    @contextlib.contextmanager
    def _outage(self, fault: PlannedFault) -> Iterator[HitCount]:
        stopped = self._mlflow_stopped() if fault.kind is FaultKind.MLFLOW_RESTARTED else nullcontext()
        with self._proxy(fault).faulty(OUTAGES[fault.kind]) as hits, stopped:
            yield hits

    @contextlib.contextmanager
    def _mlflow_stopped(self) -> Iterator[None]:
        with self._mlflow:
            self._lab.stack.mlflow.close()
            try:
                yield
            finally:
                self._lab.stack.mlflow.__enter__()

    def _kill_worker(self, attempt: DagsterAttempt) -> None:
        with self._lab.dagster() as dagster:
            pid = dagster.worker(attempt.id)
        worker = self._lab.processes.worker(pid) if pid is not None else None
        if worker is None:
            raise FaultMissed("the run's worker has ended")
        _require_killed(kill([worker]), otherwise="the run's worker has just ended")

    def _cancel(self, attempt: DagsterAttempt) -> None:
        with self._lab.dagster() as dagster:
            try:
                dagster.cancel(attempt.id)
            except DagsterDown as error:  # the cancel may have arrived all the same
                if _status(dagster, attempt) not in ("CANCELING", "CANCELED"):
                    raise FaultMissed(f"Dagster did not cancel the run: {error}") from error
            # The phase is held up meanwhile, because it may be over otherwise before the cancel arrives.
            patient = tenacity.Retrying(
                retry=tenacity.retry_if_result(lambda status: status == "CANCELING"),
                stop=tenacity.stop_after_delay(HOLD_SECONDS),
                wait=tenacity.wait_fixed(0.5),
                retry_error_callback=lambda _: None,
            )
            patient(_status, dagster, attempt)

    def _on_instance(self, attempt: DagsterAttempt | None, harm: Callable[[str], object]) -> None:
        """Harm the instance of an attempt; one that is being provisioned is up within a few seconds."""
        partition = _required(attempt).partition

        def try_it() -> None:
            instance = next((each for each in self._lab.instances() if each.partition == partition), None)
            if instance is None:
                raise SandboxError("there is no instance")
            harm(instance.id)

        patient = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(SandboxError),
            stop=tenacity.stop_after_delay(INSTANCE_SECONDS),
            wait=tenacity.wait_fixed(0.1),
            reraise=True,
        )
        try:
            patient(try_it)
        except SandboxError as error:
            raise FaultMissed(str(error)) from error


def _status(dagster: AttemptsApi, attempt: DagsterAttempt) -> str | None:
    patient = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(DagsterDown),
        stop=tenacity.stop_after_delay(RESTART_SECONDS),
        wait=tenacity.wait_fixed(1),
        retry_error_callback=lambda _: None,
    )
    run = patient(dagster.run, attempt.id)
    return run.status if run else None


def _required(attempt: DagsterAttempt | None) -> DagsterAttempt:
    if attempt is None:
        raise FaultMissed("there is no run of this build")
    return attempt


def _require_killed(killed: list[int], *, otherwise: str) -> None:
    if not killed:
        raise FaultMissed(otherwise)


def _action(request: Request) -> str:
    return parse_qs(request.body.decode(errors="replace")).get("Action", [""])[0]


def _calls(fault: PlannedFault) -> int:
    return 1 if fault.kind is FaultKind.AWS_NO_CAPACITY else fault.times


def _target(kind: FaultKind) -> Callable[[Request], bool]:
    if kind is FaultKind.AWS_NO_CAPACITY:
        return lambda request: _action(request) == "RunInstances"
    return lambda _: True


def _aws_answer(kind: FaultKind) -> ProxyFault:
    error = AWS_ERRORS[kind]
    return ProxyFault(status=error.status, body=error.body(), content_type="text/xml")
