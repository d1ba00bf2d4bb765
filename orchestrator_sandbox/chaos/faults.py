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
from orchestrator_sandbox.chaos.plan import Fault, Kind
from orchestrator_sandbox.chaos.proxy import HOLD_SECONDS, OUTAGE_SECONDS, Answer, Proxy, Request, Toll, Weather
from orchestrator_sandbox.chaos.service_manager import Attempt, Books, kill
from orchestrator_sandbox.chaos.site import Site
from orchestrator_sandbox.ec2.api import Fault as AwsFault

LASTING: dict[Kind, Weather] = {
    Kind.AWS_DOWN: Weather.REFUSING,
    Kind.JENKINS_DOWN: Weather.REFUSING,
    Kind.JENKINS_SLOW: Weather.SLOW,
    Kind.JENKINS_HTML: Weather.HTML,
    Kind.MLFLOW_DOWN: Weather.REFUSING,
    Kind.MLFLOW_RESTARTED: Weather.REFUSING,
    Kind.MLFLOW_SLOW: Weather.SLOW,
    Kind.MLFLOW_HTML: Weather.HTML,
}
"""The kinds that last for some time, and what the server's clients see of them."""

AWS_ANSWERS = {
    Kind.AWS_ERRORS: AwsFault("InternalError", status=500),
    Kind.AWS_THROTTLING: AwsFault("RequestLimitExceeded", status=503),
    Kind.AWS_NO_CAPACITY: AwsFault("InsufficientInstanceCapacity", status=500),
}

JENKINS = (Kind.JENKINS_DOWN, Kind.JENKINS_SLOW, Kind.JENKINS_HTML)
INSTANCE_SECONDS = 5.0
RESTART_SECONDS = 60.0
"""Dagster's webserver is back by then, if it was killed."""
MLFLOW_STARTS_SECONDS = 25.0
"""What a restart of MLflow takes on a busy machine."""


class Missed(Exception):
    """There was nothing (left) that this fault could harm; says what."""


@dataclass(frozen=True)
class Span:
    """How long a fault lasts.

    Attributes:
        least: in seconds.
        most: in seconds; it lasts longer than `least` until it has met enough requests.
        enough: how many are.
        with_run: it ends when the build's run does, at the latest.
    """

    least: float = 0
    most: float = 0
    enough: int = 1
    with_run: bool = False


class Injector:
    """Does the faults.

    Args:
        site: what is harmed.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._mlflow = threading.Lock()

    def held(self, fault: Fault, partition: str) -> AbstractContextManager[None]:
        """Hold up a phase that is too short to be met otherwise, until the context ends."""
        phase = fault.phase
        if phase == "resolve" and fault.kind in JENKINS:  # it is asked before MLflow is
            return self._site.jenkins.held(lambda request: f"/{partition}/" in request.path)
        if phase == "resolve":
            return self._site.mlflow.held(lambda request: request.path.partition("?")[0].endswith("/experiments/get"))
        if phase == "terminate":
            return self._site.aws.held(lambda request: _action(request) == "TerminateInstances")
        if phase == "record":
            return self._site.mlflow.held(lambda request: "/metrics/get-history" in request.path)
        return nullcontext()

    def start(self, fault: Fault, *, attempt: Attempt | None) -> AbstractContextManager[Toll]:
        """Do it; what lasts, lasts as long as the context that is returned, which counts whom it meets.

        Args:
            fault: what to do.
            attempt: the run of the build that is meant; None when there is none yet.

        Raises:
            Missed: there is nothing to do it to.
        """
        match fault.kind:
            case Kind.WORKER_KILLED:
                self._kill_worker(_required(attempt))
            case Kind.DAEMON_KILLED:
                _met(kill(self._site.processes.daemon()), "the daemon is just being started")
            case Kind.CODE_SERVER_KILLED:
                _met(kill(self._site.processes.code_servers()), "the code server is just being started")
            case Kind.EVERYTHING_KILLED:
                kill(self._site.processes.everything())
            case Kind.SSH_CUT:
                self._on_instance(attempt, self._site.stack.ec2.cut_connections)
            case Kind.SSHD_AWAY:
                self._on_instance(
                    attempt, lambda one: self._site.stack.ec2.refuse_connections(one, seconds=fault.seconds)
                )
            case Kind.TRAFFIC_SWALLOWED:
                self._on_instance(attempt, lambda one: self._site.stack.ec2.swallow_traffic(one, seconds=fault.seconds))
            case Kind.INSTANCE_TERMINATED:
                self._on_instance(attempt, self._site.stack.ec2.terminate_from_outside)
            case Kind.AWS_ERRORS | Kind.AWS_THROTTLING | Kind.AWS_NO_CAPACITY:
                return self._site.aws.spoilt(_aws_answer(fault.kind), times=_spoils(fault), applies=_meant(fault.kind))
            case Kind.CANCELLED:
                self._cancel(_required(attempt))
            case Kind.TRAINING_FAILS:
                pass  # the campaign has told the training beforehand
            case _:
                return self._weather(fault)
        return nullcontext(Toll(met=1))

    def lasts(self, fault: Fault) -> Span:
        """For how long it may last now.

        Raises:
            Missed: the server has just been away for as long as its clients must bear.
        """
        if fault.kind in AWS_ANSWERS:
            return Span(most=OUTAGE_SECONDS, enough=_spoils(fault), with_run=True)
        if fault.kind not in LASTING:
            return Span()
        bearable = self._proxy(fault).bearable_seconds()
        if fault.kind is Kind.MLFLOW_RESTARTED:
            bearable -= MLFLOW_STARTS_SECONDS
        if bearable < 1:
            raise Missed("the server has just been away for a minute")
        return Span(least=min(fault.seconds, bearable), most=bearable)

    def _proxy(self, fault: Fault) -> Proxy:
        proxies = {"AWS": self._site.aws, "Jenkins": self._site.jenkins, "MLflow": self._site.mlflow}
        return proxies[fault.kind.partition(" ")[0]]

    @contextlib.contextmanager
    def _weather(self, fault: Fault) -> Iterator[Toll]:
        stopped = self._mlflow_stopped() if fault.kind is Kind.MLFLOW_RESTARTED else nullcontext()
        with self._proxy(fault).weather(LASTING[fault.kind]) as toll, stopped:
            yield toll

    @contextlib.contextmanager
    def _mlflow_stopped(self) -> Iterator[None]:
        with self._mlflow:
            self._site.stack.mlflow.close()
            try:
                yield
            finally:
                self._site.stack.mlflow.__enter__()

    def _kill_worker(self, attempt: Attempt) -> None:
        with self._site.books() as books:
            pid = books.worker(attempt.id)
        worker = self._site.processes.worker(pid) if pid is not None else None
        if worker is None:
            raise Missed("the run's worker has ended")
        _met(kill([worker]), "the run's worker has just ended")

    def _cancel(self, attempt: Attempt) -> None:
        with self._site.books() as books:
            try:
                books.cancel(attempt.id)
            except DagsterDown as error:  # which may have come after it was done
                if _status(books, attempt) not in ("CANCELING", "CANCELED"):
                    raise Missed(f"Dagster did not cancel the run: {error}") from error
            # A phase that is held up stays so, for as long as it can: else it may be over before the cancel arrives.
            patient = tenacity.Retrying(
                retry=tenacity.retry_if_result(lambda status: status == "CANCELING"),
                stop=tenacity.stop_after_delay(HOLD_SECONDS),
                wait=tenacity.wait_fixed(0.5),
                retry_error_callback=lambda _: None,
            )
            patient(_status, books, attempt)

    def _on_instance(self, attempt: Attempt | None, harm: Callable[[str], object]) -> None:
        """Harm the instance of a run; one that is being provisioned is there, and up, in a few seconds."""
        partition = _required(attempt).partition

        def try_it() -> None:
            instance = next((one for one in self._site.instances() if one.partition == partition), None)
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
            raise Missed(str(error)) from error


def _status(books: Books, attempt: Attempt) -> str | None:
    patient = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(DagsterDown),
        stop=tenacity.stop_after_delay(RESTART_SECONDS),
        wait=tenacity.wait_fixed(1),
        retry_error_callback=lambda _: None,
    )
    run = patient(books.run, attempt.id)
    return run.status if run else None


def _required(attempt: Attempt | None) -> Attempt:
    if attempt is None:
        raise Missed("there is no run of this build")
    return attempt


def _met(killed: list[int], otherwise: str) -> None:
    if not killed:
        raise Missed(otherwise)


def _action(request: Request) -> str:
    return parse_qs(request.body.decode(errors="replace")).get("Action", [""])[0]


def _spoils(fault: Fault) -> int:
    return 1 if fault.kind is Kind.AWS_NO_CAPACITY else fault.times


def _meant(kind: Kind) -> Callable[[Request], bool]:
    if kind is Kind.AWS_NO_CAPACITY:
        return lambda request: _action(request) == "RunInstances"
    return lambda _: True


def _aws_answer(kind: Kind) -> Answer:
    fault = AWS_ANSWERS[kind]
    return Answer(fault.status, fault.body(), "text/xml")
